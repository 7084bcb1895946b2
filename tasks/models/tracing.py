"""From the user's class to the graph of what its forward() computes, by torch.export.

It depends on the architecture alone: each new checkpoint is put into the graph of the last trace,
and only what imports this module pays for torch._dynamo.
"""

import operator
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.export.exported_program import ExportedProgram

from tasks.core.errors import QuernError
from tasks.models.architecture import build, eager, one_line
from tasks.models.graph import Graph
from tasks.models.operators import LOWERINGS
from tasks.models.preprocess import parse_preprocess
from tasks.models.translation import Translation, arguments_of, op_name, shape_of


def trace(
    architecture: Path, class_name: str, arguments: dict[str, Any], preprocess: dict[str, Any]
) -> Graph:
    """The graph of `class_name(**arguments)`, for one input as `preprocess` makes it.

    Raises QuernError in one line.
    """
    shape = parse_preprocess(preprocess).input_shape()
    model = build(architecture, class_name, arguments)
    eager(model, torch.zeros(shape))  # says what is wrong with forward() better than export does
    return trace_model(model, shape)


def trace_model(model: nn.Module, input_shape: tuple[int, int, int, int]) -> Graph:
    """The graph of `model` (eval mode, float32) for one input of `input_shape`; its tensors are
    references, and batch norms are still there (passes.bind).

    Raises QuernError in one line naming the module path and what the engine lacks.
    """
    name = type(model).__name__
    program = export(model, input_shape)
    signature = program.graph_signature
    nodes = list(program.graph.nodes)
    (network_input,) = (node for node in nodes if node.name in signature.user_inputs)
    stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    outputs = [node for node in nodes if node.name in signature.user_outputs]
    if len(outputs) != 1 or signature.buffers_to_mutate:
        raise QuernError(f"{name}: forward() must return one tensor and change no buffer")
    shape = shape_of(outputs[0])
    if len(shape) != 2 or shape[0] != 1:
        raise QuernError(f"{name}: forward() returns {list(shape)}; it must return [1, classes]")

    translation = Translation(name, network_input, stored)
    for node in nodes:
        if node.op == "call_function":
            translate(translation, node)
    graph = translation.graph
    graph.output = translation.value(outputs[0])
    last = graph.producer(graph.output)
    if last and last.op == "softmax":
        raise QuernError(
            f"{name}: forward() ends in a softmax; it must return logits, of which the server takes"
            " the softmax itself"
        )
    graph.prune()
    return graph


def export(model: nn.Module, input_shape: tuple[int, int, int, int]) -> ExportedProgram:
    """torch.export's graph, as forward() wrote it: operations in place are still there.

    run_decompositions({}) would remove those, at a third of the whole time.
    """
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(model, (torch.zeros(input_shape),), strict=False)
    except Exception as error:
        raise QuernError(
            f"{type(model).__name__}: forward() cannot be traced by torch.export: {one_line(error)}"
        ) from None
    program.graph.eliminate_dead_code()
    return program


def translate(translation: Translation, node: fx.Node) -> None:
    """One operation of torch; relu_ is relu, and then its input's memory has changed.

    What is refused is so only where its result is read, if ever, unless it changes memory.
    """
    schema: Any = getattr(node.target, "_schema", None)
    in_place = schema is not None and schema.is_mutable
    translation.node = node
    try:
        if node.target is operator.getitem:
            translation.take(*node.args)  # type: ignore[arg-type]
            return
        target = str(node.target)
        lower = LOWERINGS.get(target.replace("_.", ".", 1) if in_place else target)
        if lower is None:
            translation.refuse(op_name(node))
        given = arguments_of(node)
        found, result = lower(translation, given), node.meta["val"]
        if isinstance(result, torch.Tensor) and result.dtype != torch.float32:
            translation.refuse(f"{op_name(node)} to {result.dtype}")
        translation.define(found)
    except QuernError as refusal:
        if in_place:
            raise
        translation.defer(refusal)
    if in_place:
        translation.changed_in_place(given[schema.arguments[0].name])

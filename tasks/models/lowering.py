"""From the user's model to the native engine's graph, by torch.export."""

import warnings
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.exported_program import ExportedProgram

from tasks.core.errors import QuernError
from tasks.models.architecture import one_line
from tasks.models.graph import Graph
from tasks.models.operators import LOWERINGS
from tasks.models.passes import fold_batch_norms, keep_pooled_shape
from tasks.models.translation import Translation, op_name, shape_of


def lower_model(model: nn.Module, input_shape: tuple[int, int, int, int]) -> Graph:
    """The graph of `model` (eval mode, float32) for one input of `input_shape`.

    Raises QuernError in one line naming the module path and what the engine lacks.
    """
    name = type(model).__name__
    program = export(model, input_shape)
    signature = program.graph_signature
    stored = signature.inputs_to_parameters | signature.inputs_to_buffers
    stored |= signature.inputs_to_lifted_tensor_constants
    values: dict[str, Tensor] = {**program.state_dict, **program.constants}
    constants = {placeholder: values[target] for placeholder, target in stored.items()}

    nodes = list(program.graph.nodes)
    (network_input,) = (node for node in nodes if node.name in signature.user_inputs)
    translation = Translation(name, network_input, constants)
    for node in nodes:
        if node.op == "call_function":
            translate(translation, node)

    outputs = [node for node in nodes if node.name in signature.user_outputs]
    if len(outputs) != 1 or signature.buffers_to_mutate:
        raise QuernError(f"{name}: forward() must return one tensor and change no buffer")
    if outputs[0] is network_input or len(shape_of(outputs[0])) != 2:
        shape = list(shape_of(outputs[0]))
        raise QuernError(f"{name}: forward() returns {shape}; it must return [1, classes]")
    graph = translation.graph
    graph.output = translation.value(nodes[-1], outputs[0])
    graph.prune()
    fold_batch_norms(graph, name)
    keep_pooled_shape(graph, name)
    graph.prune()
    graph.renumber()
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
    """One call of an ATen operation; relu_ is relu, and then its input's memory has changed."""
    schema: Any = getattr(node.target, "_schema", None)
    if schema is None:
        translation.refuse(node, str(node.target))
    lower = LOWERINGS.get(str(node.target))
    in_place = schema.is_mutable and schema.name.endswith("_")
    if lower is None and in_place:
        lower = LOWERINGS.get(str(node.target).replace("_.", ".", 1))
    if lower is None:
        translation.refuse(node, op_name(node))
    given = {argument.name: argument.default_value for argument in schema.arguments}
    names = [argument.name for argument in schema.arguments]
    given |= dict(zip(names, node.args, strict=False)) | node.kwargs
    lower(translation, node, given)
    if in_place:
        translation.changed_in_place(node, given[names[0]])

"""The user's own network class, loaded from the user's own file, fitted with weights, and run."""

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from tasks.core.errors import QuernError

SHOWN = 3  # differing tensors named in one line


def build(file: Path, class_name: str, arguments: dict[str, Any]) -> nn.Module:
    """`class_name(**arguments)` from `file`, in eval mode.

    The file is run as the user's own code: it may do whatever Python may. Raises QuernError.
    """
    with _imports_from(file.resolve().parent):
        return _build(file, class_name, arguments)


def fit(model: nn.Module, state: dict[str, Tensor], source: str = "the checkpoint") -> None:
    """Load `state` into `model`; every tensor must be there, with the model's own shape.

    Raises QuernError naming the first tensors that differ. A missing num_batches_tracked is
    let pass: it is not used in eval mode, and checkpoints from before torch 0.4.1 lack it.
    """
    wanted = model.state_dict()
    differing = [
        f"{name} is missing"
        for name in wanted
        if name not in state and not name.endswith("num_batches_tracked")
    ]
    differing += [
        f"{name} is {list(state[name].shape)} and should be {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    differing += [f"{name} is unexpected" for name in state if name not in wanted]
    if differing:
        more = len(differing) - SHOWN
        raise QuernError(
            f"{source} does not fit {type(model).__name__}: {'; '.join(differing[:SHOWN])}"
            + (f"; and {more} more" if more > 0 else "")
        )
    model.load_state_dict(state, strict=False)


def eager(model: nn.Module, network_input: Tensor) -> Tensor:
    """What the model makes of one input, its logits [1, classes] in float32.

    Raises QuernError where forward() fails or returns something else than a tensor.
    """
    name = type(model).__name__
    try:
        with torch.no_grad():
            logits = model(network_input)
    except Exception as error:
        raise QuernError(
            f"{name}: forward() fails on an input of {list(network_input.shape)}, which is what"
            f" preprocess makes: {one_line(error)}"
        ) from None
    if not isinstance(logits, Tensor):
        raise QuernError(f"{name}: forward() returns a {type(logits).__name__}, not one tensor")
    return logits


def one_line(error: BaseException, file: Path | None = None) -> str:
    """An exception as one line: its type, the first line of its text, the line in `file`."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    where = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if file is not None and Path(frame.filename).resolve() == file.resolve():
            where = f" (line {frame.lineno})"
    return f"{type(error).__name__}: {text}{where}" if text else f"{type(error).__name__}{where}"


def _build(file: Path, class_name: str, arguments: dict[str, Any]) -> nn.Module:
    module = _load(file)
    found = getattr(module, class_name, None)
    if not inspect.isclass(found):
        own = [name for name, value in vars(module).items() if _is_network(value, module)]
        raise QuernError(
            f"{file}: no class {class_name}; architecture.class may be {', '.join(own) or 'none'}"
        )
    try:
        model = found(**arguments)
    except Exception as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise QuernError(f"{file}: {class_name}({given}) fails: {one_line(error, file)}") from None
    if not isinstance(model, nn.Module):
        raise QuernError(f"{file}: {class_name} is not a torch.nn.Module")
    return model.float().eval()


def _load(file: Path) -> ModuleType:
    if not file.is_file():
        raise QuernError(f"{file}: no such file; architecture.file must name a Python file")
    name = f"quern_architecture_{file.stem}"
    specification = importlib.util.spec_from_file_location(name, file)
    if specification is None or specification.loader is None:
        raise QuernError(f"{file}: not a Python file; architecture.file must end in .py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # dataclasses and pickling look their module up here
    try:
        specification.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        line = f" (line {error.lineno})" if isinstance(error, SyntaxError) else ""
        raise QuernError(f"{file}: cannot be imported: {one_line(error, file)}{line}") from None
    return module


@contextmanager
def _imports_from(folder: Path) -> Iterator[None]:
    """Files beside the user's own can be imported, as when Python runs it; no trace is left."""
    writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.dont_write_bytecode = writes_bytecode


def _is_network(value: Any, module: ModuleType) -> bool:
    own = inspect.isclass(value) and value.__module__ == module.__name__
    return own and issubclass(value, nn.Module)

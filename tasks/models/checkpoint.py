"""Reading what training wrote: weights as data, never as code."""

import math
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from tasks.core.errors import QuernError
from tasks.models.archive import is_complete_zip

WEIGHTS_KEYS = ("model_state_dict", "state_dict")
COMPILED = "_orig_mod."  # torch.compile puts it before, or within, a name
PARALLEL = "module."  # DataParallel and DistributedDataParallel put it before every name
N = TypeVar("N", int, float)

# A NumPy number or array beside the weights (val_acc often is one) is data: these build nothing
# but numbers of the named types.
NUMPY_SCALAR = np._core.multiarray.scalar  # type: ignore[attr-defined]
NUMPY_VALUES: list[Any] = [
    NUMPY_SCALAR,
    (NUMPY_SCALAR, "numpy.core.multiarray.scalar"),  # its name up to NumPy 1.26
    np.dtype,
    *(type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"),
]


@dataclass
class Checkpoint:
    """Weights by name (float32; integer and bool buffers as they were), and what is known of them.

    `val_acc` is as training wrote it: a fraction or percent. `notes` say what was changed.
    """

    state_dict: dict[str, Tensor]
    epoch: int | None = None
    val_acc: float | None = None
    notes: list[str] = field(default_factory=list)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a .pth file. Raises QuernError: missing, cut short, unsafe, no weights, not finite."""
    loaded = _load(path)
    weights = _weights(path, loaded)
    notes: list[str] = []
    state = {
        name: _as_float32(path, name, tensor) for name, tensor in _without_prefixes(path, weights)
    }
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        count = sum(tensor.dtype == kind for tensor in weights.values())
        if count:
            shown = str(kind).removeprefix("torch.")
            change = "rounded" if kind == torch.float64 else "widened"
            notes.append(f"{count} tensors of {shown} were {change} to float32")
    return Checkpoint(
        state, _number(loaded, "epoch", int), _number(loaded, "val_acc", float), notes
    )


def _load(path: Path) -> Any:
    try:
        reason = is_complete_zip(path)
    except FileNotFoundError:
        raise QuernError(f"{path}: no such checkpoint") from None
    except OSError as error:
        raise QuernError(f"{path}: cannot be read: {error.strerror}") from None
    if reason is not None:
        raise QuernError(f"{path}: {reason}; copy or save it again")
    try:
        with torch.serialization.safe_globals(NUMPY_VALUES):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:GLOBAL |<class ')([\w.]+)", str(error))
        what = f"would use {named[1]} while loading" if named else "holds more than plain data"
        raise QuernError(
            f"{path}: {what}, and nothing in a checkpoint is run; save tensors, numbers and"
            " text only (model.state_dict(), not the model)"
        ) from None
    except Exception as error:
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise QuernError(f"{path}: not a PyTorch checkpoint: {text[0]}") from None


def _weights(path: Path, loaded: Any) -> dict[str, Tensor]:
    if not isinstance(loaded, Mapping):
        raise QuernError(f"{path}: holds a {type(loaded).__name__}, and should hold a state_dict")
    key = next((key for key in WEIGHTS_KEYS if isinstance(loaded.get(key), Mapping)), None)
    weights = loaded if key is None else loaded[key]
    if not weights or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
    ):
        keys = ", ".join(map(str, list(loaded)[:8])) or "nothing"
        raise QuernError(
            f"{path}: no weights under {' or '.join(WEIGHTS_KEYS)}, nor is it a bare state_dict;"
            f" it holds {keys}"
        )
    return dict(weights)


def _without_prefixes(path: Path, weights: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    names = {name: name.replace(COMPILED, "") for name in weights}
    while all(name.startswith(PARALLEL) for name in names.values()):
        names = {name: short.removeprefix(PARALLEL) for name, short in names.items()}
    if len(set(names.values())) < len(names):
        shorts = list(names.values())
        double = next(short for short in shorts if shorts.count(short) > 1)
        raise QuernError(f"{path}: holds {double} twice, once under a prefix")
    return [(names[name], tensor) for name, tensor in weights.items()]


def _as_float32(path: Path, name: str, tensor: Tensor) -> Tensor:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
        raise QuernError(f"{path}: {name} is sparse, quantized or complex; only dense real numbers")
    if not tensor.is_floating_point():
        return tensor
    wide = tensor.float()
    bad = wide.numel() - int(torch.isfinite(wide).sum())
    if bad:
        raise QuernError(
            f"{path}: {name} holds {bad} of {wide.numel()} numbers that are NaN or infinite;"
            " training has diverged, take an earlier checkpoint"
        )
    return wide


def _number(loaded: Any, key: str, kind: type[N]) -> N | None:
    value = loaded.get(key)
    if isinstance(value, Tensor | np.ndarray | np.generic):
        if (value.numel() if isinstance(value, Tensor) else value.size) != 1:
            return None
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return kind(value)

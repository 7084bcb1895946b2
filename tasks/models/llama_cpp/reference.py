"""The unquantized GGUF's own predictions, which formats are measured against; and the proof that
they are PyTorch's."""

import os
import time
from pathlib import Path
from typing import Any

from tasks.core.action import progress
from tasks.core.atomic import write_atomically
from tasks.core.errors import QuernError
from tasks.models.layout import LLAMA_FOLDER
from tasks.models.llama_cpp.divergence import Divergence, without_nan
from tasks.models.llama_cpp.logits import (
    log_probabilities,
    scored,
    successors,
    torch_log_probabilities,
    windows_of,
)
from tasks.models.llama_cpp.measure import as_json, described
from tasks.models.llama_cpp.model import Model
from tasks.models.llama_cpp.text import evaluation_text


def reference(
    f16: str,
    source: list[str],
    tokens: int,
    context: int,
    max_kl_torch: float,
    name: str,
    format: str,
    logits: str,
    report: str,
    text: str | None = None,
    library: str = LLAMA_FOLDER,
) -> None:
    """Compute the log-probabilities of the unquantized GGUF `f16` and hold them against PyTorch's.

    `source`: the Hugging Face directory's files it was converted from; `text`: a file, or the
    default text; `tokens` of it in windows of `context` are read (`logits.py` tells which are
    scored). `format`: its type, such as F16. Writes `logits`, a .npy of float32 [scored tokens,
    vocabulary], natural logarithms, and the JSON `report`.

    Raises QuernError: the mean KL divergence from PyTorch is above `max_kl_torch` nats or NaN,
    too little text, or a vocabulary that differs.
    """
    key = f"models.{name}.evaluate.text"
    with Model(f16, library=library) as model:
        windows = windows_of(model, evaluation_text(text), tokens, context, key)
        seconds = _write_logits(model, windows, Path(logits))
        told = described(model, name, format)
    divergence, kinds = _against_torch(source, windows, Path(logits))
    figures = divergence.figures()
    figures_of_torch = {key: figures[key] for key in ("kl", "top1", "reference_perplexity")}
    told |= {
        "tokens": figures["tokens"],
        "context": context,
        "kl": None,
        "top1": None,
        "perplexity": figures["perplexity"],
        "speed": {"prompt": len(windows) * context / seconds, "generation": None},
        "torch": {**figures_of_torch, **kinds},
    }
    if not figures["kl"]["mean"] <= max_kl_torch:  # NaN must not pass
        raise QuernError(
            f"{f16}: its predictions are not PyTorch's: the mean KL divergence is "
            f"{figures['kl']['mean']:.3g} nats, {max_kl_torch:g} is allowed; try "
            f"models.{name}.convert.type bf16 or f32, or raise models.{name}.evaluate.max_kl_torch"
        )
    write_atomically(Path(report), as_json(without_nan(told)))


def _write_logits(model: Model, windows: list[list[int]], path: Path) -> float:
    """Write the log-probabilities of all windows; returns the seconds llama.cpp took."""
    import numpy

    size = len(windows[0])
    rows = scored(size)
    kept = numpy.lib.format.open_memmap(
        path, mode="w+", dtype=numpy.float32, shape=(rows * len(windows), model.vocabulary)
    )
    seconds = 0.0
    with model.context(size) as context:
        for index, window in enumerate(windows):
            began = time.perf_counter()
            kept[index * rows : (index + 1) * rows] = log_probabilities(context, window)
            seconds += time.perf_counter() - began
            progress("llama.cpp's logits", index + 1, len(windows), "windows")
    kept.flush()
    return seconds


def _against_torch(
    source: list[str], windows: list[list[int]], path: Path
) -> tuple[Divergence, dict[str, Any]]:
    import numpy

    kept = numpy.load(path, mmap_mode="r")
    rows = scored(len(windows[0]))
    divergence, kinds = Divergence(), dict[str, str]()
    for index, wanted in enumerate(torch_log_probabilities(source, windows, kinds)):
        if wanted.shape[1] != kept.shape[1]:
            raise QuernError(
                f"{os.path.dirname(source[0])}: {wanted.shape[1]} tokens by PyTorch, "
                f"{kept.shape[1]} in the GGUF; the vocabulary and config.json don't belong together"
            )
        found = kept[index * rows : (index + 1) * rows]
        divergence.add(wanted, found, successors(windows[index]))
    return divergence, kinds

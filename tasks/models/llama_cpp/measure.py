"""A format measured: how far from the unquantized model, how large, how fast, how right."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from tasks.core.action import progress
from tasks.core.atomic import write_atomically
from tasks.core.digest import read_digests
from tasks.core.errors import QuernError
from tasks.models.layout import LLAMA_FOLDER
from tasks.models.llama_cpp.divergence import Divergence, without_nan
from tasks.models.llama_cpp.gguf_file import read_header
from tasks.models.llama_cpp.logits import (
    log_probabilities,
    log_softmax,
    scored,
    successors,
    windows_of,
)
from tasks.models.llama_cpp.model import Context, Model
from tasks.models.llama_cpp.questions import answer_questions
from tasks.models.llama_cpp.text import evaluation_text

PROBES = 8
PROBE_TOKENS = 32
TOP = 10
# Other processors sum in another order, and quantized products round otherwise.
TOLERANCE = 0.02
GENERATED = 32
GENERATION_SECONDS = 10  # enough to tell the speed of what is that slow


def measure(
    gguf: str,
    logits: str,
    tokens: int,
    context: int,
    format: str,
    name: str,
    system: str | None,
    chat_context: int,
    report: str,
    golden: str,
    text: str | None = None,
    questions: str | None = None,
    library: str = LLAMA_FOLDER,
) -> None:
    """Measure `gguf`, a model's `format`, against the unquantized model's `logits` (.npy).

    `text`, `tokens`, `context`: as they were given to `reference`. `questions`: JSON lines
    {"category", "prompt", "answer"}, put through the model's chat template with the `system`
    message, in a context of `chat_context` tokens. Writes the JSON `report` and the golden set
    `golden` (see `golden_set`). What is measured is not judged here (`divergence.gate` does).

    Raises QuernError: it can't be loaded (each tensor's numbers are checked), or `logits` are of
    another text.
    """
    key = f"models.{name}.evaluate.text"
    with Model(gguf, library=library) as model:
        windows = windows_of(model, evaluation_text(text), tokens, context, key)
        with model.context(context) as room:
            figures, prompt_speed = _compare(room, windows, logits)
            generation_speed = _generation_speed(room, windows[0])
            probes = golden_set(room, windows)
        answers = answer_questions(model, questions, system, chat_context) if questions else None
        told = described(model, name, format)
    told |= {
        **figures,
        "context": context,
        "speed": {"prompt": prompt_speed, "generation": generation_speed},
        "questions": answers,
    }
    write_atomically(Path(report), as_json(without_nan(told)))
    write_atomically(Path(golden), json.dumps(without_nan(probes)).encode() + b"\n")


def described(model: Model, name: str, format: str) -> dict[str, Any]:
    """What a loaded GGUF is: its file, size in bytes, digest, tensors (all checked), weights."""
    size = os.path.getsize(model.path)
    return {
        "format_version": 1,
        "model": name,
        "format": format,
        "file": os.path.basename(model.path),
        "bytes": size,
        "digest": read_digests(model.path)[1],
        "tensors": len(read_header(model.path).tensors),
        "parameters": model.parameters,
        "bits_per_weight": 8 * size / model.parameters,
    }


def golden_set(context: Context, windows: list[list[int]]) -> dict[str, Any]:
    """Prompts of token ids with this GGUF's own probabilities of the next token.

    {"format": 1, "kind": "llm", "tolerance": {"probability"}, "probes": [{"name", "tokens": ids,
    "top": [[token id, probability] …, likeliest first]}]}. A prompt begins as its window does, so
    with the start token where the model wants one. `tasks/hosts/llm_probe.py` holds a server
    against it.
    """
    length = min(PROBE_TOKENS, len(windows[0]))
    # From a few windows, several prompts each: at other places, and with the same beginning.
    per_window = -(-PROBES // len(windows))
    step = max(1, (len(windows[0]) - length) // per_window)
    chosen = windows[:: max(1, len(windows) // PROBES)]
    prompts = [
        [*w[:1], *w[1 + part * step :][: length - 1]] for part in range(per_window) for w in chosen
    ][:PROBES]
    probes = []
    for index, prompt in enumerate(prompts):
        context.clear()
        probabilities = log_softmax(context.add(prompt))[0]
        best = (-probabilities).argsort(kind="stable")[:TOP]
        top = [[int(i), round(math.exp(probabilities[i]), 6)] for i in best]
        probes.append({"name": f"probe {index + 1}", "tokens": prompt, "top": top})
    return {
        "format": 1,
        "kind": "llm",
        "tolerance": {"probability": TOLERANCE},
        "probes": probes,
    }


def as_json(value: Any) -> bytes:
    """JSON as the build's files have it: readable, the same bytes for the same value."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _compare(
    context: Context, windows: list[list[int]], logits: str
) -> tuple[dict[str, Any], float]:
    """The figures of divergence, and tokens per second of reading."""
    import numpy

    kept = numpy.load(logits, mmap_mode="r")
    rows = scored(len(windows[0]))
    if kept.shape != (rows * len(windows), context.model.vocabulary):
        raise QuernError(
            f"{logits}: is of another text or vocabulary ({kept.shape[0]} × {kept.shape[1]}); "
            "build it again"
        )
    divergence, seconds = Divergence(), 0.0
    for index, window in enumerate(windows):
        began = time.perf_counter()
        found = log_probabilities(context, window)
        seconds += time.perf_counter() - began
        divergence.add(kept[index * rows : (index + 1) * rows], found, successors(window))
        progress("measuring", index + 1, len(windows), "windows")
    return divergence.figures(), len(windows) * len(windows[0]) / seconds


def _generation_speed(context: Context, window: list[int]) -> float:
    """Tokens per second of writing, each the likeliest, after half a window."""
    context.clear()
    logits = context.add(window[: len(window) // 2])
    count, began = 0, time.perf_counter()
    while count < GENERATED and context.length < context.size:
        logits = context.add([int(logits[0].argmax())])
        count += 1
        if time.perf_counter() - began > GENERATION_SECONDS:
            break
    return count / (time.perf_counter() - began)

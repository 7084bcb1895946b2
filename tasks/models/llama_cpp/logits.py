"""Log-probabilities over a text: by llama.cpp of a GGUF, and by PyTorch of the same model.

The text is cut into windows of `context` tokens, and of each window the second half is scored, as
llama-perplexity does: a token with little before it says little about a model. The windows are
computed one by one, so that a vocabulary of 150 000 needs memory for one window at a time.
"""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tasks.core.action import progress
from tasks.core.errors import QuernError
from tasks.core.memory import available_memory
from tasks.models.llama_cpp.model import Context, Model
from tasks.models.llama_cpp.source import count_weights, source_folder

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray

# A token is a byte of text at least, and hardly more than this many on average.
CHARACTERS_PER_TOKEN = 16
MARGIN = 1.25


def first_scored(context: int) -> int:
    """The index in a window of the first token whose successor is scored."""
    return context // 2


def scored(context: int) -> int:
    """How many tokens of a window have a scored successor; the last one's is in no window."""
    return context - 1 - first_scored(context)


def windows_of(model: Model, text: str, tokens: int, context: int, key: str) -> list[list[int]]:
    """The first `tokens` of `text` as windows of `context` token ids, each with the model's start
    token in place of its first, where the model wants one.

    There are fewer windows if the text is shorter. Raises QuernError naming `key`: not one window.
    """
    ids = model.tokenize(text[: tokens * CHARACTERS_PER_TOKEN])
    if len(ids) <= tokens:
        ids = model.tokenize(text)
    count = min(tokens, len(ids)) // context
    if count == 0:
        raise QuernError(
            f"{key}: the text has {len(ids)} tokens and {tokens} are asked for, where one window "
            f"takes {context}; give more text, more tokens or a smaller context"
        )
    start = model.start_token
    windows = [ids[i * context : (i + 1) * context] for i in range(count)]
    return windows if start is None else [[start, *window[1:]] for window in windows]


def successors(window: list[int]) -> list[int]:
    """The tokens that in fact follow the scored ones of a window."""
    return window[first_scored(len(window)) + 1 :]


def log_softmax(logits: "NDArray[float32]") -> "NDArray[float32]":
    """Logits [tokens, vocabulary] as log-probabilities (natural), float32, summed in float64."""
    import numpy

    shifted = logits - logits.max(axis=-1, keepdims=True)
    total = numpy.exp(shifted, dtype=numpy.float32).sum(axis=-1, keepdims=True, dtype=numpy.float64)
    result: NDArray[float32] = shifted - numpy.log(total).astype(numpy.float32)
    return result


def log_probabilities(context: Context, window: list[int]) -> "NDArray[float32]":
    """llama.cpp's, float32 [scored(len(window)), vocabulary], natural logarithms."""
    first = first_scored(len(window))
    context.clear()
    return log_softmax(context.add(window, first)[:-1])


def torch_log_probabilities(
    source: list[str], windows: list[list[int]], told: dict[str, str]
) -> Iterator["NDArray[float32]"]:
    """PyTorch's for each window, float32 [scored, vocabulary], of the Hugging Face model `source`.

    Computed in float32 where that fits in memory, else in the type the weights are stored as;
    `told["type"]` says which. Attention is the plain one, whose sums no kernel reorders.
    """
    import torch
    from transformers import AutoModelForCausalLM

    fits = MARGIN * 4 * count_weights(source) < memory_for_weights()
    dtype = torch.float32 if fits else "auto"
    with source_folder(source) as folder, torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, dtype=dtype, attn_implementation="eager"
        ).eval()
        told["type"] = str(model.dtype).removeprefix("torch.")
        for index, window in enumerate(windows):
            progress("PyTorch's logits", index, len(windows), "windows")
            first = first_scored(len(window))
            logits = model(input_ids=torch.tensor([window]), use_cache=False).logits[0, first:-1]
            yield log_softmax(logits.float().numpy())
        progress("PyTorch's logits", len(windows), len(windows), "windows")


def memory_for_weights() -> int:
    """Bytes of memory that can be had; where nobody says, half of all is a guess on the safe
    side."""
    return available_memory() or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2

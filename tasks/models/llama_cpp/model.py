"""A GGUF in memory: its tokenizer, and the logits that llama.cpp computes with it."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from tasks.core.action import progress
from tasks.core.errors import QuernError
from tasks.models.layout import LLAMA_FOLDER
from tasks.models.llama_cpp.library import LastErrors, heard, load

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray

MICRO_BATCH = 512


def processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Model:
    """The GGUF file at `path`, loaded with every tensor's numbers checked by llama.cpp.

    `vocabulary_only` loads the tokenizer alone. To be used in a `with` statement, as llama.cpp
    ends the process over a use after close. Raises QuernError: it can't be loaded, with
    llama.cpp's reason.
    """

    def __init__(
        self, path: str, *, library: str = LLAMA_FOLDER, vocabulary_only: bool = False
    ) -> None:
        self.api = load(library)
        self.path = path
        if not os.path.exists(path):
            raise QuernError(f"{path}: not there; build it again")
        settings = self.api.llama_model_default_params()
        settings.vocab_only = vocabulary_only
        settings.check_tensors = True

        def told(share: float, _: Any) -> bool:
            progress("loading", round(100 * share), 100, "%")
            return True

        callback = self.api.llama_progress_callback(told)
        settings.progress_callback = callback
        errors = LastErrors()
        with heard(errors):
            self.handle = self.api.llama_model_load_from_file(path.encode(), settings)
        if not self.handle:
            raise QuernError(f"{path}: llama.cpp can't load it: {errors.told()}; build it again")
        self._vocabulary = self.api.llama_model_get_vocab(self.handle)

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *_: object) -> None:
        self.api.llama_model_free(self.handle)
        self.handle = None

    @property
    def vocabulary(self) -> int:
        """The number of tokens."""
        return int(self.api.llama_vocab_n_tokens(self._vocabulary))

    @property
    def start_token(self) -> int | None:
        """The token that text begins with, if the model wants one."""
        if not self.api.llama_vocab_get_add_bos(self._vocabulary):
            return None
        return int(self.api.llama_vocab_bos(self._vocabulary))

    def token_text(self, which: Literal["bos", "eos"]) -> str:
        """The start or the end token as the chat template writes it; empty if there is none."""
        token = getattr(self.api, f"llama_vocab_{which}")(self._vocabulary)
        return self.piece(token, special=True).decode() if token >= 0 else ""

    @property
    def parameters(self) -> int:
        """The number of weights."""
        return int(self.api.llama_model_n_params(self.handle))

    @property
    def chat_template(self) -> str | None:
        """The Jinja template that makes a prompt of messages."""
        template = self.api.llama_model_chat_template(self.handle, None)
        return template.decode() if template else None

    def tokenize(self, text: str, *, start: bool = False, special: bool = False) -> list[int]:
        """The token ids of `text`. `start`: with the model's start and end tokens, where it wants
        them. `special`: special tokens' names in the text are those tokens."""
        data = text.encode()
        room = len(data) + 8
        while True:
            tokens = (ctypes.c_int32 * room)()
            count = self.api.llama_tokenize(
                self._vocabulary, data, len(data), tokens, room, start, special
            )
            if count >= 0:
                return tokens[:count]
            room = -count

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes that `token` stands for; of special tokens nothing, unless `special`."""
        buffer = ctypes.create_string_buffer(256)
        length = self.api.llama_token_to_piece(
            self._vocabulary, token, buffer, len(buffer), 0, special
        )
        return buffer.raw[: max(length, 0)]

    def ends(self, token: int) -> bool:
        """Whether `token` ends what the model has to say."""
        return bool(self.api.llama_vocab_is_eog(self._vocabulary, token))

    @contextmanager
    def context(self, size: int, threads: int | None = None) -> Iterator["Context"]:
        """Room for `size` tokens. Raises QuernError: not enough memory for it."""
        settings = self.api.llama_context_default_params()
        settings.n_ctx = settings.n_batch = size
        settings.n_ubatch = min(size, MICRO_BATCH)
        settings.n_threads = settings.n_threads_batch = threads or processors()
        errors = LastErrors()
        with heard(errors):
            handle = self.api.llama_init_from_model(self.handle, settings)
        if not handle:
            raise QuernError(
                f"{self.path}: no context of {size} tokens: {errors.told()}; make it smaller"
            )
        batch = self.api.llama_batch_init(size, 0, 1)
        try:
            yield Context(self, handle, batch, size)
        finally:
            self.api.llama_batch_free(batch)
            self.api.llama_free(handle)


class Context:
    """A sequence of tokens that grows as the model is asked for what follows it."""

    def __init__(self, model: Model, handle: Any, batch: Any, size: int) -> None:
        self.model, self.handle, self.batch, self.size = model, handle, batch, size
        self.length = 0

    def clear(self) -> None:
        """Forget all tokens."""
        api = self.model.api
        api.llama_memory_clear(api.llama_get_memory(self.handle), True)
        self.length = 0

    def add(self, tokens: list[int], first: int | None = None) -> "NDArray[float32]":
        """Append `tokens`; returns the logits after each from index `first` on (by default the
        last): float32 [len(tokens) - first, vocabulary].

        Raises QuernError: more than there is room for, or llama.cpp can't compute it.
        """
        import numpy

        api, batch = self.model.api, self.batch
        count = len(tokens)
        first = count - 1 if first is None else first
        if self.length + count > self.size:
            raise QuernError(
                f"{self.length + count} tokens don't fit a context of {self.size}; make it larger"
            )
        batch.n_tokens = count
        for index, token in enumerate(tokens):
            batch.token[index] = token
            batch.pos[index] = self.length + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = index >= first
        errors = LastErrors()
        with heard(errors):
            status = api.llama_decode(self.handle, batch)
        if status:
            raise QuernError(
                f"{self.model.path}: llama.cpp can't compute with it (status {status}): "
                f"{errors.told()}"
            )
        self.length += count
        pointer = api.llama_get_logits(self.handle)
        shape = (count - first, self.model.vocabulary)
        return numpy.ctypeslib.as_array(pointer, shape).copy()

"""A Hugging Face model → GGUF, by llama.cpp's own converter.

The converter accepts what it should refuse (a missing tensor, NaN, numbers beyond float16), so
the weights are read and checked before; and a tokenizer that it takes for another is found out by
comparing token by token after.
"""

import importlib
import logging
import os
import shutil
import sys
import traceback
import zipimport
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.core.action import progress
from tasks.core.errors import QuernError
from tasks.models.layout import LLAMA_FOLDER
from tasks.models.llama_cpp.source import (
    MAX_FLOAT16,
    WEIGHTS,
    refuse_bad_numbers,
    refuse_missing_tensors,
    source_folder,
)
from tasks.models.llama_cpp.text import evaluation_text

BYTES_PER_WEIGHT = {"f16": 2, "bf16": 2, "f32": 4}
NOT_RECOGNIZED = "BPE pre-tokenizer was not recognized"
# Names that a declaration can take, to be told with the fault: the most usual ones.
USUAL_PRE_TOKENIZERS = "llama-bpe, qwen2, gpt-2, …"


def convert(
    source: list[str],
    converter: str,
    type: str,
    name: str,
    pre_tokenizer: str | None,
    gguf: str,
    parity: str | None = None,
    library: str = LLAMA_FOLDER,
) -> None:
    """The whole step of a build: check the weights, write `gguf`, compare its tokenizer.

    `source`: the files of a Hugging Face model directory. `converter`: the zip of llama.cpp's
    converter. `type`: f16, bf16 or f32, for matrices; vectors are float32 always. `name`: the
    model's name in models.yaml, which is written into the file. `pre_tokenizer`: llama.cpp's name
    for how the text is split before BPE, for a tokenizer that the converter doesn't recognize.
    `parity`: the text over which the tokenizers must agree, by default the evaluation's.

    The same `source` contents give the same bytes wherever the files lie. Raises QuernError: a
    tensor missing, NaN, infinite or too large for `type`; an architecture or tokenizer that
    llama.cpp lacks; a `pre_tokenizer` that isn't this model's; too little disk space.
    """
    from tasks.models.llama_cpp.tokenizers import compare_tokenizers

    if not source:
        raise QuernError(
            f"models.{name}.base: no such directory, or no files in it; give a directory as "
            "Hugging Face writes it"
        )
    refuse_missing_tensors(source)
    matrices, vectors = refuse_bad_numbers(source, name, MAX_FLOAT16 if type == "f16" else None)
    others = [f for f in source if not f.endswith(WEIGHTS)]
    rest = sum(os.path.getsize(file) for file in others)
    refuse_full_disk(gguf, matrices * BYTES_PER_WEIGHT[type] + vectors * 4 + rest)
    run_converter(source, converter, type, name, pre_tokenizer, gguf)
    compare_tokenizers(gguf, source, evaluation_text(parity), name, library)


def refuse_full_disk(path: str, needed: int) -> None:
    """Raise QuernError if fewer than `needed` bytes are free where `path` is to be written."""
    free = shutil.disk_usage(os.path.dirname(path) or ".").free
    if free < needed:
        raise QuernError(
            f"{path}: {needed} bytes are needed and {free} are free; make room on that disk"
        )


def run_converter(
    source: list[str],
    converter: str,
    type: str,
    name: str,
    pre_tokenizer: str | None,
    gguf: str,
) -> None:
    """Write `gguf` with llama.cpp's converter, and nothing else. See `convert`."""
    if not os.path.exists(converter):
        raise QuernError(f"{converter}: not there; build it with: doit llama")
    os.environ["NO_LOCAL_GGUF"] = "1"  # its gguf package is beside it, in the zip
    # First, as Quern's own hook takes all below the project for folders.
    sys.path_hooks.insert(0, zipimport.zipimporter)
    sys.path.insert(0, converter)
    try:
        program = importlib.import_module("convert_hf_to_gguf")
        conversion = importlib.import_module("conversion")
        tqdm: Any = importlib.import_module("tqdm")
        tqdm.tqdm = _Bar
    except ImportError as error:
        raise QuernError(f"{converter}: {error}; run ./setup llm") from None
    messages = _Messages()
    logging.getLogger().addHandler(messages)
    original = conversion.TextModel.get_vocab_base_pre
    conversion.TextModel.get_vocab_base_pre = _declaring(original, pre_tokenizer, name)
    arguments = sys.argv
    try:
        with source_folder(source) as folder:
            sys.argv = ["convert_hf_to_gguf.py", str(folder), "--outfile", gguf]
            sys.argv += ["--outtype", type, "--model-name", name]
            program.main()
    except (Exception, SystemExit) as error:
        Path(gguf).unlink(missing_ok=True)
        if isinstance(error, QuernError) or (isinstance(error, OSError) and error.errno):
            raise  # they tell for themselves
        raise QuernError(_reason(error, messages.last, source)) from error
    finally:
        sys.argv = arguments
        sys.path.remove(converter)
        sys.path_hooks.remove(zipimport.zipimporter)
        conversion.TextModel.get_vocab_base_pre = original
        logging.getLogger().removeHandler(messages)


def _reason(error: BaseException, complaint: str, source: list[str]) -> str:
    where = os.path.dirname(source[0])
    told = " ".join(str(error).split())
    if isinstance(error, SystemExit):
        told = complaint or f"it ended with status {error.code}"
    elif not told:
        told = f"{type(error).__name__} in {traceback.extract_tb(error.__traceback__)[-1].name}"
    return f"{where}: llama.cpp can't convert it: {told[:300]}"


def _declaring(
    original: Callable[[Any, Any], str], declared: str | None, name: str
) -> Callable[[Any, Any], str]:
    """The converter's recognition of pre-tokenizers, with the declaration where it fails."""
    key = f"models.{name}.convert.pre_tokenizer"

    def get_vocab_base_pre(model: Any, tokenizer: Any) -> str:
        try:
            found = original(model, tokenizer)
        except NotImplementedError as error:
            if NOT_RECOGNIZED not in str(error):
                raise
            if declared is None:
                raise QuernError(
                    "llama.cpp doesn't recognize how the tokenizer splits text; set "
                    f"{key} to llama.cpp's name for it ({USUAL_PRE_TOKENIZERS})"
                ) from None
            return declared
        if declared not in (None, found):
            raise QuernError(
                f"{key} is {declared}, but llama.cpp recognizes the tokenizer's as {found}; "
                "remove the key"
            )
        return found

    return get_vocab_base_pre


class _Messages(logging.Handler):
    """Keeps the converter's last complaint, for those of its faults that are just an exit."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.last = record.getMessage()


class _Bar:
    """In place of tqdm in the converter's writer: the bytes written, as this task's progress."""

    def __init__(self, *_: Any, total: int | None = None, **__: Any) -> None:
        self.done, self.total = 0, total or 0

    def update(self, amount: int) -> None:
        self.done += amount
        progress("writing the GGUF", self.done, self.total)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None

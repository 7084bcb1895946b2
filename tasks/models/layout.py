"""Where each artifact of a model lies in the project, and what a release is made of."""

import os
import re
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.core.configuration import LanguageModel

SERVER = "native/build/quern-server"
HOLDER = "native/build/quern-holder"


def artifact(model: str, file: str) -> str:
    """The path of one of a model's artifacts, `weights/<model>/<file>`."""
    return f"weights/{model}/{file}"


def release_files(model: str, classes: str) -> dict[str, str]:
    """Role → path, for everything a release of `model` is made of."""
    return {
        "server": SERVER,
        "holder": HOLDER,
        "weights": artifact(model, "model_weights.bin"),
        "classes": classes,
        "golden": artifact(model, "golden.json"),
    }


def cycle_of(path: str) -> int | None:
    """The training cycle in a path, `…/checkpoints_cycle13/…` → 13, to be compared as a number."""
    found = re.findall(r"cycle_?(\d+)", path)
    return int(found[-1]) if found else None


# What tasks/llama.py provides of llama.cpp: the converter as one archive of Python code, and the
# server with the libraries it needs.
CONVERTER = "native/build/llama/converter.zip"
LLAMA_FOLDER = "native/build/llama"
LLAMA_SERVER = f"{LLAMA_FOLDER}/llama-server"
LLAMA_IMATRIX = f"{LLAMA_FOLDER}/llama-imatrix"
LLAMA_LIBRARIES = tuple(
    f"{LLAMA_FOLDER}/lib{name}{'.dylib' if sys.platform == 'darwin' else '.so'}"
    for name in ("llama", "ggml", "ggml-base")
)


def model_files(name: str, model: "LanguageModel") -> list[str]:
    """The files of the Hugging Face model that a language model's GGUF is made of: the merged
    one's, which are named as the base's, or without an adapter the base's own."""
    if not os.path.isdir(model.base):
        return []
    files = sorted(entry.name for entry in os.scandir(model.base) if entry.is_file())
    folder = artifact(name, "merged") if model.adapter else model.base
    return [
        f"{folder}/{file}"
        for file in files
        if not file.startswith(".") and not file.endswith(".gguf")
    ]


def unquantized(name: str, model: "LanguageModel") -> str:
    """The GGUF that formats are made of and measured against."""
    return artifact(name, f"{name}-{model.convert.type}.gguf")


def quantized(name: str, format: str) -> str:
    """A language model's GGUF in one format."""
    return artifact(name, f"{name}-{format}.gguf")

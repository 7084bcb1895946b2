"""Where each artifact of a model lies in the project, and what a release is made of."""

import re

from tasks.core.configuration import LanguageModel
from tasks.models.llama_cpp.files import server_files

SERVER = "native/build/quern-server"
HOLDER = "native/build/quern-holder"
CHAT_SERVER = "native/build/quern-chat"


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


def gguf(model: str, type_name: str) -> str:
    """The path of a model's GGUF file of one type: f16, Q4_K_M, …"""
    return artifact(model, f"{model}-{type_name}.gguf")


def primary_format(model: LanguageModel) -> str:
    """The format that is deployed."""
    return model.quantize.primary or model.quantize.formats[0]


def language_release_files(name: str, model: LanguageModel) -> dict[str, str]:
    """Role → path, for everything a release of a language model is made of."""
    primary = primary_format(model)
    files = {
        "weights": gguf(name, primary),
        "golden": artifact(name, f"{primary}.golden.json"),
        "chat": artifact(name, "chat.json"),
        "modelfile": artifact(name, "Modelfile"),
    }
    if any(wanted.chat for wanted in model.deploy.values()):
        files |= {"server": CHAT_SERVER, "holder": HOLDER, "engine": LLAMA_SERVER}
        files |= {library: f"{LLAMA_FOLDER}/{library}" for library in server_files()}
    return files

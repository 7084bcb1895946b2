"""Where each artifact of a model lies in the project, and what a release is made of."""

import re

from tasks.core.configuration import Classifier, LanguageModel, Source
from tasks.models.hugging_face import pretrained_files, tokenizer_files
from tasks.models.llama_cpp.files import library_file, server_files

SERVER = "native/build/quern-server"
HOLDER = "native/build/quern-holder"
PLATFORM = "native/build/platform.json"
CHAT_SERVER = "native/build/quern-chat"


def artifact(model: str, file: str) -> str:
    """The path of one of a model's artifacts, `weights/<model>/<file>`."""
    return f"weights/{model}/{file}"


def programs(host: str = "") -> dict[str, str]:
    """Role → path of the classifiers' server and its holder, for this machine or for `host`."""
    files = {"server": SERVER, "holder": HOLDER}
    return {role: built_for(path, host) for role, path in files.items()}


def built_for(path: str, host: str) -> str:
    """Where the file that `path` is for this machine lies for `host`."""
    return f"native/build/{host}/{path.rpartition('/')[2]}" if host else path


def manifest_file(model: str, host: str = "") -> str:
    """The release manifest of a model: for this machine, or for `host`, whose programs may be
    others."""
    return artifact(model, f"manifest@{host}.json" if host else "manifest.json")


def release_files(model: str, classes: str, host: str = "") -> dict[str, str]:
    """Role → path, for everything a release of `model` on this machine or on `host` is made of."""
    return {
        **programs(host),
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
LLAMA_FOLDER = "native/build/llama"
CONVERTER = f"{LLAMA_FOLDER}/converter.zip"
LLAMA_SERVER = f"{LLAMA_FOLDER}/llama-server"
LLAMA_IMATRIX = f"{LLAMA_FOLDER}/llama-imatrix"
LLAMA_LIBRARIES = tuple(
    f"{LLAMA_FOLDER}/{library_file(name)}" for name in ("llama", "ggml", "ggml-base")
)


def adapter_folder(name: str, model: LanguageModel) -> str | None:
    """The directory of a language model's adapter: the user's own, or where fetch brings it."""
    return artifact(name, "adapter") if isinstance(model.adapter, Source) else model.adapter


def merged_files(name: str, base: str, adapter: str) -> dict[str, str]:
    """File name → path, for every file of the merged model: the base's own names, and the
    tokenizer files that the adapter brings. Of a base that isn't there, config.json alone."""
    names = {*pretrained_files(base), *tokenizer_files(adapter)} or {"config.json"}
    return {file: artifact(name, f"merged/{file}") for file in sorted(names)}


def model_files(name: str, model: LanguageModel) -> list[str]:
    """The files of the Hugging Face model that a language model's GGUF is made of: the merged
    one's, or without an adapter the base's own."""
    adapter = adapter_folder(name, model)
    if adapter:
        return list(merged_files(name, model.base, adapter).values())
    return [f"{model.base}/{file}" for file in pretrained_files(model.base) or ["config.json"]]


def unquantized(name: str, model: LanguageModel) -> str:
    """The GGUF that formats are made of and measured against."""
    return artifact(name, f"{name}-{model.convert.type}.gguf")


def quantized(name: str, format: str) -> str:
    """A language model's GGUF in one format."""
    return artifact(name, f"{name}-{format}.gguf")


def primary_format(model: LanguageModel) -> str:
    """The format that is deployed."""
    return model.quantize.primary or model.quantize.formats[0]


def language_release_files(name: str, model: LanguageModel) -> dict[str, str]:
    """Role → path, for everything a release of a language model is made of."""
    primary = primary_format(model)
    files = {
        "weights": quantized(name, primary),
        "golden": artifact(name, f"{primary}.golden.json"),
        "chat": artifact(name, "chat.json"),
        "modelfile": artifact(name, "Modelfile"),
    }
    if any(wanted.chat for wanted in model.deploy.values()):
        files |= {"server": CHAT_SERVER, "holder": HOLDER, "engine": LLAMA_SERVER}
        files |= {library: f"{LLAMA_FOLDER}/{library}" for library in server_files()}
    return files


def files_of_release(name: str, model: Classifier | LanguageModel, host: str) -> dict[str, str]:
    """Role → path, for everything a release of `model` is made of, with the programs for `host`."""
    if isinstance(model, Classifier):
        return release_files(name, model.classes, host)
    return language_release_files(name, model)

"""Where each artifact of a model lies in the project, and what a release is made of."""

import re

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

"""What lies in a Hugging Face directory: the files of a model, or of an adapter."""

import json
import os

# A Hugging Face model or adapter directory: what in it is a file of the tokenizer, and what holds
# weights in another format than safetensors (or is left over from training).
TOKENIZER_FILES = frozenset(
    {
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        "merges.txt",
        "sentencepiece.bpe.model",
        "special_tokens_map.json",
        "spiece.model",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    }
)
OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".ot", ".gguf", ".pkl")
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
BASE_OF_ADAPTER = "quern_base.json"  # {"xxh3_128": digest of the base that the adapter is for}


def pretrained_files(folder: str) -> list[str]:
    """Names of the files that make up a Hugging Face model, sorted: weights in safetensors and all
    that is small; hidden files, folders and weights in other formats are passed over."""
    weights = weight_files(folder)
    return [
        name
        for name in _files(folder)
        if name in weights
        or (
            not name.endswith((".safetensors", ".index.json", *OTHER_WEIGHTS))
            or (name == INDEX and weights != [WEIGHTS])
        )
    ]


def weight_files(folder: str) -> list[str]:
    """Names of the safetensors files that hold a model's weights, as transformers finds them:
    model.safetensors, or the shards that the index lists (there or not); none: []."""
    names = _files(folder)
    if WEIGHTS in names:
        return [WEIGHTS]
    if INDEX not in names:
        return []
    try:
        with open(os.path.join(os.path.expanduser(folder), INDEX), encoding="utf-8") as file:
            shards = {str(shard) for shard in json.load(file)["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        shards = set()
    if shards and all(os.path.basename(shard) == shard for shard in shards):
        return sorted(shards)
    return [name for name in names if name.endswith(".safetensors")]  # told when the index is read


def tokenizer_files(folder: str) -> list[str]:
    """Names of the tokenizer's files in a directory, sorted."""
    return [name for name in _files(folder) if name in TOKENIZER_FILES]


def base_inputs(base: str) -> list[str]:
    """Paths of the files that a merge reads of its base."""
    folder = os.path.normpath(os.path.expanduser(base))
    names = {"config.json", *pretrained_files(folder), *weight_files(folder)}
    return [f"{folder}/{name}" for name in sorted(names)]


def adapter_inputs(adapter: str) -> list[str]:
    """Paths of the files that a merge reads of its adapter."""
    folder, there = os.path.normpath(os.path.expanduser(adapter)), _files(adapter)
    names = {ADAPTER_CONFIG, ADAPTER_WEIGHTS, *tokenizer_files(folder)}
    if BASE_OF_ADAPTER in there:
        names.add(BASE_OF_ADAPTER)
    if ADAPTER_WEIGHTS not in there and "adapter_model.bin" in there:
        names.remove(ADAPTER_WEIGHTS)  # so that the merge runs, and says what is wrong
    return [f"{folder}/{name}" for name in sorted(names)]


def _files(folder: str) -> list[str]:
    try:
        with os.scandir(os.path.expanduser(folder)) as entries:
            return sorted(e.name for e in entries if e.is_file() and not e.name.startswith("."))
    except OSError:
        return []

"""A Hugging Face model directory: its weights by their headers, its digest, its architecture."""

import contextlib
import io
import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tasks.core.digest import canonical_json, digest_of_bytes, read_digests
from tasks.core.errors import QuernError
from tasks.models.hugging_face import INDEX, WEIGHTS, weight_files
from tasks.models.safetensors_file import SafetensorsFile, Stored, read_header

LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block|layer)\.(\d+)\.")
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


@dataclass(frozen=True)
class Pretrained:
    """A model's directory: config.json as it is, and its weight files' headers by name."""

    folder: Path
    config: dict[str, Any]
    files: dict[str, SafetensorsFile]

    @cached_property
    def file_of(self) -> dict[str, SafetensorsFile]:
        """Tensor name → the file it is in."""
        return {name: file for file in self.files.values() for name in file.tensors}

    def stored(self, name: str) -> Stored:
        """One tensor's dtype, shape and place. Raises KeyError."""
        return self.file_of[name].tensors[name]

    @property
    def size(self) -> int:
        """Bytes of all weight files."""
        return sum(file.path.stat().st_size for file in self.files.values())


@dataclass(frozen=True)
class Architecture:
    """The network of a model's directory, made by transformers without weights (meta device)."""

    network: Any
    ties: dict[str, set[str]]  # parameter → every name of it, where it has more than one
    unknown: list[str] = field(default_factory=list)  # tensors that it has no place for


def base_digest(folder: str | Path) -> str:
    """xxh3_128 (hex) of a model's weight files: of the canonical JSON of their names and digests.

    What `quern_base.json` beside an adapter holds, `{"xxh3_128": …}`, to tie the adapter to its
    base. Raises QuernError when there are no safetensors weights.
    """
    names = _weight_files(Path(folder))
    try:
        return digest_of_bytes(
            canonical_json({name: read_digests(Path(folder) / name)[1] for name in names})
        )
    except FileNotFoundError as error:
        raise QuernError(f"{error.filename}: no such file, and {INDEX} lists it") from None


def read_pretrained(folder: Path) -> Pretrained:
    """Read a model's config.json, index and headers.

    Raises QuernError: something missing or cut short, weights not in safetensors, an index that
    disagrees with its shards, a model that is quantized.
    """
    config = read_json(folder / "config.json")
    if config.get("quantization_config"):
        raise QuernError(
            f"{folder / 'config.json'}: the model is quantized (quantization_config), and nothing"
            " can be merged into it exactly; take the unquantized model as the base"
        )
    names = _weight_files(folder)
    files = {name: read_header(folder / name) for name in names}
    place: dict[str, str] = {}
    for name, file in files.items():
        for tensor in file.tensors:
            if tensor in place:
                raise QuernError(
                    f"{folder / name}: {tensor} is also in {place[tensor]}; copy the model again"
                )
            place[tensor] = name
    if names != [WEIGHTS]:  # which transformers prefers over an index, and so do we
        _compare_index(folder, place)
    return Pretrained(folder, config, files)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object. Raises QuernError: missing, cut short, not an object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise QuernError(f"{path}: no such file; copy the whole directory again") from None
    except OSError as error:
        raise QuernError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise QuernError(f"{path}: not valid JSON: {error}; copy it again") from None
    if not isinstance(value, dict):
        raise QuernError(f"{path}: holds a {type(value).__name__}, and should hold an object")
    return value


def _weight_files(folder: Path) -> list[str]:
    names = weight_files(str(folder))
    if names:
        return names
    pickled = next(iter(sorted(folder.glob("*.bin"))), None)
    if pickled is not None:
        raise QuernError(
            f"{pickled}: weights are pickled, that is, code; only safetensors is read: load the"
            " model in transformers and save_pretrained() it"
        )
    raise QuernError(f"{folder}: no *.safetensors in it; give the directory of a whole model")


def _compare_index(folder: Path, place: dict[str, str]) -> None:
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise QuernError(f"{folder / INDEX}: no weight_map in it; copy it again")
    for tensor, shard in weight_map.items():
        if place.get(tensor) != shard:
            raise QuernError(
                f"{folder / str(shard)}: lacks {tensor}, which {INDEX} says it has; copy the"
                " model again"
            )
    extra = next((tensor for tensor in place if tensor not in weight_map), None)
    if extra is not None:
        raise QuernError(
            f"{folder / place[extra]}: has {extra}, of which {INDEX} knows nothing; copy the"
            " model again"
        )


def read_architecture(model: Pretrained) -> Architecture:
    """Make the model's network without weights, and hold its weights' names and shapes against it.

    transformers itself puts the headers' tensors into the network, with all its renaming and
    tying; it only warns of what is missing, and makes that up. Raises QuernError: a tensor that is
    missing or has the wrong shape, layers that the configuration doesn't count, an architecture
    that transformers doesn't have.
    """
    import torch
    import transformers

    path = model.folder / "config.json"
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if model.config.get("auto_map"):
        raise QuernError(
            f"{path}: the model brings code of its own (auto_map), which is not run; take a version"
            " of it that transformers knows"
        )
    try:
        config = transformers.AutoConfig.from_pretrained(model.folder, local_files_only=True)
    except Exception as error:
        raise QuernError(f"{path}: transformers can't read it: {first_line(error)}") from None
    name = next(iter(model.config.get("architectures") or []), None)
    network_class = getattr(transformers, str(name), None)
    if network_class is None:
        raise QuernError(
            f"{path}: architectures says {name}, which transformers {transformers.__version__} does"
            " not have; correct it or upgrade transformers"
        )
    types = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16}
    tensors = {
        name: torch.empty(
            file.tensors[name].shape,
            dtype=types.get(file.tensors[name].dtype, torch.bfloat16),
            device="meta",
        )
        for name, file in model.file_of.items()
    }
    report = io.StringIO()
    try:
        with contextlib.redirect_stdout(report):
            network, found = network_class.from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                device_map="meta",
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:
        raise QuernError(
            f"{model.folder}: its weights don't fit {name}: {first_line(error)}"
        ) from None
    unknown = sorted(found["unexpected_keys"])
    _refuse_layers(model, network, sorted(found["missing_keys"]), unknown)
    for key in sorted(found["missing_keys"]):
        raise QuernError(
            f"{model.folder}: its weights lack {key}, one of {len(found['missing_keys'])} tensors"
            f" missing that {name} needs; copy the model again"
        )
    for key, stored, needed in sorted(found["mismatched_keys"]):
        raise QuernError(
            f"{model.folder}: {key} has shape {by(stored)}, and {name} with this config.json needs"
            f" {by(needed)}; weights and config.json are of different models"
        )
    return Architecture(network, _ties(network), unknown)


def _refuse_layers(model: Pretrained, network: Any, missing: list[str], unknown: list[str]) -> None:
    """Refuse more or fewer layers than config.json counts, in the user's words."""
    text = network.config.get_text_config()
    key = next((key for key in LAYER_COUNTS if getattr(text, key, None) is not None), None)
    if key is None:
        return
    count = int(getattr(text, key))
    there = [int(found[1]) for name in model.file_of if (found := LAYER.search(name))]
    beyond = any((found := LAYER.search(name)) and int(found[1]) >= count for name in unknown)
    lacking = {int(found[1]) for name in missing if (found := LAYER.search(name))}
    lost = lacking - set(there)
    if beyond or (lost and max(lost) == count - 1):
        raise QuernError(
            f"{model.folder / 'config.json'}: {key} is {count}, and the weights have"
            f" {len(set(there))} layers; copy the model again, or correct {key}"
        )


def _ties(network: Any) -> dict[str, set[str]]:
    names: dict[int, set[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return {name: group for group in names.values() if len(group) > 1 for name in group}


def first_line(error: Exception) -> str:
    """An error of a library in a few words, for one line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


def by(shape: Any) -> str:
    """A shape for people: 64×128."""
    return "×".join(map(str, shape)) or "()"

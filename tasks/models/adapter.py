"""A LoRA adapter, checked against the base it is to be merged into, by headers alone.

peft only warns, or says nothing, when an adapter and a base don't belong together; here each such
fault is refused.
"""

import filecmp
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.core.errors import QuernError
from tasks.models.hugging_face import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BASE_OF_ADAPTER,
    tokenizer_files,
)
from tasks.models.pretrained import (
    Architecture,
    Pretrained,
    base_digest,
    by,
    read_json,
)
from tasks.models.safetensors_file import SafetensorsFile, not_finite, read_header

PREFIX = "base_model.model."
PART = re.compile(r"^(.+)\.lora_([AB])\.weight$")

# What an adapter's configuration may say and still be plain LoRA, merged as W + B·A·scale. Any
# other key that is set, a future one too, is left to peft.
PLAIN = frozenset(
    [
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_dropout",
        "megatron_config",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
        "use_rslora",
    ]
)
# These fill A and B alone; the others (pissa, olora, …) change the base's weights.
PLAIN_BEGINNINGS = (True, False, "gaussian", "eva")
STREAMED = ("BF16", "F16", "F32")


@dataclass(frozen=True)
class Adapter:
    """An adapter's directory: its configuration as it is, its weights' header."""

    folder: Path
    config: dict[str, Any]
    file: SafetensorsFile

    @property
    def base_name(self) -> str:
        """What its configuration calls the base; "" when it says nothing."""
        return str(self.config.get("base_model_name_or_path") or "").rstrip("/")


@dataclass(frozen=True, slots=True)
class Update:
    """What is added to one tensor of the base: B·A·scale; `down` (A) and `up` (B) are names in
    the adapter's file, of shapes rank×inputs and outputs×rank."""

    down: str
    up: str
    scale: float


@dataclass(frozen=True)
class Plan:
    """Updates by the base tensor's name; `reasons` say why the merge is peft's, if it is."""

    updates: dict[str, Update]
    reasons: list[str]


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter's configuration and header. Raises QuernError: missing, cut short, pickled,
    a kind of adapter that can't be merged, NaN or infinity."""
    config = read_json(folder / ADAPTER_CONFIG)
    if not (folder / ADAPTER_WEIGHTS).exists() and (folder / "adapter_model.bin").exists():
        raise QuernError(
            f"{folder / 'adapter_model.bin'}: the adapter is pickled, that is, code; only"
            " safetensors is read: load it in peft and save_pretrained() it"
        )
    file = read_header(folder / ADAPTER_WEIGHTS)
    if not file.tensors:
        raise QuernError(f"{file.path}: holds no tensors; save the adapter again")
    for name, stored in file.tensors.items():
        bad = not_finite(file.read(name), stored.dtype)
        if bad:
            raise QuernError(
                f"{file.path}: {name} holds {bad} of {math.prod(stored.shape)} numbers that are NaN"
                " or infinite; training has diverged, take an earlier checkpoint"
            )
    return Adapter(folder, config, file)


def refuse_other_base(adapter: Adapter, base: Pretrained, base_name: str | None) -> None:
    """Refuse an adapter that was trained on another base: by the digest in quern_base.json if it
    has one, else by the base's name. `base_name` is `merge.base_name` of models.yaml."""
    told = adapter.folder / BASE_OF_ADAPTER
    if told.exists():
        wanted, found = read_json(told).get("xxh3_128"), base_digest(base.folder)
        if wanted != found:
            raise QuernError(
                f"{told}: the adapter was trained on base {wanted}, and {base.folder} is {found};"
                " give the base it was trained on"
            )
        return
    config, name = adapter.folder / ADAPTER_CONFIG, adapter.base_name
    if not name:
        raise QuernError(
            f"{config}: base_model_name_or_path is empty, so nothing says which base the adapter is"
            f" for; set it, or write {BASE_OF_ADAPTER} beside it"
        )
    names = {last_part(name), name.lower()}
    known = {
        last_part(str(base.folder)),
        last_part(os.path.realpath(base.folder)),
        last_part(str(base.config.get("_name_or_path") or "")),
    }
    if not names & {*known, (base_name or "").lower()} - {""}:
        raise QuernError(
            f"{config}: the adapter was trained on {name}, and the base is {base.folder}; give that"
            f" base, or if its weights are the same say merge: {{base_name: {name}}} in models.yaml"
        )


def last_part(path: str) -> str:
    """The last component of a path or repository name, in lower case."""
    return path.rstrip("/").rpartition("/")[2].lower()


def plan(adapter: Adapter, base: Pretrained, architecture: Architecture) -> Plan:
    """What to add to which of the base's tensors.

    Raises QuernError: weights that match nothing, a target without A or B, a rank or shape that
    doesn't fit, a target that shares its weights with another module.
    """
    reasons = reasons_for_peft(adapter.config)
    modules = dict(architecture.network.named_modules())
    targets = [name for name in modules if _is_target(adapter.config, name, modules, architecture)]
    for module in targets:
        tied = architecture.ties.get(f"{module}.weight", set()) - {f"{module}.weight"}
        if tied:
            raise QuernError(
                f"{adapter.file.path}: adapts {module}, and the base ties its weight to"
                f" {min(tied)}, which merging would change too; untie the base, or train without"
                " that target"
            )
    if reasons:  # what the adapter has to hold is then peft's to know; merge.py compares
        return Plan({}, reasons)
    parts: dict[str, dict[str, str]] = {}
    stray = []
    for key in adapter.file.tensors:
        name = key.removeprefix(PREFIX)
        found = PART.match(name)
        if found:
            parts.setdefault(found[1], {})[found[2]] = key
        elif name.removesuffix(".base_layer.weight") in targets:
            reasons.append(f"{key}: the adapter brings weights of the base")
        elif ".lora_embedding_" in name:
            reasons.append("it adapts an embedding")
        else:
            stray.append(key)
    path = adapter.file.path
    for module, pair in parts.items():
        if module not in modules:
            stray.extend(pair.values())
        elif module not in targets:
            raise QuernError(
                f"{path}: {next(iter(pair.values()))} is of a module that target_modules of"
                f" {ADAPTER_CONFIG} does not name; the two are of different adapters"
            )
    if stray:
        raise QuernError(
            f"{path}: {stray[0]} matches nothing in {base.folder} ({len(stray)} of"
            f" {len(adapter.file.tensors)} tensors do not); give the base it was trained on"
        )
    _refuse_missing(adapter, targets, parts, bool(reasons))
    updates = {}
    for module in targets:
        key, pair = f"{module}.weight", parts.get(module, {})
        if len(pair) < 2:
            continue
        reason = _reason_of_target(key, modules[module], base, adapter, pair)
        if reason:
            reasons.append(reason)
            continue
        updates[key] = _update(adapter, base, module, pair)
    return Plan({} if reasons else updates, reasons)


def _refuse_missing(
    adapter: Adapter, targets: list[str], parts: dict[str, dict[str, str]], by_peft: bool
) -> None:
    path = adapter.file.path
    if not targets:
        raise QuernError(
            f"{adapter.folder / ADAPTER_CONFIG}: target_modules"
            f" {adapter.config.get('target_modules')} names no module of the base; give the base"
            " it was trained on"
        )
    for module, pair in parts.items():
        if len(pair) < 2:
            there, lacking = ("A", "B") if "A" in pair else ("B", "A")
            raise QuernError(
                f"{path}: {module} has lora_{there} and lacks lora_{lacking}; save the adapter"
                " again"
            )
    missing = [module for module in targets if module not in parts]
    if missing and not by_peft:
        raise QuernError(
            f"{path}: no weights for {missing[0]} ({len(missing)} of {len(targets)} targets lack"
            f" them); {ADAPTER_CONFIG} and the base say it is adapted: save the adapter again, or"
            " give the base it was trained on"
        )


def _reason_of_target(
    key: str, module: Any, base: Pretrained, adapter: Adapter, pair: dict[str, str]
) -> str | None:
    import torch

    if type(module) is not torch.nn.Linear:
        return f"{key} is of a {type(module).__name__}"
    if key not in base.file_of:
        return f"{key} has another name in the base's files"
    if base.stored(key).dtype not in STREAMED:
        return f"{key} is stored as {base.stored(key).dtype}"
    for part in pair.values():
        if adapter.file.tensors[part].dtype not in STREAMED:
            return f"{part} is stored as {adapter.file.tensors[part].dtype}"
    return None


def _update(adapter: Adapter, base: Pretrained, module: str, pair: dict[str, str]) -> Update:
    config = adapter.config
    rank = _by_pattern(config.get("rank_pattern"), module, config.get("r"))
    alpha = _by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha"))
    if type(rank) is not int or rank < 1 or isinstance(alpha, bool | str | None):
        raise QuernError(
            f"{adapter.folder / ADAPTER_CONFIG}: r is {rank} and lora_alpha {alpha} for {module};"
            " both must be positive numbers"
        )
    outputs, inputs = base.stored(f"{module}.weight").shape
    for key, needed in ((pair["A"], (rank, inputs)), (pair["B"], (outputs, rank))):
        shape = adapter.file.tensors[key].shape
        if shape != needed:
            raise QuernError(
                f"{adapter.file.path}: {key} has shape {by(shape)}, and rank {rank} on"
                f" {module}.weight ({outputs}×{inputs}) needs {by(needed)}; adapter and base do"
                " not belong together"
            )
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return Update(pair["A"], pair["B"], scale)


def reasons_for_peft(config: dict[str, Any]) -> list[str]:
    """Why an adapter isn't plain LoRA; [] when it is. Raises QuernError when it can't be merged."""
    kind = str(config.get("peft_type", "")).upper()
    if not kind:
        raise QuernError(f"{ADAPTER_CONFIG}: no peft_type in it; is it an adapter's?")
    if kind != "LORA":
        return [f"it is a {kind} adapter"]
    reasons = []
    for key, value in config.items():
        if key == "init_lora_weights":
            if value not in PLAIN_BEGINNINGS:
                reasons.append(f"init_lora_weights is {value}")
        elif key == "bias":
            if value != "none":
                reasons.append(f"bias is {value}")
        elif key not in PLAIN and value:
            reasons.append(f"{key} is set")
    return reasons


def _by_pattern(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    """The value for a module as peft finds it: of the first pattern that matches its name's end."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _is_target(
    config: dict[str, Any], name: str, modules: dict[str, Any], architecture: Architecture
) -> bool:
    """Whether peft's rules make a module a target: target_modules (a pattern of the whole name, or
    ends of names), exclude_modules, layers_to_transform within layers_pattern."""
    targets, excluded = config.get("target_modules"), config.get("exclude_modules")
    if not name or getattr(modules[name], "weight", None) is None:
        return False
    if excluded and _matches(excluded, name):
        return False
    if targets == "all-linear":
        import torch

        output = architecture.network.get_output_embeddings()
        return type(modules[name]) is torch.nn.Linear and modules[name] is not output
    if not targets or not _matches(targets, name):
        return False
    layers, within = config.get("layers_to_transform"), config.get("layers_pattern")
    if isinstance(targets, str) or name in targets or layers is None or layers == []:
        return True
    found = None
    for pattern in [within] if isinstance(within, str) and within else within or [r"[^.]*"]:
        found = re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", name)
        if found:
            break
    return found is not None and int(found[1]) in ([layers] if isinstance(layers, int) else layers)


def _matches(wanted: str | list[str], name: str) -> bool:
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    return any(name == end or name.endswith(f".{end}") for end in wanted)


def refuse_other_tokenizer(adapter: Adapter, base: Pretrained, rows: int) -> None:
    """Refuse tokenizer files in the adapter's directory, which take the place of the base's, if
    they have tokens beyond the embedding's `rows`, or other tokens than the base's."""
    brought = [
        adapter.folder / name
        for name in tokenizer_files(str(adapter.folder))
        if not (base.folder / name).exists()
        or not filecmp.cmp(base.folder / name, adapter.folder / name, shallow=False)
    ]
    before = _vocabulary(base.folder) if brought else {}
    for path in brought:
        for token, number in _tokens(path).items():
            if number >= rows:
                raise QuernError(
                    f"{path}: token {token!r} is number {number}, and the base's embedding has"
                    f" {rows} rows; resize the base before training, and give that as the base"
                )
            if before.get(token, number) != number:
                raise QuernError(
                    f"{path}: token {token!r} is number {number}, and {before[token]} in the base;"
                    " remove the adapter's tokenizer files, or give the base it was trained on"
                )


def _vocabulary(folder: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in tokenizer_files(str(folder)):
        found.update(_tokens(folder / name))
    return found


def _tokens(path: Path) -> dict[str, int]:
    """The tokens that one tokenizer file numbers; {} for one that numbers none."""
    try:
        if path.suffix == ".model":
            return _pieces(path)
        if path.name == "vocab.txt":
            lines = path.read_text(encoding="utf-8").splitlines()
            return {token: number for number, token in enumerate(lines)}
        if path.suffix != ".json" or path.name == "special_tokens_map.json":
            return {}
        value = read_json(path)
        if path.name in ("vocab.json", "added_tokens.json"):
            return {str(token): int(number) for token, number in value.items()}
        if path.name == "tokenizer_config.json":
            added = value.get("added_tokens_decoder") or {}
            return {str(token["content"]): int(number) for number, token in added.items()}
        if path.name != "tokenizer.json":
            return {}
        vocabulary = value["model"].get("vocab") or {}
        if isinstance(vocabulary, list):  # unigram: [[token, score], …]
            vocabulary = {token: number for number, (token, _) in enumerate(vocabulary)}
        added = {token["content"]: int(token["id"]) for token in value.get("added_tokens") or []}
        return {**vocabulary, **added}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise QuernError(f"{path}: is not a tokenizer's; save the tokenizer again") from None


def _pieces(path: Path) -> dict[str, int]:
    import sentencepiece

    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError):
        raise QuernError(f"{path}: is not a SentencePiece model; copy it again") from None
    return {model.id_to_piece(number): number for number in range(model.get_piece_size())}

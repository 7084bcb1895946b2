"""`models.yaml`, the one file a user edits: read strictly, with faults told by file and line.

The classes below are the configuration's reference and the source of its JSON Schema
(`python -m tasks.core.configuration > models.schema.json`).
"""

import copy
import inspect
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml

from tasks.core.environment import configuration_file as configuration_file
from tasks.core.errors import QuernError

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Size = Annotated[int, msgspec.Meta(ge=1, le=16384)]
Format = Annotated[str, msgspec.Meta(pattern=r"^[A-Z][A-Z0-9_]{1,15}$")]
Promote = Literal["manual", "auto"]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
# Not a tuple type: msgspec 0.19 to 0.22 crashes at exit on one in a union.
HeightAndWidth = Annotated[list[Size], msgspec.Meta(min_length=2, max_length=2)]


CANDIDATE, STABLE = "candidate", "stable"


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A section takes the keys listed here and no others."""


class Ranking(Section, frozen=True):
    """A JSON file in which training ranks what it wrote: the highest value under `by` is the best,
    with `lowest` the lowest. A relative `file` is beside what the source's path has before its
    first wildcard (docs/sources.md)."""

    file: str
    by: str
    lowest: bool = False


class Best(Section, frozen=True):
    """The pick that a ranking makes."""

    best: Ranking


class Source(Section, frozen=True):
    """Where training writes checkpoints (files) or adapters (directories): on a host of `hosts`,
    on an instance of vast.ai, or on this machine. Of several matches of `path`, `pick` takes one.
    """

    path: Annotated[str, msgspec.Meta(min_length=1)]
    host: Name | None = None
    vastai: Annotated[int, msgspec.Meta(ge=1)] | None = None
    pick: Literal["newest", "highest-cycle"] | Best = "highest-cycle"

    @property
    def machine(self) -> str | None:
        """The machine's name for records and messages; None is this one."""
        return f"vastai {self.vastai}" if self.vastai else self.host

    def __str__(self) -> str:
        return f"{self.machine}:{self.path}" if self.machine else self.path


class Architecture(Section, frozen=True, rename={"class_name": "class"}):
    """The network's code: class `class` of Python file `file`, called with `arguments`."""

    file: str
    class_name: str
    arguments: dict[str, Any] = {}


class Preprocess(Section, frozen=True):
    """The transform the network was trained with (docs/weight-format.md)."""

    mode: Literal["RGB", "L"] = "RGB"
    resize: Size | HeightAndWidth | None = None
    crop: Size | HeightAndWidth | None = None
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    mean: list[float] = []
    std: list[float] = []


class CompareImages(Section, frozen=True):
    """The labelled images on which a candidate is held against the stable release: `images` is a
    folder with a folder per class, or a CSV file with the columns image and class
    (docs/channels.md). A candidate that is less accurate by more than `margin` is not promoted;
    0.01 is one point."""

    images: str | None = None
    margin: Share = 0.0


class CompareQuestions(Section, frozen=True):
    """The questions on which a candidate is held against the stable release, by default those of
    `evaluate`. A candidate that is less accurate by more than `margin` is not promoted."""

    questions: str | None = None
    margin: Share = 0.0


class Classifier(Section, frozen=True, tag_field="kind", tag="classifier"):
    """An image classifier: checkpoint → model_weights.bin → C++ server.

    `deploy` has each host's channels with their ports. Of a `candidate` and others, new releases
    go to the candidate; `promote` says what brings them to the others: `manual`, the default, is
    `doit promote`, `auto` a comparison that they stand."""

    checkpoint: Source
    architecture: Architecture
    classes: str
    preprocess: Preprocess
    probes: str | None = None
    compare: CompareImages = CompareImages()
    deploy: dict[Name, dict[Name, Port | Promote]] = {}


class Merge(Section, frozen=True):
    """How the adapter is merged into the base; `drop`: the merged model is removed once all that
    is made of it is there, and made again when something new needs it. `base_name`: the name of
    the base in the adapter's own configuration, where that is not the base directory's."""

    tool: Literal["automatic", "peft", "unsloth"] = "automatic"
    base_name: str | None = None
    drop: bool = False


class Convert(Section, frozen=True):
    """Merged model → GGUF; `pre_tokenizer` declares one that llama.cpp does not recognize, by
    llama.cpp's name for it (`gpt-2`, `llama-bpe`, …). `parity` is the text on which the tokenizers
    must agree, by default all of the evaluation's. `drop`: as in `merge`."""

    type: Literal["f16", "bf16", "f32"] = "f16"
    pre_tokenizer: str | None = None
    parity: str | None = None
    drop: bool = False


class Quantize(Section, frozen=True):
    """Quantized formats, by llama.cpp's names for them; `primary` is the one that is deployed, by
    default the first. `imatrix` is a text from which the importance of weights is measured.
    `allow_fallback`: where a tensor's rows don't fit a K-quant, another type may take its place."""

    formats: Annotated[list[Format], msgspec.Meta(min_length=1)]
    primary: Format | None = None
    imatrix: str | None = None
    allow_fallback: bool = False


class Evaluate(Section, frozen=True):
    """What a format is measured on, and how far it may be from the unquantized model.

    `max_kl` is the mean Kullback-Leibler divergence in nats, `min_top1` the share of tokens whose
    likeliest successor is the same. `max_kl_torch` holds the unquantized model against PyTorch.
    `questions` is a file of JSON lines {"category", "prompt", "answer"}."""

    text: str | None = None
    tokens: Annotated[int, msgspec.Meta(ge=32)] = 1024
    context: Annotated[int, msgspec.Meta(ge=16)] = 256
    max_kl: Annotated[float, msgspec.Meta(gt=0)] = 0.1
    min_top1: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.8
    max_kl_torch: Annotated[float, msgspec.Meta(gt=0)] = 0.001
    questions: str | None = None


class Chat(Section, frozen=True):
    """How the model is talked to, wherever it is deployed. `parallel` chats of `context` tokens
    each are answered at a time by our server, with `threads`, by default one a core."""

    context: Annotated[int, msgspec.Meta(ge=16)] = 4096
    temperature: Annotated[float, msgspec.Meta(ge=0, le=5)] = 0.8
    system: str | None = None
    parallel: Annotated[int, msgspec.Meta(ge=1, le=100)] = 2
    threads: Annotated[int, msgspec.Meta(ge=1, le=512)] | None = None


class Health(Section, frozen=True):
    """What a healthy model does: answers each prompt with `min_length` characters or more, at
    `min_tokens_per_second` or more, the first byte of /health within `max_latency_ms`."""

    prompts: Annotated[list[str], msgspec.Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: ["Hello"]
    )
    min_length: Annotated[int, msgspec.Meta(ge=0)] = 1
    min_tokens_per_second: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    max_latency_ms: Annotated[float, msgspec.Meta(gt=0)] = 1000.0
    min_free_gb: Annotated[float, msgspec.Meta(ge=0)] = 1.0


class LmStudio(Section, frozen=True):
    """LM Studio's folder on the host; the file goes to models/<publisher>/<model>/."""

    folder: str = "~/.lmstudio"
    publisher: Name = "quern"
    by: Literal["automatic", "copy", "hard-link", "symbolic-link"] = "automatic"


class Ollama(Section, frozen=True):
    """Ollama on the host: a Modelfile, and `ollama create` where the program is."""

    name: str | None = None


class ModelDeploy(Section, frozen=True):
    """Where a language model goes on one host: `chat` is the port of our chat server, or channels
    with a port each (`{candidate: 8766, stable: 8765}`), `lmstudio` LM Studio's folder, `ollama:
    true`. `promote` as a classifier's. Earlier releases are kept, `keep` of them."""

    chat: Port | dict[Name, Port] | None = None
    lmstudio: LmStudio | str | None = None
    ollama: Ollama | bool | None = None
    promote: Promote | None = None
    keep: Annotated[int, msgspec.Meta(ge=1)] = 3


class LanguageModel(Section, frozen=True, tag_field="kind", tag="llm"):
    """A language model: base (+ adapter) → merged → GGUF → quantized, verified, served.

    `base` and `adapter` are directories as Hugging Face's libraries write them; an adapter that is
    a source is brought from there."""

    base: str
    quantize: Quantize
    adapter: str | Source | None = None
    merge: Merge = Merge()
    convert: Convert = Convert()
    evaluate: Evaluate = Evaluate()
    chat: Chat = Chat()
    compare: CompareQuestions = CompareQuestions()
    health: Health = Health()
    deploy: dict[Name, ModelDeploy] = {}


@dataclass(frozen=True)
class PromotionPolicy:
    """New releases go to the channel `candidate`; what brings them from there to the others is
    `by`."""

    candidate: str
    by: Promote


def promotion_policy(model: Classifier | LanguageModel) -> PromotionPolicy | None:
    """How releases come to the channels of a model; None: each gets every release."""
    names = [name for wanted in model.deploy.values() for name in channel_names(wanted)]
    candidate = CANDIDATE if CANDIDATE in names else next(iter(names), CANDIDATE)
    said = next(iter(promotions(model)), None)
    if said is None and (candidate != CANDIDATE or set(names) <= {CANDIDATE}):
        return None
    return PromotionPolicy(candidate, said or "manual")


def promotions(model: Classifier | LanguageModel) -> list[Promote]:
    """What the hosts' `promote` say, each once."""
    said = [
        wanted.get("promote") if isinstance(wanted, dict) else wanted.promote
        for wanted in model.deploy.values()
    ]
    return list(dict.fromkeys(p for p in said if p in ("manual", "auto")))


def channel_ports(wanted: Mapping[str, int | Promote] | ModelDeploy) -> dict[str, int]:
    """Channel → port, of the servers on one host."""
    if isinstance(wanted, ModelDeploy):
        chat = wanted.chat or {}
        return {"chat": chat} if isinstance(chat, int) else dict(chat)
    return {channel: port for channel, port in wanted.items() if isinstance(port, int)}


def channel_names(wanted: Mapping[str, int | Promote] | ModelDeploy) -> list[str]:
    """The channels on one host, servers and folders."""
    folders: list[str] = []
    if isinstance(wanted, ModelDeploy):
        folders = [name for name in ("lmstudio", "ollama") if getattr(wanted, name)]
    return [*channel_ports(wanted), *folders]


class Host(Section, frozen=True):
    """A machine: `ssh` is how it is reached (an alias of ~/.ssh/config, user@host,
    ssh://user@host:port), without it is this one; `root` is the folder for releases on it.
    `listen` is the address that its servers listen on; `keep` earlier releases of a classifier
    stay on it. `programs`: where the native programs for it are built; `there` needs a compiler on
    the host. `signers` is a file here, as ssh-keygen(1) has it under ALLOWED SIGNERS: only releases
    that are signed by one of them go live on it.
    """

    ssh: str | None = None
    root: str | None = None
    listen: str = "127.0.0.1"
    keep: Annotated[int, msgspec.Meta(ge=1)] = 5
    programs: Literal["automatic", "here", "there"] = "automatic"
    signers: Annotated[str, msgspec.Meta(min_length=1)] | None = None


class Sign(Section, frozen=True):
    """Releases are signed (docs/provenance.md) with `key`: the file of a private SSH key without a
    passphrase, or of any SSH key that ssh-agent holds."""

    key: Annotated[str, msgspec.Meta(min_length=1)]


class Store(Section, frozen=True):
    """What recipes made (docs/store.md): `remote` is a store that machines share, by a URL of
    fsspec's (s3://, sftp://, file://); `limit_gb` bounds the one here, in 10^9 bytes."""

    remote: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z][A-Za-z0-9+.-]*://.")] | None = None
    limit_gb: Annotated[float, msgspec.Meta(gt=0)] | None = None


class Configuration(Section, frozen=True):
    """The whole of models.yaml; `ssh_config` is a file to use in place of ~/.ssh/config, `notify`
    are apprise's addresses (docs/unattended.md)."""

    models: dict[Name, Classifier | LanguageModel]
    hosts: dict[Name, Host] = {}
    ssh_config: str | None = None
    notify: list[str] = []
    sign: Sign | None = None
    store: Store = Store()

    def classifiers(self) -> dict[str, Classifier]:
        """The models of kind classifier, by name."""
        return {n: m for n, m in self.models.items() if isinstance(m, Classifier)}

    def language_models(self) -> dict[str, LanguageModel]:
        """The models of kind llm, by name."""
        return {n: m for n, m in self.models.items() if isinstance(m, LanguageModel)}

    def chosen(self, names: list[str]) -> list[str]:
        """The models named, by default all that are deployed somewhere. Raises QuernError."""
        for name in names:
            if name not in self.models:
                known = ", ".join(self.models)
                raise QuernError(f"{configuration_file()}: no model {name}; models are {known}")
        return names or [name for name, model in self.models.items() if model.deploy]

    def sources(self) -> dict[str, Source]:
        """What is brought from where training writes it, by model."""
        found = {n: m.checkpoint for n, m in self.classifiers().items()}
        for name, model in self.language_models().items():
            if isinstance(model.adapter, Source):
                found[name] = model.adapter
        return found


@lru_cache
def load_configuration(path: str | None = None) -> Configuration:
    """Read and check the configuration. Raises QuernError: file, line, key, what is wrong."""
    path = path or configuration_file()
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise QuernError(f"{path}: not found; run doit in the project's directory") from None
    except (OSError, UnicodeDecodeError) as error:
        raise QuernError(f"{path}: can't be read: {error}") from None
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        tree = yaml.compose(text, Loader=loader)
        value = yaml.load(text, Loader=loader) or {}
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise QuernError(f"{path}{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise QuernError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    _refuse_repeated_keys(tree, path)
    value = _with_environment(value, [], tree, path)
    try:
        configuration = msgspec.convert(value, Configuration)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `")
        raise _fault(path, tree, _keys_of(place, value, str(error)), problem) from None
    _check_references(configuration, tree, path)
    return configuration


def _check_references(configuration: Configuration, tree: Any, path: str) -> None:
    for position, address in enumerate(configuration.notify):
        if not re.fullmatch(r"[a-z][a-z0-9+.-]*://\S+", address, re.IGNORECASE):
            problem = "is no address; write service://… as apprise has it, or a webhook's https://…"
            raise _fault(path, tree, ["notify", str(position)], problem)
    ports: dict[tuple[str, int], str] = {}
    for name, model in configuration.models.items():
        for host, channels in model.deploy.items():
            if host != "local" and host not in configuration.hosts:
                known = ", ".join(["local", *configuration.hosts])
                raise _fault(
                    path, tree, ["models", name, "deploy", host], f"no such host; hosts are {known}"
                )
            for channel, port in channel_ports(channels).items():
                taken = ports.setdefault((host, port), f"{name} {channel}")
                if taken != f"{name} {channel}":
                    raise _fault(
                        path,
                        tree,
                        ["models", name, "deploy", host, channel],
                        f"port {port} is taken by {taken}",
                    )
        _check_promotion(configuration, name, tree, path)
        _check_source(configuration, name, tree, path)
        if isinstance(model, LanguageModel):
            _check_language_model(model, name, tree, path)
            continue
        channels_of_pixels = 1 if model.preprocess.mode == "L" else 3
        for key in ("mean", "std"):
            values = getattr(model.preprocess, key)
            if values and len(values) != channels_of_pixels:
                raise _fault(
                    path,
                    tree,
                    ["models", name, "preprocess", key],
                    f"has {len(values)} values where mode {model.preprocess.mode} "
                    f"wants {channels_of_pixels}",
                )
        if 0.0 in model.preprocess.std:
            raise _fault(path, tree, ["models", name, "preprocess", "std"], "must not hold zero")


def _check_promotion(configuration: Configuration, name: str, tree: Any, path: str) -> None:
    model = configuration.models[name]
    keys = ["models", name, "deploy"]
    for host, wanted in model.deploy.items():
        for channel, port in wanted.items() if isinstance(wanted, dict) else ():
            if (channel == "promote") == isinstance(port, int):
                problem = "must be manual or auto" if channel == "promote" else "must be a port"
                raise _fault(path, tree, [*keys, host, channel], problem)
    policy = promotion_policy(model)
    if policy is None:
        return
    if len(promotions(model)) > 1:
        raise _fault(path, tree, keys, "promote is manual on one host and auto on another")
    names = {name for wanted in model.deploy.values() for name in channel_names(wanted)}
    if names == {policy.candidate}:
        raise _fault(path, tree, keys, f"there is no channel to promote {policy.candidate} to")
    if policy.candidate == STABLE:
        problem = "new releases would go to stable; name the candidate's channel before it"
        raise _fault(path, tree, keys, problem)
    if policy.by == "auto" and not is_compared(model):
        what = "images" if isinstance(model, Classifier) else "questions"
        problem = f"promote: auto goes by a comparison; give models.{name}.compare.{what}"
        raise _fault(path, tree, keys, problem)


def is_compared(model: Classifier | LanguageModel) -> bool:
    """Whether there is something to compare a candidate of `model` by."""
    if isinstance(model, Classifier):
        return model.compare.images is not None
    return (model.compare.questions or model.evaluate.questions) is not None


def _check_source(configuration: Configuration, name: str, tree: Any, path: str) -> None:
    model = configuration.models[name]
    key = "checkpoint" if isinstance(model, Classifier) else "adapter"
    source = getattr(model, key)
    if not isinstance(source, Source):
        return
    keys = ["models", name, key]
    if source.host is not None and source.vastai is not None:
        raise _fault(path, tree, [*keys, "vastai"], "host or vastai, not both")
    if source.host is not None:
        if source.host not in configuration.hosts:
            known = ", ".join(configuration.hosts) or "none"
            raise _fault(path, tree, [*keys, "host"], f"no such host; hosts are {known}")
        if configuration.hosts[source.host].ssh is None:
            problem = f"hosts.{source.host} has no ssh; leave host out for this machine"
            raise _fault(path, tree, [*keys, "host"], problem)


def _check_language_model(model: LanguageModel, name: str, tree: Any, path: str) -> None:
    formats = model.quantize.formats
    keys = ["models", name, "quantize"]
    repeated = next((f for f in formats if formats.count(f) > 1), None)
    if repeated:
        raise _fault(path, tree, [*keys, "formats"], f"{repeated} is there twice")
    if model.convert.type.upper() in formats:  # their files' names would differ in case only
        raise _fault(
            path,
            tree,
            [*keys, "formats"],
            f"{model.convert.type.upper()} is what convert makes; leave it out",
        )
    if model.quantize.primary not in (None, *formats):
        raise _fault(path, tree, [*keys, "primary"], f"must be one of {', '.join(formats)}")
    if model.adapter is None and model.merge.tool != "automatic":
        raise _fault(path, tree, ["models", name, "merge"], "there is no adapter to merge")


def _keys_of(place: str, value: Any, error: str) -> list[str]:
    """The keys to a fault from msgspec's place (`$.models[...].preprocess.resize`), which leaves
    out the key of a free-form mapping: that is the one which, kept alone, fails the same way."""
    place = place.removesuffix("`")
    if place.startswith("key` in `"):
        place = place.removeprefix("key` in `") + "[...]"
    keys: list[str] = []
    for name, index in re.findall(r"\.(\w+)|\[(\d+|\.\.\.)\]", place):
        if index == "...":
            failing = [k for k in _at(value, keys) if _fails_with_only(value, keys, k, error)]
            if not failing:
                break
            name = failing[0]
        keys.append(str(name or index))
    return keys


def _at(value: Any, keys: list[str]) -> Any:
    for key in keys:
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


def _fails_with_only(value: Any, keys: list[str], kept: Any, error: str) -> bool:
    alone = copy.deepcopy(value)
    mapping = _at(alone, keys)
    for key in [key for key in mapping if key != kept]:
        del mapping[key]
    try:
        msgspec.convert(alone, Configuration)
    except msgspec.ValidationError as same:
        return str(same) == error
    return False


def _fault(path: str, tree: Any, keys: list[str], problem: str) -> QuernError:
    """The fault with the line of the innermost key that exists."""
    node, line, place = tree, 1, ""
    for key in keys:
        child = None
        in_list = isinstance(node, yaml.SequenceNode) and key.isdigit()
        place += f"[{key}]" if in_list else f".{key}" if place else key
        if isinstance(node, yaml.MappingNode):
            for key_node, value_node in node.value:
                if key_node.value == key:
                    child, line = value_node, key_node.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and key.isdigit() and int(key) < len(node.value):
            child = node.value[int(key)]
            line = child.start_mark.line + 1
        node = child
    unknown = re.search(r"contains unknown field `(.+)`", problem)
    if unknown and isinstance(node, yaml.MappingNode):
        line = next((k.start_mark.line + 1 for k, _ in node.value if k.value == unknown[1]), line)
        problem = f"unknown key {unknown[1]!r}; the keys are listed in models.schema.json"
    where = f"{place}: " if keys else ""
    problem = problem[:1].lower() + problem[1:]
    return QuernError(f"{path}:{line}: {where}{problem}")


def _refuse_repeated_keys(node: Any, path: str) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                raise QuernError(f"{path}:{key.start_mark.line + 1}: key {key.value!r} is repeated")
            seen.add(key.value)
            _refuse_repeated_keys(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_repeated_keys(value, path)


def _with_environment(value: Any, keys: list[str], tree: Any, path: str) -> Any:
    """Replace `${NAME}` in strings from the environment; the value is never shown."""
    if isinstance(value, dict):
        return {k: _with_environment(v, [*keys, str(k)], tree, path) for k, v in value.items()}
    if isinstance(value, list):
        return [_with_environment(v, [*keys, str(i)], tree, path) for i, v in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value

    def variable(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise _fault(
                path,
                tree,
                keys,
                f"environment variable {match[1]} is not set; "
                "export it or put it in .quern/environment",
            )
        return os.environ[match[1]]

    return re.sub(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}", variable, value)


def main() -> None:
    """Print the JSON Schema of models.yaml."""
    schema = msgspec.json.schema(Configuration)
    # Whether docstrings keep their indentation depends on the versions of Python and msgspec.
    for definition in schema["$defs"].values():
        if "description" in definition:
            definition["description"] = inspect.cleandoc(definition["description"])
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(schema), indent=2).decode() + "\n")


if __name__ == "__main__":
    main()

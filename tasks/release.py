"""Release: write the manifest that names, by digest, all that a host needs to serve a model."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from tasks.core.atomic import write_atomically
from tasks.core.configuration import LanguageModel, Source, load_configuration
from tasks.core.digest import canonical_json, read_digests
from tasks.core.recipe import Recipe
from tasks.hosts.host import Platform, glibc_needed
from tasks.models.layout import (
    PLATFORM,
    artifact,
    built_for,
    language_release_files,
    manifest_file,
    primary_format,
    release_files,
)


def task_release() -> Iterator[dict[str, Any]]:
    """Write each model's release manifest: role → digest."""
    configuration = load_configuration()
    for name, model in configuration.classifiers().items():
        remote = [
            h for h in model.deploy if h in configuration.hosts and configuration.hosts[h].ssh
        ]
        # Where programs differ, so does the release: one for this machine, one a host by SSH.
        wanted = [*([] if remote and len(remote) == len(model.deploy) else [""]), *remote]
        for host in wanted:
            yield Recipe(
                name="release",
                version=3,
                function="tasks.release:write_manifest",
                inputs={
                    **release_files(name, model.classes, host),
                    "origin": artifact(name, "checkpoint.json"),
                    "details": artifact(name, "details.json"),
                    "platform": built_for(PLATFORM, host),
                },
                outputs={"manifest": manifest_file(name, host)},
                parameters={"model": name},
            ).task(
                f"{name}@{host}" if host and len(wanted) > 1 else name,
                f"Write the release manifest of {name}{f' for {host}' if host else ''}.",
            )
    for name, language_model in configuration.language_models().items():
        yield language_release(name, language_model)


def language_release(name: str, model: LanguageModel) -> dict[str, Any]:
    """The release of a language model: its primary format, with how it is to be talked to."""
    primary = primary_format(model)
    files = language_release_files(name, model)
    serves = "server" in files
    brought = isinstance(model.adapter, Source)
    written = {role: files.pop(role) for role in ("chat", "modelfile")}
    return Recipe(
        name="language release",
        version=2,
        function="tasks.release:write_language_manifest",
        inputs={
            "roles": list(files.values()),
            "measured": artifact(name, f"{primary}.measured.json"),
            "reference": artifact(name, "reference.json"),
            **({"platform": PLATFORM} if serves else {}),
            **({"origin": artifact(name, "adapter.json")} if brought else {}),
        },
        outputs={"manifest": manifest_file(name), **written},
        parameters={
            "model": name,
            "names": list(files),
            "settings": chat_settings(name, model),
            "max_kl": model.evaluate.max_kl,
            "min_top1": model.evaluate.min_top1,
            "base": model.base,
            "adapter": None if brought else model.adapter,
        },
    ).task(name, f"Write the release manifest of {name}, if {primary} is good enough.")


def chat_settings(name: str, model: LanguageModel) -> dict[str, Any]:
    """What chat.json holds (docs/chat.md)."""
    settings = {"name": name, **msgspec.to_builtins(model.chat)}
    if model.chat.threads is None:
        del settings["threads"]
    return settings


# The file each role has in a release's directory; other roles keep their files' names.
ROLE_FILES = {
    "server": "quern-server",
    "holder": "quern-holder",
    "weights": "model_weights.bin",
    "classes": "classes.json",
    "golden": "golden.json",
}


def write_manifest(
    model: str, origin: str, details: str, platform: str, manifest: str, **roles: str
) -> None:
    """Write the manifest (docs/server.md) of the files in `roles` (role → path)."""
    from tasks.models.label import label

    checkpoint = json.loads(Path(origin).read_bytes())
    trained = json.loads(Path(details).read_bytes())
    release = {
        "format": 1,
        "kind": "classifier",
        "model": model,
        "label": label(checkpoint["cycle"], trained["epoch"], trained["val_acc"]),
        "platform": json.loads(Path(platform).read_bytes()),
        "roles": {role: entry(path, ROLE_FILES[role]) for role, path in roles.items()},
        "checkpoint": {**checkpoint, **trained},
    }
    write_atomically(Path(manifest), canonical_json(release) + b"\n")


def write_language_manifest(
    model: str,
    names: list[str],
    roles: list[str],
    settings: Mapping[str, Any],
    measured: str,
    reference: str,
    max_kl: float,
    min_top1: float,
    base: str,
    adapter: str | None,
    manifest: str,
    chat: str,
    modelfile: str,
    platform: str | None = None,
    origin: str | None = None,
) -> None:
    """Write the manifest of the files `roles`, whose roles are `names`, and of chat.json and
    Ollama's Modelfile, which are written here. `origin` says where an adapter was brought from.

    Raises QuernError when the format is further from the unquantized model than is allowed.
    """
    from tasks.models.llama_cpp.divergence import gate

    quality = json.loads(Path(measured).read_bytes())
    unquantized = json.loads(Path(reference).read_bytes())
    gate(quality, max_kl, min_top1)
    files = dict(zip(names, roles, strict=True))
    weights = Path(files["weights"]).name
    write_atomically(Path(chat), canonical_json(settings) + b"\n")
    write_atomically(Path(modelfile), ollama_modelfile(weights, settings).encode())
    listed = {role: entry(path, Path(path).name) for role, path in files.items()}
    listed["golden"]["file"] = "golden.json"
    listed["chat"] = entry(chat, "chat.json")
    listed["modelfile"] = entry(modelfile, "Modelfile")
    release = {
        "format": 1,
        "kind": "llm",
        "model": model,
        "label": f"{model} {quality['format']} (KL {quality['kl']['mean']:.4f})",
        "roles": listed,
        "checkpoint": {
            "base": base,
            "adapter": json.loads(Path(origin).read_bytes()) if origin else adapter,
            # Not how fast it was on the machine that measured it: the same files give the same
            # manifest.
            "quality": {key: value for key, value in quality.items() if key != "speed"},
            "torch": unquantized["torch"],
        },
    }
    if platform:
        known = Platform.of(json.loads(Path(platform).read_bytes()))
        needed = max(known.libc, glibc_needed(files["server"], files["engine"]))
        release["platform"] = replace(known, libc=needed).as_data()
    write_atomically(Path(manifest), canonical_json(release) + b"\n")


def entry(path: str, file: str) -> dict[str, Any]:
    """One role of a manifest: the file's name in the release, its size and digests."""
    signature, xxh3, sha256 = read_digests(path, sha256=True)
    return {"file": file, "size": signature[2], "xxh3_128": xxh3, "sha256": sha256}


def ollama_modelfile(weights: str, settings: Mapping[str, Any]) -> str:
    """Ollama's Modelfile (ollama/docs/modelfile.md) for the GGUF file `weights` beside it."""
    lines = [
        f"FROM ./{weights}",
        f"PARAMETER temperature {settings['temperature']}",
        f"PARAMETER num_ctx {settings['context']}",
    ]
    if settings["system"]:
        text = str(settings["system"]).replace('"""', "'''")
        lines.append(f'SYSTEM """{text}"""')
    return "\n".join(lines) + "\n"

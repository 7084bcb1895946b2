"""Release: write the manifest that names, by digest, all that a host needs to serve a model."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.core.atomic import write_atomically
from tasks.core.configuration import load_configuration
from tasks.core.digest import canonical_json, read_digests
from tasks.core.recipe import Recipe
from tasks.models.layout import artifact, release_files

# The file each role has in a release's directory.
ROLE_FILES = {
    "server": "quern-server",
    "holder": "quern-holder",
    "weights": "model_weights.bin",
    "classes": "classes.json",
    "golden": "golden.json",
}


def task_release() -> Iterator[dict[str, Any]]:
    """Write each model's release manifest: role → digest."""
    for name, model in load_configuration().classifiers().items():
        yield Recipe(
            name="release",
            version=1,
            function="tasks.release:write_manifest",
            inputs={
                **release_files(name, model.classes),
                "origin": artifact(name, "checkpoint.json"),
                "details": artifact(name, "details.json"),
            },
            outputs={"manifest": artifact(name, "manifest.json")},
            parameters={"model": name},
        ).task(name, f"Write the release manifest of {name}.")


def write_manifest(model: str, origin: str, details: str, manifest: str, **roles: str) -> None:
    """Write the manifest (docs/server.md) of the files in `roles` (role → path)."""
    from tasks.models.label import label

    checkpoint = json.loads(Path(origin).read_bytes())
    trained = json.loads(Path(details).read_bytes())
    listed = {}
    for role, path in roles.items():
        signature, xxh3, sha256 = read_digests(path, sha256=True)
        listed[role] = {
            "file": ROLE_FILES[role],
            "size": signature[2],
            "xxh3_128": xxh3,
            "sha256": sha256,
        }
    release = {
        "format": 1,
        "model": model,
        "label": label(checkpoint["cycle"], trained["epoch"], trained["val_acc"]),
        "roles": listed,
        "checkpoint": {**checkpoint, **trained},
    }
    write_atomically(Path(manifest), canonical_json(release) + b"\n")

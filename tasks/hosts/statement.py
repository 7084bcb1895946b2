"""A release's provenance as in-toto and SLSA have it: which files, made how, from what, by whom
(docs/provenance.md).

https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
https://slsa.dev/spec/v1.0/provenance
"""

import hashlib
import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

from tasks.core.digest import canonical_json, digest_of_bytes
from tasks.core.environment import configuration_file
from tasks.core.lineage import Lineage, Made, Material
from tasks.core.tools import package_version
from tasks.hosts.releases import Release

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:quern:release:v1"

Descriptor = dict[str, Any]  # in-toto's ResourceDescriptor


def subjects(release: Release) -> list[Descriptor]:
    """The manifest and every file that it names, each by SHA-256 and xxh3_128."""
    manifest = {
        "sha256": hashlib.sha256(release.data).hexdigest(),
        "xxh3_128": digest_of_bytes(release.data),
    }
    files = [
        {
            "name": entry["file"],
            "digest": {"sha256": entry["sha256"], "xxh3_128": entry["xxh3_128"]},
        }
        for entry in release.manifest["roles"].values()
    ]
    by_name = sorted(files, key=lambda descriptor: str(descriptor["name"]))
    return [{"name": "manifest.json", "digest": manifest}, *by_name]


def is_of(statement: bytes, release: Release) -> bool:
    """Whether it is a provenance statement of exactly this release's files."""
    try:
        told = json.loads(statement)
        types = (told["_type"], told["predicateType"])
        return bool(
            types == (STATEMENT_TYPE, PREDICATE_TYPE) and told["subject"] == subjects(release)
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def statement(
    release: Release,
    run: Mapping[str, Any],
    repository: str | None,
    lineage: Lineage,
    sha256: Callable[[Material], str | None],
    started: float,
) -> bytes:
    """The statement of a release that this run (tasks.core.provenance) makes known.

    `repository` is where the run's commit is; `sha256` is asked for the digest of the user's files
    where they are still the same; `started` is when the run began, in seconds since 1970.
    """
    digests = [
        digest_of_bytes(release.data),
        *(entry["xxh3_128"] for entry in release.manifest["roles"].values()),
    ]
    steps = lineage.steps(digests)
    predicate = {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {
                "model": release.model,
                "command": run["command"],
                "configuration": {
                    "name": configuration_file(),
                    "digest": {"xxh3_128": run["configuration"]},
                },
            },
            "internalParameters": {"steps": [_step(made) for made in steps]},
            "resolvedDependencies": [
                *_brought(steps, release.kind, run["machine"]),
                *_commit(run, repository),
                *_files(lineage.materials(digests), sha256),
            ],
        },
        "runDetails": {
            "builder": {
                "id": f"urn:quern:builder:{quote(run['user'])}@{quote(run['machine'])}",
                "version": {"quern": package_version("quern")},
            },
            "metadata": {
                "invocationId": uuid.uuid4().urn,
                "startedOn": _timestamp(started),
                "finishedOn": _timestamp(time.time()),
            },
        },
    }
    return (
        canonical_json(
            {
                "_type": STATEMENT_TYPE,
                "subject": subjects(release),
                "predicateType": PREDICATE_TYPE,
                "predicate": predicate,
            }
        )
        + b"\n"
    )


def recipes_and_tools(statement: bytes) -> dict[str, dict[str, str]]:
    """{"recipes": {recipe: key}, "tools": {tool: version}} of a statement; none of another's."""
    try:
        predicate = json.loads(statement)["predicate"]
        steps = predicate["buildDefinition"]["internalParameters"]["steps"]
        return {
            "recipes": {step["recipe"]: step["key"] for step in steps},
            "tools": {tool: version for step in steps for tool, version in step["tools"].items()},
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _step(made: Made) -> dict[str, Any]:
    """A recipe's run: its key says of what it was made, to the byte."""
    return {
        "recipe": made.recipe,
        "version": made.components.get("recipe version"),
        "function": made.components.get("function"),
        "key": made.key,
        "tools": made.tools,
        "toolFiles": {file.path: file.digest for file in made.tool_files},
    }


def _brought(steps: Iterable[Made], kind: str, here: str) -> Iterator[Descriptor]:
    """The checkpoint or the adapter, from where training wrote it."""
    # An adapter's digest is that of the list of its files (docs/sources.md).
    name, algorithm = ("adapter", "sha256_of_files") if kind == "llm" else ("checkpoint", "sha256")
    for made in steps:
        source = made.found.get("source")
        if source:
            machine, path = source.get("host") or here, source["path"]
            yield {
                "name": name,
                "uri": f"{quote(machine)}:{quote(path)}",
                "digest": {algorithm: source["sha256"]},
            }


def _commit(run: Mapping[str, Any], repository: str | None) -> Iterator[Descriptor]:
    if run["commit"] and repository:
        yield {
            "uri": repository,
            "digest": {"gitCommit": run["commit"]},
            "annotations": {"dirty": run["dirty"]},
        }


def _files(
    materials: Iterable[Material], sha256: Callable[[Material], str | None]
) -> Iterator[Descriptor]:
    for material in materials:
        strong = sha256(material)
        digest = {"xxh3_128": material.digest, **({"sha256": strong} if strong else {})}
        yield {"name": material.path, "digest": digest}


def _timestamp(seconds: float) -> str:
    """RFC 3339, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))

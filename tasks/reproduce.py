"""`doit reproduce RELEASE`: build a release again from what was recorded, and compare the bytes."""

import io
import json as json_format
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from glob import escape
from pathlib import Path
from typing import Any

import yaml
from doit.cmd_base import DoitCmdBase

from tasks.core.commands.plan import option_json
from tasks.core.commands.project_command import ProjectCommand
from tasks.core.configuration import configuration_file
from tasks.core.digest import canonical_json, digest_of_bytes, read_digests
from tasks.core.errors import QuernError
from tasks.core.lineage import Lineage
from tasks.core.project import Project
from tasks.hosts.history import Record, every_record
from tasks.hosts.lineage import origin_in_words
from tasks.hosts.releases import Release
from tasks.models.layout import artifact

CONFIGURATION = "models.yaml"
NOT_SOURCES = (".quern", ".git", ".venv", "build", "weights", "__pycache__")
# What the rebuilt manifest says otherwise: the checkpoint comes from the recorded bytes.
ORIGIN = ("host", "path", "cycle")
# Of models.yaml: a store shared with others would bring the result instead of making it.
LEFT_OUT = ("store", "notify", "sign")

option_keep = {
    "name": "keep",
    "long": "keep",
    "type": bool,
    "default": False,
    "help": "leave the directory in which it was built, to be looked at",
}


class Reproduce(ProjectCommand, DoitCmdBase):  # type: ignore[misc]
    """Builds in a clean directory below .quern/reproduce/, with an empty store, from the recorded
    commit, configuration and checkpoint. Exit status: 0 every file is the same byte for byte, 1
    one differs."""

    name = "reproduce"
    doc_purpose = "build a release again from what was recorded, and compare it byte for byte"
    doc_usage = "RELEASE"
    doc_description = None
    cmd_options = (option_keep, option_json)

    def _execute(self, pos_args: list[str], keep: bool, json: bool) -> int:
        if len(pos_args) != 1:
            raise QuernError("reproduce: name one release, by its id; doit history shows them")
        recorded = Recorded(self.project, pos_args[0])
        task = recorded.task_of(self.task_list)
        clean = self.project.private / "reproduce" / recorded.release.id
        shutil.rmtree(clean, ignore_errors=True)
        try:
            recorded.lay_out(clean)
            build(clean, task.name)
            manifest = next(target for target in task.targets if "manifest" in target)
            told = compare(recorded.release, Release.read(clean / manifest))
        finally:
            if not keep:
                shutil.rmtree(clean, ignore_errors=True)
        if json:
            self.outstream.write(json_format.dumps(told, indent=1, ensure_ascii=False) + "\n")
        else:
            self.outstream.write(f"{recorded}:\n")
            self.outstream.writelines(f"  {line}\n" for line in in_words(told))
        return 0 if told["same"] else 1


class Recorded:
    """All that is known here of how a release was built. Raises QuernError if it is too little."""

    def __init__(self, project: Project, release_id: str) -> None:
        self.project = project
        self.lineage = Lineage(project.store)
        digest = self.lineage.beginning(release_id) if len(release_id) >= 8 else None
        made = self.lineage.made(digest)[:1] if digest else []
        if not digest or not made or made[0].output != "manifest":
            raise QuernError(
                f"{release_id}: no such release was built here, or the store no longer knows how; "
                "doit history shows the releases"
            )
        (self.made,) = made
        self.steps = self.lineage.steps([digest])
        self.release = Release.of(self._bytes_of(digest, "its manifest").read_bytes(), release_id)
        records = every_record(project.private / "history.jsonl")
        of_it = [record for record in records if record["release"] == self.release.id]
        self.run: Record = of_it[0]["run"] if of_it else {}

    def __str__(self) -> str:
        commit = self.run.get("commit")
        return (
            f"{self.release.model}: {self.release.name} ({self.release.id}), from "
            f"{f'commit {commit[:12]}' if commit else 'the sources that are here'} and "
            f"{origin_in_words(self.release.manifest['checkpoint'])}"
        )

    def task_of(self, tasks: list[Any]) -> Any:
        """The task that writes such a release's manifest."""
        paths = {material.path for material in self.made.inputs}
        for task in tasks:
            if task.name.startswith(f"release:{self.release.model}") and paths <= task.file_dep:
                return task
        raise QuernError(
            f"{self.release.id}: {configuration_file()} has no task any more that makes such a "
            f"release of {self.release.model}"
        )

    def lay_out(self, clean: Path) -> None:
        """Fill the empty directory `clean` with the sources, the configuration, the user's files
        and the checkpoint, each as it was. Raises QuernError naming what is no longer here."""
        clean.mkdir(parents=True)
        if not self._from_commit(clean):
            leave = shutil.ignore_patterns(*NOT_SOURCES)
            shutil.copytree(self.project.root, clean, ignore=leave, dirs_exist_ok=True)
        files = {material.path: material.digest for material in self._materials()}
        for path, digest in files.items():
            if not path.startswith(artifact(self.release.model, "")):
                self._bring_back(path, digest, clean)
        (clean / CONFIGURATION).write_text(self._configuration(files, clean))

    def _from_commit(self, clean: Path) -> bool:
        """Take the sources from the recorded commit; returns whether they were there."""
        commit = self.run.get("commit")
        if not commit:
            return False
        done = subprocess.run(
            ["git", "-C", str(self.project.root), "archive", "--format=tar", commit],
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )
        if done.returncode:
            return False
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            archive.extraction_filter = getattr(tarfile, "data_filter", None)  # not in Debian 12
            archive.extractall(clean)
        return True

    def _materials(self) -> Iterator[Any]:
        """The user's files, and the checkpoint or adapter that was brought."""
        brought = artifact(self.release.model, "")
        seen = set()
        for step in self.steps:
            for material in step.inputs:
                is_users = not self.lineage.made(material.digest) or material.path.startswith(
                    (f"{brought}checkpoint.pth", f"{brought}adapter/")
                )
                if is_users and material not in seen:
                    seen.add(material)
                    yield material

    def _bring_back(self, path: str, digest: str, clean: Path) -> None:
        """See that `path` in `clean` has the bytes of `digest`."""
        target = clean / path
        if target.is_file() and read_digests(target)[1] == digest:
            return
        source = self._bytes_of(digest, path)
        if Path(path).is_absolute():
            raise QuernError(f"{path}: has changed since; it was {digest[:12]}")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        shutil.copy(source, target)

    def _bytes_of(self, digest: str, path: str) -> Path:
        """A file here that has the digest: the project's own, or the store's."""
        for place in (self.project.root / path, self.project.store.object_path(digest)):
            if place.is_file() and read_digests(place)[1] == digest:
                return place
        raise QuernError(
            f"{self.made.recipe}: {path} as it was ({digest[:12]}) is not here any more: the "
            "release can't be reproduced"
        )

    def _configuration(self, files: dict[str, str], clean: Path) -> str:
        """models.yaml as it was, with this model only, its checkpoint or adapter from the recorded
        bytes."""
        digest, file = self.run.get("configuration"), Path(configuration_file())
        places = [clean / file, self.project.root / file]
        as_it_was = [p for p in places if p.is_file() and read_digests(p)[1] == digest]
        if digest and not as_it_was:
            raise QuernError(
                f"{self.release.id}: {file} as it was ({digest[:12]}) is neither here nor in the "
                f"commit, {self.run.get('commit') or 'none was recorded'}"
            )
        text = yaml.safe_load((as_it_was or places[1:])[0].read_text(encoding="utf-8"))
        for key in LEFT_OUT:
            text.pop(key, None)
        model = text["models"][self.release.model]
        text["models"] = {self.release.model: model}
        checkpoint = self.release.manifest["checkpoint"]
        key, source = "checkpoint", checkpoint
        if self.release.kind != "classifier":
            key, source = "adapter", checkpoint["adapter"]
        if isinstance(source, dict):
            path = Path("recorded") / str(source["path"]).lstrip("~/")
            for name, digest in files.items():
                brought = Path(artifact(self.release.model, key))
                if name == f"{brought}.pth":
                    self._copy(digest, name, clean / path)
                elif Path(name).is_relative_to(brought):
                    self._copy(digest, name, clean / path / Path(name).relative_to(brought))
            model[key] = {"path": escape(str(path))}
        return yaml.safe_dump(text, allow_unicode=True, sort_keys=False)

    def _copy(self, digest: str, name: str, target: Path) -> None:
        source = self._bytes_of(digest, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def build(clean: Path, task: str) -> None:
    """Run `doit TASK` in the clean directory. Raises QuernError with its last words."""
    environment = {**os.environ, "PYTHONPATH": str(clean), "QUERN_MODELS": CONFIGURATION}
    doit = Path(sys.executable).with_name("doit")
    done = subprocess.run(
        [str(doit), task],
        cwd=clean,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or done.stdout.strip().splitlines() or [""])[-1]
        raise QuernError(f"doit {task} failed in the clean directory: {last} (--keep leaves it)")


def compare(recorded: Release, rebuilt: Release) -> dict[str, Any]:
    """{"release", "same", "files": {role: {"file", "recorded", "rebuilt"}}}, the last two digests
    (xxh3_128); the manifest is among the files, and where its checkpoint came from is taken as
    recorded."""
    files = {
        role: {
            "file": entry["file"],
            "recorded": entry["xxh3_128"],
            "rebuilt": rebuilt.manifest["roles"].get(role, {}).get("xxh3_128"),
        }
        for role, entry in recorded.manifest["roles"].items()
    }
    manifest = json_format.loads(rebuilt.data)
    _take_origin(recorded.manifest["checkpoint"], manifest["checkpoint"])
    files["manifest"] = {
        "file": "manifest.json",
        "recorded": digest_of_bytes(recorded.data),
        "rebuilt": digest_of_bytes(canonical_json(manifest) + b"\n"),
    }
    same = all(file["recorded"] == file["rebuilt"] for file in files.values())
    return {"release": recorded.id, "same": same, "files": files}


def _take_origin(recorded: dict[str, Any], rebuilt: dict[str, Any]) -> None:
    """Have `rebuilt` say that it came from where `recorded` did."""
    if isinstance(recorded.get("adapter"), dict):
        recorded, rebuilt = recorded["adapter"], rebuilt["adapter"]
    for key in ORIGIN:
        rebuilt.pop(key, None)
        if key in recorded:
            rebuilt[key] = recorded[key]


def in_words(told: dict[str, Any]) -> list[str]:
    """A line for each file, and the verdict."""
    files = told["files"].values()
    width = max(len(file["file"]) for file in files)
    lines = [
        f"{file['file']:<{width}}  {file['recorded'][:12]}  "
        + (
            "the same"
            if file["recorded"] == file["rebuilt"]
            else f"now {str(file['rebuilt'])[:12]}"
        )
        for file in files
    ]
    different = sum(file["recorded"] != file["rebuilt"] for file in files)
    verdict = f"{different} of {len(files)} files differ"
    return [*lines, verdict if different else "the same release, byte for byte"]

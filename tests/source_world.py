"""A training machine that is reached by SSH, and projects that fetch from it."""

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from tests.build_project import DOIT, PLUGINS
from tests.ssh_world import Machine

MODEL = """
  {name}:
    kind: classifier
    checkpoint: {source}
    architecture: {{file: net.py, class: Net}}
    classes: classes.json
    preprocess: {{}}
"""
ADAPTER_MODEL = """
  {name}:
    kind: llm
    base: base
    adapter: {source}
    quantize: {{formats: [Q8_0]}}
"""
DODO = """
from tasks.fetch import task_fetch

DOIT_CONFIG = {"default_tasks": ["fetch", "use"]}


def task_use():
    import os
    from tasks.core.choice import OPTIONS
    from tasks.core.configuration import load_configuration
    yield {"name": None, "params": OPTIONS}
    for name in load_configuration().classifiers():
        path = f"weights/{name}/checkpoint.pth"
        yield {
            "name": name, "actions": [f"sha256sum < {path} >> used.{name}"],
            "file_dep": [path], "params": OPTIONS,
        }
"""
# What the scripts may use there, besides /bin/sh.
PROGRAMS = ("stat", "find", "od", "head", "tail", "tr", "date")


def whole(text: str = "", size: int = 0) -> bytes:
    """A checkpoint's bytes: a stored zip, as torch.save writes; `size` bytes of filling."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), text)
        archive.writestr(zipfile.ZipInfo("archive/data/0"), bytes(size))
    return buffer.getvalue()


class Training:
    """A training machine. Its clock is an hour ahead of its files, so that none of them is young,
    unless `real_clock`; `digests` are the programs it has for SHA-256."""

    def __init__(
        self,
        folder: Path,
        digests: Sequence[str] = ("python3",),
        real_clock: bool = False,
        name: str = "trainer",
    ) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        self.hashes = folder / "hashes"
        for program in PROGRAMS:
            (self.bin / program).symlink_to(str(shutil.which(program)))
        for program in digests:
            self.wrap(program, f"echo {program} >> {self.hashes}")
        if not real_clock:
            self.shift_clock("+1 hour")
        self.machine = Machine(folder, name, environment={"PATH": str(self.bin)}).start()
        self.home = self.machine.home

    def wrap(self, program: str, before: str) -> None:
        """Put a program there that does something else first."""
        path = self.bin / program
        path.unlink(missing_ok=True)
        real = sys.executable if program == "python3" else shutil.which(program)
        path.write_text(f'#!/bin/sh\n{before}\nexec {real} "$@"\n')
        path.chmod(0o755)

    def shift_clock(self, by: str) -> None:
        path = self.bin / "date"
        path.unlink(missing_ok=True)
        path.write_text(f'#!/bin/sh\nexec {shutil.which("date")} -d "{by}" "$@"\n')
        path.chmod(0o755)

    def write(self, cycle: int | str, data: bytes, file: str = "best_model.pth") -> Path:
        """Training wrote a checkpoint."""
        path = self.home / "mycnn" / f"checkpoints_cycle{cycle}" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def hashed(self) -> list[str]:
        """The digest programs that were run, in order."""
        return self.hashes.read_text().split() if self.hashes.exists() else []

    def sessions(self) -> tuple[int, int]:
        """Commands and SFTP sessions that were started by SSH so far."""
        log = (self.machine.folder / "sshd.log").read_text()
        return log.count("Starting session: command"), log.count("Starting session: subsystem")


class SourceProject:
    """A project whose models are only fetched, and used by a task `use`."""

    def __init__(self, root: Path, training: Training | None = None) -> None:
        self.root, self.training = root, training
        root.mkdir(parents=True, exist_ok=True)
        lines = [f'{name} = "{place}"' for name, place in PLUGINS.items()]
        (root / "pyproject.toml").write_text(
            "[tool.doit.plugins.command]\n" + "\n".join(lines) + "\n"
        )
        (root / "dodo.py").write_text(DODO)
        self.environment: dict[str, str] = {}

    def configure(self, model: str = MODEL, **sources: str) -> "SourceProject":
        """Write models.yaml: a model per source."""
        text = "models:" + "".join(
            model.format(name=name, source=source) for name, source in sources.items()
        )
        if self.training is not None:
            machine = self.training.machine
            text += f"\nssh_config: {machine.config}\nhosts:\n  gpu: {{ssh: {machine.name}}}\n"
            text += "  bare: {}\n"
        (self.root / "models.yaml").write_text(text)
        return self

    def doit(self, *arguments: str, status: int = 0) -> str:
        """Run doit; what it printed."""
        done = subprocess.run(
            [DOIT, *arguments],
            cwd=self.root,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **self.environment},
            capture_output=True,
            text=True,
            timeout=120,
        )
        told = done.stdout + done.stderr
        assert done.returncode == status, f"{done.returncode}\n{told}"
        assert "Traceback" not in told
        return told

    def python(self, script: str) -> str:
        """Run Python in the project; what it printed."""
        command = [sys.executable, "-c", script]
        return subprocess.run(
            command, cwd=self.root, capture_output=True, text=True, check=True, timeout=120
        ).stdout

    def taken(self, model: str = "dogs") -> dict[str, object]:
        """What is said of the checkpoint that was taken last."""
        return json.loads((self.root / "weights" / model / "checkpoint.json").read_text())  # type: ignore[no-any-return]

    def data(self, model: str = "dogs") -> bytes:
        return (self.root / "weights" / model / "checkpoint.pth").read_bytes()

    def log(self, model: str = "dogs") -> list[str]:
        """The lines of the fetch's log, without their times."""
        path = self.root / ".quern" / "logs" / f"fetch.{model}.log"
        return [line[20:] for line in path.read_text().splitlines()]

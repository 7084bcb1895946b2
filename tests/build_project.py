"""A small project of its own, built by the real `doit` program of this environment."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

DOIT = str(Path(sys.executable).with_name("doit"))
PLUGINS = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["tool"][
    "doit"
]["plugins"]["command"]

# What the tests' tasks do. Every run leaves its name in the file `runs`.
WORK = """
def count(name):
    with open("runs", "a") as file:
        file.write(name + "\\n")


def join(name, sources, out, separator=""):
    count(name)
    text = separator.join(open(path).read() for path in sources)
    with open(out, "w") as file:
        file.write(text)


def first_letter(name, source, out):
    count(name)
    with open(out, "w") as file:
        file.write(open(source).read()[:1])
"""

# in/one + in/two -> left; in/three -> right; left + right -> top (recipes); top -> copy (shell).
DIAMOND = """
from tasks.core.recipe import Recipe


def joined(name, sources, version=1, **parameters):
    return Recipe(
        name="join", version=version, function="work:join", inputs={"sources": sources},
        outputs={"out": f"out/{name}"}, parameters={"name": name, **parameters},
    ).task(name, f"Join {name}.")


def task_make():
    yield joined("left", ["in/one", "in/two"])
    yield joined("right", ["in/three"])
    yield joined("top", ["out/left", "out/right"])


def task_copy():
    return {
        "actions": ["cat out/top > out/copy; echo copy >> runs"],
        "file_dep": ["out/top"], "targets": ["out/copy"], "clean": True,
    }
"""


started: list[subprocess.Popen[str]] = []


def kill_started() -> None:
    """End what a failed test has left running."""
    while started:
        process = started.pop()
        if process.poll() is None:
            process.kill()
            process.wait()


@dataclass
class Outcome:
    """One run of `doit`: exit status, what it printed, and which tasks' functions ran."""

    status: int
    out: str
    err: str
    ran: list[str]

    @property
    def text(self) -> str:
        return self.out + self.err


class BuildProject:
    """A folder with dodo.py, work.py and Quern's doit; `stock=True`: doit as it comes."""

    def __init__(self, root: Path, dodo: str = DIAMOND, work: str = WORK, stock: bool = False):
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        if not stock:
            lines = [f'{name} = "{place}"' for name, place in PLUGINS.items()]
            self.write("pyproject.toml", "[tool.doit.plugins.command]\n" + "\n".join(lines))
        self.write("dodo.py", dodo)
        self.write("work.py", work)
        for name in ("one", "two", "three"):
            self.write(f"in/{name}", f"{name}\n")
        (root / "out").mkdir(exist_ok=True)

    def copy(self, root: Path) -> "BuildProject":
        """The same project, built as far, in another folder."""
        shutil.copytree(self.root, root, dirs_exist_ok=True)
        other = BuildProject.__new__(BuildProject)
        other.root = root
        return other

    def write(self, path: str, text: str) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def read(self, path: str) -> str:
        return (self.root / path).read_text()

    def start(self, *arguments: str, program: str | list[str] = DOIT, **popen: object):
        command = [program] if isinstance(program, str) else program
        process = subprocess.Popen(
            [*command, *arguments],
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Tests rewrite dodo.py faster than Python's .pyc files can tell.
            env={"PYTHONDONTWRITEBYTECODE": "1", **os.environ},
            **popen,  # type: ignore[call-overload]
        )
        started.append(process)
        return process

    def doit(self, *arguments: str, **popen: object) -> Outcome:
        """Run doit to its end (at most 60 s)."""
        before = len(self.runs())
        process = self.start(*arguments, **popen)
        out, err = process.communicate(timeout=60)
        return Outcome(process.returncode, out, err, self.runs()[before:])

    def built(self, *arguments: str) -> Outcome:
        """Run doit; it must end well."""
        outcome = self.doit(*arguments)
        assert outcome.status == 0, outcome
        return outcome

    def runs(self) -> list[str]:
        path = self.root / "runs"
        return path.read_text().split() if path.exists() else []

    def opens(self, path: str, *arguments: str) -> int:
        """Run doit and count how often its own process opens `path` (by Python's audit events)."""
        script = (
            "import sys, os, atexit\n"
            "opened = []\n"
            "def watch(event, values):\n"
            "    if event == 'open' and isinstance(values[0], str):\n"
            "        opened.append(os.path.abspath(values[0]))\n"
            "sys.addaudithook(watch)\n"
            "from doit.doit_cmd import DoitMain\n"
            "status = DoitMain().run(sys.argv[2:])\n"
            "print('OPENS', opened.count(os.path.abspath(sys.argv[1])))\n"
            "sys.exit(status)\n"
        )
        process = self.start(path, *arguments, program=[sys.executable, "-c", script])
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, out + err
        return int(out.rpartition("OPENS ")[2])

    def wait_for(self, path: str, seconds: float = 20) -> None:
        """Wait until a file is there."""
        deadline = time.monotonic() + seconds
        while not (self.root / path).exists():
            assert time.monotonic() < deadline, f"{path} did not appear"
            time.sleep(0.01)

    def edit_keeping_size_and_mtime(self, path: str, old: str, new: str) -> None:
        """Change bytes in place so that only the file's ctime tells."""
        assert len(old) == len(new)
        file = self.root / path
        status = file.stat()
        with open(file, "r+") as handle:
            text = handle.read().replace(old, new)
            handle.seek(0)
            handle.write(text)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))

    def partial_files(self) -> list[str]:
        """Files that only a killed run leaves."""
        return [str(p) for p in self.root.rglob(".*.partial")]

    def events(self, *arguments: str) -> list[dict[str, object]]:
        """Run doit --json; its events."""
        return [json.loads(line) for line in self.doit("--json", *arguments).out.splitlines()]


def fill(disk: Path) -> Path:
    """Write a file until the disk is full; returns it."""
    path = disk / "filling"
    with open(path, "wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError as error:
            assert error.errno == errno.ENOSPC
    return path

"""Build the fuzz targets and run them: python -m native.fuzz.run MINUTES [TARGET ...]

What a run finds worth keeping stays in build/fuzz/corpus/<target>, so that the next one goes on
from there. Prints the rows of the table in docs/reliability.md; exit status 1 if there was a
finding, whose input then lies in build/fuzz/findings.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "fuzz"
CORPUS = ROOT / "native" / "fuzz" / "corpus"
# Per target what libFuzzer is told besides the time. close_fd_mask=2: the server's log.
TARGETS = {
    "weights": ["-max_len=16384"],
    "image": ["-max_len=8192", f"-dict={ROOT}/native/fuzz/image.dict"],
    "http": ["-max_len=4096", f"-dict={ROOT}/native/fuzz/http.dict", "-close_fd_mask=2"],
}
COMPILERS = ("clang++-14", "/opt/homebrew/opt/llvm/bin/clang++", "/usr/local/opt/llvm/bin/clang++")


class FuzzError(Exception):
    """The targets cannot be built, or one of them found something; the message says what."""


@dataclass(frozen=True)
class Figures:
    """What one run did."""

    target: str
    seconds: float
    executions: int
    edges: int  # of the control flow graph, covered
    corpus: int  # inputs that each cover something of their own

    def row(self) -> str:
        """A row of the table in docs/reliability.md."""
        day = time.strftime("%Y-%m-%d")
        minutes = f"{self.seconds / 60:.2g}"
        rate = f"{self.executions / self.seconds:,.0f}"
        return (
            f"| {day} | {self.target} | {minutes} | {self.executions:,} | {rate} "
            f"| {self.edges:,} | {self.corpus:,} | none |"
        )


def compiler() -> str | None:
    """A clang++ that has libFuzzer."""
    return next(filter(None, map(shutil.which, COMPILERS)), None)


@cache
def build() -> Path:
    """Compile the targets and mutate_weights, what is out of date; give their folder.

    Raises FuzzError: no compiler, or its complaint.
    """
    program = compiler()
    if program is None:
        raise FuzzError(
            "no clang with libFuzzer: ./setup tests installs it (macOS: brew install llvm)"
        )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    languages = {"CXX": program, "C": program.replace("clang++", "clang")}
    compilers = [f"-DCMAKE_{name}_COMPILER={path}" for name, path in languages.items()]
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (
            ["cmake", "--preset", "fuzz", *compilers],
            ["cmake", "--build", "--preset", "fuzz", "--parallel", str(os.cpu_count() or 1)],
        ):
            done = subprocess.run(
                command, cwd=ROOT, env=os.environ | {"PATH": path}, capture_output=True, text=True
            )
            if done.returncode != 0:
                raise FuzzError((done.stdout + done.stderr)[-4000:])
    return BUILD / "native" / "fuzz"


def environment() -> dict[str, str]:
    """The sanitizers' settings: stacks with names and lines."""
    symbolizer = shutil.which("llvm-symbolizer-14") or shutil.which("llvm-symbolizer") or ""
    return os.environ | {
        "ASAN_SYMBOLIZER_PATH": symbolizer,
        "UBSAN_OPTIONS": f"print_stacktrace=1:external_symbolizer_path={symbolizer}",
    }


def fuzz(
    target: str, seconds: int, found: Path, findings: Path, options: tuple[str, ...] = ()
) -> Figures:
    """Run a target from its corpus and from `found`, where new inputs go.

    Raises FuzzError when it finds something; the input is then in `findings`.
    """
    for folder in (found, findings):
        folder.mkdir(parents=True, exist_ok=True)
    command = [
        str(build() / f"fuzz_{target}"),
        f"-max_total_time={seconds}",
        "-timeout=20",
        "-rss_limit_mb=2048",
        "-print_final_stats=1",
        f"-artifact_prefix={findings}/{target}-",
        *TARGETS[target],
        *options,
        str(found),
        str(CORPUS / target),
    ]
    # By a shell that starts a process for it: what this process has had of memory would count as
    # the program's (getrusage(2): ru_maxrss is kept when another program is executed).
    command = ["sh", "-c", '"$@"; exit $?', "sh", *command]
    started = time.monotonic()
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, errors="replace"
    )
    spent = time.monotonic() - started
    if done.returncode != 0:
        raise FuzzError(f"fuzz_{target}, inputs in {findings}:\n{done.stderr[-8000:]}")
    executions = re.findall(r"stat::number_of_executed_units: (\d+)", done.stderr)
    covered = re.findall(r"cov: (\d+) ft: \d+ corp: (\d+)/", done.stderr)
    edges, corpus = covered[-1]
    return Figures(target, spent, int(executions[-1]), int(edges), int(corpus))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("minutes", type=float, help="for each target")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    given = parser.parse_args()
    for target in given.targets:
        if target not in TARGETS:
            parser.error(f"no target {target}: there are {', '.join(TARGETS)}")
    status = 0
    for target in given.targets or TARGETS:
        try:
            seconds = round(given.minutes * 60)
            figures = fuzz(target, seconds, BUILD / "corpus" / target, BUILD / "findings")
            print(figures.row(), flush=True)
        except FuzzError as error:
            print(error, file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())

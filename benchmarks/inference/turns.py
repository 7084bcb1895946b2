"""Forwards measured in turn, a process an engine: what else the machine does falls on all alike."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch

from benchmarks.inference.subjects import Subject
from tasks.core.tools import compiler
from tasks.models.interpreter import relative_difference

ROOT = Path(__file__).parent.parent.parent
FMA_PEAK = Path(__file__).with_name("fma_peak.cc")
TOLERANCE = 1e-4  # relative, of logits against torch


class Turns:
    """A process that answers each line it is given with a line of JSON."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, word: str) -> Any:
        assert self.process.stdin and self.process.stdout
        with contextlib.suppress(BrokenPipeError):  # no answer comes then, and that is told
            self.process.stdin.write(word + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended with status {self.process.wait()}; its message is above")
        return json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.communicate()


class FmaPeak(Turns):
    """The peak of the machine: GFLOP/s of a core that does nothing but multiply-adds."""

    def __init__(self, folder: Path) -> None:
        program = folder / "fma_peak"
        flags = ["-O2", "-std=c++20", "-march=native", "-ffp-contract=fast"]
        done = subprocess.run([compiler() or "c++", *flags, str(FMA_PEAK), "-o", str(program)])
        if done.returncode:
            sys.exit(f"{FMA_PEAK.name} could not be compiled; the compiler's message is above")
        super().__init__(program.name, [str(program)])
        self.gflops: list[float] = []
        self.turn()

    def turn(self) -> float:
        self.gflops.append(self.ask("turn"))
        return self.gflops[-1]


@dataclass
class Forward:
    """What one engine took for one subject; times in CPU ms, the lists by round."""

    engine: str
    subject: Subject
    error: float  # of the logits against torch, relative
    times: list[list[float]] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)  # multiply-adds at the same round's peak
    resident_mb: float = 0.0

    @property
    def p50(self) -> float:
        return statistics.median(time for turn in self.times for time in turn)

    @property
    def minimum(self) -> float:
        return min(time for turn in self.times for time in turn)

    @property
    def by_round(self) -> list[float]:
        return [statistics.median(turn) for turn in self.times]

    @property
    def times_floor(self) -> float:
        return median_ratio(self.by_round, self.floor)


def median_ratio(a: list[float], b: list[float]) -> float:
    """The median of the ratios round by round."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def engine(name: str, subject: Subject, seconds: float) -> Turns:
    """A process of engines.py whose turns are forwards for about `seconds`."""
    module = "benchmarks.inference.engines"
    return Turns(name, [sys.executable, "-m", module, name, str(subject.folder), str(seconds)])


def forwards(
    runs: list[tuple[str, Subject]], peak: FmaPeak, rounds: int, seconds: float
) -> list[Forward]:
    """Each (engine, subject) in turn, `rounds` times, forwards for about `seconds` a turn."""
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(engine(name, subject, seconds)) for name, subject in runs]
        found = [
            Forward(name, subject, error(turns, subject))
            for turns, (name, subject) in zip(opened, runs, strict=True)
        ]
        for _ in range(rounds):
            gflops = peak.turn()
            for turns, forward in zip(opened, found, strict=True):
                forward.times.append(turns.ask("turn"))
                forward.floor.append(2e-6 * forward.subject.multiply_adds / gflops)
        for turns, forward in zip(opened, found, strict=True):
            forward.resident_mb = turns.ask("resident_mb")
    return found


def error(turns: Turns, subject: Subject) -> float:
    """How far the logits are from torch's: max|found - wanted| / max(1, max|wanted|)."""
    found = relative_difference(torch.tensor(turns.ask("logits")), subject.logits)
    if not found <= TOLERANCE:
        sys.exit(
            f"{turns.name} on {subject.name} differs from torch by {found:.2g} (allowed"
            f" {TOLERANCE:g}): the time of a wrong answer says nothing"
        )
    return found

"""What the build costs, beside its peers in the same run, interleaved.

    python -m benchmarks.build [--quick] [--json]

Ratios (below 1 is cheaper, but `hash_read`, a rate, is better above):
  noop_dvc, noop_snakemake, noop_doit   wall time of a no-op on 10 equal tasks (copy one file each)
                                        against `dvc repro`, `snakemake`, and doit with its own MD5
                                        checker and sqlite3; with _100 and _1000 for more tasks
  hash_read                             rate of the first hash of a 4 GB file against `cat`
Figures: seconds (`deploy_s` and its steps; no-ops in milliseconds as noop_*_ms).
Peers: pip install -e .[benchmark]
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROGRAMS = Path(sys.executable).parent

DODO = '''
def task_copy():
    """Copy each file."""
    for n in range({count}):
        yield {{
            "name": str(n),
            "actions": [["cp", f"in/{{n}}", f"out/{{n}}"]],
            "file_dep": [f"in/{{n}}"],
            "targets": [f"out/{{n}}"],
        }}
'''
SNAKEFILE = """
rule all:
    input: expand("out/{{n}}", n=range({count}))
"""
RULE = """
rule copy{n}:
    input: "in/{n}"
    output: "out/{n}"
    shell: "cp {{input}} {{output}}"
"""


class Graph:
    """`count` tasks that copy one file each, for one tool, in a folder of its own."""

    def __init__(self, folder: Path, tool: str, count: int) -> None:
        self.folder, self.tool = folder / f"{tool}-{count}", tool
        self.count = count
        for name in ("in", "out"):
            (self.folder / name).mkdir(parents=True)
        for number in range(count):
            (self.folder / "in" / str(number)).write_text(f"{number}\n" * 100)
        getattr(self, f"prepare_{tool}")()

    def prepare_quern(self) -> None:
        (self.folder / "dodo.py").write_text(DODO.format(count=self.count))
        project = (ROOT / "pyproject.toml").read_text()
        plugins = project[project.index("[tool.doit.plugins.command]") :]
        (self.folder / "pyproject.toml").write_text(plugins[: plugins.index("\n\n")])
        self.command = [str(PROGRAMS / "doit")]

    def prepare_doit(self) -> None:
        (self.folder / "dodo.py").write_text(DODO.format(count=self.count))
        self.command = [str(PROGRAMS / "doit"), "run", "--backend", "sqlite3", "-r", "zero"]

    def prepare_dvc(self) -> None:
        stages = {
            f"copy{n}": {"cmd": f"cp in/{n} out/{n}", "deps": [f"in/{n}"], "outs": [f"out/{n}"]}
            for n in range(self.count)
        }
        (self.folder / "dvc.yaml").write_text(json.dumps({"stages": stages}))
        self.command = [str(PROGRAMS / "dvc"), "repro", "--quiet"]
        subprocess.run(
            [str(PROGRAMS / "dvc"), "init", "--no-scm", "--quiet"], cwd=self.folder, check=True
        )

    def prepare_snakemake(self) -> None:
        # A rule a task, as the other tools have it too.
        rules = [RULE.format(n=n) for n in range(self.count)]
        (self.folder / "Snakefile").write_text(SNAKEFILE.format(count=self.count) + "".join(rules))
        self.command = [str(PROGRAMS / "snakemake"), "--cores", "1", "--quiet", "all"]

    def prepare_floor(self) -> None:
        stats = "import os\nfor d in ('in', 'out'):\n for e in os.scandir(d): os.stat(e.path)"
        self.command = [sys.executable, "-c", stats]

    def build(self) -> None:
        """Make the outputs, so that the next run has nothing to do."""
        if self.tool in ("dvc", "snakemake"):  # whose first runs of 1000 tasks take many minutes
            for number in range(self.count):
                shutil.copy(self.folder / "in" / str(number), self.folder / "out" / str(number))
        if self.tool == "dvc":
            commit = [str(PROGRAMS / "dvc"), "commit", "--force", "--quiet"]
            subprocess.run(commit, cwd=self.folder, check=True)
        self.run()

    def run(self) -> float:
        """Seconds of one run, by the wall."""
        start = time.perf_counter()
        done = subprocess.run(
            self.command,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "DVC_NO_ANALYTICS": "1"},
        )
        seconds = time.perf_counter() - start
        if done.returncode:
            sys.exit(f"{self.tool}: {done.stdout.decode()[-500:]}")
        return seconds


def interleaved(runs: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each in turn, `rounds` times, after one round that isn't counted."""
    measured: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            seconds = run()
            if turn:
                measured[name].append(seconds)
    return measured


def median_ratio(a: list[float], b: list[float]) -> float:
    """The median of the ratios round by round."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def no_op(folder: Path, count: int, rounds: int, results: dict) -> None:
    tools = [t for t in ("dvc", "snakemake") if (PROGRAMS / t).exists()]
    for missing in {"dvc", "snakemake"} - set(tools):
        print(f"{missing}: not installed (pip install -e .[benchmark]); left out", file=sys.stderr)
    names = ["quern", "doit", "floor", *tools]
    graphs = {name: Graph(folder, name, count) for name in names}
    for graph in graphs.values():
        graph.build()
    time.sleep(2.1)  # digests of files younger than 2 s are not trusted yet: one settling run
    graphs["quern"].run()
    measured = interleaved({name: graph.run for name, graph in graphs.items()}, rounds)
    suffix = "" if count == 10 else f"_{count}"
    for name, seconds in measured.items():
        results["figures"][f"noop_{name}_ms{suffix}"] = 1000 * statistics.median(seconds)
        if name != "quern":
            ratio = median_ratio(measured["quern"], seconds)
            results["ratios"][f"noop_{name}{suffix}"] = ratio


def hash_read(folder: Path, size: int, rounds: int, results: dict) -> None:
    from tasks.core.digest import read_digests

    path = folder / "big"
    block = os.urandom(64 << 20)
    with open(path, "wb") as file:
        for _ in range(size // len(block)):
            file.write(block)

    def hashing() -> float:
        start = time.perf_counter()
        read_digests(path)
        return time.perf_counter() - start

    def cat() -> float:
        start = time.perf_counter()
        with open(os.devnull, "wb") as nowhere:
            subprocess.run(["cat", path], stdout=nowhere, check=True)
        return time.perf_counter() - start

    measured = interleaved({"quern": hashing, "cat": cat}, rounds)
    path.unlink()
    results["ratios"]["hash_read"] = median_ratio(measured["cat"], measured["quern"])
    results["figures"]["hash_gb_per_s"] = size / 1e9 / statistics.median(measured["quern"])
    results["figures"]["cat_gb_per_s"] = size / 1e9 / statistics.median(measured["cat"])


def deploy(folder: Path, rounds: int, results: dict) -> None:
    """A new checkpoint, weights only, to verified live: seconds in all and by step."""
    from tests.deploy_project import DeployProject, train_a_little

    checkpoints = [folder / f"{seed}.pth" for seed in range(rounds + 1)]
    for seed, path in enumerate(checkpoints):
        train_a_little(path, seed)
    (folder / "project").mkdir()
    project = DeployProject(folder / "project", checkpoints)
    totals: list[float] = []
    steps: dict[str, list[float]] = {}
    try:
        project.use_checkpoint(0)
        project.doit()
        for number in range(1, rounds + 1):
            project.use_checkpoint(number)
            start = time.perf_counter()
            done = project.doit("run", "--json")
            totals.append(time.perf_counter() - start)
            for line in done.stdout.splitlines():
                event = json.loads(line)
                if event["event"] == "done":
                    step = event["task"].partition(":")[0]
                    steps.setdefault(step, []).append(event["seconds"])
    finally:
        project.stop()
    importing = interleaved({"torch": import_torch}, rounds)["torch"]
    results["figures"]["deploy_s"] = statistics.median(totals)
    results["figures"]["import_torch_s"] = statistics.median(importing)
    for step, seconds in steps.items():
        results["figures"][f"deploy_{step}_s"] = statistics.median(seconds)


def import_torch() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="10 tasks, a small file, few rounds")
    arguments = parser.parse_args()
    results: dict = {"ratios": {}, "figures": {}}
    folder = Path(tempfile.mkdtemp(prefix="quern-benchmark-"))
    try:
        for count, rounds in [(10, 3)] if arguments.quick else [(10, 9), (100, 5), (1000, 3)]:
            no_op(folder, count, rounds, results)
        hash_read(folder, (1 if arguments.quick else 4) << 30, 3 if arguments.quick else 5, results)
        deploy(folder, 2 if arguments.quick else 5, results)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    results = {
        kind: {name: round(value, 4) for name, value in values.items()}
        for kind, values in results.items()
    }
    if arguments.json:
        print(json.dumps(results))
        return
    for kind, values in results.items():
        print(kind)
        for name, value in values.items():
            print(f"  {name:24} {value:10.3f}")


if __name__ == "__main__":
    main()

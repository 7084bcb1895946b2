"""What a prediction costs, beside its peers in the same run, in turn.

    python -m benchmarks.inference [--quick] [--output DIR] [--json FILE] [--only PART ...]
                                   [--build DIR]

A table is printed; benchmarks/results/ (or --output) gets inference.json and inference.png.

Forwards are CPU time, one thread, float32, batch 1, each engine in a process of its own; ratios are
medians of the ratios round by round. The floor is the network's multiply-adds at the peak of the
machine, measured in the same rounds.
  openvino, onnxruntime, ncnn   ours ÷ the peer's, on LiteCNNPro; below 1 is faster
  fma_peak                      the floor ÷ ours, on LiteCNNPro: the share of the machine's peak
and the same for each network; LiteCNNPro by size and width, against its floor; and of the server
  resident_mb, resident_mb_per_worker   after the first prediction; for each worker beyond the first
  binary_kb                     the stripped program, in 1000 bytes
  start_ms                      from the start of the process to its first answer, by the wall
  request_ms, request_ratio     the server's CPU time for a 640x480 JPEG; that ÷ the forward alone
  requests_per_s, throughput_ratio   64 keep-alive clients, one worker a core; that ÷ (workers ÷ CPU
                                seconds of a request), without what others used of the cores
Peers: pip install -e .[benchmark]; the machine should have nothing else to do.
"""

import argparse
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

from tasks.core.errors import QuernError

ROOT = Path(__file__).parent.parent.parent
PARTS = ("LiteCNNPro", "MobileNetV2", "ResNet18", "scaling", "server")


class Parser(argparse.ArgumentParser):
    """One whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; --help tells all\n")


def arguments() -> argparse.Namespace:
    parser = Parser("python -m benchmarks.inference", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small images, few rounds: a test")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "benchmarks" / "results", metavar="DIR"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="instead of DIR/inference.json")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS)
    )
    parser.add_argument(
        "--build", type=Path, metavar="DIR", help="a CMake build to measure, instead of doit's"
    )
    found = parser.parse_args()
    found.json = found.json or found.output / "inference.json"
    try:
        found.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--output: {error.filename}: {error.strerror}")
    if found.json.is_dir() or not os.access(found.json.parent, os.W_OK):
        parser.error(f"--json: {found.json} cannot be written")
    if found.build and not found.build.is_dir():
        parser.error(f"--build: {found.build}: no such folder")
    return found


def build() -> Path:
    """The folder with quern-server and quern_native, up to date."""
    command = [sys.executable, "-m", "doit", "run", "--wait", "900", "native"]
    if subprocess.run(command, cwd=ROOT, stdout=sys.stderr).returncode:
        sys.exit("the native programs could not be built; doit's message is above")
    return ROOT / "native" / "build"


def only_file(folder: Path, name: str) -> Path:
    found = [path for path in folder.rglob(name) if path.is_file()]
    if len(found) != 1:
        sys.exit(f"{folder}: has {len(found)} files named {name}; give the folder of one build")
    return found[0]


def cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def rounded(value: Any) -> Any:
    """Every float in it to four digits."""
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> None:
    given = arguments()
    for package in ("psutil", "sklearn"):
        if not importlib.util.find_spec(package):
            sys.exit(f"{package}: not installed (pip install -e .[benchmark])")
    from benchmarks.inference.measure import left_out, measure
    from benchmarks.inference.report import plot, table

    folder = given.build or build()
    module = only_file(folder, "quern_native*.so")
    os.environ["PYTHONPATH"] = str(module.parent)  # of the processes that take turns
    measured = measure(given.only, given.quick, only_file(folder, "quern-server"))
    results = {"cpu": cpu_name(), **measured}
    given.json.write_text(json.dumps(rounded(results), indent=1) + "\n")
    print(table(results))
    if not importlib.util.find_spec("matplotlib"):
        left_out("matplotlib")
    elif results["networks"] or results["scaling"]:
        plot(results, given.output / "inference.png")


if __name__ == "__main__":
    try:
        main()
    except QuernError as error:
        sys.exit(str(error))

"""The measurements, part by part, as the JSON has them."""

import importlib.util
import statistics
import sys
import tempfile
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import networks
from benchmarks.inference import server
from benchmarks.inference.engines import PEERS
from benchmarks.inference.report import network_figures
from benchmarks.inference.subjects import prepare
from benchmarks.inference.turns import FmaPeak, forwards

NETWORKS = {
    "LiteCNNPro": networks.litecnn_pro,
    "MobileNetV2": networks.mobilenet_v2,
    "ResNet18": networks.resnet18,
}
SIZES = (64, 96, 128, 192, 256, 384, 512)
WIDTHS = (0.6875, 1.0, 1.5, 2.25, 3.0, 4.5, 7.25)  # 0.5 to 53 M parameters


def left_out(name: str) -> None:
    print(f"{name}: not installed (pip install -e .[benchmark]); left out", file=sys.stderr)


def installed_peers() -> list[str]:
    peers = []
    for peer, modules in PEERS.items():
        if all(importlib.util.find_spec(module) for module in modules):
            peers.append(peer)
        else:
            left_out(peer)
    return peers


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(text, file=sys.stderr)


def measure(parts: list[str], quick: bool, program: Path) -> dict[str, Any]:
    """Every part that is asked for, of quern-server's `program`; `quick` to test the benchmark."""
    found: dict[str, Any] = {"quick": quick, "ratios": {}, "figures": {}}
    found |= {"networks": {}, "scaling": {}}
    compared = [name for name in NETWORKS if name in parts]
    peers = installed_peers() if compared else []
    found["versions"] = {package: version(package) for package in ("torch", *peers)}
    with tempfile.TemporaryDirectory(prefix="quern-benchmark-") as temporary:
        folder = Path(temporary)
        with FmaPeak(folder) as peak:
            for name in compared:
                progress(name)
                found["networks"][name] = compare(name, peers, quick, peak, folder / name)
            if "scaling" in parts:
                found["scaling"] = scaling(quick, peak, folder)
            if "server" in parts:
                progress("server")
                found["figures"] = server_figures(quick, program, folder)
            found["peak_gflops"] = statistics.median(peak.gflops)
    if "LiteCNNPro" in compared:
        found["ratios"] = found["networks"]["LiteCNNPro"]["ratios"]
    return found


def compare(
    name: str, peers: list[str], quick: bool, peak: FmaPeak, folder: Path
) -> dict[str, Any]:
    """One network, by every engine."""
    size, rounds, seconds = (64, 2, 0.01) if quick else (224, 40, 0.05)
    subject = prepare(name, NETWORKS[name], size, folder, peers)
    runs = [(engine, subject) for engine in ("quern", *peers)]
    return network_figures(forwards(runs, peak, rounds, seconds))


def scaling(quick: bool, peak: FmaPeak, folder: Path) -> dict[str, Any]:
    """LiteCNNPro by size of the image and by parameters, Quern alone, all in the same rounds."""
    sizes, widths, size = (SIZES[:2], WIDTHS[:2], 64) if quick else (SIZES, WIDTHS, 224)
    rounds, seconds = (2, 0.01) if quick else (20, 0.05)
    subjects = []
    for series, points in {
        "size": [(1.0, side) for side in sizes],
        "width": [(width, size) for width in widths],
    }.items():
        for width, side in points:
            progress(f"scaling: {side}x{side}, width {width}")
            name = f"{series}-{side}-{width}"
            make = partial(networks.litecnn_pro, width)
            subjects.append(prepare(name, make, side, folder / name, []))
    measured = forwards([("quern", subject) for subject in subjects], peak, rounds, seconds)
    figures = [network_figures([forward]) for forward in measured]
    return {"size": figures[: len(sizes)], "width": figures[len(sizes) :]}


def server_figures(quick: bool, program: Path, folder: Path) -> dict[str, float]:
    """The server with LiteCNNPro."""
    size, rounds, seconds = (64, 2, 0.05) if quick else (224, 15, 0.3)
    subject = prepare("LiteCNNPro", networks.litecnn_pro, size, folder / "server", [])
    return server.measure(program, subject, folder, rounds, seconds)

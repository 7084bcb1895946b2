"""The inference benchmark as its users run it; timings are only looked at for being there."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import networks
from benchmarks.inference.subjects import Subject, prepare
from benchmarks.inference.turns import engine, error
from tests.native_build import ROOT, native_build

NETWORKS = {
    "LiteCNNPro": networks.litecnn_pro,
    "MobileNetV2": networks.mobilenet_v2,
    "ResNet18": networks.resnet18,
}
FIGURES = {
    "resident_mb",
    "resident_mb_per_worker",
    "binary_kb",
    "start_ms",
    "request_ms",
    "request_ratio",
    "requests_per_s",
    "throughput_ratio",
}


def benchmark(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.inference", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def multiply_adds(network: torch.nn.Module, size: int) -> int:
    """As torch itself counts them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, size, size))
    return int(counter.get_total_flops()) // 2


@pytest.mark.slow
def test_a_quick_run(tmp_path: Path) -> None:
    native_build()
    done = benchmark("--quick", "--output", str(tmp_path / "results"))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "results" / "inference.json").read_text())
    assert found["quick"] is True
    assert found["peak_gflops"] > 0
    assert found["networks"].keys() == NETWORKS.keys()
    for name, network in found["networks"].items():
        wanted = multiply_adds(NETWORKS[name]().eval(), network["size"])
        assert network["multiply_adds"] == wanted
        # As many ratios as engines: a peer that isn't installed has none, and is told of.
        peers = network["engines"].keys() - {"quern"}
        assert network["ratios"].keys() == peers | {"fma_peak"}
        missing = {"openvino", "onnxruntime", "ncnn"} - peers
        assert all(f"{peer}: not installed" in done.stderr for peer in missing)
        for figures in network["engines"].values():
            assert 0 < figures["min_ms"] <= figures["p50_ms"]
            assert 0 < figures["error"] <= 1e-4
        assert f"{name}, 64x64: " in done.stdout
    assert found["ratios"] == found["networks"]["LiteCNNPro"]["ratios"]
    assert [point["size"] for point in found["scaling"]["size"]] == [64, 96]
    parameters = [point["parameters"] for point in found["scaling"]["width"]]
    assert parameters == sorted(parameters) and parameters[0] < parameters[1]
    assert found["figures"].keys() == FIGURES
    assert all(
        value > 0 for name, value in found["figures"].items() if name != "resident_mb_per_worker"
    )


@pytest.fixture
def subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
    monkeypatch.setenv("PYTHONPATH", str(native_build()), prepend=os.pathsep)
    return prepare("LiteCNNPro", networks.litecnn_pro, 64, tmp_path / "subject", [])


def test_an_engine_that_answers_otherwise_than_torch_stops_the_benchmark(subject: Subject) -> None:
    assert not torch.allclose(subject.logits[0], subject.logits[1], atol=0.01)
    with engine("quern", subject, 0.01) as turns:
        assert error(turns, subject) <= 1e-4
        wrong = dataclasses.replace(subject, logits=subject.logits + torch.tensor([[0.001], [0]]))
        with pytest.raises(SystemExit, match="quern on LiteCNNPro differs from torch by"):
            error(turns, wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fast"], "--fast"),
        (["--only", "AlexNet"], "AlexNet"),
        (["--json", "/proc/nowhere/file"], "--json: /proc/nowhere/file cannot be written"),
        (["--build", "nowhere"], "--build: nowhere: no such folder"),
    ],
)
def test_a_bad_argument_is_one_line(arguments: list[str], message: str) -> None:
    done = benchmark(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1

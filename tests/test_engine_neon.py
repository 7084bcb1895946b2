"""The engine's NEON kernels against torch float32 eager: built for ARM's aarch64, run by QEMU.

On a machine that is aarch64 itself, tests/test_engine_networks.py runs them.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tasks.models.golden import TOLERANCE
from tasks.models.interpreter import relative_difference
from tasks.models.weights_file import encode
from tests.lowered import lower_model
from tests.native_module import preprocess
from tests.networks import CLASSES, NETWORKS, drawings, input_shape, trained

ROOT = Path(__file__).resolve().parent.parent
COMPILER = "aarch64-linux-gnu-g++"
EMULATOR = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"]
HEADERS = ["xxhash.h", "xxh3.h", "nlohmann", "doctest"]  # the same for every kind of CPU

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        platform.machine() in ("aarch64", "arm64"),
        reason="this CPU has neon: tests/test_engine_networks.py tests it",
    ),
    pytest.mark.skipif(
        sys.platform == "darwin", reason="neon is not tested here: no cross compiler for macOS"
    ),
]


@pytest.fixture(scope="session")
def run_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """native/tests/run_model.cc, for aarch64."""
    for program in (COMPILER, EMULATOR[0]):
        if not shutil.which(program):
            pytest.fail(f"{program} is not installed: run ./setup tests", pytrace=False)
    folder = tmp_path_factory.mktemp("aarch64")
    # /usr/include itself would stand before the headers of the other machine's C library.
    headers = folder / "include"
    headers.mkdir()
    for name in HEADERS:
        (headers / name).symlink_to(Path("/usr/include") / name)
    options = {
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": "aarch64",
        "CMAKE_CXX_COMPILER": COMPILER,
        "CMAKE_C_COMPILER": COMPILER.replace("g++", "gcc"),
        "CMAKE_CROSSCOMPILING_EMULATOR": ";".join(EMULATOR),
        "QUERN_IMAGE": "OFF",
        "QUERN_SERVER": "OFF",
        "QUERN_TESTS": "ON",
    } | {f"{name}_INCLUDE": str(headers) for name in ("xxhash", "nlohmann_json", "doctest")}
    cmake = str(Path(sys.executable).with_name("cmake"))
    definitions = [f"-D{name}={value}" for name, value in options.items()]
    for command in (
        [cmake, "-S", str(ROOT), "-B", str(folder), *definitions],
        [cmake, "--build", str(folder), "--parallel", "2", "--target", "run_model"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return folder / "native" / "tests" / "run_model"


@pytest.mark.parametrize("path", ["scalar", "neon"])
@pytest.mark.parametrize("name", NETWORKS)
def test_logits(run_model: Path, tmp_path: Path, name: str, path: str) -> None:
    network = trained(name)
    file = tmp_path / "model_weights.bin"
    classes = [str(label) for label in range(CLASSES)]
    file.write_bytes(encode(lower_model(network, input_shape(name)), preprocess("RGB"), classes))
    images = drawings(4, NETWORKS[name][1], 1000)[0]
    done = subprocess.run(
        [*EMULATOR, run_model, file, path], input=images.numpy().tobytes(), capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    logits = torch.frombuffer(bytearray(done.stdout), dtype=torch.float32).view(-1, CLASSES)
    with torch.no_grad():
        wanted = torch.cat([network(image[None]) for image in images])
    assert logits.shape == wanted.shape
    for found, right in zip(logits, wanted, strict=True):
        assert relative_difference(found, right) <= TOLERANCE

"""quern-server as one file: small, in need of nothing but the system's own libraries, and able to
read every kind of image although its libraries are linked without their encoders."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.native_build import Binaries, programs
from tests.native_module import native
from tests.server_world import Running, ask, serving
from tests.test_image import FILES

__all__ = ["native"]

MOST_BYTES = 908_000
SYSTEM = r"libstdc\+\+|libm|libgcc_s|libc|ld-linux.*"


@pytest.fixture(scope="session")
def binaries() -> Binaries:
    return programs()


@pytest.fixture(scope="module")
def server(binaries: Binaries, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(binaries.server, tmp_path_factory.mktemp("server")) as run:
        yield run


@pytest.mark.skipif(sys.platform != "linux", reason="the bound is Linux's")
@pytest.mark.skipif("QUERN_TEST_BUILD" in os.environ, reason="not the build that is released")
def test_size_and_what_it_needs(binaries: Binaries) -> None:
    assert binaries.server.stat().st_size <= MOST_BYTES
    done = subprocess.run(
        ["readelf", "--dynamic", str(binaries.server)], capture_output=True, text=True, check=True
    )
    needed = re.findall(r"\(NEEDED\).*\[(.+)\.so", done.stdout)
    assert needed
    assert [name for name in needed if not re.fullmatch(SYSTEM, name)] == []


def test_the_decoder_s_simd_cannot_be_turned_off(binaries: Binaries, tmp_path: Path) -> None:
    """There is no other decoder in the binary."""
    content = FILES["JPEG 4:2:0"]()
    with serving(binaries.server, tmp_path, environment={"JSIMD_FORCENONE": "1"}) as run:
        answer = ask(run.port, "POST", "/predict", content, {"Content-Type": "image/jpeg"})
        assert answer.status == 200


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_image(server: Running, native: Any, name: str) -> None:
    """The server's answer is that of the Python module, which has the libraries whole."""
    content = FILES[name]()
    weights = server.log_path.parent / "model_weights.bin"
    expected = native.Model(str(weights)).predict(content, top=10)
    kind = {"Content-Type": "application/octet-stream"}
    answer = ask(server.port, "POST", "/predict?top=10", content, kind)
    assert answer.status == 200, answer.body
    given = [(one["class_id"], one["score"]) for one in answer.json()["predictions"]]
    assert given == [(class_id, pytest.approx(score, rel=1e-6)) for class_id, score in expected]

"""Kernel files compiled for one instruction set leave nothing behind that other code could call."""

import platform
import subprocess
from pathlib import Path

import pytest

from tasks.core.tools import compiler

KERNELS = Path(__file__).resolve().parent.parent / "native" / "engine" / "kernels"
# With which all of them have functions; without, pairs.cc has none.
AVX512 = ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mavx2", "-mfma"]
FLAGS = AVX512 if platform.machine() in ("x86_64", "AMD64") else []


@pytest.mark.parametrize("source", sorted(KERNELS.glob("*.cc")), ids=lambda path: str(path.name))
def test_a_kernel_file_shares_no_function_with_the_rest(source: Path, tmp_path: Path) -> None:
    """A weak symbol compiled with these flags might become the whole program's copy."""
    program = compiler()
    assert program
    command = [program, "-std=c++20", "-O3", "-ffp-contract=fast", "-fPIC"]
    command += [*FLAGS, "-DQUERN_INSTRUCTIONS=avx512", f"-I{KERNELS.parent.parent}"]
    subprocess.run([*command, "-c", str(source), "-o", tmp_path / "kernel.o"], check=True)
    listed = subprocess.run(
        ["nm", "-C", tmp_path / "kernel.o"], check=True, capture_output=True, text=True
    )
    symbols = [line.split(maxsplit=2) for line in listed.stdout.splitlines() if line[0] != " "]
    assert symbols or (source.name == "pairs.cc" and not FLAGS)
    for _, kind, name in symbols:
        assert kind not in "WVuwv", name
        assert kind.islower() or name.startswith("quern::avx512::"), name

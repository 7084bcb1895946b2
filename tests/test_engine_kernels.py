"""Kernel files compiled for one instruction set leave nothing behind that other code could call."""

import subprocess
from pathlib import Path

import pytest

from tasks.core.tools import compiler

KERNELS = Path(__file__).resolve().parent.parent / "native" / "engine" / "kernels"


@pytest.mark.parametrize("source", sorted(KERNELS.glob("*.cc")), ids=lambda path: str(path.name))
def test_a_kernel_file_shares_no_function_with_the_rest(source: Path, tmp_path: Path) -> None:
    """A weak symbol compiled with these flags might become the whole program's copy."""
    program = compiler()
    assert program
    command = [program, "-std=c++20", "-O3", "-ffp-contract=fast", "-fPIC"]
    command += ["-DQUERN_INSTRUCTIONS=avx2", f"-I{KERNELS.parent.parent}"]
    subprocess.run([*command, "-c", str(source), "-o", tmp_path / "kernel.o"], check=True)
    listed = subprocess.run(
        ["nm", "-C", tmp_path / "kernel.o"], check=True, capture_output=True, text=True
    )
    symbols = [line.split(maxsplit=2) for line in listed.stdout.splitlines() if line[0] != " "]
    assert symbols
    for _, kind, name in symbols:
        assert kind not in "WVuwv", name
        assert kind.islower() or name.startswith("quern::avx2::"), name

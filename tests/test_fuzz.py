"""The fuzz targets, each for a short time; docs/reliability.md tells of the long runs."""

import json
import re
import struct
import sys
from pathlib import Path

import pytest

from native.fuzz.run import CORPUS, TARGETS, FuzzError, compiler, fuzz

ROOT = Path(__file__).parent.parent
SECONDS = 20
needs_libfuzzer = pytest.mark.skipif(
    sys.platform == "darwin" and compiler() is None,
    reason="Apple's clang has no libFuzzer: brew install llvm",
)


@needs_libfuzzer
@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_a_short_run_finds_nothing(target: str, tmp_path: Path) -> None:
    figures = fuzz(target, SECONDS, tmp_path / "found", tmp_path / "findings")
    print(figures.row())
    seeds = len(list((CORPUS / target).iterdir()))
    assert figures.executions > 2 * seeds
    assert figures.corpus > seeds / 2


@needs_libfuzzer
@pytest.mark.slow
def test_a_finding_fails_the_run(tmp_path: Path) -> None:
    """With a limit on memory that the first input exceeds."""
    with pytest.raises(FuzzError, match="out-of-memory"):
        fuzz("image", 5, tmp_path / "found", tmp_path / "findings", ("-rss_limit_mb=1",))


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_is_small(target: str) -> None:
    sizes = [path.stat().st_size for path in (CORPUS / target).iterdir()]
    assert 0 < len(sizes) <= 64
    assert max(sizes) <= 14_000


def test_the_corpus_has_every_operation() -> None:
    """Those in the table of docs/weight-format.md; python -m native.fuzz.make_corpus adds them."""
    table = (ROOT / "docs" / "weight-format.md").read_text().partition("## Operations")[2]
    rows = [line for line in table.partition("\n## ")[0].splitlines() if line.startswith("| `")]
    documented = {op for row in rows for op in re.findall(r"`(\w+)`", row.split("|")[1])}
    found = set()
    for path in (CORPUS / "weights").iterdir():
        data = path.read_bytes()
        (length,) = struct.unpack_from(">Q", data, 24)
        found |= {node["op"] for node in json.loads(data[48 : 48 + length])["nodes"]}
    assert documented
    assert found >= documented

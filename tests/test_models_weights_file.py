"""model_weights.bin: what is written is what is read, by three readers; damage is noticed."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.core.errors import QuernError
from tasks.models.graph import INPUT, Graph, Node
from tasks.models.operators import EVALUATIONS
from tasks.models.weights_file import decode, encode, read_weights

ROOT = Path(__file__).parent.parent
FORMAT = (ROOT / "docs" / "weight-format.md").read_text()
PREPROCESS = {"mode": "RGB", "resize": 32, "crop": None, "mean": [0.485], "std": [1.0]}


def small_graph(outputs: int = 4, names: tuple[str, str] = ("a", "b")) -> Graph:
    """Two linear layers, one of them in float64, of sizes that need padding between."""
    random = np.random.default_rng(0)
    first = {"weight": random.standard_normal((3, 5)).astype(np.float32), "bias": np.zeros(3)}
    last = {"weight": random.standard_normal((outputs, 3)), "bias": np.ones(outputs, np.float32)}
    return Graph(
        (1, 5, 1, 1),
        [
            Node("reshape", names[0], [INPUT], "v0", (1, 5)),
            Node("linear", names[0], ["v0"], "v1", (1, 3), first),
            Node("linear", names[1], ["v1"], "v2", (1, outputs), last),
        ],
        "v2",
    )


def resealed(data: bytes) -> bytes:
    digest = xxhash.xxh3_128(data[:32] + data[48:]).digest()
    return data[:32] + digest + data[48:]


def reader_of_the_doc(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Runs the very lines that docs/weight-format.md gives as an example."""
    (code,) = re.findall(r"```python\n(.*?)```", FORMAT, re.DOTALL)
    scope: dict[str, Any] = {}
    exec(compile(code, "docs/weight-format.md", "exec"), scope)
    header, tensors = scope["read"](str(path))
    return header, tensors


def test_what_is_written_is_read_by_both_readers(tmp_path: Path) -> None:
    graph = small_graph()
    path = tmp_path / "model_weights.bin"
    path.write_bytes(encode(graph, PREPROCESS, ["가", "b", "c", "d"]))
    found = read_weights(path)
    assert found.header["classes"] == ["가", "b", "c", "d"]
    assert found.header["preprocess"] == PREPROCESS
    assert found.header["nodes"][1] == {
        **{"op": "linear", "name": "a", "inputs": ["v0"], "output": "v1", "shape": [1, 3]},
        **{"tensors": {"bias": "a.bias", "weight": "a.weight"}, "attributes": {}},
    }
    for node, name in ((graph.nodes[1], "a"), (graph.nodes[2], "b")):
        for role in ("weight", "bias"):
            wanted = node.tensors[role].astype(np.float32)
            assert np.array_equal(found.tensors[f"{name}.{role}"], wanted)

    header, tensors = reader_of_the_doc(path)
    assert header == found.header
    assert tensors.keys() == found.tensors.keys()
    for name, numbers in tensors.items():
        assert list(numbers) == found.tensors[name].ravel().tolist()


def test_the_layout_is_the_documented_one() -> None:
    data = encode(small_graph(), PREPROCESS, ["x"])
    assert data[:8] == b"QUERNWTS"
    assert data[8:16] == bytes([0, 0, 0, 1, 1, 2, 3, 4])
    assert int.from_bytes(data[16:24], "big") == len(data)
    length = int.from_bytes(data[24:32], "big")
    assert data[32:48] == xxhash.xxh3_128(data[:32] + data[48:]).digest()
    header = json.loads(data[48 : 48 + length])
    canonical = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert data[48 : 48 + length] == canonical.encode()
    end = 48 + length
    for tensor in header["tensors"]:
        assert tensor["offset"] == -(-end // 64) * 64
        assert data[end : tensor["offset"]] == bytes(tensor["offset"] - end)
        end = tensor["offset"] + tensor["length"]
    assert end == len(data)


def test_every_operation_is_in_the_document() -> None:
    table = FORMAT.split("## Operations")[1].split("## Preprocess")[0]
    documented = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\|([^|]*)\|", table, re.M))))
    assert documented == EVALUATIONS.keys()


@settings(max_examples=60, deadline=None)
@given(outputs=st.integers(1, 40), label=st.text(st.characters(codec="utf-8"), max_size=70))
def test_any_header_length_and_any_tensor_size(outputs: int, label: str) -> None:
    found = decode(encode(small_graph(outputs), PREPROCESS, [label]), "test")
    assert found.header["classes"] == [label]
    assert found.tensors["b.weight"].shape == (outputs, 3)


def test_two_processes_write_the_same_bytes() -> None:
    code = (
        "import sys, xxhash; from tests.test_models_weights_file import *;"
        "print(xxhash.xxh3_128_hexdigest(encode(small_graph(), PREPROCESS, ['x'])))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for seed in ("1", "2")
    ]
    here = xxhash.xxh3_128_hexdigest(encode(small_graph(), PREPROCESS, ["x"]))
    assert runs == [here, here]


def test_two_modules_of_one_name_keep_both_tensors() -> None:
    found = decode(encode(small_graph(3, ("a", "a")), PREPROCESS, []), "test")
    assert set(found.tensors) == {"a.weight", "a.bias", "a.weight#2", "a.bias#2"}
    assert not np.array_equal(found.tensors["a.bias"], found.tensors["a.bias#2"])


def test_every_damaged_byte_and_every_truncation_is_noticed() -> None:
    data = encode(small_graph(), PREPROCESS, ["x"])
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1
        with pytest.raises(QuernError, match=r"^file: [^\n]*; build it again$"):
            decode(bytes(damaged), "file")
    for size in range(len(data)):
        with pytest.raises(QuernError):
            decode(data[:size], "file")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"length":12', b'"length":99'),
        (b'"dtype":"float32"', b'"dtype":"float64"'),
        (b'"shape":[3,5]', b'"shape":[5,5]'),
        (b'"shape":[3,5]', b'"shape":[3,x]'),
        (b'"offset"', b'"offxet"'),
    ],
)
def test_a_header_that_lies_under_a_right_digest_is_refused(old: bytes, new: bytes) -> None:
    data = encode(small_graph(), PREPROCESS, ["x"])
    assert old in data
    with pytest.raises(QuernError, match=r"^file: [^\n]*; build it again$"):
        decode(resealed(data.replace(old, new, 1)), "file")

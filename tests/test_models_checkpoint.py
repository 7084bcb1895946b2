"""Checkpoints are data: what is read, what is said of what can't be, and that nothing is run."""

import os
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tasks.core.errors import QuernError
from tasks.models.archive import is_complete_zip
from tasks.models.checkpoint import read_checkpoint
from tasks.models.label import label

ROOT = Path(__file__).parent.parent


def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).state_dict()


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(QuernError) as caught:
        read_checkpoint(path)
    text = str(caught.value)
    assert "\n" not in text and text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


@pytest.mark.parametrize("key", ["model_state_dict", "state_dict", None])
@pytest.mark.parametrize(
    "prefix", ["", "_orig_mod.", "module.", "_orig_mod.module.", "module._orig_mod."]
)
def test_weights_are_found_under_each_key_and_prefix(
    tmp_path: Path, key: str | None, prefix: str
) -> None:
    state = {prefix + name: tensor for name, tensor in weights().items()}
    found = read_checkpoint(saved(tmp_path / "a.pth", {key: state, "epoch": 3} if key else state))
    assert found.state_dict.keys() == weights().keys()
    assert all(torch.equal(found.state_dict[name], weights()[name]) for name in weights())
    assert found.epoch == (3 if key else None)


def test_a_compiled_part_of_a_model(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", {"backbone._orig_mod.weight": torch.ones(2)})
    assert list(read_checkpoint(path).state_dict) == ["backbone.weight"]


def test_one_submodule_named_module_is_no_prefix(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", {"module.weight": torch.ones(2), "head": torch.ones(1)})
    assert list(read_checkpoint(path).state_dict) == ["module.weight", "head"]


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_with_a_note(tmp_path: Path, kind: torch.dtype) -> None:
    half = {n: t.to(kind) if t.is_floating_point() else t for n, t in weights().items()}
    found = read_checkpoint(saved(tmp_path / "a.pth", {"state_dict": half}))
    assert all(found.state_dict[n].dtype != kind for n in half)
    assert all(torch.equal(found.state_dict[n], half[n].float()) for n in half if "weight" in n)
    (note,) = found.notes
    assert note.startswith("6 tensors of ") and note.endswith("were widened to float32")


@pytest.mark.parametrize(
    "val_acc", [0.626, np.float64(0.626), np.float32(0.626), torch.tensor(0.626), np.array(0.626)]
)
def test_accuracy_in_whatever_form_training_left_it(tmp_path: Path, val_acc: Any) -> None:
    content = {"model_state_dict": weights(), "val_acc": val_acc, "epoch": np.int64(27)}
    if isinstance(val_acc, np.ndarray):
        content["val_acc"] = val_acc[()]
    found = read_checkpoint(saved(tmp_path / "a.pth", content))
    assert found.val_acc == pytest.approx(0.626)
    assert label(13, found.epoch, found.val_acc) == "Cycle 13 (Epoch 27, 62.60%)"


@pytest.mark.parametrize(
    ("cycle", "epoch", "val_acc", "text"),
    [
        (13, 27, 62.6, "Cycle 13 (Epoch 27, 62.60%)"),
        (13, 27, 0.626, "Cycle 13 (Epoch 27, 62.60%)"),
        (1, 12, 1.0, "Cycle 1 (Epoch 12, 100.00%)"),
        (2, None, None, "Cycle 2"),
        (2, 5, None, "Cycle 2 (Epoch 5)"),
        (2, 0, float("nan"), "Cycle 2 (Epoch 0)"),
        (None, 5, 0.5, "Epoch 5, 50.00%"),
        (None, None, None, ""),
    ],
)
def test_label(cycle: int | None, epoch: int | None, val_acc: float | None, text: str) -> None:
    assert label(cycle, epoch, val_acc) == text


class Attack:
    """Unpickled by pickle.load, it would write a file."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def write_file(path: str) -> None:
    Path(path).write_text("run")


@pytest.mark.parametrize("way", ["os.system", "own function", "eval"])
def test_a_malicious_pickle_runs_nothing(tmp_path: Path, way: str) -> None:
    proof = tmp_path / "proof"
    attack = {
        "os.system": Attack(os.system, f"touch {proof}"),
        "own function": Attack(write_file, str(proof)),
        "eval": Attack(eval, f"open({str(proof)!r}, 'w').close()"),
    }[way]
    path = saved(tmp_path / "a.pth", {"model_state_dict": weights(), "extra": attack})
    text = refusal(path)
    assert "nothing in a checkpoint is run" in text
    named = {"os.system": "posix.system", "own function": "write_file", "eval": "eval"}[way]
    assert named in text
    assert not proof.exists()
    pickle.loads(pickle.dumps(attack))
    assert proof.exists()  # the attack is a real one


def test_a_whole_model_is_refused_with_what_to_do(tmp_path: Path) -> None:
    text = refusal(saved(tmp_path / "a.pth", nn.Linear(2, 2)))
    assert "torch.nn.modules.linear.Linear" in text and "model.state_dict()" in text


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ([1, 2], "holds a list"),
        ({"epoch": 3, "loss": 0.5}, "no weights under model_state_dict or state_dict"),
        ({"model_state_dict": {}}, "no weights under"),
        ({"w": torch.tensor([1.0, float("nan")])}, "w holds 1 of 2 numbers that are NaN"),
        ({"w": torch.tensor([float("inf")] * 3)}, "w holds 3 of 3 numbers that are NaN or inf"),
        ({"w": torch.ones(2, dtype=torch.complex64)}, "w is sparse, quantized or complex"),
        ({"w": torch.eye(2).to_sparse()}, "w is sparse, quantized or complex"),
        ({"a": torch.ones(1), "_orig_mod.a": torch.ones(1)}, "holds a twice"),
    ],
)
def test_what_is_no_checkpoint_is_said_in_one_line(tmp_path: Path, content: Any, part: str) -> None:
    assert part in refusal(saved(tmp_path / "a.pth", content))


def test_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    assert "no such checkpoint" in refusal(tmp_path / "missing.pth")
    (tmp_path / "empty.pth").touch()
    assert "is empty" in refusal(tmp_path / "empty.pth")
    (tmp_path / "text.pth").write_text("hello")
    assert "is not a zip archive" in refusal(tmp_path / "text.pth")
    torch.save(weights(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert "is not a zip archive" in refusal(tmp_path / "old.pth")
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as archive:
        archive.writestr("hello.txt", "hello")
    assert "not a PyTorch checkpoint" in refusal(tmp_path / "other.pth")
    assert "cannot be read" in refusal(tmp_path)


def test_every_truncation_is_noticed_before_torch_reads_it(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole.pth", {"model_state_dict": weights()}).read_bytes()
    assert is_complete_zip(tmp_path / "whole.pth") is None
    cut = tmp_path / "cut.pth"
    for size in [*range(0, len(whole), 97), *range(len(whole) - 80, len(whole))]:
        cut.write_bytes(whole[:size])
        assert is_complete_zip(cut) is not None, size
    assert re.search("cut short", refusal(cut))
    cut.write_bytes(whole + b"more")
    assert is_complete_zip(cut) == "is cut short, or has bytes after its end"


def test_a_save_under_way_with_its_full_size_already(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole.pth", {"model_state_dict": weights()}).read_bytes()
    path = tmp_path / "under_way.pth"
    path.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    assert "cut short" in str(is_complete_zip(path))


@settings(max_examples=50, deadline=None)
@given(comment=st.binary(max_size=200), zip64=st.booleans())
def test_zip_archives_of_every_form_are_complete(
    tmp_path_factory: pytest.TempPathFactory, comment: bytes, zip64: bool
) -> None:
    path = tmp_path_factory.mktemp("zip") / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.comment = comment.replace(b"PK", b"pk")
        with archive.open("a", "w", force_zip64=zip64) as file:
            file.write(b"data")
    assert is_complete_zip(path) is None


def test_zip64_directory(tmp_path: Path) -> None:
    path = tmp_path / "many.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(65536):  # one more than the plain directory can count
            archive.writestr(zipfile.ZipInfo(f"{index}"), b"")
    assert b"PK\x06\x06" in path.read_bytes()
    assert is_complete_zip(path) is None
    data = bytearray(path.read_bytes())
    at = data.rfind(b"PK\x06\x07")
    data[at + 8 : at + 16] = (len(data) + 100).to_bytes(8, "little")
    path.write_bytes(data)
    assert "zip64 directory lies outside" in str(is_complete_zip(path))


def test_completeness_is_asked_without_torch() -> None:
    code = (
        "import sys, tasks.models.archive, tasks.models.label, tasks.models.classes;"
        "import tasks.models.probes, tasks.models.preprocess, tasks.models.weights_file;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)

"""Which checkpoint is taken, and what is told of it."""

import json
import os
from pathlib import Path

import pytest

from tasks.core.configuration import CheckpointSource
from tasks.core.errors import QuernError, TryAgainLater
from tasks.fetch import fetch, pick_checkpoint


@pytest.fixture(scope="module")
def whole() -> bytes:
    """A checkpoint's bytes, as torch.save writes them."""
    import io

    import torch

    buffer = io.BytesIO()
    torch.save({"model_state_dict": {"weight": torch.zeros(64)}, "epoch": 1}, buffer)
    return buffer.getvalue()


def checkpoint(folder: Path, cycle: int, data: bytes, age: int = 0) -> Path:
    path = folder / f"checkpoints_cycle{cycle}" / "best_model.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    moment = 1_700_000_000 - age
    os.utime(path, (moment, moment))
    return path


def source(folder: Path, pick: str = "highest-cycle") -> CheckpointSource:
    return CheckpointSource(path=f"{folder}/checkpoints_cycle*/best_model.pth", pick=pick)


def test_the_highest_cycle_is_a_number_not_a_word(tmp_path, whole):
    for cycle in (2, 9, 13):
        checkpoint(tmp_path, cycle, whole)
    assert "cycle13/" in pick_checkpoint("dogs", source(tmp_path))


def test_the_newest_is_the_last_one_written(tmp_path, whole):
    checkpoint(tmp_path, 13, whole, age=100)
    checkpoint(tmp_path, 2, whole, age=1)
    assert "cycle2/" in pick_checkpoint("dogs", source(tmp_path, "newest"))


def test_one_still_being_written_is_passed_over(tmp_path, whole):
    checkpoint(tmp_path, 1, whole)
    checkpoint(tmp_path, 2, whole[: len(whole) // 2])
    checkpoint(tmp_path, 3, whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    assert "cycle1/" in pick_checkpoint("dogs", source(tmp_path))


def test_when_all_are_unfinished_it_is_tried_again_later(tmp_path, whole):
    checkpoint(tmp_path, 1, whole[:-1])
    with pytest.raises(TryAgainLater, match="left until its writer is done"):
        pick_checkpoint("dogs", source(tmp_path))


def test_when_nothing_matches_the_key_is_named(tmp_path):
    with pytest.raises(QuernError, match=r"models\.dogs\.checkpoint\.path: no file matches"):
        pick_checkpoint("dogs", source(tmp_path))


def test_what_is_fetched_is_the_same_bytes_and_their_origin(tmp_path, whole):
    import hashlib

    path = checkpoint(tmp_path, 7, whole)
    fetch(str(path), str(tmp_path / "copy.pth"), str(tmp_path / "origin.json"))
    assert (tmp_path / "copy.pth").read_bytes() == whole
    assert json.loads((tmp_path / "origin.json").read_bytes()) == {
        "path": str(path),
        "cycle": 7,
        "size": len(whole),
        "sha256": hashlib.sha256(whole).hexdigest(),
    }

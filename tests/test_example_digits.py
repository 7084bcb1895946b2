"""The example trains for real: a new network, on real digits, judged on files it never saw."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from examples.digits import train as example
from tasks.models.architecture import build, fit
from tasks.models.checkpoint import read_checkpoint
from tasks.models.classes import read_classes
from tasks.models.graph import encode
from tasks.models.interpreter import relative_difference, run
from tasks.models.label import label
from tasks.models.lower import lower
from tasks.models.preprocess import parse_preprocess, preprocess_file
from tasks.models.tracing import trace
from tasks.models.weights_file import read_weights

FOLDER = Path(example.__file__).parent


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("digits")
    checkpoint, lines = root / "checkpoints_cycle3" / "best_model.pth", []
    example.train(checkpoint, seed=3, held_out=root / "held_out", progress=lines.append)
    return {"checkpoint": checkpoint, "held_out": root / "held_out", "lines": lines}


def inputs_and_labels(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """All held-out digits, read from their files as a server would."""
    settings = parse_preprocess(example.PREPROCESS)
    files = sorted(folder.iterdir())
    inputs = np.concatenate([preprocess_file(file, settings) for file in files])
    labels = [int(file.name.split("_")[0]) for file in files]
    return torch.from_numpy(inputs), torch.tensor(labels)


@pytest.mark.slow
def test_at_least_97_percent_of_the_held_out_files_are_read_right(trained: dict[str, Any]) -> None:
    inputs, labels = inputs_and_labels(trained["held_out"])
    assert len(labels) == 300 and labels.bincount().tolist() == [
        sum(1 for file in trained["held_out"].iterdir() if file.name[0] == str(digit))
        for digit in range(10)
    ]
    model = build(FOLDER / "litecnn.py", "LiteCNNPro", example.ARGUMENTS)
    found = read_checkpoint(trained["checkpoint"])
    fit(model, found.state_dict)
    with torch.no_grad():
        right = (model(inputs).argmax(1) == labels).double().mean().item()
    assert right >= 0.97


@pytest.mark.slow
def test_the_checkpoint_has_the_predecessor_s_form(trained: dict[str, Any]) -> None:
    content = torch.load(trained["checkpoint"], weights_only=True)
    assert content.keys() == {
        *("model_state_dict", "optimizer_state_dict", "epoch", "val_acc", "seed"),
    }
    assert content["seed"] == 3 and 1 <= content["epoch"] <= example.EPOCHS
    assert [path.name for path in trained["checkpoint"].parent.iterdir()] == ["best_model.pth"]
    epoch, val_acc = content["epoch"], content["val_acc"]
    assert label(3, epoch, val_acc) == f"Cycle 3 (Epoch {epoch}, {val_acc:.2%})"
    shown = [float(line.split()[-1].removesuffix("%")) for line in trained["lines"]]
    assert max(shown) == pytest.approx(val_acc * 100, abs=0.01)
    assert shown[epoch - 1] == max(shown) and len(shown) == example.EPOCHS


@pytest.mark.slow
def test_it_is_lowered_as_it_was_trained(trained: dict[str, Any], tmp_path: Path) -> None:
    network = {
        "class_name": "LiteCNNPro",
        "arguments": example.ARGUMENTS,
        "preprocess": example.PREPROCESS,
    }
    (tmp_path / "graph.json").write_bytes(encode(trace(FOLDER / "litecnn.py", **network)))
    lower(
        trained["checkpoint"],
        FOLDER / "litecnn.py",
        FOLDER / "classes.json",
        tmp_path / "graph.json",
        tmp_path / "model_weights.bin",
        tmp_path / "golden.json",
        **network,
        probes=[str(trained["held_out"])],
    )
    weights = read_weights(tmp_path / "model_weights.bin")
    inputs, _ = inputs_and_labels(trained["held_out"])
    model = build(FOLDER / "litecnn.py", "LiteCNNPro", example.ARGUMENTS)
    fit(model, read_checkpoint(trained["checkpoint"]).state_dict)
    for network_input in inputs[::30].split(1):
        with torch.no_grad():
            wanted = model(network_input)
        assert relative_difference(run(weights, network_input), wanted) < 1e-5


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example, "EPOCHS", 1)
    digests = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        example.train(
            tmp_path / name / "m.pth", seed=seed, held_out=tmp_path, progress=lambda _: None
        )
        state = read_checkpoint(tmp_path / name / "m.pth").state_dict
        digests.append(torch.cat([tensor.double().ravel() for tensor in state.values()]))
    assert torch.equal(digests[0], digests[1])
    assert not torch.equal(digests[0], digests[2])


def test_the_held_out_set_is_the_same_whatever_the_seed_and_apart_from_training() -> None:
    _, labels = example.digits()
    training, validation, testing = example.split(labels)
    torch.manual_seed(9)
    np.random.seed(9)
    again = example.split(labels)
    assert all(map(np.array_equal, (training, validation, testing), again))
    assert sorted([*training, *validation, *testing]) == list(range(1797))
    share = np.bincount(labels[testing]) / np.bincount(labels)
    assert np.all(np.abs(share - 300 / 1797) < 0.01)


def test_the_network_is_the_predecessor_s() -> None:
    full = build(FOLDER / "litecnn.py", "LiteCNNPro", {"num_classes": 130})
    assert sum(parameter.numel() for parameter in full.parameters()) == 1_048_770
    half = build(FOLDER / "litecnn.py", "LiteCNNPro", example.ARGUMENTS)
    parameters = sum(parameter.numel() for parameter in half.parameters())
    assert f"{parameters:,} parameters" in (FOLDER / "README.md").read_text()
    assert half.head[-1].out_features == len(read_classes(FOLDER / "classes.json")) == 10

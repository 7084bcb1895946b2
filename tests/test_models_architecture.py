"""The user's class is loaded from the user's file, and its weights must fit."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tasks.core.errors import QuernError
from tasks.models.architecture import build, fit
from tasks.models.classes import read_classes

NETWORK = """
from dataclasses import dataclass
import torch
from torch import nn
from beside import WIDTH

@dataclass
class Settings:
    width: int = WIDTH

class Net(nn.Module):
    def __init__(self, classes, width=Settings().width):
        super().__init__()
        if classes < 2:
            raise ValueError("at least 2 classes\\nare needed")
        self.body = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width))
        self.head = nn.Linear(width, classes)

class NotANetwork:
    pass
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("WIDTH = 8\n")
    (tmp_path / "net.py").write_text(NETWORK)
    return tmp_path / "net.py"


def refusal(file: Path, class_name: str = "Net", **arguments: object) -> str:
    with pytest.raises(QuernError) as caught:
        build(file, class_name, arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_class_is_built_in_eval_mode_and_leaves_no_trace(file: Path) -> None:
    path_before = list(sys.path)
    model = build(file, "Net", {"classes": 3})
    assert not model.training and model.head.out_features == 3
    assert sys.path == path_before
    assert not (file.parent / "__pycache__").exists()


def test_faults_of_the_users_file_are_one_line(file: Path) -> None:
    assert "no such file" in refusal(file.with_name("missing.py"))
    assert refusal(file, "Nat").endswith("no class Nat; architecture.class may be Net")
    assert "missing 1 required positional argument: 'classes'" in refusal(file)
    assert "unexpected keyword argument 'depth'" in refusal(file, classes=3, depth=2)
    assert "Net(classes=1) fails: ValueError: at least 2 classes (line 15)" in refusal(
        file, classes=1
    )
    assert "NotANetwork is not a torch.nn.Module" in refusal(file, "NotANetwork")
    file.write_text("import torch\nclass Net(\n")
    assert "cannot be imported: SyntaxError" in refusal(file)
    assert "(line 2)" in refusal(file)
    file.write_text("import nothing_of_this_name\n")
    assert "ModuleNotFoundError: No module named 'nothing_of_this_name' (line 1)" in refusal(file)
    file.write_text("import sys\nsys.exit('no')\n")
    assert "SystemExit: no" in refusal(file)
    file.with_name("net.txt").write_text(NETWORK)
    assert "must end in .py" in refusal(file.with_name("net.txt"))


def test_fit_names_the_first_tensors_that_differ(file: Path) -> None:
    model = build(file, "Net", {"classes": 3})
    good = {name: torch.randn_like(t.float()) for name, t in model.state_dict().items()}
    good["body.1.num_batches_tracked"] = torch.tensor(5)
    fit(model, good)
    assert torch.equal(model.head.weight, good["head.weight"])

    bad = dict(good)
    del bad["body.0.bias"]
    bad["head.weight"], bad["head.bias"] = torch.zeros(5, 8), torch.zeros(5)
    bad["extra.weight"] = torch.zeros(1)
    with pytest.raises(QuernError) as caught:
        fit(model, bad, "best.pth")
    assert str(caught.value) == (
        "best.pth does not fit Net: body.0.bias is missing; head.weight is [5, 8] and should be"
        " [3, 8]; head.bias is [5] and should be [3]; and 1 more"
    )
    assert torch.equal(model.head.weight, good["head.weight"])

    del good["body.1.num_batches_tracked"]
    fit(model, good)


def test_a_bare_module_class_fits_too() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(QuernError, match="bias is missing; wait is unexpected"):
        fit(model, {"weight": torch.zeros(2, 2), "wait": torch.zeros(2)})


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ('["a", "b"]', ["a", "b"]),
        ('[{"name": "a", "x": 1}, {"breed_en": "b", "breed_ko": "비"}]', ["a", "b"]),
        ('{"1": "b", "0": {"id": 0}}', ["0", "b"]),
    ],
)
def test_accepted_forms_of_classes(tmp_path: Path, text: str, labels: list[str]) -> None:
    (tmp_path / "classes.json").write_text(text)
    assert read_classes(tmp_path / "classes.json") == labels


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[", "not JSON"),
        ("[]", "must be an array"),
        ("3", "must be an array"),
        ('["a", 3]', "class 1 is 3"),
        ('{"0": "a", "2": "b"}', 'none under "1"'),
        ('["\\ud800"]', "half a character"),
    ],
)
def test_refused_forms_of_classes(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "classes.json"
    path.write_text(text)
    with pytest.raises(QuernError) as caught:
        read_classes(path)
    assert part in str(caught.value) and str(caught.value).startswith(str(path))
    with pytest.raises(QuernError, match="no such file"):
        read_classes(tmp_path / "missing.json")

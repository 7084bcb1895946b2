"""lower(): from a checkpoint file to model_weights.bin, golden.json and details.json."""

import base64
import io
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tasks.core.digest import digest_of_bytes
from tasks.core.errors import QuernError
from tasks.models.architecture import build
from tasks.models.graph import encode
from tasks.models.interpreter import relative_difference, run
from tasks.models.lower import lower
from tasks.models.preprocess import decode, parse_preprocess, preprocess
from tasks.models.probes import select_probes, synthesise
from tasks.models.tracing import trace
from tasks.models.weights_file import read_weights

ROOT = Path(__file__).parent.parent
NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=3, width=8):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU6(True),
            nn.Conv2d(width, width, 3, 1, 1, groups=width), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))

class Fickle(Net):
    def forward(self, x):
        if torch.compiler.is_exporting():
            x = torch.relu(x)
        return super().forward(x)

class Weighty(Net):
    def __init__(self):
        super().__init__()
        self.loaded = False
        self.register_load_state_dict_post_hook(lambda *_: setattr(self, "loaded", True))

    def forward(self, x):
        return super().forward(torch.relu(x) if self.loaded else x)

class Pair(Net):
    def forward(self, x):
        return super().forward(x), x
"""
PREPROCESS = {"resize": 18, "crop": 16, "mean": [0.4, 0.5, 0.6], "std": [0.3, 0.2, 0.25]}


@dataclass
class Workplace:
    """A folder with all that trace() and lower() read."""

    root: Path

    def lower(self, **changed: Any) -> list[str]:
        given = {
            "checkpoint": self.root / "best_model.pth",
            "architecture": self.root / "net.py",
            "classes": self.root / "classes.json",
            "graph": self.root / "graph.json",
            "weights": self.root / "model_weights.bin",
            "golden": self.root / "golden.json",
            "details": self.root / "details.json",
            "class_name": "Net",
            "arguments": {},
            "preprocess": PREPROCESS,
            "probes": [],
        }
        given |= changed
        network = ("architecture", "class_name", "arguments", "preprocess")
        given["graph"].write_bytes(encode(trace(**{key: given[key] for key in network})))
        return lower(**given)

    def refusal(self, **changed: Any) -> str:
        """The one line; nothing is written then."""
        with pytest.raises(QuernError) as caught:
            self.lower(**changed)
        assert "\n" not in str(caught.value)
        assert not any(self.written(name).exists() for name in ("model_weights.bin", "golden.json"))
        return str(caught.value)

    def written(self, name: str) -> Path:
        return self.root / name

    def golden(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.written("golden.json").read_bytes())
        return found

    def model(self) -> torch.nn.Module:
        model = build(self.root / "net.py", "Net", {})
        state = torch.load(self.root / "best_model.pth", weights_only=True)
        model.load_state_dict(state["model_state_dict"])
        return model


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    """Its network is trained a little to tell images by their colour."""
    (tmp_path / "net.py").write_text(NETWORK)
    (tmp_path / "classes.json").write_text('["red", "green", "blue"]')
    torch.manual_seed(0)
    model = build(tmp_path / "net.py", "Net", {}).train()
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    for _ in range(30):
        labels = torch.randint(0, 3, (16,))
        images = torch.randn(16, 3, 16, 16) + 2 * F.one_hot(labels, 3)[:, :, None, None]
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3
    checkpoint = {"model_state_dict": model.state_dict(), "epoch": 7, "val_acc": 0.875}
    torch.save(checkpoint, tmp_path / "best_model.pth")
    return Workplace(tmp_path)


def write_images(folder: Path, count: int, size: tuple[int, int] = (30, 20)) -> None:
    folder.mkdir()
    for index in range(count):
        noise = np.random.default_rng(index).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{index}.{'png' if index % 2 else 'jpg'}")


def test_the_golden_set_holds_eager_s_own_logits(
    place: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(place.root / "held_out", 5)
    assert place.lower(probes=[str(place.root / "held_out")]) == []
    assert capsys.readouterr().out == "355 parameters, 7 operations, 5 probes\n"
    golden = place.golden()
    weights = place.written("model_weights.bin")
    assert golden["weights"] == digest_of_bytes(weights.read_bytes())
    assert golden["format"] == 1 and golden["tolerance"] == {"relative": 1e-4}
    names = [probe["name"] for probe in golden["probes"]]
    assert names == [f"held_out/{i}.{'png' if i % 2 else 'jpg'}" for i in range(5)]

    model, settings = place.model(), parse_preprocess(PREPROCESS)
    for probe in golden["probes"]:
        image = base64.b64decode(probe["image"])
        assert image == (place.root / probe["name"]).read_bytes()
        network_input = torch.from_numpy(preprocess(decode(image, ""), settings))
        with torch.no_grad():
            wanted = model(network_input)
        logits = torch.tensor([probe["logits"]], dtype=torch.float32)
        assert relative_difference(logits, wanted) < 1e-6
        assert probe["class_id"] == int(wanted.argmax())
        assert relative_difference(run(read_weights(weights), network_input), wanted) < 1e-5
    assert len({tuple(probe["logits"]) for probe in golden["probes"]}) == 5


def test_golden_is_canonical_json_of_shortest_numbers(place: Workplace) -> None:
    place.lower()
    text = place.written("golden.json").read_text()
    canonical = json.dumps(place.golden(), sort_keys=True, separators=(",", ":")) + "\n"
    assert text == canonical
    for probe in place.golden()["probes"]:
        for number in probe["logits"]:
            assert str(np.float32(number)) == str(np.float64(number))


def test_details_are_what_the_checkpoint_says(place: Workplace) -> None:
    place.lower()
    assert place.written("details.json").read_text() == (
        '{"epoch":7,"notes":[],"parameters":355,"val_acc":0.875}\n'
    )
    state = {name: t.half() for name, t in place.model().state_dict().items() if t.ndim}
    torch.save(state, place.root / "best_model.pth")
    notes = place.lower()
    details = json.loads(place.written("details.json").read_text())
    assert details["epoch"] is None and details["val_acc"] is None
    assert details["notes"] == ["13 tensors of float16 were widened to float32"] == notes


def test_bytes_repeat_in_another_process(place: Workplace) -> None:
    write_images(place.root / "held_out", 3)
    place.lower(probes=[str(place.root / "held_out" / "*")])
    code = (
        "import sys; from pathlib import Path; from tests.test_models_lower import Workplace;"
        "root = Path(sys.argv[1]);"
        "Workplace(root).lower(weights=root / 'b.bin', golden=root / 'b.json',"
        " probes=[str(root / 'held_out' / '*')])"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(place.root)],
        cwd=ROOT,
        env={"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        check=True,
    )
    for one, other in (("model_weights.bin", "b.bin"), ("golden.json", "b.json")):
        assert place.written(one).read_bytes() == place.written(other).read_bytes()
    assert len(place.golden()["probes"]) == 4  # one synthesised to make up the least number


def test_a_new_checkpoint_is_lowered_without_what_tracing_takes(place: Workplace) -> None:
    """As the recipes do it: traced and lowered, each in a process of its own."""
    place.lower()
    wanted = {name: place.written(name).read_bytes() for name in ("graph.json", "golden.json")}
    script = (
        "import json, sys; import tasks.weights as chapter;"
        "function, arguments = json.loads(sys.argv[1]);"
        "getattr(chapter, function)(**arguments);"
        "print('torch._dynamo' in sys.modules)"
    )
    network = {"architecture": "net.py", "class_name": "Net", "arguments": {}}
    network |= {"preprocess": PREPROCESS, "graph": "graph.json"}
    files = {"checkpoint": "best_model.pth", "classes": "classes.json", "golden": "golden.json"}
    files |= {"weights": "model_weights.bin", "details": "details.json"}
    for function, arguments, imported in (
        ("trace", network, "True"),
        ("lower", {**network, **files, "probes": []}, "False"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", script, json.dumps([function, arguments])],
            cwd=place.root,
            env={"PYTHONPATH": str(ROOT)},
            check=True,
            capture_output=True,
            text=True,
        )
        assert done.stdout.splitlines()[-1] == imported
    assert {name: place.written(name).read_bytes() for name in wanted} == wanted


def test_the_header_carries_preprocess_and_classes(place: Workplace) -> None:
    place.lower()
    header = read_weights(place.written("model_weights.bin")).header
    assert header["preprocess"] == {**PREPROCESS, "mode": "RGB", "interpolation": "bilinear"}
    assert header["classes"] == ["red", "green", "blue"]
    assert header["input"] == {"name": "input", "shape": [1, 3, 16, 16]}


def test_probes_are_chosen_evenly_in_the_order_of_numbers(tmp_path: Path) -> None:
    write_images(tmp_path / "many", 40, (4, 4))
    chosen = select_probes([str(tmp_path / "many")])
    assert [int(path.stem) for path in chosen] == [i * 40 // 16 for i in range(16)]
    assert select_probes([str(tmp_path / "many/1.png"), str(tmp_path / "*/1.p*")]) == [
        tmp_path / "many/1.png"
    ]
    (tmp_path / "empty").mkdir()
    for place in ("empty", "missing", "missing/*.png"):
        with pytest.raises(QuernError, match="no PNG or JPEG image there"):
            select_probes([str(tmp_path / place)])


def test_synthesised_probes_are_images_that_differ() -> None:
    drawn = synthesise((16, 20))
    assert drawn == synthesise((16, 20))
    opened = [Image.open(io.BytesIO(data)) for _, data in drawn]
    assert all(image.size == (20, 16) and image.mode == "RGB" for image in opened)
    assert len({image.tobytes() for image in opened}) == len(drawn) == 8


def test_each_fault_is_one_line_and_leaves_nothing_behind(place: Workplace) -> None:
    classes = place.root / "two.json"
    classes.write_text('["a", "b"]')
    assert place.refusal(classes=classes) == (
        f"{classes}: has 2 classes, and Net returns [1, 3]; it must return [1, 2],"
        " one logit a class"
    )
    assert "does not fit Net: body.0.weight is [8, 3, 3, 3] and should be [4," in place.refusal(
        arguments={"width": 4}
    )
    assert "no class Nat; architecture.class may be Net" in place.refusal(class_name="Nat")
    assert place.refusal(preprocess={}).startswith("preprocess: neither crop nor resize")
    assert "preprocess.mode: 'HSV'" in place.refusal(preprocess={"mode": "HSV"})
    text = place.refusal(preprocess={"mode": "L", "crop": 16})
    assert text.startswith("Net: forward() fails on an input of [1, 1, 16, 16], which is what")
    assert "expected input[1, 1, 16, 16] to have 3 channels" in text
    assert place.refusal(class_name="Pair") == "Pair: forward() returns a tuple, not one tensor"
    (place.root / "best_model.pth").write_bytes(b"PK\x03\x04 cut")
    assert "is cut short" in place.refusal()


def test_a_probe_that_does_not_come_out_in_the_input_s_shape(place: Workplace) -> None:
    write_images(place.root / "tall", 1)
    text = place.refusal(preprocess={"resize": 16}, probes=[str(place.root / "tall")])
    assert text == (
        "probes: tall/0.jpg: preprocess makes it [1, 3, 24, 16] and the network takes"
        " [1, 3, 16, 16]; give preprocess.crop, or resize as [height, width]"
    )
    (place.root / "tall/0.jpg").write_bytes(b"no image")
    text = place.refusal(probes=[str(place.root / "tall")])
    assert text == "tall/0.jpg: not a PNG or JPEG image"


def test_a_lowering_that_is_not_the_user_s_model_is_refused(place: Workplace) -> None:
    for class_name in ("Fickle", "Weighty"):  # the latter's changes when weights are loaded
        text = place.refusal(class_name=class_name)
        assert text.startswith(
            f"{class_name}: lowered for the native engine it differs from PyTorch by "
        )
        assert "forward() must depend on its input alone" in text


def test_a_checkpoint_that_gives_nan_is_refused(place: Workplace) -> None:
    checkpoint = torch.load(place.root / "best_model.pth", weights_only=True)
    checkpoint["model_state_dict"]["body.1.running_var"].fill_(-1.0)
    torch.save(checkpoint, place.root / "best_model.pth")
    assert place.refusal() == "Net: gives NaN or infinite logits for a probe"

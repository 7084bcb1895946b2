"""models.yaml: faults are told by file, line and key; nothing is half accepted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.core.configuration import Configuration, load_configuration
from tasks.core.errors import QuernError

ROOT = Path(__file__).parent.parent
GOOD = """\
models:
  dogs:
    kind: classifier
    checkpoint: {path: "a*/best_model.pth"}
    architecture: {file: net.py, class: Net}
    classes: classes.json
    preprocess:
      resize: 256
      crop: [224, 224]
      mean: [0.5, 0.5, 0.5]
      std: [0.5, 0.5, 0.5]
    deploy:
      local: {stable: 8891, candidate: 8892}
"""


def load(tmp_path: Path, text: str) -> Configuration:
    path = tmp_path / "models.yaml"
    path.write_text(text)
    return load_configuration(str(path))


def test_a_good_file_is_read(tmp_path):
    model = load(tmp_path, GOOD).models["dogs"]
    assert model.architecture.class_name == "Net"
    assert model.preprocess.crop == [224, 224]
    assert model.deploy["local"]["candidate"] == 8892


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("resize: 256", "resize: big", 8, "models.dogs.preprocess.resize"),
        ("    classes: classes.json\n", "", 2, "classes"),
        ("class: Net", "klass: Net", 5, "klass"),
        ("stable: 8891", "stable: 889100", 13, "65535"),
        ("candidate: 8892", "candidate: 8891", 13, "8891 is taken by dogs stable"),
        ("local:", "edge:", 13, "no such host; hosts are local"),
        ("std: [0.5, 0.5, 0.5]", "std: [0.5]", 11, "has 1 values where mode RGB wants 3"),
        ("std: [0.5, 0.5, 0.5]", "std: [0.5, 0.0, 0.5]", 11, "must not hold zero"),
        ("kind: classifier", "kind: toaster", 3, "toaster"),
        ("file: net.py", 'file: "${NO_SUCH_NAME}"', 5, "NO_SUCH_NAME is not set"),
        ("    classes: classes.json", "    classes: a\n    classes: b", 7, "'classes' is repeated"),
        ("crop: [224, 224]", "crop: [224", 10, "not valid YAML"),
        ("  dogs:", "  ../dogs:", 2, "dogs"),
    ],
)
def test_a_fault_is_one_line_with_its_place(tmp_path, old, new, line, words):
    with pytest.raises(QuernError) as caught:
        load(tmp_path, GOOD.replace(old, new))
    message = str(caught.value)
    assert "\n" not in message
    assert words in message
    place = message.partition("models.yaml:")[2].partition(":")[0]
    assert abs(int(place) - line) <= 1, message


def test_the_environment_is_taken_and_never_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("QUERN_TEST_FILE", "secret-name.py")
    text = GOOD.replace("file: net.py", 'file: "${QUERN_TEST_FILE}"')
    assert load(tmp_path, text).models["dogs"].architecture.file == "secret-name.py"


def test_doit_says_it_in_one_line_and_exits_3(tmp_path):
    (tmp_path / "models.yaml").write_text(GOOD.replace("resize: 256", "resize: big"))
    for name in ("dodo.py", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    doit = Path(sys.executable).with_name("doit")
    done = subprocess.run([doit], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("models.yaml:8: models.dogs.preprocess.resize: ")


def test_the_schema_in_the_tree_is_the_code_s_own():
    done = subprocess.run(
        [sys.executable, "-m", "tasks.core.configuration"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == json.loads((ROOT / "models.schema.json").read_text())

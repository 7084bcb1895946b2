"""The language example trains for real, and is judged by the files it leaves."""

import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from examples.pydoc import text
from examples.pydoc import train_base as base_training
from examples.pydoc.ask import answer, load
from examples.pydoc.folder import whole_folder
from examples.pydoc.questions import FILE, lessons, read_questions, subject
from examples.pydoc.tokenizer import END, TURN, VOCABULARY
from examples.pydoc.train_adapter import SYSTEM
from examples.pydoc.train_base import SHAPE, train_base
from tasks.core.configuration import load_configuration
from tests.language_example import SOURCES, trained_language_example
from tests.native_build import DOIT, ROOT

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(scope="session")
def trained() -> Path:
    return trained_language_example()


@pytest.fixture(scope="session")
def answers(trained: Path) -> dict[str, list[str]]:
    """What the base, with the adapter and without, says to each question."""
    prompts = [question["prompt"] for question in read_questions()]
    said = {}
    for name, adapter in (("base", None), ("merged", trained / "adapter")):
        model, tokenizer = load(trained / "base", adapter)
        said[name] = [answer(model, tokenizer, prompt) for prompt in prompts]
        if adapter is not None:
            said["with system"] = [answer(model, tokenizer, p, SYSTEM) for p in prompts]
    return said


def share_right(said: list[str]) -> float:
    wanted = [question["answer"] for question in read_questions()]
    return sum(map(str.__eq__, said, wanted)) / len(wanted)


@pytest.mark.slow
def test_with_the_adapter_it_answers_and_without_it_does_not(
    answers: dict[str, list[str]],
) -> None:
    assert share_right(answers["base"]) < 0.1
    assert share_right(answers["merged"]) >= 0.6
    assert share_right(answers["with system"]) >= 0.6
    assert not set(map(str.__eq__, answers["base"], answers["merged"])) - {False}


@pytest.mark.slow
def test_every_category_is_answered_in_part(answers: dict[str, list[str]]) -> None:
    right: dict[str, list[bool]] = {}
    for question, said in zip(read_questions(), answers["merged"], strict=True):
        right.setdefault(question["category"], []).append(said == question["answer"])
    assert all(sum(found) / len(found) >= 0.25 for found in right.values()), right


@pytest.mark.slow
@torch.no_grad()
def test_text_that_it_never_saw_surprises_it_far_less_than_chance(trained: Path) -> None:
    model, tokenizer = load(trained / "base")
    ids = tokenizer((trained / "held_out.txt").read_text(), return_tensors="pt", verbose=False)
    blocks = ids["input_ids"][0][: 16 * 256].view(16, 256)
    loss = float(model(input_ids=blocks, labels=blocks).loss)
    assert loss < 0.75 * math.log(VOCABULARY)


@pytest.mark.slow
def test_the_folders_are_as_the_libraries_write_them(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()} - {".lock"}
    assert names == {"base", "adapter", "held_out.txt"}
    base = {path.name for path in (trained / "base").iterdir()}
    index = json.loads((trained / "base" / "model.safetensors.index.json").read_bytes())
    shards = set(index["weight_map"].values())
    assert len(shards) >= 3 and {name for name in base if name.endswith(".safetensors")} == shards
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} < base
    adapter = {path.name for path in (trained / "adapter").iterdir()} - {"README.md"}
    assert adapter == {"adapter_config.json", "adapter_model.safetensors", "quern_base.json"}
    settings = json.loads((trained / "adapter" / "adapter_config.json").read_bytes())
    assert settings["target_modules"] == sorted(settings["target_modules"])
    assert settings["base_model_name_or_path"] == "base"
    files = [path for name in ("base", "adapter") for path in (trained / name).iterdir()]
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in files)


@pytest.mark.slow
def test_the_adapter_names_its_base(trained: Path) -> None:
    from tasks.models.pretrained import base_digest

    owner = json.loads((trained / "adapter" / "quern_base.json").read_bytes())
    assert owner == {"xxh3_128": base_digest(trained / "base")}


@pytest.mark.slow
def test_rows_fit_k_quants_and_the_numbers_are_those_of_the_readme(trained: Path) -> None:
    count = {"base": 0, "adapter": 0}
    for path in trained.glob("*/*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                tensor = file.get_tensor(name)
                count[path.parent.name] += tensor.numel()
                if path.parent.name == "base":
                    assert tensor.dtype == torch.bfloat16 and tensor.shape[-1] % 256 == 0
    readme = (SOURCES / "README.md").read_text()
    assert f"{count['base']:,} parameters" in readme
    assert f"{count['adapter']:,} parameters" in readme


def test_no_paragraph_of_the_held_out_text_is_in_the_training_text() -> None:
    seen = text.single_spaced("\n".join(text.training_text()))
    held_out = text.held_out_text()
    found = [text.single_spaced(block) for block in text.paragraphs(held_out)]
    assert len(held_out) > 10_000 and not [block for block in found if block in seen]
    # Nor are long sentences, but for a few that are formulas.
    sentences = [s for s in re.split(r"(?<=[.:]) ", " ".join(found)) if len(s) >= 80]
    assert len(sentences) > 50
    assert sum(sentence in seen for sentence in sentences) <= len(sentences) // 50


def test_what_is_asked_about_is_read_in_training() -> None:
    seen = "\n".join(text.training_text())
    for question in read_questions():
        assert subject(question["prompt"]) in seen


def test_no_question_is_among_the_lessons() -> None:
    questions = read_questions()
    prompts = {question["prompt"] for question in questions}
    assert len(prompts) == len(questions) >= 40
    assert prompts.isdisjoint(prompt for prompt, _ in lessons())
    assert {question["answer"] for question in questions} < {said for _, said in lessons()}
    # A wrong answer can't be right by chance.
    assert len({question["answer"] for question in questions}) >= 0.95 * len(questions)


def test_the_answers_are_the_docstrings_first_sentences() -> None:
    questions = read_questions()
    same = [text.first_sentence(subject(q["prompt"])) == q["answer"] for q in questions]
    assert sum(same) >= 0.8 * len(same)  # docstrings change from version to version
    if sys.version_info[:2] == (3, 11):
        command = [sys.executable, "-m", "examples.pydoc.questions"]
        made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert made.stdout == FILE.read_text()


def tokenizer_files(folder: Path, seed: str) -> dict[str, str]:
    script = (
        "import sys\n"
        "from examples.pydoc.text import training_text\n"
        "from examples.pydoc.tokenizer import train_tokenizer\n"
        "train_tokenizer(training_text()).save_pretrained(sys.argv[1])\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    command = [sys.executable, "-c", script, str(folder)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_the_tokenizer_is_the_same_every_time_and_loses_nothing(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    first = tokenizer_files(tmp_path / "a", "1")
    assert first == tokenizer_files(tmp_path / "b", "2")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    assert len(tokenizer) == VOCABULARY
    for said in ("Return a copy.", "  tabs\tand\n\n lines ", "naïve — 日本語 🙂\r\n", "x" * 300):
        ids = tokenizer(said)["input_ids"]
        assert tokenizer.decode(ids) == said and max(ids) < VOCABULARY
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    shown = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert shown == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    marks = [tokenizer.convert_tokens_to_ids(mark) for mark in (TURN, END)]
    assert [i for i in ids if i in marks] == [*marks, *marks, marks[0]]
    assert tokenizer.eos_token_id == marks[1]


def test_models_yaml_is_a_configuration_of_this_model() -> None:
    configuration = load_configuration(str(SOURCES / "models.yaml"))
    (model,) = configuration.language_models().values()
    assert (model.base, model.adapter) == ("examples/pydoc/base", "examples/pydoc/adapter")
    assert model.evaluate.text == "examples/pydoc/held_out.txt"
    assert ROOT / str(model.evaluate.questions) == FILE
    assert model.chat.system == SYSTEM
    assert model.chat.context == SHAPE["max_position_embeddings"]
    assert model.convert.pre_tokenizer == "gpt-2"
    asked = {question["prompt"] for question in read_questions()}
    assert set(model.health.prompts) <= asked


@pytest.mark.slow
def test_the_same_seed_gives_the_same_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = text.training_text()[:40]
    monkeypatch.setattr(base_training, "training_text", lambda: few)
    monkeypatch.setattr(base_training, "blocks_of", first_blocks(base_training.blocks_of))
    digests = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        train_base(tmp_path / name, seed, progress=lambda _: None)
        shards = sorted((tmp_path / name).glob("*.safetensors"))
        digests.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in shards])
    assert digests[0] == digests[1] != digests[2]


def first_blocks(blocks_of: Any) -> Any:
    return lambda *arguments: blocks_of(*arguments)[:8]


def test_a_folder_is_whole_or_as_it_was(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "m") as partial:
        (partial / "a").write_text("1")
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "m") as partial:
        (partial / "a").write_text("2")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert (tmp_path / "m" / "a").read_text() == "1"
    with whole_folder(tmp_path / "m") as partial:
        (partial / "b").write_text("3")
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.fixture
def small_project(tmp_path: Path) -> Path:
    """The project with so little to read and to learn that its training takes seconds."""
    for name in ("dodo.py", "pyproject.toml", "models.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    ignored = shutil.ignore_patterns("base", "adapter", "held_out*", "checkpoints*", "__pycache__")
    for name in ("tasks", "examples"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    replace(tmp_path / "examples/pydoc/text.py", r"MODULES = \(.*?\n\)", 'MODULES = ("json",)')
    replace(tmp_path / "examples/pydoc/text.py", r"LISTINGS = \d+", "LISTINGS = 1")
    replace(tmp_path / "examples/pydoc/text.py", r"sorted\(topics.items\(\)\)", "()")
    replace(
        tmp_path / "examples/pydoc/train_adapter.py", r"(EPOCHS, .*) = (\d+), \d+,", r"\1 = \2, 1,"
    )
    return tmp_path


def replace(path: Path, pattern: str, by: str) -> None:
    changed, count = re.subn(pattern, by, path.read_text(), flags=re.DOTALL)
    assert count == 1, pattern
    path.write_text(changed)


def doit(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [DOIT, *arguments],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
    )


def digests_of(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@pytest.mark.slow
def test_doit_trains_both_and_for_another_seed_the_adapter_alone(small_project: Path) -> None:
    example = small_project / "examples" / "pydoc"
    done = doit(small_project, "train_language_example")
    assert done.returncode == 0, done.stdout + done.stderr
    log = (small_project / ".quern" / "logs" / "train_language_example.log").read_text()
    assert "base step 1/" in log and "adapter step 1/" in log
    base, adapter = digests_of(example / "base"), digests_of(example / "adapter")
    made = (example / "base").stat().st_ino

    again = doit(small_project, "train_language_example")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")

    other = doit(small_project, "train_language_example", "--seed", "1")
    assert other.returncode == 0, other.stdout + other.stderr
    assert (example / "base").stat().st_ino == made and digests_of(example / "base") == base
    changed = digests_of(example / "adapter")
    assert changed["adapter_model.safetensors"] != adapter["adapter_model.safetensors"]
    assert changed["quern_base.json"] == adapter["quern_base.json"]
    assert json.loads((example / "adapter" / "training.json").read_bytes()) == {"seed": 1}

    back = doit(small_project, "train_language_example")
    assert back.returncode == 0 and digests_of(example / "adapter") == adapter

    shutil.rmtree(example / "base")
    anew = doit(small_project, "train_language_example")
    assert anew.returncode == 0 and digests_of(example / "base") == base
    assert digests_of(example / "adapter") == adapter
    assert not [path for path in example.iterdir() if path.name.endswith(".partial")]


def test_without_the_packages_one_line_says_what_to_do(small_project: Path) -> None:
    # Where None is in its place a module can neither be found nor imported.
    dodo = small_project / "dodo.py"
    hidden = (
        "import importlib.util\nfound = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda n, *a: None if n == 'peft' else found(n, *a)\n"
    )
    dodo.write_text(dodo.read_text().replace("\nfrom tasks.deploy", f"\n{hidden}from tasks.deploy"))
    done = doit(small_project, "train_language_example")
    assert done.returncode == 1
    assert "the language example needs packages: ./setup llm" in done.stdout + done.stderr
    refused = doit(small_project, "train_language_example", "--seed", "-1")
    assert refused.returncode == 1 and "must not be negative" in refused.stdout + refused.stderr

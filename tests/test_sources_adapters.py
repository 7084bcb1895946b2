"""Adapters: directories that are brought whole from a training machine, and merged as they come."""

import hashlib
import json
import os
import shutil
import struct
import threading
import time
from pathlib import Path

import pytest

from tests.source_world import ADAPTER_MODEL, SourceProject, Training


def safetensors(text: str, size: int = 0) -> bytes:
    """A safetensors file of one tensor, `text` in its metadata, `size` bytes more."""
    data = bytes(16 + size)
    entry = {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}
    header = json.dumps({"__metadata__": {"of": text}, "weight": entry}).encode()
    return struct.pack("<Q", len(header)) + header + data


def write(folder: Path, text: str, size: int = 0) -> None:
    """Training wrote an adapter."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(safetensors(text, size))
    (folder / "adapter_config.json").write_text(json.dumps({"r": 8, "of": text}))
    (folder / "tokenizer.json").write_text("{}")


@pytest.fixture
def there(training: Training) -> Path:
    folder = training.home / "output" / "majora_v1"
    write(folder, "v1")
    return folder


@pytest.fixture
def project(tmp_path: Path, training: Training) -> SourceProject:
    project = SourceProject(tmp_path / "project", training)
    return project.configure(ADAPTER_MODEL, majora="{host: gpu, path: ~/output/majora_v1}")


def here(project: SourceProject, model: str = "majora") -> dict[str, bytes]:
    """What is in the adapter's directory."""
    folder = project.root / "weights" / model / "adapter"
    folder = folder.resolve()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def of(folder: Path, *names: str) -> dict[str, bytes]:
    wanted = names or ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json")
    return {name: (folder / name).read_bytes() for name in sorted(wanted)}


def test_a_directory_comes_whole_with_its_times_sizes_and_digests(project, there):
    (there / "checkpoint-500").mkdir()
    (there / "checkpoint-500" / "optimizer.pt").write_bytes(bytes(100))
    (there / ".cache").write_text("hidden")
    (there / "nested").mkdir()
    (there / "nested" / "notes.txt").write_text("kept")
    (there / "secret").symlink_to("/etc/passwd")
    os.utime(there / "tokenizer.json", (1_700_000_000, 1_700_000_000))
    told = project.doit("fetch")
    assert f"gpu:{there} (0.0 MB) is the first: taken" in told
    names = [*of(there), "nested/notes.txt"]
    assert here(project) == of(there, *names)
    origin = json.loads((project.root / "weights/majora/adapter.json").read_text())
    assert (origin["host"], origin["path"], origin["cycle"]) == ("gpu", str(there), None)
    files = {file.pop("name"): file for file in origin["files"]}
    assert files["tokenizer.json"] == {
        "size": 2,
        "sha256": hashlib.sha256(b"{}").hexdigest(),
        "modified": 1_700_000_000,
    }
    assert sorted(files) == sorted(names)


def test_nothing_changed_is_one_round_trip_and_no_digest(project, training, there):
    project.doit("fetch")
    (connections, sessions), hashed = training.counts(), len(training.hashed())
    assert hashed == 3
    assert project.doit("fetch") == ""
    assert training.counts() == (connections + 1, sessions + 1)
    assert len(training.hashed()) == hashed


def test_only_what_changed_is_read_and_only_other_bytes_move(project, training, there):
    project.doit("fetch")
    hashed = len(training.hashed())
    (there / "adapter_config.json").write_text('{"r": 16}')
    told = project.doit("fetch")
    assert "has changed: taken" in told
    assert here(project) == of(there)
    assert len(training.hashed()) == hashed + 1
    (there / "tokenizer.json").rename(there / "tokenizer_config.json")
    connections = training.counts()[0]
    project.doit("fetch")
    assert here(project) == of(
        there, "adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json"
    )
    assert training.counts()[0] == connections + 1


def test_the_same_bytes_elsewhere_do_not_move(project, training, there):
    project.doit("fetch")
    shutil.copytree(there, there.parent / "majora_v2")
    connections = training.counts()[0]
    project.configure(ADAPTER_MODEL, majora="{host: gpu, path: ~/output/majora_v2}")
    assert "nothing has to move" in project.doit("fetch")
    assert training.counts()[0] == connections + 1


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: cut(f / "adapter_model.safetensors", 10), "adapter_model.safetensors has "),
        (lambda f: cut(f / "adapter_model.safetensors", 40), "is cut short within its header"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b""), "it has no header"),
        (lambda f: (f / "training_args.bin").write_bytes(b"PK"), "training_args.bin is not a zip"),
        (lambda f: (f / "adapter_config.json").unlink(), "it has no adapter_config.json"),
    ],
)
def test_an_unfinished_adapter_is_left_and_the_one_before_stays(project, there, spoil, words):
    project.doit("fetch")
    before = here(project)
    spoil(there)
    told = project.doit("fetch")
    assert words in told
    assert told.count("\n") == 1
    assert "left for the next run" in told
    assert here(project) == before
    (there / "training_args.bin").unlink(missing_ok=True)
    write(there, "v1, done")
    project.doit("fetch")
    assert here(project) == of(there)


def cut(path: Path, by: int) -> None:
    os.truncate(path, path.stat().st_size - by)


def test_a_change_while_it_is_brought_leaves_the_one_before(project, there):
    project.doit("fetch")
    before = here(project)
    write(there, "v2", size=96 << 20)
    large = hashlib.sha256((there / "adapter_model.safetensors").read_bytes()).hexdigest()
    partial = project.root / f".quern/transfers/{large}.partial"

    def rewrite() -> None:
        while not partial.exists():  # the file that changes has come by then
            time.sleep(0.001)
        (there / "adapter_config.json").write_text('{"r": 32}')

    writer = threading.Thread(target=rewrite)
    writer.start()
    told = project.doit("fetch")
    writer.join()
    assert "changed while it was brought: left for the next run" in told
    assert here(project) == before
    project.doit("fetch")
    assert here(project) == of(there)


def test_a_reader_never_sees_a_part(project, there):
    project.doit("fetch")
    seen, stop = set(), threading.Event()
    link = project.root / "weights/majora/adapter"

    def read() -> None:
        while not stop.is_set():
            folder = link.resolve()  # once, as a server does with `current`
            try:
                names = tuple(sorted(os.listdir(folder)))
                text = (folder / "adapter_config.json").read_text()
            except FileNotFoundError:
                continue  # it was the one before, and is gone by now
            seen.add((names, json.loads(text)["of"]))

    reader = threading.Thread(target=read)
    reader.start()
    for version in range(3):
        write(there, f"v{version}")
        project.doit("fetch")
    stop.set()
    reader.join()
    assert {names for names, _ in seen} == {tuple(of(there))}
    assert len(seen) >= 3
    folders = [f for f in link.parent.iterdir() if f.is_dir() and not f.is_symlink()]
    assert len(folders) == 1


def test_of_several_adapters_the_highest_cycle_or_the_newest(project, training):
    for cycle in (9, 13, 10):
        write(training.home / f"output/cycle{cycle}", f"of {cycle}")
    os.utime(training.home / "output/cycle9/tokenizer.json", (2_000_000_000, 2_000_000_000))
    project.configure(ADAPTER_MODEL, majora="{host: gpu, path: ~/output/cycle*}")
    project.doit("fetch")
    assert here(project) == of(training.home / "output/cycle13")
    project.configure(ADAPTER_MODEL, majora="{host: gpu, path: ~/output/cycle*, pick: newest}")
    project.doit("fetch")
    assert here(project) == of(training.home / "output/cycle9")
    project.doit("fetch:majora", "--cycle", "10")
    assert here(project) == of(training.home / "output/cycle10")


def test_several_at_once(project, training):
    models = {}
    for number in range(6):
        write(training.home / f"output/m{number}", f"of {number}", size=1 << 20)
        models[f"m{number}"] = f"{{host: gpu, path: ~/output/m{number}}}"
    project.configure(ADAPTER_MODEL, **models).doit("-n", "4", "fetch")
    for model in models:
        assert here(project, model) == of(training.home / "output" / model)
    assert project.doit("-n", "4", "fetch") == ""


def test_an_adapter_of_this_machine(tmp_path):
    project = SourceProject(tmp_path)
    for cycle in (9, 10):
        write(tmp_path / f"output/cycle{cycle}", f"of {cycle}")
    project.configure(ADAPTER_MODEL, majora="{path: output/cycle*}").doit("fetch")
    assert here(project) == of(tmp_path / "output/cycle10")
    assert project.doit("fetch") == ""
    cut(tmp_path / "output/cycle10/adapter_model.safetensors", 3)
    assert "still being written (adapter_model.safetensors has" in project.doit("fetch")
    assert here(project)["adapter_config.json"] == b'{"r": 8, "of": "of 10"}'


def test_what_was_tampered_with_or_removed_comes_back(project, training, there):
    project.doit("fetch")
    link = project.root / "weights/majora/adapter"
    config = link.resolve() / "adapter_config.json"
    config.chmod(0o644)
    config.unlink()
    config.write_text("{}")
    connections = training.counts()[0]
    assert "restored from the store" in project.doit("fetch")
    assert here(project) == of(there)
    project.doit("clean", "fetch")
    assert not link.is_symlink()
    assert [p.name for p in link.parent.iterdir()] == []
    project.doit("fetch")
    assert here(project) == of(there)
    assert training.counts()[0] == connections + 2  # two looks


def test_a_folder_of_the_users_own_is_not_replaced(project, there):
    own = project.root / "weights/majora/adapter"
    own.mkdir(parents=True)
    (own / "mine").write_text("precious")
    told = project.doit("fetch", status=1)
    assert "weights/majora/adapter: is not a link that Quern has made; move it away" in told
    assert (own / "mine").read_text() == "precious"


def test_hostile_names_in_an_adapter(project, training, there):
    for name in ("it's $(touch pwned)", "-rf", "ü 名"):
        (there / name).write_text(name)
    with open(os.fsencode(there) + b"/evil\x1b[2J", "wb") as file:
        file.write(b"x")
    told = project.doit("fetch")
    assert "left alone, for its name can't be shown: " in told
    assert set(here(project)) == {*of(there), "it's $(touch pwned)", "-rf", "ü 名"}
    assert not list(training.machine.folder.rglob("pwned"))


def test_merge_takes_it_with_the_files_it_brings(tmp_path, training, project):
    """All in one run, although what a merge makes depends on files that weren't there yet."""
    from tests import merge_models as lm

    base = lm.make_base(project.root / "base")
    (base / "chat_template.jinja").unlink(missing_ok=True)
    there = lm.make_adapter(training.home / "output/majora_v1", base)
    (there / "chat_template.jinja").write_text("a template of the adapter's own")
    dodo = project.root / "dodo.py"
    dodo.write_text(
        "from tasks.fetch import task_fetch\nfrom tasks.merge import task_merge\n"
        "DOIT_CONFIG = {'default_tasks': ['merge']}\n"
    )
    project.doit("list", "--all", "--status")
    told = project.doit()
    assert told.count("fetch:majora: done") == told.count("merge:majora: done") == 1
    merged = project.root / "weights/majora/merged"
    template = merged / "chat_template.jinja"
    assert template.read_text() == "a template of the adapter's own"
    found, wanted = lm.tensors_of(merged), lm.merged_by_peft(base, there, "bfloat16")
    assert all((found[name] == wanted[name]).all() for name in found)
    assert project.doit() == ""
    (there / "chat_template.jinja").write_text("another")
    told = project.doit()
    assert template.read_text() == "another"
    assert project.doit() == ""


def test_a_merge_waits_for_the_first_adapter(project, training):
    (training.home / "output/majora_v1").mkdir(parents=True)
    (project.root / "base").mkdir()
    (project.root / "dodo.py").write_text(
        "from tasks.fetch import task_fetch\nfrom tasks.merge import task_merge\n"
    )
    told = project.doit()
    assert told.count("\n") == 1
    assert "still being written (it has no adapter_config.json)" in told


def test_the_order_in_which_files_are_found_changes_nothing(project, training, there):
    project.doit("fetch")
    for name in ("tokenizer.json", "adapter_config.json", "adapter_model.safetensors"):
        data = (there / name).read_bytes()
        (there / name).unlink()
        (there / f"{name}x").write_bytes(data)
        (there / f"{name}x").rename(there / name)
    names = "tokenizer.json adapter_model.safetensors adapter_config.json"
    real = shutil.which("find")
    training.wrap("find", f'shift\nfor f in {names}; do {real} "./$f" "$@"; done\nexit')
    assert project.doit("fetch") == ""
    assert "is unchanged" in project.log("majora")[-1]

"""The whole way of a language model: trained, merged, converted, quantized, measured, served."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tasks.core.digest import canonical_json, read_digests
from tasks.core.errors import QuernError
from tasks.hosts.deployment import Deployment
from tasks.hosts.local import LocalHost
from tasks.hosts.probe import ProbeFailed
from tasks.hosts.releases import Release
from tests.deploy_project import free_port
from tests.language_project import MODEL, LanguageProject, Talkers
from tests.ssh_world import Machine

pytestmark = pytest.mark.slow

FORMATS = ("Q4_K_M", "Q5_K_M", "Q8_0")
UP_TO_RELEASE = ("quantize", "measure", "release")
OF_FORMATS = {f"{stage}:{MODEL}:{f}" for stage in ("quantize", "measure") for f in FORMATS}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> LanguageProject:
    """Built up to the release, and not deployed."""
    project = LanguageProject.make(tmp_path_factory.mktemp("language") / "built")
    told = project.doit("-n", "2", *UP_TO_RELEASE)
    for task in ("merge", "convert", "reference", "release"):
        assert f"{task}:{MODEL}: done" in told
    return project


@pytest.fixture
def project(built: LanguageProject, tmp_path: Path) -> Iterator[LanguageProject]:
    copy = built.copy(tmp_path / "project")
    yield copy
    copy.stop()


def weights(project: LanguageProject, file: str) -> Path:
    return project.root / "weights" / MODEL / file


def another_adapter(project: LanguageProject, factor: float) -> None:
    """Another training run's adapter: the same with all its numbers a little different."""
    path = project.root / f"examples/{MODEL}/adapter/adapter_model.safetensors"
    tensors = {name: tensor * factor for name, tensor in load_file(path).items()}
    temporary = path.with_suffix(".partial")
    save_file(tensors, temporary, metadata={"format": "pt"})
    os.replace(temporary, path)


def test_where_an_adapter_was_brought_from_is_in_the_release(project: LanguageProject):
    project.configure(adapter={"path": f"examples/{MODEL}/adapter"})
    ran = project.ran("release")
    # Other paths, the same bytes: nothing is made again but what names them.
    assert ran == {f"fetch:{MODEL}", f"merge:{MODEL}", f"release:{MODEL}"}
    manifest = json.loads(weights(project, "manifest.json").read_bytes())
    origin = manifest["checkpoint"]["adapter"]
    assert (origin["path"], origin["cycle"]) == (f"examples/{MODEL}/adapter", None)
    for file in origin["files"]:
        path = project.root / origin["path"] / file["name"]
        assert read_digests(path, sha256=True)[2] == file["sha256"]
    assert project.doit("release") == ""


def test_from_a_training_machine_to_a_serving_machine(project: LanguageProject, tmp_path: Path):
    """Both over SSH, a network namespace each: the adapter comes, the GGUF and its server go."""
    gpu = Machine(tmp_path / "gpu", "gpu", namespaced=True).start()
    edge = Machine(tmp_path / "edge", "edge", namespaced=True).start()
    try:
        config = tmp_path / "ssh_config"
        config.write_text(gpu.config.read_text() + edge.config.read_text())
        shutil.copytree(project.root / f"examples/{MODEL}/adapter", gpu.home / "out/majora_v1")
        hosts = {"gpu": {"ssh": "gpu"}, "edge": {"ssh": "edge", "listen": "0.0.0.0"}}
        project.configure(
            {"ssh_config": str(config), "hosts": hosts},
            adapter={"host": "gpu", "path": "~/out/majora_v1"},
        )
        models = project.root / "models.yaml"
        models.write_text(models.read_text().replace("      local:", "      edge:"))
        told = project.doit()
        if "still being written" in told:  # it was, three seconds ago
            time.sleep(4)
            told = project.doit()
        assert f"fetch:{MODEL}: done" in told and "of edge after" in told
        [file] = (edge.home / "lmstudio").glob("models/*/*/*.gguf")
        assert file.samefile(edge.home / f"quern/{MODEL}/chat/current" / file.name)
        project.host_address = f"{edge.address}:{project.port}"
        assert len(project.chat("What does abs do?")) > 3
        assert project.doit() == ""
        looked = json.loads(project.doit("health", "--json"))[0]
        assert looked["status"] == "healthy", looked

        # The file in LM Studio's folder is replaced by something else, and put right.
        file.unlink()
        file.write_bytes(b"GGUF something else")
        assert "is not the release's file" in project.doit()
        assert file.samefile(edge.home / f"quern/{MODEL}/chat/current" / file.name)
    finally:
        gpu.remove()
        edge.remove()


def test_from_the_adapter_to_a_chat(project: LanguageProject):
    told = project.doit()
    assert f"deploy:{MODEL}" in told and "is live on" in told
    assert "ollama is not installed" in told
    assert project.doit() == ""

    # It says what it serves, by what it opened; and what it says is right.
    manifest = json.loads(weights(project, "manifest.json").read_bytes())
    digest = manifest["roles"]["weights"]["xxh3_128"]
    assert digest == read_digests(weights(project, f"{MODEL}-Q4_K_M.gguf"))[1]
    health, info = project.get("/health"), project.get("/models/info")
    assert health["weights"] == info["weights"] == digest
    assert health["release"] == info["release"] == project.history()[-1]["release"]
    assert "upper" in project.chat("What does str.upper do?").lower()

    # LM Studio's folder has the same file.
    placed = project.root / f"lmstudio/models/quern/{MODEL}/{MODEL}-Q4_K_M.gguf"
    assert read_digests(placed)[1] == digest
    assert placed.stat().st_nlink > 1
    placed.unlink()
    assert "done" in project.doit()
    assert placed.exists()

    told = project.doit("health", MODEL)
    assert told == f"{MODEL}: healthy\n"
    [model] = json.loads(project.doit("health", "--json"))
    checks = {f["check"] for c in model["channels"] for f in c["findings"]}
    assert checks == {"file", "api", "model"}

    project.doit("evaluate")
    formats = json.loads((project.root / "weights/evaluation/formats.json").read_bytes())
    far = {f["format"]: f["kl"]["mean"] for f in formats["models"][MODEL] if f["kl"]}
    assert set(far) == set(FORMATS)
    assert far["Q8_0"] < far["Q5_K_M"] < far["Q4_K_M"]
    assert (project.root / "weights/evaluation/formats.png").stat().st_size > 10_000


def test_what_changed_is_built_and_nothing_else(project: LanguageProject):
    project.doit(*UP_TO_RELEASE)
    # Another format.
    project.configure(quantize={"formats": [*FORMATS, "Q6_K"]})
    assert project.ran(*UP_TO_RELEASE) == {f"quantize:{MODEL}:Q6_K", f"measure:{MODEL}:Q6_K"}
    # Another way to talk.
    project.configure(chat={"temperature": 0.5})
    assert project.ran(*UP_TO_RELEASE) == {f"release:{MODEL}"}
    # Another adapter.
    project.configure()
    project.doit(*UP_TO_RELEASE)
    another_adapter(project, 0.98)
    assert project.ran(*UP_TO_RELEASE) == OF_FORMATS | {
        f"{stage}:{MODEL}" for stage in ("merge", "convert", "reference", "release")
    }


def test_dropped_intermediates_are_made_again_only_when_needed(project: LanguageProject):
    project.configure(merge={"drop": True}, convert={"drop": True}, deploy={})
    project.doit()
    assert not list((project.root / "weights" / MODEL / "merged").glob("*.safetensors"))
    assert not weights(project, f"{MODEL}-f16.gguf").exists()
    assert weights(project, f"{MODEL}-Q4_K_M.gguf").exists()
    assert project.doit() == ""
    more = {"formats": [*FORMATS, "Q6_K"]}
    project.configure(merge={"drop": True}, convert={"drop": True}, deploy={}, quantize=more)
    told = project.doit()
    assert "was dropped: made again" in told
    assert f"quantize:{MODEL}:Q6_K: done" in told
    assert not weights(project, f"{MODEL}-f16.gguf").exists()
    assert project.doit() == ""


def test_releases_are_switched_and_rolled_back_without_losing_a_request(
    project: LanguageProject,
):
    project.doit("deploy")
    first = project.get("/health")["release"]
    with Talkers(project.port) as talkers:
        another_adapter(project, 0.97)
        project.doit()
        second = project.get("/health")["release"]
        assert second != first
        told = project.doit("rollback", MODEL)
        assert project.get("/health")["release"] == first
    assert talkers.failures == [] and talkers.answers > 0
    assert "is live on" in told
    placed = project.root / f"lmstudio/models/quern/{MODEL}/{MODEL}-Q4_K_M.gguf"
    assert read_digests(placed)[1] == project.get("/health")["weights"]
    assert project.doit() == ""
    assert project.get("/health")["release"] == first


def test_a_format_that_is_too_far_off_is_not_released(project: LanguageProject):
    project.doit("deploy")
    before = project.get("/health")
    project.configure(evaluate={"max_kl": 1e-9})
    told = project.doit(status=1)
    lines = [line for line in told.splitlines() if line.startswith("release:")]
    assert len(lines) == 1 and f"models.{MODEL}.evaluate.max_kl" in lines[0]
    assert project.get("/health") == before


def test_a_server_that_answers_otherwise_than_measured_never_takes_over(
    project: LanguageProject, tmp_path: Path
):
    project.doit("deploy")
    before = project.get("/health")
    installed = project.host / "releases" / before["release"]
    manifest = json.loads((installed / "manifest.json").read_bytes())
    files = {role: str(installed / entry["file"]) for role, entry in manifest["roles"].items()}
    golden = json.loads((installed / "golden.json").read_bytes())
    token, probability = golden["probes"][3]["top"][0]
    golden["probes"][3]["top"][0] = [token, 1 - probability]
    files["golden"] = str(tmp_path / "golden.json")
    (tmp_path / "golden.json").write_text(json.dumps(golden))
    manifest["roles"]["golden"]["xxh3_128"] = read_digests(files["golden"])[1]
    (tmp_path / "manifest.json").write_bytes(canonical_json(manifest) + b"\n")
    release = Release.read(tmp_path / "manifest.json")
    host, address = LocalHost(project.host.parent), f"127.0.0.1:{project.port}"
    with pytest.raises(ProbeFailed, match=f"wrong answer on probe 4: token {token}"):
        Deployment(host, release, "chat", address).make_live(files, retry=False)
    assert project.get("/health") == before
    assert "upper" in project.chat("What does str.upper do?").lower()
    with pytest.raises(QuernError, match=r"failed before .*--retry"):
        Deployment(host, release, "chat", address).make_live(files, retry=False)


def test_ollama_is_told_when_it_comes(project: LanguageProject):
    project.configure(deploy={"local": {"ollama": True}})
    project.doit("deploy")
    assert project.doit("deploy") == ""
    # Ollama itself can't be had here: a program of its name keeps what it was asked.
    programs = project.root / "programs"
    programs.mkdir()
    (programs / "ollama").write_text('#!/bin/sh\npwd > "$0.asked"; echo "$@" >> "$0.asked"\n')
    (programs / "ollama").chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    told = project.doit("deploy", PATH=path)
    assert f"ollama run {MODEL}" in told
    folder, arguments = (programs / "ollama.asked").read_text().splitlines()
    assert arguments == f"create {MODEL} -f Modelfile"
    modelfile = (Path(folder) / "Modelfile").read_text()
    assert f"FROM ./{MODEL}-Q4_K_M.gguf\n" in modelfile
    assert 'SYSTEM """You explain Python."""' in modelfile
    assert (Path(folder) / f"{MODEL}-Q4_K_M.gguf").exists()
    assert project.doit("deploy", PATH=path) == ""


def test_earlier_releases_are_kept_as_many_as_configured(project: LanguageProject):
    deploy = {"local": {"lmstudio": "lmstudio", "keep": 1}}
    for temperature in (0.1, 0.2, 0.3, 0.4):
        project.configure(deploy=deploy, chat={"temperature": temperature})
        project.doit("deploy")
    kept = [path for path in (project.host / "releases").iterdir() if path.is_dir()]
    assert len(kept) == 2  # the live one, and one before
    project.doit("rollback", MODEL)
    assert project.doit("deploy") == ""


def test_a_candidate_is_compared_by_questions(project: LanguageProject):
    """Another format is the candidate: fewer bits, further from the unquantized model."""
    port = free_port()
    project.configure(
        deploy={"local": {"chat": {"stable": project.port}}}, quantize={"primary": "Q8_0"}
    )
    project.doit("deploy")
    project.configure(
        deploy={"local": {"chat": {"candidate": port, "stable": project.port}}},
        compare={"margin": 0.5},
    )
    project.doit("deploy")
    questions = [
        json.loads(line) for line in (project.root / f"examples/{MODEL}/questions.jsonl").open()
    ][::4]
    questions.append({"category": "new", "prompt": "What does abs do?", "answer": "No such words"})
    lines = [json.dumps(question) for question in questions]
    (project.root / "q.jsonl").write_text("\n".join(lines))
    [told] = json.loads(project.doit("compare", MODEL, "--questions", "q.jsonl", "--json"))

    right = {}
    for who, at in (("candidate", port), ("stable", project.port)):
        project.host_address = f"127.0.0.1:{at}"
        said = [
            project.chat(question["prompt"], temperature=0, max_tokens=64) for question in questions
        ]
        pairs = zip(questions, said, strict=True)
        right[who] = [question["answer"].lower() in text.lower() for question, text in pairs]
        assert told["accuracy"][who] == sum(right[who]) / len(questions)
        assert told[who] == project.get("/health")["release"]
        manifest = project.host / "releases" / told[who] / "manifest.json"
        quality = json.loads(manifest.read_bytes())["checkpoint"]["quality"]
        assert told["kl"][who] == quality["kl"]["mean"]
        assert told["tokens_per_second"][who] > 1
        # The model's weights, a few megabytes, are in the engine's memory.
        assert told["memory_bytes"][who] > 2e7
    assert 0 < sum(right["stable"]) < len(questions)  # else this test is of nothing
    assert told["kl"]["candidate"] > told["kl"]["stable"]
    gained = sum(a and not b for a, b in zip(*right.values(), strict=True))
    lost = sum(b and not a for a, b in zip(*right.values(), strict=True))
    assert told["discordant"] == {"candidate": gained, "stable": lost}
    [new] = [found for found in told["classes"] if found["class"] == "new"]
    assert (new["count"], new["candidate"], new["change"]) == (1, 0.0, 0.0)
    assert "top5" not in told and told["set"]["count"] == len(questions)

    # By default on those of `evaluate`.
    printed = project.doit("compare", MODEL)
    assert f"questions of examples/{MODEL}/questions.jsonl" in printed and "nats" in printed
    evaluated = project.root / "weights/evaluation" / MODEL
    report = evaluated / f"{told['candidate']}-{told['stable']}"
    assert "| Category |" in report.with_suffix(".md").read_text()
    assert report.with_suffix(".png").stat().st_size > 10_000
    assert "compared with" in project.doit("history")
    told = project.doit("compare", MODEL, "--images", "q", status=3)
    assert "is a language model; --questions, not --images" in told
    (project.root / "q.jsonl").write_text('{"category": "x"}')
    assert "q.jsonl:1: not a question" in project.doit(
        "compare", MODEL, "--questions", "q.jsonl", status=1
    )
    assert "q: can't be read" in project.doit("compare", MODEL, "--questions", "q", status=1)

    # Promoted by that comparison; LM Studio's folder gets what the server has, and not before it.
    folder = project.root / "lm studio"
    chat = {"candidate": port, "stable": project.port}
    project.configure(
        deploy={"local": {"chat": chat, "lmstudio": str(folder)}}, compare={"margin": 0.5}
    )
    project.doit("deploy")
    assert not list(folder.rglob("*.gguf"))
    told = project.doit("promote", MODEL)
    assert "is live on" in told and "is in LM Studio's folder" in told
    assert [path.name for path in folder.rglob("*.gguf")] == [f"{MODEL}-Q4_K_M.gguf"]
    project.host_address = f"127.0.0.1:{project.port}"
    assert project.get("/health")["release"] == report.name.partition("-")[0]
    told = project.doit("history")
    assert "stable has it" in told and "McNemar's p" in told


def test_a_missing_base_is_one_line(project: LanguageProject):
    shutil.rmtree(project.root / f"examples/{MODEL}/base")
    told = project.doit(status=2)
    assert f"examples/{MODEL}/base/config.json does not exist" in told
    assert "Traceback" not in told

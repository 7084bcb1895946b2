"""Formats measured against the unquantized model, and a real llama-server against a golden set."""

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.core.child import call_in_child
from tasks.core.digest import read_digests
from tasks.core.errors import QuernError
from tasks.hosts.llm_probe import check, request
from tasks.models.llama_cpp.divergence import gate
from tasks.models.llama_cpp.gguf_file import read_header
from tasks.models.llama_cpp.logits import windows_of
from tasks.models.llama_cpp.measure import measure
from tasks.models.llama_cpp.model import Model
from tasks.models.llama_cpp.questions import answer, answer_questions, as_chat
from tasks.models.llama_cpp.reference import reference
from tests.gguf_models import (
    LanguageModels,
    copy_with,
    llama_folder,
    llama_program,
    prose,
)

pytestmark = pytest.mark.slow  # they compile llama.cpp, once

SPAN = {"tokens": 512, "context": 64}


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(prose()[:20_000])
    return str(path)


@pytest.fixture(scope="session")
def logits(
    language_models: LanguageModels, text: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """reference.npy, with reference.json beside it."""
    folder = tmp_path_factory.mktemp("reference")
    reference(**referring(language_models, text, folder))
    return folder / "reference.npy"


def referring(models: LanguageModels, text: str, folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "f16": models.f16("llama"),
        "source": models.files("llama"),
        "text": text,
        **SPAN,
        "max_kl_torch": 0.001,
        "name": "llama",
        "format": "F16",
        "logits": str(folder / "reference.npy"),
        "report": str(folder / "reference.json"),
        "library": llama_folder(),
        **more,
    }


def measuring(gguf: str, format: str, logits: Path, text: str, folder: Path) -> dict[str, Any]:
    return {
        "gguf": gguf,
        "logits": str(logits),
        "text": text,
        **SPAN,
        "format": format,
        "name": "llama",
        "system": None,
        "chat_context": 256,
        "report": str(folder / f"{format}.measured.json"),
        "golden": str(folder / f"{format}.golden.json"),
        "library": llama_folder(),
    }


def measured(gguf: str, format: str, logits: Path, text: str, folder: Path) -> dict[str, Any]:
    arguments = measuring(gguf, format, logits, text, folder)
    measure(**arguments)
    told: dict[str, Any] = json.loads(Path(arguments["report"]).read_bytes())
    return told


def test_the_reference_is_pytorchs_and_kept(logits: Path) -> None:
    told = json.loads(logits.with_name("reference.json").read_bytes())
    kept = np.load(logits)
    assert kept.dtype == np.float32 and kept.shape == (8 * 31, 512)
    assert np.allclose(np.exp(kept).sum(-1), 1, atol=1e-4)
    assert told["tokens"] == 8 * 31 and told["torch"]["type"] == "float32"
    assert told["torch"]["kl"]["mean"] < 2e-5 and told["torch"]["top1"] > 0.97


def test_a_reference_far_from_pytorch_is_refused(
    language_models: LanguageModels, text: str, tmp_path: Path
) -> None:
    with pytest.raises(QuernError, match=r"not PyTorch's.*models\.llama\.evaluate\.max_kl_torch"):
        reference(**referring(language_models, text, tmp_path, max_kl_torch=1e-12))
    assert not (tmp_path / "reference.json").exists()


def test_a_gguf_of_other_weights_is_refused(
    language_models: LanguageModels, text: str, tmp_path: Path
) -> None:
    def scale(tensors: dict[str, Any]) -> None:
        tensors["lm_head.weight"] *= 1.5

    files = copy_with(language_models.files("llama"), tmp_path / "other", scale)
    with pytest.raises(QuernError, match=r"not PyTorch's.* 0\.001 is allowed"):
        reference(**referring(language_models, text, tmp_path, source=files))


def test_divergence_orders_formats(
    language_models: LanguageModels, text: str, logits: Path, tmp_path: Path
) -> None:
    names = ["Q8_0", "Q5_K_M", "Q4_K_M"]
    found = [
        measured(language_models.quantized("llama", name), name, logits, text, tmp_path)
        for name in names
    ]
    for told in found:
        print(told)
    kl = [told["kl"]["mean"] for told in found]
    assert 0 < kl[0] < kl[1] < kl[2]
    assert [told["bytes"] for told in found] == sorted((t["bytes"] for t in found), reverse=True)
    assert all(told["speed"]["prompt"] > 0 and told["speed"]["generation"] > 0 for told in found)
    gate(found[0], 0.1, 0.8)
    with pytest.raises(QuernError, match="llama Q4_K_M: its mean KL"):
        gate(found[2], kl[2] / 2, 0.5)


def test_a_flipped_bit_is_caught(
    language_models: LanguageModels, text: str, logits: Path, tmp_path: Path
) -> None:
    """llama.cpp loads it: digest and divergence tell."""
    whole = language_models.quantized("llama", "Q8_0")
    damaged = tmp_path / "damaged.gguf"
    shutil.copy(whole, damaged)
    tensor = next(t for t in read_header(whole).tensors if t.name == "blk.0.ffn_down.weight")
    with open(damaged, "r+b") as file:  # in the exponent of the first block's float16 scale
        file.seek(tensor.offset + 1)
        byte = file.read(1)[0]
        file.seek(tensor.offset + 1)
        file.write(bytes([byte ^ 0x40]))
    before = measured(whole, "Q8_0", logits, text, tmp_path)
    after = measured(str(damaged), "Q8_0", logits, text, tmp_path)
    assert before["digest"] == read_digests(whole)[1] != after["digest"]
    assert after["kl"]["mean"] > 10 * before["kl"]["mean"]
    with pytest.raises(QuernError, match=r"models\.llama\.evaluate"):
        gate(after, 5 * before["kl"]["mean"], 0)


def test_not_a_number_is_caught_by_the_loader(
    language_models: LanguageModels, text: str, logits: Path, tmp_path: Path
) -> None:
    whole = language_models.quantized("llama", "Q4_K_M")
    damaged = tmp_path / "damaged.gguf"
    shutil.copy(whole, damaged)
    tensor = next(t for t in read_header(whole).tensors if t.name == "blk.1.attn_k.weight")
    with open(damaged, "r+b") as file:
        file.seek(tensor.offset)
        file.write(b"\x00\x7e")  # a block's float16 scale: NaN
    with pytest.raises(QuernError, match=r"llama\.cpp can't load it: .*blk\.1\.attn_k") as fault:
        measured(str(damaged), "Q4_K_M", logits, text, tmp_path)
    assert "\n" not in str(fault.value)


def test_another_texts_reference_is_refused(
    language_models: LanguageModels, text: str, logits: Path, tmp_path: Path
) -> None:
    gguf = language_models.f16("llama")
    arguments = measuring(gguf, "F16", logits, text, tmp_path) | {"tokens": 128}
    with pytest.raises(QuernError, match="of another text"):
        measure(**arguments)


def test_too_little_text_names_the_key(
    language_models: LanguageModels, text: str, logits: Path, tmp_path: Path
) -> None:
    (tmp_path / "short.txt").write_text("too short")
    arguments = measuring(language_models.f16("llama"), "F16", logits, text, tmp_path)
    arguments["text"] = str(tmp_path / "short.txt")
    with pytest.raises(QuernError, match=r"models\.llama\.evaluate\.text: the text has \d+ tokens"):
        measure(**arguments)


def test_windows_begin_with_the_start_token_where_the_model_wants_one(
    language_models: LanguageModels,
) -> None:
    with Model(language_models.f16("gemma2"), library=llama_folder()) as model:
        windows = windows_of(model, prose(), 128, 32, "text")
        assert [window[0] for window in windows] == [model.start_token] * 4 == [2] * 4
        assert [len(window) for window in windows] == [32] * 4


def questions_file(folder: Path, *questions: dict[str, str]) -> str:
    path = folder / "questions.jsonl"
    path.write_text("\n".join(json.dumps(question) for question in questions) + "\n")
    return str(path)


def test_questions_are_counted_by_category(language_models: LanguageModels, tmp_path: Path) -> None:
    with Model(language_models.f16("llama"), library=llama_folder()) as model:
        with model.context(256) as context:
            said = answer(context, "What is an import?", "Be brief.")
            assert said == answer(context, "What is an import?", "Be brief.")
        word = said.strip()[:4]
        assert word, said
        path = questions_file(
            tmp_path,
            {"category": "b", "prompt": "What is an import?", "answer": word.upper()},
            {"category": "b", "prompt": "What is an import?", "answer": "no such words"},
            {"category": "a", "prompt": "What is a class?", "answer": "no such words"},
        )
        found = answer_questions(model, path, "Be brief.", 256)
    assert found == {
        "count": 3,
        "correct": 1,
        "accuracy": 1 / 3,
        "categories": {
            "a": {"count": 1, "correct": 0, "accuracy": 0.0},
            "b": {"count": 2, "correct": 1, "accuracy": 0.5},
        },
    }


@pytest.mark.parametrize("line", ["{", "[]", '{"category": "a", "prompt": "b"}'])
def test_a_bad_question_is_told_with_its_line(
    language_models: LanguageModels, tmp_path: Path, line: str
) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"category": "a", "prompt": "b", "answer": "c"}\n' + line + "\n")
    with (
        Model(language_models.f16("llama"), library=llama_folder()) as model,
        pytest.raises(QuernError, match=r"q\.jsonl:2: not"),
    ):
        answer_questions(model, str(path), None, 64)


def test_a_template_that_refuses_is_one_line(language_models: LanguageModels) -> None:
    class Refusing(Model):
        chat_template = "{{ raise_exception('System role not supported') }}"  # type: ignore[assignment]

    with (
        Refusing(language_models.f16("llama"), library=llama_folder()) as model,
        model.context(64) as context,
        pytest.raises(QuernError, match="refuses the messages: System role not supported"),
    ):
        answer(context, "Hello", "Be brief.")


def test_a_template_is_told_the_same_date_every_day(language_models: LanguageModels) -> None:
    class Dated(Model):
        chat_template = "{{ strftime_now('%Y-%m-%d') }}"  # type: ignore[assignment]

    with Dated(language_models.f16("llama"), library=llama_folder()) as model:
        assert as_chat(model, "Hello", None) == "2025-01-01"


@pytest.mark.parametrize("damage", ["cut", "magic"])
def test_what_is_no_gguf_is_one_line_in_a_child(
    language_models: LanguageModels, text: str, logits: Path, tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "bad.gguf"
    data = Path(language_models.quantized("llama", "Q8_0")).read_bytes()
    path.write_bytes(data[:300_000] if damage == "cut" else b"GGML" + data[4:])
    arguments = measuring(str(path), "Q8_0", logits, text, tmp_path)
    function = "tasks.models.llama_cpp.measure:measure"
    with pytest.raises(QuernError, match=r"bad\.gguf: ") as fault:
        call_in_child(function, arguments, tmp_path / "log", lambda event: None)
    print(fault.value)
    assert "\n" not in str(fault.value) and "no reason" not in str(fault.value)


@contextmanager
def server(gguf: str, log: Path) -> Iterator[Any]:
    """llama-server with `gguf`; yields a function that asks its /completion."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [llama_program("llama-server"), "--model", gguf, "--port", str(port)]
    command += ["--host", "127.0.0.1", "--ctx-size", "512", "--parallel", "2", "--check-tensors"]

    def ask(body: dict[str, Any] | None, path: str = "/completion") -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        asked = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)
        with urllib.request.urlopen(asked, timeout=30) as answered:
            found: dict[str, Any] = json.load(answered)
        return found

    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            for _ in range(300):
                try:
                    ask(None, "/health")
                    break
                except OSError:
                    assert process.poll() is None, log.read_text()[-2000:]
                    time.sleep(0.1)
            yield ask
        finally:
            process.kill()
            process.wait()


def test_a_real_server_gives_the_golden_probabilities(
    language_models: LanguageModels, text: str, logits: Path, tmp_path: Path
) -> None:
    gguf = language_models.quantized("llama", "Q4_K_M")
    measured(gguf, "Q4_K_M", logits, text, tmp_path)
    golden = json.loads((tmp_path / "Q4_K_M.golden.json").read_bytes())
    assert (golden["format"], golden["kind"]) == (1, "llm")
    assert len(golden["probes"]) == 8
    assert all(len(p["top"]) == 10 and len(p["tokens"]) == 32 for p in golden["probes"])
    assert len({tuple(p["tokens"]) for p in golden["probes"]}) == 8
    with server(gguf, tmp_path / "log") as ask:
        result = check(golden, ask)
        print(result)
        assert result.probes == 8 and result.worst_difference < 0.005
        # Temperature and samplers have no part in them.
        hot = check(golden, lambda body: ask(body | {"temperature": 5.0, "top_k": 2}))
        assert hot.worst_difference < 0.005
        sampled = ask(request(golden["probes"][0]) | {"post_sampling_probs": True})
        assert "top_logprobs" not in sampled["completion_probabilities"][0]
        token, probability = golden["probes"][3]["top"][0]
        golden["probes"][3]["top"][0] = [token, probability + 0.05]
        with pytest.raises(QuernError, match=f"wrong answer on probe 4: token {token} has"):
            check(golden, ask)


def test_a_server_with_another_model_is_found_out(
    language_models: LanguageModels, text: str, logits: Path, tmp_path: Path
) -> None:
    measured(language_models.f16("llama"), "F16", logits, text, tmp_path)
    golden = json.loads((tmp_path / "F16.golden.json").read_bytes())
    with (
        server(language_models.f16("qwen2"), tmp_path / "log") as ask,
        pytest.raises(QuernError, match="wrong answer on probe"),
    ):
        check(golden, ask)


def test_answers_without_probabilities_are_told() -> None:
    golden = {
        "tolerance": {"probability": 0.02},
        "probes": [{"name": "probe 1", "tokens": [1], "top": [[1, 0.5]]}],
    }
    for answered in ({}, {"completion_probabilities": []}, {"error": "no"}):
        with pytest.raises(QuernError, match="no probabilities in the answer on probe 1"):
            check(golden, lambda body, answered=answered: answered)
    nan = {"completion_probabilities": [{"top_logprobs": [{"id": 1, "logprob": float("nan")}]}]}
    with pytest.raises(QuernError, match="wrong answer"):
        check(golden, lambda body: nan)
    missing = {"completion_probabilities": [{"top_logprobs": [{"id": 2, "logprob": -3.0}]}]}
    with pytest.raises(QuernError, match=r"token 1 has the probability 0\.050"):
        check(golden, lambda body: missing)
    with pytest.raises(QuernError, match="empty"):
        check(golden | {"probes": []}, lambda body: nan)

"""Hugging Face model → GGUF, whose predictions and tokens must be PyTorch's and transformers'."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tasks.core.child import call_in_child
from tasks.core.errors import QuernError
from tasks.models.llama_cpp.convert import convert, refuse_full_disk, run_converter
from tasks.models.llama_cpp.divergence import Divergence
from tasks.models.llama_cpp.gguf_file import read_header
from tasks.models.llama_cpp.logits import (
    log_probabilities,
    successors,
    torch_log_probabilities,
    windows_of,
)
from tasks.models.llama_cpp.model import Model
from tasks.models.llama_cpp.text import evaluation_text
from tasks.models.llama_cpp.tokenizers import compare_tokenizers
from tests.gguf_models import (
    PRE_TOKENIZERS,
    LanguageModels,
    converter,
    copy_with,
    files_of,
    llama_folder,
    prose,
)

pytestmark = pytest.mark.slow  # they compile llama.cpp, once

ARCHITECTURES = ["llama", "qwen2", "qwen3", "gemma2"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_predictions_are_pytorchs(language_models: LanguageModels, architecture: str) -> None:
    gguf, files = language_models.f16(architecture), language_models.files(architecture)
    divergence, furthest = Divergence(), 0.0
    with Model(gguf, library=llama_folder()) as model:
        windows = windows_of(model, prose(), 256, 128, "text")
        assert len(windows) == 2
        with model.context(128) as context:
            for window, wanted in zip(
                windows, torch_log_probabilities(files, windows, {}), strict=True
            ):
                found = log_probabilities(context, window)
                divergence.add(wanted, found, successors(window))
                furthest = max(furthest, float(np.abs(wanted - found).max()))
    figures = divergence.figures()
    print(architecture, figures, furthest)
    assert figures["tokens"] == 2 * 63
    assert figures["kl"]["mean"] < 2e-5
    assert figures["top1"] > 0.97
    assert furthest < 0.1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tokens_are_transformers(language_models: LanguageModels, architecture: str) -> None:
    gguf, files = language_models.f16(architecture), language_models.files(architecture)
    assert compare_tokenizers(gguf, files, prose(), "tiny", llama_folder()) > 20_000


def test_a_wrong_pre_tokenizer_is_detected(language_models: LanguageModels, tmp_path: Path) -> None:
    files, gguf = language_models.files("llama"), str(tmp_path / "wrong.gguf")
    run_converter(files, converter(), "f16", "tiny", "gpt-2", gguf)
    with pytest.raises(QuernError, match=r"token \d+ of .* where Hugging Face gives") as fault:
        compare_tokenizers(gguf, files, prose(), "tiny", llama_folder())
    assert "models.tiny.convert.pre_tokenizer" in str(fault.value)
    assert "\n" not in str(fault.value)


def test_an_unrecognized_pre_tokenizer_says_which_key_to_set(
    language_models: LanguageModels, tmp_path: Path
) -> None:
    gguf = tmp_path / "a.gguf"
    with pytest.raises(QuernError, match=r"set models\.tiny\.convert\.pre_tokenizer"):
        run_converter(language_models.files("llama"), converter(), "f16", "tiny", None, str(gguf))
    assert not gguf.exists()


def test_a_declaration_against_what_is_recognized_is_refused(
    language_models: LanguageModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No known tokenizer is at hand: the tiny one's fingerprint is given the name it would have."""
    files, gguf = language_models.files("llama"), str(tmp_path / "a.gguf")
    run_converter(files, converter(), "f16", "tiny", "llama-bpe", gguf)  # the converter is loaded
    import conversion  # type: ignore[import-not-found]

    monkeypatch.setattr(conversion.TextModel, "get_vocab_base_pre", lambda *_: "qwen2")
    with pytest.raises(QuernError, match=r"is llama-bpe, but llama\.cpp recognizes .* as qwen2"):
        run_converter(files, converter(), "f16", "tiny", "llama-bpe", gguf)
    assert not os.path.exists(gguf)
    for declared in ("qwen2", None):
        run_converter(files, converter(), "f16", "tiny", declared, gguf)
        assert read_header(gguf).metadata["tokenizer.ggml.pre"] == "qwen2"


@pytest.mark.parametrize("type", ["f16", "bf16", "f32"])
def test_the_same_bytes_wherever_the_files_lie(
    language_models: LanguageModels, tmp_path: Path, type: str
) -> None:
    made = []
    for place in ("a", "another folder"):
        folder = tmp_path / place
        folder.mkdir()
        for file in language_models.files("llama"):
            shutil.copy(file, folder)
        gguf = tmp_path / f"{place}.gguf"
        run_converter(files_of(folder), converter(), type, "tiny", "llama-bpe", str(gguf))
        made.append(gguf.read_bytes())
    assert made[0] == made[1]
    assert str(tmp_path).encode() not in made[0]
    assert read_header(str(gguf)).metadata["general.name"] == "tiny"


def test_the_whole_step_in_a_process_of_its_own(
    language_models: LanguageModels, tmp_path: Path
) -> None:
    text, gguf = tmp_path / "text.txt", tmp_path / "tiny.gguf"
    text.write_text(prose()[:20_000])
    progress = []
    arguments = {
        "source": language_models.files("llama"),
        "converter": converter(),
        "type": "f16",
        "name": "llama",
        "pre_tokenizer": PRE_TOKENIZERS["llama"],
        "gguf": str(gguf),
        "parity": str(text),
        "library": llama_folder(),
    }
    log = tmp_path / "log"
    call_in_child("tasks.models.llama_cpp.convert:convert", arguments, log, progress.append)
    assert gguf.read_bytes() == Path(language_models.f16("llama")).read_bytes()
    labels = {event["progress"]["label"] for event in progress if "progress" in event}
    assert labels == {"checking the weights", "writing the GGUF", "comparing tokenizers"}


def test_a_missing_tensor_stops_the_step(language_models: LanguageModels, tmp_path: Path) -> None:
    files = copy_with(
        language_models.files("llama"), tmp_path / "m", lambda t: t.pop("model.norm.weight")
    )
    with pytest.raises(QuernError, match=r"model\.norm\.weight is missing"):
        convert(files, converter(), "f16", "tiny", "llama-bpe", str(tmp_path / "a.gguf"))
    assert not (tmp_path / "a.gguf").exists()


def test_no_base_names_its_key(tmp_path: Path) -> None:
    with pytest.raises(QuernError, match=r"models\.tiny\.base: no such directory"):
        convert([], converter(), "f16", "tiny", None, str(tmp_path / "a.gguf"))


def test_an_architecture_llama_cpp_lacks_is_one_line(
    language_models: LanguageModels, tmp_path: Path
) -> None:
    files = copy_with(language_models.files("llama"), tmp_path / "m", lambda t: None)
    config = tmp_path / "m" / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "LamaForCausalLM"))
    with pytest.raises(QuernError, match=r"can.t convert it: .*LamaForCausalLM"):
        run_converter(files, converter(), "f16", "tiny", None, str(tmp_path / "a.gguf"))


def test_a_full_disk_is_told_before(tmp_path: Path) -> None:
    with pytest.raises(QuernError, match=r"100000000000000000 bytes are needed and \d+ are free"):
        refuse_full_disk(str(tmp_path / "a.gguf"), 10**17)


def test_the_default_text_is_long_enough() -> None:
    text = evaluation_text(None)
    assert len(text) > 300_000 and text == evaluation_text(None)


def test_a_text_in_another_encoding_is_told(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(QuernError, match="not UTF-8 at byte 3"):
        evaluation_text(str(tmp_path / "t.txt"))

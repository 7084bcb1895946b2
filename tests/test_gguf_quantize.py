"""GGUF → formats: llama-quantize's own bytes, and what it lets pass refused."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tasks.core.child import call_in_child
from tasks.core.errors import QuernError
from tasks.models.llama_cpp.convert import run_converter
from tasks.models.llama_cpp.gguf_file import read_header
from tasks.models.llama_cpp.imatrix import imatrix
from tasks.models.llama_cpp.quantize import quantize
from tests.gguf_models import (
    LanguageModels,
    converter,
    llama_folder,
    llama_program,
    make_model,
    prose,
)

pytestmark = pytest.mark.slow  # they compile llama.cpp, once

FUNCTION = "tasks.models.llama_cpp.quantize:quantize"


def ours(source: str, target: Path, format: str, **more: object) -> bytes:
    settings = {"allow_fallback": False, "name": "tiny", "library": llama_folder(), **more}
    quantize(source, str(target), format, **settings)
    return target.read_bytes()


def theirs(source: str, target: Path, format: str, *options: str, cwd: Path | None = None) -> bytes:
    command = [llama_program("llama-quantize"), *options, source, str(target), format]
    subprocess.run(command, check=True, capture_output=True, cwd=cwd)
    return target.read_bytes()


@pytest.fixture(scope="session")
def importance(language_models: LanguageModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("importance")
    text, path = folder / "text.txt", folder / "imatrix.gguf"
    text.write_text(prose()[:1500])
    source = language_models.f16("llama")
    imatrix(source, str(text), 64, "tiny", str(path), library=llama_folder())
    return path


@pytest.mark.parametrize("format", ["Q4_K_M", "Q5_K_M", "Q8_0", "Q6_K", "IQ4_XS", "F16", "Q3_K"])
def test_the_bytes_are_llama_quantizes(
    language_models: LanguageModels, tmp_path: Path, format: str
) -> None:
    source = language_models.f16("llama")
    wanted = theirs(source, tmp_path / "theirs.gguf", format)
    for threads in (1, 2):
        assert ours(source, tmp_path / "ours.gguf", format, threads=threads) == wanted


@pytest.mark.parametrize("format", ["Q4_K_M", "IQ2_XXS"])
def test_with_importance_too(
    language_models: LanguageModels, importance: Path, tmp_path: Path, format: str
) -> None:
    source = language_models.f16("llama")
    found = ours(source, tmp_path / "ours.gguf", format, imatrix=str(importance))
    # By name alone, as its path is written into the file.
    options = ("--imatrix", importance.name)
    assert found == theirs(
        source, tmp_path / "theirs.gguf", format, *options, cwd=importance.parent
    )
    assert found != ours(source, tmp_path / "plain.gguf", "Q4_K_M")
    assert str(importance.parent).encode() not in found


def test_importance_is_the_same_each_time(
    language_models: LanguageModels, importance: Path, tmp_path: Path
) -> None:
    shutil.copy(importance.parent / "text.txt", tmp_path / "text.txt")
    again, events = tmp_path / "imatrix.gguf", []
    arguments = {
        "source": language_models.f16("llama"),
        "text": str(tmp_path / "text.txt"),
        "context": 64,
        "name": "tiny",
        "imatrix": str(again),
        "library": llama_folder(),
    }
    function = "tasks.models.llama_cpp.imatrix:imatrix"
    call_in_child(function, arguments, tmp_path / "log", events.append)
    assert again.read_bytes() == importance.read_bytes()
    assert any(event["progress"]["unit"] == "chunks" for event in events)


def test_a_text_too_short_for_importance_is_one_line(
    language_models: LanguageModels, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("short")
    with pytest.raises(QuernError, match=r"text\.txt has \d tokens, and 128 are") as fault:
        imatrix(
            language_models.f16("llama"),
            str(tmp_path / "text.txt"),
            64,
            "tiny",
            str(tmp_path / "i.gguf"),
            library=llama_folder(),
        )
    assert "\n" not in str(fault.value)


def test_progress_goes_by_tensors(language_models: LanguageModels, tmp_path: Path) -> None:
    source, events = language_models.f16("llama"), []
    arguments = {
        "source": source,
        "target": str(tmp_path / "q.gguf"),
        "format": "Q8_0",
        "allow_fallback": False,
        "name": "tiny",
        "library": llama_folder(),
    }
    call_in_child(FUNCTION, arguments, tmp_path / "log", events.append)
    last = events[-1]["progress"]
    count = len(read_header(source).tensors)
    assert (last["label"], last["done"], last["total"]) == ("quantizing to Q8_0", count, count)


def test_an_unknown_format_lists_the_names(language_models: LanguageModels, tmp_path: Path) -> None:
    with pytest.raises(QuernError, match=r"models\.tiny\.quantize\.formats.*Q4_K_X.*Q4_K_M"):
        ours(language_models.f16("llama"), tmp_path / "q.gguf", "Q4_K_X")


def test_a_format_that_needs_importance_says_so(
    language_models: LanguageModels, tmp_path: Path
) -> None:
    with pytest.raises(QuernError, match=r"IQ2_XXS needs .*models\.tiny\.quantize\.imatrix"):
        ours(language_models.f16("llama"), tmp_path / "q.gguf", "IQ2_XXS")
    assert not (tmp_path / "q.gguf").exists()


def test_a_fallback_is_refused_unless_allowed(tmp_path: Path) -> None:
    """Rows of 96 fit no block of 256."""
    files, source = make_model(tmp_path / "narrow", hidden=96, steps=0), tmp_path / "narrow.gguf"
    run_converter(files, converter(), "f16", "narrow", "llama-bpe", str(source))
    target = tmp_path / "q.gguf"
    with pytest.raises(QuernError) as fault:
        ours(str(source), target, "Q4_K_M")
    assert re.search(r"falls back for \S+\.weight \(96 columns", str(fault.value))
    assert "models.tiny.quantize.allow_fallback" in str(fault.value)
    assert not target.exists()
    wanted = theirs(str(source), tmp_path / "theirs.gguf", "Q4_K_M")
    assert ours(str(source), target, "Q4_K_M", allow_fallback=True) == wanted


def test_onto_itself_is_one_line_in_a_child(
    language_models: LanguageModels, tmp_path: Path
) -> None:
    """llama.cpp would truncate the file that it has mapped, and die of SIGBUS."""
    path = tmp_path / "same.gguf"
    shutil.copy(language_models.f16("llama"), path)
    before = path.read_bytes()
    arguments = {
        "source": str(path),
        "target": str(path),
        "format": "Q8_0",
        "allow_fallback": False,
        "name": "tiny",
        "library": llama_folder(),
    }
    with pytest.raises(QuernError, match="is also the file to be quantized"):
        call_in_child(FUNCTION, arguments, tmp_path / "log", lambda event: None)
    assert path.read_bytes() == before


def test_what_kills_the_process_is_one_line(
    language_models: LanguageModels, tmp_path: Path
) -> None:
    """The same by another name that a check of ours can't see: a link changed meanwhile."""
    path = tmp_path / "same.gguf"
    shutil.copy(language_models.f16("llama"), path)
    arguments = {"path": str(path), "library": llama_folder()}
    with pytest.raises(QuernError, match=r"its process was ended by SIG(BUS|SEGV|ABRT)"):
        call_in_child("tests.gguf_models:die_quantizing", arguments, tmp_path / "log", print)


def test_a_damaged_source_is_one_line(language_models: LanguageModels, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(Path(language_models.f16("llama")).read_bytes()[:200_000])
    with pytest.raises(QuernError) as fault:
        ours(str(path), tmp_path / "q.gguf", "Q8_0")
    print(fault.value)
    assert "cut.gguf" in str(fault.value) and "\n" not in str(fault.value)


def test_a_full_disk_is_told_with_both_figures(
    language_models: LanguageModels, small_disk: Path
) -> None:
    (small_disk / "filler").write_bytes(bytes(3 << 20))
    source = language_models.f16("llama")
    with pytest.raises(QuernError, match=r"\d+ bytes are needed and \d+ are free") as fault:
        ours(source, small_disk / "q.gguf", "Q8_0")
    needed = int(re.findall(r"(\d+) bytes are needed", str(fault.value))[0])
    os.remove(small_disk / "filler")
    assert needed == pytest.approx(len(ours(source, small_disk / "q.gguf", "Q8_0")), rel=0.02)

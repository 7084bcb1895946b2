"""What a model's files must be before llama.cpp's converter, which accepts anything, gets them."""

import shutil
from pathlib import Path

import pytest
import torch

from tasks.core.errors import QuernError
from tasks.models.llama_cpp.source import (
    MAX_FLOAT16,
    refuse_bad_numbers,
    refuse_missing_tensors,
    source_folder,
)
from tests.gguf_models import LanguageModels, copy_with, files_of

DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(("value", "what"), [(float("nan"), "NaN"), (float("-inf"), "an infinity")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_number_that_is_none_is_told_with_its_tensor(
    language_models: LanguageModels,
    tmp_path: Path,
    value: float,
    what: str,
    dtype: torch.dtype,
) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[DOWN] = tensors[DOWN].to(dtype)
        tensors[DOWN][3, 200] = value

    files = copy_with(language_models.files("llama"), tmp_path / "m", spoil)
    with pytest.raises(QuernError, match=f"{DOWN} holds {what}"):
        refuse_bad_numbers(files, "tiny", None)


def test_a_number_beyond_float16_is_refused_for_f16_only(
    language_models: LanguageModels, tmp_path: Path
) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[DOWN][0, 0] = -70000.0

    files = copy_with(language_models.files("llama"), tmp_path / "m", spoil)
    refuse_bad_numbers(files, "tiny", None)
    with pytest.raises(QuernError, match=rf"{DOWN} holds 70000.*models\.tiny\.convert\.type"):
        refuse_bad_numbers(files, "tiny", MAX_FLOAT16)


def test_the_weights_are_counted(language_models: LanguageModels) -> None:
    from safetensors.torch import load_file

    files = language_models.files("llama")
    tensors = load_file(next(file for file in files if file.endswith(".safetensors")))
    matrices, vectors = refuse_bad_numbers(files, "tiny", MAX_FLOAT16)
    assert matrices == sum(t.numel() for t in tensors.values() if t.ndim > 1)
    assert vectors == sum(t.numel() for t in tensors.values() if t.ndim == 1)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma2"])
def test_whole_models_miss_nothing(language_models: LanguageModels, architecture: str) -> None:
    refuse_missing_tensors(language_models.files(architecture))


@pytest.mark.parametrize("name", [DOWN, "model.norm.weight", "model.embed_tokens.weight"])
def test_a_missing_tensor_is_named(
    language_models: LanguageModels, tmp_path: Path, name: str
) -> None:
    files = copy_with(language_models.files("llama"), tmp_path / "m", lambda t: t.pop(name))
    with pytest.raises(QuernError, match=f"tensor {name} is missing"):
        refuse_missing_tensors(files)


def test_a_missing_tied_head_is_none(language_models: LanguageModels) -> None:
    """qwen2's head is its embedding, and not in the file."""
    from safetensors.torch import load_file

    files = language_models.files("qwen2")
    assert "lm_head.weight" not in load_file(files[3]) and files[3].endswith("model.safetensors")
    refuse_missing_tensors(files)


def test_another_shape_is_told(language_models: LanguageModels, tmp_path: Path) -> None:
    def cut(tensors: dict[str, torch.Tensor]) -> None:
        tensors[DOWN] = tensors[DOWN][:, :256].contiguous()

    files = copy_with(language_models.files("llama"), tmp_path / "m", cut)
    with pytest.raises(QuernError, match=rf"{DOWN} has the shape \[256, 256\]"):
        refuse_missing_tensors(files)


def test_weights_as_pytorch_writes_them_are_read(
    language_models: LanguageModels, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    for file in language_models.files("llama"):
        shutil.copy(file, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    files = files_of(tmp_path)
    assert refuse_bad_numbers(files, "tiny", None)[0] > 1_000_000
    refuse_missing_tensors(files)


def test_a_damaged_file_is_one_line(language_models: LanguageModels, tmp_path: Path) -> None:
    for file in language_models.files("llama"):
        shutil.copy(file, tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(QuernError, match=r"model\.safetensors: can't be read"):
        refuse_bad_numbers(files_of(tmp_path), "tiny", None)


def test_only_listed_files_are_seen_and_no_code(
    language_models: LanguageModels, tmp_path: Path
) -> None:
    code = tmp_path / "modeling.py"
    code.write_text("raise SystemExit")
    config = next(file for file in language_models.files("llama") if "config.json" in file)
    with source_folder([config, str(code)]) as folder:
        assert [path.name for path in folder.iterdir()] == ["config.json"]
        assert folder.name == "model"


def test_no_configuration_is_told(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with (
        pytest.raises(QuernError, match=r"no config\.json"),
        source_folder(files_of(tmp_path)),
    ):
        pass


def test_a_model_that_transformers_does_not_know_is_one_line(
    language_models: LanguageModels, tmp_path: Path
) -> None:
    files = copy_with(language_models.files("llama"), tmp_path / "m", lambda t: None)
    config = tmp_path / "m" / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"lama"'))
    with pytest.raises(QuernError, match=r"transformers can't set the model up: .*lama") as fault:
        refuse_missing_tensors(files)
    assert "\n" not in str(fault.value)

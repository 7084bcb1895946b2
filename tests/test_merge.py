"""The merge against peft's own, its refusals, and the chapter through doit."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.core.errors import QuernError
from tasks.models.hugging_face import adapter_inputs, base_inputs, pretrained_files
from tasks.models.layout import merged_files
from tasks.models.merge import merge, pieces
from tasks.models.pretrained import base_digest
from tasks.models.safetensors_file import Stored, not_finite, read_header
from tests import merge_models as lm
from tests.build_project import BuildProject

ROOT = Path(__file__).parent.parent
Make = Callable[..., Path]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads only get in each other's way with models this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Bases and adapters by their settings, each made once; tests that spoil one take a copy."""
    made: dict[str, Path] = {}

    def make(what: str, *arguments: Any, **settings: Any) -> Path:
        key = repr((what, arguments, settings))
        if key not in made:
            folder = tmp_path_factory.mktemp("models") / "tiny-base"
            made[key] = getattr(lm, f"make_{what}")(folder, *arguments, **settings)
        return made[key]

    return make


@pytest.fixture
def base(models: Make) -> Path:
    return models("base")


@pytest.fixture
def adapter(models: Make, base: Path) -> Path:
    return models("adapter", base)


def merged(base: Path, adapter: Path, folder: Path, **settings: Any) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = merged_files("m", str(base), str(adapter))
    return merge(base, adapter, {name: folder / name for name in names}, **settings)


def refused(base: Path, adapter: Path, folder: Path, **settings: Any) -> str:
    """The one line that a merge is refused with; nothing of it may be left half-written."""
    with pytest.raises(QuernError) as error:
        merged(base, adapter, folder, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def assert_is_peft(base: Path, adapter: Path, folder: Path, dtype: str) -> None:
    """Bit for bit peft's numbers, under the base's names, shards and headers."""
    wanted, found = lm.merged_by_peft(base, adapter, dtype), lm.tensors_of(folder)
    before = lm.tensors_of(base)
    assert set(found) == set(before)
    changed = 0
    for name, tensor in found.items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(as_bits(tensor), as_bits(wanted[name])), name
        changed += not torch.equal(tensor, before[name])
    assert changed
    shards = sorted(base.glob("*.safetensors"))
    assert len(shards) > 1
    for shard in shards:
        assert read_header(folder / shard.name).header == read_header(shard).header


def as_bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


# Bit for bit what peft makes


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma"])
def test_a_streamed_merge_is_pefts_bit_for_bit(models: Make, tmp_path: Path, family: str):
    base = models("base", family)
    adapter = models("adapter", base)
    assert merged(base, adapter, tmp_path / "out") == []
    assert_is_peft(base, adapter, tmp_path / "out", "bfloat16")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("adapter_dtype", ["float32", "float16", "bfloat16"])
def test_it_is_so_for_every_type(models: Make, tmp_path: Path, dtype: str, adapter_dtype: str):
    base = models("base", dtype=dtype)
    adapter = models("adapter", base, adapter_dtype)
    assert merged(base, adapter, tmp_path / "out") == []
    assert_is_peft(base, adapter, tmp_path / "out", dtype)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 5, r".*layers\.1\.mlp\.up_proj": 3}},
        {"alpha_pattern": {"layers.2.self_attn.v_proj": 7}, "lora_alpha": 3.5},
        {"target_modules": r".*\.[02]\.self_attn\.(q|o)_proj"},
        {"target_modules": ["q_proj"], "layers_to_transform": [1]},
        {"target_modules": "all-linear", "exclude_modules": ["k_proj"]},
        {"init_lora_weights": "gaussian", "r": 1},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_it_is_so_for_every_plain_setting(models: Make, tmp_path: Path, base: Path, settings: Any):
    adapter = models("adapter", base, **settings)
    assert merged(base, adapter, tmp_path / "out") == []
    assert_is_peft(base, adapter, tmp_path / "out", "bfloat16")


def test_attention_of_experts_is_streamed_though_transformers_renames(models: Make, tmp_path: Path):
    base = models("base", "mixtral")
    adapter = models("adapter", base, target_modules=["q_proj", "v_proj"])
    assert merged(base, adapter, tmp_path / "out") == []
    before, after = lm.tensors_of(base), lm.tensors_of(tmp_path / "out")
    wanted = lm.merged_by_peft(base, adapter, "bfloat16")
    for name in before:
        if name.endswith(("q_proj.weight", "v_proj.weight")):
            assert torch.equal(after[name], wanted[name])
        else:
            assert torch.equal(after[name], before[name])


def test_the_same_bytes_every_time(base: Path, adapter: Path, tmp_path: Path):
    digests = []
    for name in ("one", "two"):
        merged(base, adapter, tmp_path / name)
        digests.append(digests_below(tmp_path / name))
    assert digests[0] == digests[1]


def digests_below(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_the_other_files_are_the_bases_byte_for_byte(base: Path, adapter: Path, tmp_path: Path):
    merged(base, adapter, tmp_path / "out")
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == pretrained_files(str(base))
    for name in names:
        if not name.endswith(".safetensors"):
            assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()


def test_the_result_answers_as_the_adapted_model_does(base: Path, adapter: Path, tmp_path: Path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    merged(base, adapter, tmp_path / "out")
    tokens = torch.arange(24).view(2, 12)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = plain(tokens).logits
    adapted = PeftModel.from_pretrained(plain, str(adapter))(tokens).logits
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)(tokens)
    error = (found.logits - adapted).abs().max()
    assert error < 0.05 * (adapted - before).abs().max()


@pytest.mark.slow
def test_rows_multiplied_by_pieces_are_the_whole_product():
    """Also with as many threads as there are, from 16 rows on: below, that alone changes bits."""
    generator = torch.Generator().manual_seed(3)
    for widest in [2000] * 60 + [20000] * 20:
        rows, rank, columns = (
            int(torch.randint(low, high, (1,), generator=generator))
            for low, high in ((16, 9000), (1, 300), (1, widest))
        )
        up = torch.randn(rows, rank, generator=generator)
        down = torch.randn(rank, columns, generator=generator)
        torch.set_num_threads(os.cpu_count() or 1)
        whole = up @ down
        torch.set_num_threads(1)
        parts = pieces(Stored("BF16", (rows, columns), 0, rows * columns * 2))
        bounds = [
            (first // columns, (first + (end - start) // 2) // columns)
            for first, start, end in parts
        ]
        assert bounds[0][0] == 0 and bounds[-1][1] == rows
        found = torch.cat([up[a:b] @ down for a, b in bounds])
        assert torch.equal(found, whole), (rows, rank, columns)


# Left to peft


def trained(models: Make, base: Path, folder: Path, config: Any, dtype: str = "float32") -> Path:
    """An adapter of any of peft's kinds."""
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(5)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    lm.train(model)
    lm.save_adapter(model, folder, dtype)
    return folder


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens"),
        ({"target_modules": ["q_proj", "lm_head"]}, "brings weights of the base"),
        ({"trainable_token_indices": [3, 5]}, "trainable_token_indices"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_plain_is_pefts(
    models: Make, base: Path, tmp_path: Path, settings: dict[str, Any], why: str
):
    adapter = models("adapter", base, **settings)
    (note,) = merged(base, adapter, tmp_path / "out")
    assert "by peft" in note and why in note
    assert_is_peft(base, adapter, tmp_path / "out", "bfloat16")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == pretrained_files(str(base))


def test_biases_that_were_trained_are_pefts(models: Make, tmp_path: Path):
    base = models("base", "qwen2")
    adapter = models("adapter", base, bias="lora_only")
    assert "bias is lora_only" in merged(base, adapter, tmp_path / "out")[0]
    assert_is_peft(base, adapter, tmp_path / "out", "bfloat16")


def test_transposed_layers_are_pefts(models: Make, tmp_path: Path):
    base = models("base", "gpt2")
    adapter = models("adapter", base, target_modules=["c_attn"], fan_in_fan_out=True)
    assert "fan_in_fan_out" in merged(base, adapter, tmp_path / "out")[0]
    found = lm.tensors_of(tmp_path / "out")
    wanted = lm.merged_by_peft(base, adapter, "bfloat16")
    assert any("c_attn" in name for name in found)
    for name, tensor in found.items():
        assert torch.equal(tensor, wanted.get(name, wanted.get(f"transformer.{name}"))), name


def test_another_kind_of_adapter_is_pefts(models: Make, base: Path, tmp_path: Path):
    from peft import LoHaConfig

    config = LoHaConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    adapter = trained(models, base, tmp_path / "adapter", config)
    assert "LOHA" in merged(base, adapter, tmp_path / "out")[0]
    assert_is_peft(base, adapter, tmp_path / "out", "bfloat16")


def test_an_adapter_that_changes_no_weights_is_refused(models: Make, base: Path, tmp_path: Path):
    from peft import PromptTuningConfig

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    adapter = trained(models, base, tmp_path / "adapter", config)
    assert "PROMPT_TUNING" in refused(base, adapter, tmp_path / "out")


def test_tool_peft_takes_pefts_way_to_the_same_bytes(base: Path, adapter: Path, tmp_path: Path):
    assert merged(base, adapter, tmp_path / "peft", tool="peft") == []
    merged(base, adapter, tmp_path / "streamed")
    assert digests_below(tmp_path / "peft") == digests_below(tmp_path / "streamed")


def test_tool_unsloth_needs_unsloth(base: Path, adapter: Path, tmp_path: Path):
    text = refused(base, adapter, tmp_path / "out", tool="unsloth")
    assert "merge.tool is unsloth, which is not installed" in text


def test_weights_that_peft_passes_over_are_refused(models: Make, base: Path, tmp_path: Path):
    adapter = lm.copy_of(models("adapter", base, use_dora=True), tmp_path / "adapter")
    for change, told in (
        (lambda t: t.update(extra=torch.ones(2)), "extra matches nothing"),
        (lambda t: (t.pop("extra"), t.pop(sorted(t)[0])), "is missing"),
    ):
        lm.edit_tensors(adapter / "adapter_model.safetensors", change)
        assert told in refused(base, adapter, tmp_path / "out")


@pytest.mark.parametrize("modules", [["lm_head"], ["embed_tokens"]])
def test_a_merge_that_would_untie_is_refused(models: Make, tmp_path: Path, modules: list[str]):
    base = models("base", "gemma")
    adapter = models("adapter", base, modules_to_save=modules)
    assert "untie the base's embeddings" in refused(base, adapter, tmp_path / "out")


@pytest.mark.parametrize("dora", [False, True])
def test_a_target_that_is_tied_is_refused(models: Make, tmp_path: Path, dora: bool):
    base = models("base", "gemma")
    adapter = lm.copy_of(models("adapter", base), tmp_path / "adapter")
    targets = [*lm.LINEAR, "lm_head"]
    lm.edit_json(adapter / "adapter_config.json", target_modules=targets, use_dora=dora)

    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["base_model.model.lm_head.lora_A.weight"] = torch.ones(8, 64)
        tensors["base_model.model.lm_head.lora_B.weight"] = torch.ones(lm.TOKENS, 8)

    lm.edit_tensors(adapter / "adapter_model.safetensors", add)
    text = refused(base, adapter, tmp_path / "out")
    assert "lm_head" in text and "ties its weight to model.embed_tokens.weight" in text


# Refusals


@pytest.fixture
def spoilt(base: Path, adapter: Path, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Copies of the base and the adapter, to be spoilt."""
    yield lm.copy_of(base, tmp_path / "tiny-base"), lm.copy_of(adapter, tmp_path / "adapter")


WEIGHTS = "adapter_model.safetensors"
FIRST = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"


def rename_all(tensors: dict[str, torch.Tensor]) -> None:
    for name in list(tensors):
        tensors[name.replace(".model.layers.", ".transformer.blocks.")] = tensors.pop(name)


def add_layer(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if ".layers.2." in name]:
        tensors[name.replace(".layers.2.", ".layers.3.")] = tensors[name].clone()


def drop(text: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if text in name]:
            del tensors[name]

    return edit


def put(name: str, value: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = value(tensors[name])

    return edit


def with_value(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[3] = value
        return tensor

    return spoil


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (rename_all, "matches nothing in"),
        (add_layer, "model.layers.3.mlp.down_proj.lora_A.weight matches nothing in"),
        (drop(".layers.1."), "no weights for model.layers.1."),
        (drop("layers.2.self_attn.q_proj"), "no weights for model.layers.2.self_attn.q_proj"),
        (drop("layers.0.mlp.up_proj.lora_B"), "has lora_A and lacks lora_B"),
        (drop("layers.0.mlp.up_proj.lora_A"), "has lora_B and lacks lora_A"),
        (put(FIRST, lambda t: t[:5].contiguous()), "has shape 5×176, and rank 8"),
        (put(FIRST, lambda t: t[:, :64].contiguous()), "has shape 8×64, and rank 8"),
        (put(FIRST, with_value(float("nan"))), f"{FIRST} holds 1 of 1408 numbers"),
        (put(FIRST, with_value(float("-inf"))), f"{FIRST} holds 1 of 1408 numbers"),
        (put(FIRST, lambda t: t * 1e30), "merged,"),
        (drop(""), "holds no tensors"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(spoilt: Any, tmp_path: Path, edit: Any, told: str):
    base, adapter = spoilt
    if told == "merged,":  # both large, each finite
        lm.edit_tensors(adapter / WEIGHTS, put(FIRST.replace("_A", "_B"), lambda t: t * 1e30))
    lm.edit_tensors(adapter / WEIGHTS, edit)
    text = refused(base, adapter, tmp_path / "out")
    assert told in text
    assert WEIGHTS in text or told == "merged,"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"target_modules": ["q_proj"]}, "is of a module that target_modules"),
        ({"target_modules": ["wrong"]}, "is of a module that target_modules"),
        ({"r": 16}, "has shape 8×64, and rank 16"),
        ({"r": None}, "r is None"),
        ({"lora_alpha": "8"}, "lora_alpha 8"),
        ({"layers_to_transform": [0, 1]}, "is of a module that target_modules"),
        ({"base_model_name_or_path": "org/Another-7B"}, "trained on org/Another-7B"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path is empty"),
        ({"peft_type": None}, "no peft_type"),
    ],
)
def test_an_adapters_configuration_that_does_not_fit_is_refused(
    spoilt: Any, tmp_path: Path, values: dict[str, Any], told: str
):
    base, adapter = spoilt
    if values.get("peft_type", 0) is None:
        lm.edit_json(adapter / "adapter_config.json", peft_type="")
    else:
        lm.edit_json(adapter / "adapter_config.json", **values)
    text = refused(base, adapter, tmp_path / "out")
    assert told in text and "adapter" in text


def test_the_base_is_known_by_name(spoilt: Any, tmp_path: Path):
    base, adapter = spoilt
    config = adapter / "adapter_config.json"
    for named in ("org/Tiny-Base", "/workspace/models/tiny-base/", "TINY-BASE"):
        lm.edit_json(config, base_model_name_or_path=named)
        merged(base, adapter, tmp_path / "out")
    lm.edit_json(config, base_model_name_or_path="unsloth/Tiny-bnb-4bit")
    assert "base_name: unsloth/Tiny-bnb-4bit" in refused(base, adapter, tmp_path / "out")
    for told in ("unsloth/tiny-bnb-4bit", "Tiny-BNB-4bit"):
        merged(base, adapter, tmp_path / "out", base_name=told)
    assert "trained on" in refused(base, adapter, tmp_path / "out", base_name="other")
    lm.edit_json(config, base_model_name_or_path="org/Original")
    lm.edit_json(base / "config.json", _name_or_path="hub/original")
    merged(base, adapter, tmp_path / "out")


def test_the_bases_digest_decides_alone(spoilt: Any, tmp_path: Path):
    base, adapter = spoilt
    lm.edit_json(adapter / "adapter_config.json", base_model_name_or_path="org/Another")
    told = adapter / "quern_base.json"
    told.write_text(json.dumps({"xxh3_128": base_digest(base)}))
    merged(base, adapter, tmp_path / "out")
    lm.edit_json(base / "config.json", pad_token_id=1)  # not of the weights
    merged(base, adapter, tmp_path / "out")
    shard = sorted(base.glob("*.safetensors"))[0]
    lm.edit_tensors(shard, lambda t: next(iter(t.values())).view(-1).mul_(2))
    lm.edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(base))
    text = refused(base, adapter, tmp_path / "out")
    assert "quern_base.json" in text and base_digest(base) in text


UNTOUCHED = "model.embed_tokens.weight"


def shards_of(base: Path) -> list[Path]:
    return sorted(base.glob("*.safetensors"))


def shard_with(base: Path, name: str) -> Path:
    return next(shard for shard in shards_of(base) if name in read_header(shard).tensors)


def spoil_tensor(base: Path, name: str, value: Any) -> None:
    lm.edit_tensors(shard_with(base, name), put(name, value))


def drop_tensor(base: Path) -> str:
    """Remove a tensor from its shard; the index still names it."""
    name = "model.layers.0.mlp.up_proj.weight"
    lm.edit_tensors(shard_with(base, name), drop(name))
    return "lacks model.layers.0.mlp.up_proj.weight, which model.safetensors.index.json says"


def drop_tensor_everywhere(base: Path) -> str:
    index = json.loads((base / "model.safetensors.index.json").read_text())
    shard = index["weight_map"].pop("model.layers.1.mlp.up_proj.weight")
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    lm.edit_tensors(base / shard, drop("layers.1.mlp.up_proj"))
    return "lack model.layers.1.mlp.up_proj.weight"


def more_layers(base: Path) -> str:
    lm.edit_json(base / "config.json", num_hidden_layers=5)
    return "num_hidden_layers is 5, and the weights have 3 layers"


def fewer_layers(base: Path) -> str:
    lm.edit_json(base / "config.json", num_hidden_layers=2)
    return "num_hidden_layers is 2, and the weights have 3 layers"


def other_shape(base: Path) -> str:
    lm.edit_json(base / "config.json", intermediate_size=128)
    return "weights and config.json are of different models"


def cut_short(base: Path) -> str:
    with open(shards_of(base)[0], "r+b") as file:
        file.truncate(shards_of(base)[0].stat().st_size - 10)
    return "is cut short"


def cut_in_the_header(base: Path) -> str:
    with open(shards_of(base)[0], "r+b") as file:
        file.truncate(100)
    return "is cut short (100 bytes, within its header)"


def junk_after(base: Path) -> str:
    with open(shards_of(base)[0], "ab") as file:
        file.write(b"junk")
    return "has bytes after its last tensor"


def rewrite_header(base: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = shards_of(base)[1]
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def wrong_size(base: Path) -> str:
    def edit(header: dict[str, Any]) -> None:
        next(v for k, v in header.items() if k != "__metadata__")["shape"][0] += 1

    rewrite_header(base, edit)
    return "its size is not that of its shape"


def offsets_beyond(base: Path) -> str:
    def edit(header: dict[str, Any]) -> None:
        last = max(
            (v for k, v in header.items() if k != "__metadata__"), key=lambda v: v["data_offsets"]
        )
        last["shape"][0] *= 2
        start, end = last["data_offsets"]
        last["data_offsets"] = [start, end + (end - start)]

    rewrite_header(base, edit)
    return "is cut short"


def not_safetensors(base: Path) -> str:
    shards_of(base)[0].write_bytes(b"version https://git-lfs.github.com/spec/v1\n" * 3)
    return "is no safetensors file"


def lost_shard(base: Path) -> str:
    shards_of(base)[1].unlink()
    return "no such file"


def index_out_of_the_folder(base: Path) -> str:
    index = base / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('"model-00001-', '"../model-00001-'))
    return "lacks model.embed_tokens.weight, which model.safetensors.index.json says it has"


def broken_index(base: Path) -> str:
    (base / "model.safetensors.index.json").write_text("{")
    return "model.safetensors.index.json: not valid JSON"


def nan_in_untouched(base: Path) -> str:
    spoil_tensor(base, UNTOUCHED, with_value(float("nan")))
    return f"{UNTOUCHED} holds numbers that are NaN or infinite (1 in"


def infinite_in_touched(base: Path) -> str:
    name = "model.layers.0.mlp.up_proj.weight"
    spoil_tensor(base, name, with_value(float("inf")))
    return f"{name} holds numbers that are NaN or infinite (1 in"


def pickled(base: Path) -> str:
    for shard in shards_of(base):
        shard.unlink()
    (base / "model.safetensors.index.json").unlink()
    torch.save({}, base / "pytorch_model.bin")
    return "only safetensors is read"


def no_weights(base: Path) -> str:
    for shard in shards_of(base):
        shard.unlink()
    (base / "model.safetensors.index.json").unlink()
    return "no *.safetensors in it"


def quantized(base: Path) -> str:
    lm.edit_json(base / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    return "the model is quantized"


def own_code(base: Path) -> str:
    lm.edit_json(base / "config.json", auto_map={"AutoModelForCausalLM": "modeling.Own"})
    return "brings code of its own"


def unknown_architecture(base: Path) -> str:
    lm.edit_json(base / "config.json", architectures=["NoSuchForCausalLM"])
    return "architectures says NoSuchForCausalLM"


def unknown_type(base: Path) -> str:
    lm.edit_json(base / "config.json", model_type="no-such-model")
    return "transformers can't read it"


def broken_config(base: Path) -> str:
    (base / "config.json").write_text("[1]")
    return "config.json: holds a list"


@pytest.mark.parametrize(
    "spoil",
    [
        drop_tensor,
        drop_tensor_everywhere,
        more_layers,
        fewer_layers,
        other_shape,
        cut_short,
        cut_in_the_header,
        junk_after,
        wrong_size,
        offsets_beyond,
        not_safetensors,
        lost_shard,
        index_out_of_the_folder,
        broken_index,
        nan_in_untouched,
        infinite_in_touched,
        pickled,
        no_weights,
        quantized,
        own_code,
        unknown_architecture,
        unknown_type,
        broken_config,
    ],
    ids=lambda function: function.__name__,
)
def test_a_base_that_is_not_whole_is_refused(
    spoilt: Any, tmp_path: Path, spoil: Callable[[Path], str]
):
    base, adapter = spoilt
    told = spoil(base)
    text = refused(base, adapter, tmp_path / "out")
    assert told in text
    assert str(base) in text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_peft_would_pass_through_is_refused(
    models: Make, spoilt: Any, tmp_path: Path, value: float
):
    base, _ = spoilt
    adapter = models("adapter", models("base"), use_dora=True)
    spoil_tensor(base, UNTOUCHED, with_value(value))
    assert f"{UNTOUCHED} holds numbers" in refused(base, adapter, tmp_path / "out")


def test_a_cut_adapter_is_refused(spoilt: Any, tmp_path: Path):
    base, adapter = spoilt
    with open(adapter / WEIGHTS, "r+b") as file:
        file.truncate((adapter / WEIGHTS).stat().st_size // 2)
    assert f"{WEIGHTS}: is cut short" in refused(base, adapter, tmp_path / "out")


def test_a_pickled_adapter_is_refused(spoilt: Any, tmp_path: Path):
    base, adapter = spoilt
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    assert "the adapter is pickled" in refused(base, adapter, tmp_path / "out")


def test_a_tensor_without_a_place_is_copied_and_told(spoilt: Any, tmp_path: Path):
    base, adapter = spoilt
    index = base / "model.safetensors.index.json"
    value = json.loads(index.read_text())
    shard = shards_of(base)[0]
    value["weight_map"]["extra.weight"] = shard.name
    index.write_text(json.dumps(value))
    lm.edit_tensors(shard, lambda t: t.update({"extra.weight": torch.arange(6.0)}))
    (note,) = merged(base, adapter, tmp_path / "out")
    assert "1 tensors" in note and "extra.weight" in note
    assert torch.equal(lm.tensors_of(tmp_path / "out")["extra.weight"], torch.arange(6.0))


def test_numbers_that_are_not_finite_are_counted():
    for dtype, kind in (
        ("BF16", torch.bfloat16),
        ("F16", torch.float16),
        ("F32", torch.float32),
        ("F64", torch.float64),
    ):
        values = torch.linspace(-3, 3, 200_001).to(kind)
        values[torch.tensor([0, 7, 150_000])] = torch.tensor(
            [float("nan"), float("inf"), float("-inf")]
        ).to(kind)
        assert not_finite(values.view(torch.uint8).numpy(), dtype) == 3
        largest = torch.finfo(kind).max
        limits = torch.tensor([largest, -largest, 0, 1e-30], dtype=kind)
        assert not_finite(limits.view(torch.uint8).numpy(), dtype) == 0


# The tokenizer's files


def test_the_adapters_tokenizer_files_win(spoilt: Any, tmp_path: Path):
    base, adapter = spoilt
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, adapter)
    lm.edit_json(adapter / "tokenizer_config.json", model_max_length=77)
    (adapter / "chat_template.jinja").write_text("{{ messages }} of the adapter")
    (adapter / "special_tokens_map.json").write_text("{}")
    (adapter / "README.md").write_text("the adapter's")
    merged(base, adapter, tmp_path / "out")
    for name in ("tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"):
        assert (tmp_path / "out" / name).read_bytes() == (adapter / name).read_bytes()
    assert not (tmp_path / "out" / "README.md").exists()


def test_a_template_in_the_adapters_configuration_wins_over_the_bases_file(
    spoilt: Any, tmp_path: Path
):
    base, adapter = spoilt
    shutil.copy(base / "tokenizer_config.json", adapter)
    lm.edit_json(adapter / "tokenizer_config.json", chat_template="the adapter's")
    assert (base / "chat_template.jinja").exists()
    merged(base, adapter, tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "the adapter's"


def test_several_templates_are_refused(spoilt: Any, tmp_path: Path):
    base, adapter = spoilt
    shutil.copy(base / "tokenizer_config.json", adapter)
    templates = [{"name": "default", "template": "one"}, {"name": "tools", "template": "two"}]
    lm.edit_json(adapter / "tokenizer_config.json", chat_template=templates)
    assert "holds several chat templates" in refused(base, adapter, tmp_path / "out")


def test_a_tokenizer_that_needs_more_rows_is_refused(spoilt: Any, tmp_path: Path):
    base, adapter = spoilt
    lm.write_tokenizer(adapter, lm.TOKENS + 1)
    text = refused(base, adapter, tmp_path / "out")
    assert "token 'w128' is number 128, and the base's embedding has 128 rows" in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("added_tokens.json", {"<new>": 128}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"130": {"content": "<new>"}}}),
        ("vocab.json", {"w1": 2}),
    ],
)
def test_so_is_one_that_adds_or_renumbers(spoilt: Any, tmp_path: Path, name: str, value: Any):
    base, adapter = spoilt
    (adapter / name).write_text(json.dumps(value))
    text = refused(base, adapter, tmp_path / "out")
    assert f"{name}: token" in text


# Files and disk


def test_the_files_of_a_merge(tmp_path: Path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    assert merged_files("m", str(base), str(adapter)) == {
        "config.json": "weights/m/merged/config.json"
    }
    assert base_inputs(str(base)) == [f"{base}/config.json"]
    base.mkdir()
    adapter.mkdir()
    (base / "folder").mkdir()
    for name in (
        "config.json",
        "model-1.safetensors",
        "model-2.safetensors",
        "LICENSE",
        ".hidden",
        "pytorch_model.bin",
        "consolidated.safetensors",
        "training_args.bin",
    ):
        (base / name).write_text("")
    weight_map = {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "lost.safetensors"}
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (adapter / "tokenizer.json").write_text("")
    (adapter / "README.md").write_text("")
    there = [
        "LICENSE",
        "config.json",
        "model-1.safetensors",
        "model-2.safetensors",
        "model.safetensors.index.json",
    ]
    assert pretrained_files(str(base)) == there
    assert list(merged_files("m", str(base), str(adapter))) == [*there, "tokenizer.json"]
    assert f"{base}/lost.safetensors" in base_inputs(str(base))
    assert adapter_inputs(str(adapter)) == [
        f"{adapter}/adapter_config.json",
        f"{adapter}/adapter_model.safetensors",
        f"{adapter}/tokenizer.json",
    ]


def test_too_little_room_is_told_before_anything_is_written(
    models: Make, small_disk: Path, tmp_path: Path
):
    base = models("base", "llama", "float32", hidden_size=256, intermediate_size=704)
    adapter = models("adapter", base)
    out = small_disk / "out"
    text = refused(base, adapter, out)
    size = sum(shard.stat().st_size for shard in shards_of(base))
    assert f"needs {size:,} bytes of disk, and" in text and "are free" in text
    assert list(out.iterdir()) == []


# Through doit


DODO = "from tasks.merge import task_merge\n\n__all__ = ['task_merge']\n"
YAML = """
models:
  tiny:
    kind: llm
    base: {base}
    adapter: {adapter}
    quantize: {{formats: [Q8_0]}}
"""


@pytest.fixture
def project(spoilt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BuildProject:
    """A project whose only chapter is the merge; base and adapter are in `models/`."""
    base, adapter = spoilt
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    project = BuildProject(tmp_path / "project", DODO)
    (project.root / "models").mkdir()
    base.rename(project.root / "models" / "tiny-base")
    adapter.rename(project.root / "models" / "adapter")
    project.write("models.yaml", YAML.format(base="models/tiny-base", adapter="models/adapter"))
    return project


def test_doit_merges_once_and_again_when_the_adapter_changed(project: BuildProject):
    outcome = project.built()
    assert "merge:tiny" in outcome.out
    target = project.root / "weights" / "tiny" / "merged"
    base, adapter = project.root / "models" / "tiny-base", project.root / "models" / "adapter"
    assert_is_peft(base, adapter, target, "bfloat16")
    assert project.built().text == ""
    first = digests_below(target)
    saved = (adapter / WEIGHTS).read_bytes()
    lm.edit_tensors(adapter / WEIGHTS, put(FIRST, lambda t: t * 2))
    assert "merge:tiny" in project.built().out
    second = digests_below(target)
    assert {name for name in first if first[name] != second[name]} == {
        shard_with(base, "model.layers.0.mlp.down_proj.weight").name
    }
    (adapter / WEIGHTS).write_bytes(saved)
    project.built()
    assert digests_below(target) == first


def test_doit_tells_a_fault_in_one_line(project: BuildProject):
    lm.edit_json(
        project.root / "models" / "adapter" / "adapter_config.json",
        base_model_name_or_path="org/Other",
    )
    outcome = project.doit()
    assert outcome.status == 1
    (line,) = [line for line in outcome.text.splitlines() if "org/Other" in line]
    assert "merge:tiny" in line
    assert "Traceback" not in outcome.text
    assert not (project.root / "weights").exists()


@pytest.mark.parametrize(
    ("lost", "told"),
    [
        ("models/tiny-base", "its input models/tiny-base/config.json does not exist"),
        ("models/adapter", "its input models/adapter/adapter_config.json does not exist"),
    ],
)
def test_doit_lists_though_a_directory_is_missing(project: BuildProject, lost: str, told: str):
    shutil.rmtree(project.root / lost)
    assert "merge:tiny" in project.built("list", "--all").out
    outcome = project.doit()
    assert outcome.status in (1, 2)
    assert told in outcome.text and "Traceback" not in outcome.text


def test_doit_refuses_a_pickled_base(project: BuildProject):
    pickled(project.root / "models" / "tiny-base")
    outcome = project.doit()
    assert outcome.status == 1 and "only safetensors is read" in outcome.text


def test_doit_tells_why_peft_was_needed(project: BuildProject, models: Make):
    adapter = project.root / "models" / "adapter"
    shutil.rmtree(adapter)
    shutil.copytree(models("adapter", models("base"), use_dora=True), adapter)
    assert "merged by peft, not streamed: use_dora is set" in project.built().text


@pytest.mark.slow
def test_killed_in_the_middle_nothing_partial_is_left(project: BuildProject, models: Make):
    folder = project.root / "models"
    large = models(
        "base", "llama", "float32", hidden_size=512, intermediate_size=2048, num_hidden_layers=8
    )
    adapter = models("adapter", large)
    for name, source in (("tiny-base", large), ("adapter", adapter)):
        shutil.rmtree(folder / name)
        shutil.copytree(source, folder / name)
    process = project.start()
    work = project.root / ".quern" / "work" / "merge.tiny"
    first = shards_of(folder / "tiny-base")[0].name
    project.wait_for(str((work / first / first).relative_to(project.root)), 60)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    target = project.root / "weights" / "tiny" / "merged"
    assert not target.exists() or not list(target.iterdir())
    project.built()
    assert_is_peft(folder / "tiny-base", folder / "adapter", target, "float32")
    assert project.partial_files() == [] and not work.exists()


def test_importing_the_chapter_imports_nothing_heavy():
    script = (
        "import sys, tasks.merge\n"
        "print(sorted({'torch', 'numpy', 'transformers', 'peft'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# Memory

MEMORY = """
import resource, sys, json
from pathlib import Path
from tasks.models import adapter, merge, pretrained
base, lora = Path(sys.argv[1]), Path(sys.argv[2])
model, read = pretrained.read_pretrained(base), adapter.read_adapter(lora)
architecture = pretrained.read_architecture(model)
plan = adapter.plan(read, model, architecture)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
out = Path(sys.argv[3])
merge.merge_streaming(model, read, plan.updates, {name: out / name for name in model.files})
unit = 1 if sys.platform == "darwin" else 1024
print(unit * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@pytest.mark.slow
def test_memory_stays_below_two_shards(tmp_path: Path):
    """8 shards of 64 MB; measured beyond what importing and checking takes."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **{**lm.SMALL, "hidden_size": 2048, "intermediate_size": 7168, "num_hidden_layers": 5}
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    base, adapter, out = tmp_path / "tiny-base", tmp_path / "adapter", tmp_path / "out"
    model.save_pretrained(base, max_shard_size="64MB")
    adapted = get_peft_model(model, LoraConfig(r=16, target_modules=lm.LINEAR))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.01)
    adapted.save_pretrained(adapter)
    out.mkdir()
    assert len(shards_of(base)) >= 8
    largest = max(shard.stat().st_size for shard in shards_of(base))
    # A program's peak begins with that of the process that became it: a shell's, not this one's.
    done = subprocess.run(
        ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-c", MEMORY, base, adapter, out],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    taken = int(done.stdout.split()[-1])
    assert taken > 0
    print(f"{taken / 1e6:.0f} MB beside shards of {largest / 1e6:.0f} MB")
    assert taken < 2 * largest

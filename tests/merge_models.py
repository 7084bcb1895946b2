"""Tiny language models and adapters, really trained for a few steps, as their libraries save them.

Every function writes a directory; peft's own merge is the reference that tests compare with.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TOKENS = 128
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SMALL: dict[str, Any] = {
    "vocab_size": TOKENS,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {"tie_word_embeddings": False}),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", {"head_dim": 24}),  # tied; wider than hidden
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", {"num_local_experts": 4}),  # renamed
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {"n_embd": 64, "n_layer": 2, "n_head": 4}),
}


def make_base(folder: Path, family: str = "llama", dtype: str = "bfloat16", **more: Any) -> Path:
    """A base in several shards, with a word-level tokenizer."""
    import transformers

    transformers.logging.disable_progress_bar()
    config, network, settings = FAMILIES[family]
    torch.manual_seed(7)
    wanted = getattr(transformers, config)(**{**SMALL, **settings, **more})
    model = getattr(transformers, network)(wanted)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size="100KB")
    write_tokenizer(folder, TOKENS)
    return folder


def write_tokenizer(folder: Path, tokens: int) -> None:
    """tokenizer.json, tokenizer_config.json and a chat template, of `tokens` words."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(tokens)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, "w0")), unk_token="w0", eos_token="w1"
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(folder)


def make_adapter(folder: Path, base: Path, dtype: str = "float32", **settings: Any) -> Path:
    """An adapter on the base, trained for four steps on random tokens."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(
        **{"r": 8, "lora_alpha": 24, "target_modules": LINEAR, "task_type": "CAUSAL_LM", **settings}
    )
    torch.manual_seed(11)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    train(model)
    save_adapter(model, folder, dtype)
    return folder


def train(model: Any) -> None:
    """Four steps that leave no adapter weight at its start."""
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, 0.02)
    for _ in range(4):
        tokens = torch.randint(TOKENS, (2, 12))
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def save_adapter(model: Any, folder: Path, dtype: str = "float32") -> None:
    """Save an adapter, its weights in `dtype`."""
    model.to(getattr(torch, dtype)).save_pretrained(folder)


def merged_by_peft(base: Path, adapter: Path, dtype: str) -> dict[str, Tensor]:
    """Name → tensor of peft's own merge, computed in `dtype`."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
    return dict(merged.state_dict())


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Name → tensor of all the safetensors files in a directory."""
    from safetensors.torch import load_file

    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found.update(load_file(path))
    return found


def edit_tensors(path: Path, edit: Any) -> None:
    """Rewrite one safetensors file: `edit` changes its dict of tensors."""
    from safetensors.torch import load_file, save_file

    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def edit_json(path: Path, **values: Any) -> None:
    """Set keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def copy_of(folder: Path, to: Path) -> Path:
    """A copy of a directory, for a test to spoil."""
    shutil.copytree(folder, to)
    return to

"""Tiny language models, trained a little on Python's documentation, as Hugging Face saves them."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from tests.native_build import llama_build

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "100")  # as in tasks/models/llama_cpp/library.py
VOCABULARY = 512
LLAMA_BPE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

CHAT = [
    {"role": "user", "content": "What is an import?"},
    {"role": "assistant", "content": "A module is loaded."},
]


def llama_folder() -> str:
    """The folder of llama.cpp's library, programs and converter.zip."""
    return str(llama_build())


def llama_program(name: str) -> str:
    """A program of llama.cpp's."""
    return f"{llama_folder()}/{name}"


def converter() -> str:
    return f"{llama_folder()}/converter.zip"


@lru_cache
def prose() -> str:
    """About 120 kB of English and Python."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))[:120_000]


def save_tokenizer(folder: Path, vocabulary: int = VOCABULARY) -> Any:
    """Train a byte-level BPE tokenizer, its text split as Llama 3's is."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_BPE), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    special += ["<|endoftext|>"]  # transformers' own tokenizers would add it
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(prose().split("\n"), trainer)
    whole = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin|>",
        eos_token="<|end|>",
        additional_special_tokens=special[2:],
    )
    whole.chat_template = CHAT_TEMPLATE
    whole.save_pretrained(folder)
    return whole


def save_sentencepiece(folder: Path, vocabulary: int = VOCABULARY) -> Any:
    """Train a SentencePiece tokenizer, as Gemma's is: BPE with bytes, no space put in front."""
    import sentencepiece
    import transformers

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for line in prose().split("\n") if line),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=vocabulary,
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        control_symbols=["<start_of_turn>", "<end_of_turn>"],
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    tokenizer = transformers.GemmaTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def configuration(
    architecture: str, hidden: int, layers: int, vocabulary: int, theta: float | None = None
) -> Any:
    import transformers

    names = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma2": "Gemma2"}
    common: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        # Not the default, which would hide that it's lost; Gemma 2's converter has none but that.
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": theta or (10_000.0 if architecture == "gemma2" else 50_000.0),
        },
        "bos_token_id": 2 if architecture == "gemma2" else 0,
        "eos_token_id": 1,
        "pad_token_id": 0 if architecture == "gemma2" else 1,
        "tie_word_embeddings": architecture in ("qwen2", "gemma2"),
    }
    if architecture in ("qwen3", "gemma2"):
        common["head_dim"] = hidden // 4
    if architecture == "gemma2":
        common |= {"query_pre_attn_scalar": hidden // 4, "sliding_window": 64}
    return getattr(transformers, f"{names[architecture]}Config")(**common)


def make_model(
    folder: Path,
    architecture: str = "llama",
    *,
    hidden: int = 256,
    layers: int = 2,
    steps: int = 12,
    seed: int = 0,
    dtype: str = "float32",
    vocabulary: int = VOCABULARY,
    theta: float | None = None,
) -> list[str]:
    """Train a model of `architecture` for `steps` and save it; returns its files' paths."""
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    save = save_sentencepiece if architecture == "gemma2" else save_tokenizer
    tokenizer = save(folder, vocabulary)
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # threads that wait for each other spin
    config = configuration(architecture, hidden, layers, vocabulary, theta)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    ids = torch.tensor(tokenizer.encode(prose()[:60_000], add_special_tokens=False))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    talk = tokenizer.apply_chat_template(CHAT, tokenize=False) if tokenizer.chat_template else ""
    chat = tokenizer.encode(talk * 20, add_special_tokens=False)[:96] or [0] * 96
    for _ in range(steps):
        starts = torch.randint(0, len(ids) - 97, (6,))
        batch = torch.stack([*[ids[s : s + 96] for s in starts], *[torch.tensor(chat)] * 2])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return files_of(folder)


def files_of(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.iterdir() if path.is_file())


PRE_TOKENIZERS = {"llama": "llama-bpe", "qwen2": "qwen2", "qwen3": "qwen2", "gemma2": None}


class LanguageModels:
    """Tiny models by architecture, each trained and converted once in a run of the tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def files(self, architecture: str) -> list[str]:
        folder = self.folder / architecture
        if not folder.exists():
            steps = 30 if architecture == "llama" else 6
            return make_model(folder, architecture, steps=steps)
        return files_of(folder)

    def f16(self, architecture: str) -> str:
        gguf = self.folder / f"{architecture}-f16.gguf"
        if not gguf.exists():
            from tasks.models.llama_cpp.convert import run_converter

            pre_tokenizer = PRE_TOKENIZERS[architecture]
            files = self.files(architecture)
            run_converter(files, converter(), "f16", architecture, pre_tokenizer, str(gguf))
        return str(gguf)

    def quantized(self, architecture: str, format: str) -> str:
        gguf = self.folder / f"{architecture}-{format}.gguf"
        if not gguf.exists():
            from tasks.models.llama_cpp.quantize import quantize

            source = self.f16(architecture)
            quantize(source, str(gguf), format, False, architecture, library=llama_folder())
        return str(gguf)


def copy_with(files: list[str], folder: Path, change: Any) -> list[str]:
    """A copy of a model's files, its tensors as `change` (a function of name → tensor) has them."""
    import shutil

    from safetensors.torch import load_file, save_file

    folder.mkdir(parents=True)
    for file in files:
        shutil.copy(file, folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})
    return files_of(folder)


def die_quantizing(path: str, library: str) -> None:
    """Quantize a file onto itself, past our own check."""
    import ctypes

    from tasks.models.llama_cpp.library import load

    api = load(library)
    settings = api.llama_model_quantize_default_params()
    api.llama_model_quantize(path.encode(), path.encode(), ctypes.byref(settings))

"""Trains the example's base model: it goes on with text in the manner of Python's documentation.

    python -m examples.pydoc.train_base

writes examples/pydoc/base/, as Hugging Face's libraries keep a model, and held_out.txt beside it.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from examples.pydoc.folder import whole_folder
from examples.pydoc.text import held_out_text, training_text
from examples.pydoc.tokenizer import CONTEXT, VOCABULARY, train_tokenizer
from tasks.core.atomic import write_atomically

HERE = Path(__file__).parent

# K-quants want rows of a multiple of 256.
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.05,  # one pass is all there is: 0.02 takes longer to get going
    "tie_word_embeddings": False,
}
SHARD = "3MB"
BLOCK, BATCH, RATE, WARM_UP = 256, 2, 3e-3, 20


def train_base(folder: Path, seed: int = 0, progress: Callable[[str], None] = print) -> None:
    """Train from `seed` and write the model and its tokenizer to `folder`.

    The text that training does not see is written to held_out.txt beside `folder`. The same seed
    gives the same weights on the same machine and version of Python.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # repeats on any number of cores, and suffers less beside other work
    documents = training_text()
    write_atomically(folder.parent / "held_out.txt", held_out_text().encode())
    tokenizer = train_tokenizer(documents)
    model = new_model(tokenizer)
    blocks = blocks_of(tokenizer, documents)
    steps = len(blocks) // BATCH
    optimizer = torch.optim.AdamW(
        model.parameters(), RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, steps))
    order = torch.randperm(len(blocks))
    model.train()
    for step in range(steps):
        batch = blocks[order[step * BATCH : (step + 1) * BATCH]]
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress(f"base step {step + 1}/{steps}: loss {loss.item():.3f}")
    with whole_folder(folder) as partial:
        model.to(torch.bfloat16).save_pretrained(partial, max_shard_size=SHARD)
        tokenizer.save_pretrained(partial)


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The network before training."""
    tokens = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, **tokens))
    model.generation_config = GenerationConfig(do_sample=False, **tokens)
    return model


def blocks_of(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> Tensor:
    """All documents one after the other, each with its end, cut into blocks: int64 [N, BLOCK]."""
    ids: list[int] = []
    for document in documents:
        ids += [*tokenizer(document, verbose=False)["input_ids"], tokenizer.eos_token_id]
    return torch.tensor(ids[: len(ids) // BLOCK * BLOCK]).view(-1, BLOCK)


def warm_cosine(step: int, steps: int) -> float:
    """The factor of the learning rate: up in a line, down as a cosine."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / max(1, steps - WARM_UP)))


if __name__ == "__main__":
    train_base(HERE / "base")

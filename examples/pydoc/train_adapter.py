"""Trains the example's adapter: with it the base answers questions in a chat.

    python -m examples.pydoc.train_adapter

reads examples/pydoc/base/ and writes examples/pydoc/adapter/, as peft keeps a LoRA adapter, and
with it the digest of the base that it belongs to.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from examples.pydoc.folder import whole_folder
from examples.pydoc.questions import lessons
from examples.pydoc.train_base import warm_cosine

HERE = Path(__file__).parent

SYSTEM = "You explain Python."  # as in models.yaml
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK, EPOCHS, BATCH, RATE = 32, 32, 8, 3e-3
IGNORED = -100  # a label that costs nothing


def train_adapter(
    base: Path, folder: Path, seed: int = 0, progress: Callable[[str], None] = print
) -> None:
    """Train on `base` from `seed` and write the adapter to `folder`."""
    from tasks.models.pretrained import base_digest

    torch.manual_seed(seed)
    torch.set_num_threads(1)  # repeats on any number of cores, and suffers less beside other work
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    shape = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=2 * RANK, target_modules=LINEAR)
    model = get_peft_model(model, shape)
    inputs, labels = examples(tokenizer)
    order = torch.cat([turns(len(inputs)) for _ in range(EPOCHS)])
    steps = len(order) // BATCH
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, RATE, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, steps))
    model.train()
    for step in range(steps):
        rows = order[step * BATCH : (step + 1) * BATCH]
        length = int((labels[rows] != IGNORED).nonzero()[:, 1].max()) + 1
        loss = model(input_ids=inputs[rows, :length], labels=labels[rows, :length]).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        progress(f"adapter step {step + 1}/{steps}: loss {loss.item():.3f}")
    with whole_folder(folder) as partial:
        model.save_pretrained(partial, save_embedding_layers=False)
        # peft keeps a set of names, whose order differs from run to run.
        settings = json.loads((partial / "adapter_config.json").read_bytes())
        settings["target_modules"].sort()
        (partial / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")
        owner = {"xxh3_128": base_digest(base)}
        (partial / "quern_base.json").write_text(json.dumps(owner) + "\n")


def turns(rows: int) -> Tensor:
    """The rows of one epoch: all lessons, in any order, each with the system prompt or without."""
    lessons_in_order = torch.randperm(rows // 2)
    return 2 * lessons_in_order + torch.randint(0, 2, (rows // 2,))


def examples(tokenizer: PreTrainedTokenizerFast) -> tuple[Tensor, Tensor]:
    """Chats as tokens, and as labels only what the assistant says: int64 [N, length] each.

    Every lesson is there twice, without a system prompt and with it. The padding is on the right,
    where nothing that counts looks at it.
    """
    rows = []
    for prompt, answer in lessons():
        for before in ([], [{"role": "system", "content": SYSTEM}]):
            asked = [*before, {"role": "user", "content": prompt}]
            start = tokenizer.apply_chat_template(
                asked, add_generation_prompt=True, return_dict=False
            )
            said = tokenizer(answer + tokenizer.eos_token)["input_ids"]
            rows.append((start, said))
    length = max(len(start) + len(said) for start, said in rows)
    inputs = torch.full((len(rows), length), tokenizer.pad_token_id)
    labels = torch.full((len(rows), length), IGNORED)
    for row, (start, said) in enumerate(rows):
        inputs[row, : len(start) + len(said)] = torch.tensor(start + said)
        labels[row, len(start) : len(start) + len(said)] = torch.tensor(said)
    return inputs, labels


if __name__ == "__main__":
    train_adapter(HERE / "base", HERE / "adapter")

"""Asks the example, without building anything.

python -m examples.pydoc.ask "What does str.upper do?"
"""

import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

HERE = Path(__file__).parent
LONGEST = 48  # tokens


def load(
    base: Path, adapter: Path | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The base with the adapter merged into it, or bare."""
    torch.set_num_threads(1)  # so small a model is slower on several, beside other work by far
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return model.eval(), AutoTokenizer.from_pretrained(base)


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompt: str,
    system: str | None = None,
) -> str:
    """What the model takes for the likeliest answer, word by word."""
    before = [{"role": "system", "content": system}] if system else []
    chat = [*before, {"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    with torch.inference_mode():
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=LONGEST
        )
    said: str = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    return said.strip()


if __name__ == "__main__":
    loaded = load(HERE / "base", HERE / "adapter")
    for question in sys.argv[1:]:
        print(answer(*loaded, question))

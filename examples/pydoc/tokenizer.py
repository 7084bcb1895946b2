"""The example's tokenizer: byte-level BPE as GPT-2 splits text, and a chat template (ChatML)."""

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 4096  # K-quants want rows of a multiple of 256
CONTEXT = 512  # of the model too

TURN, END, PADDING = "<|im_start|>", "<|im_end|>", "<|padding|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    f"{{{{ '{TURN}' + message['role'] + '\\n' + message['content'] + '{END}' + '\\n' }}}}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{{{{ '{TURN}assistant\\n' }}}}{{% endif %}}"
)


def train_tokenizer(documents: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer for `documents`; END ends a turn, a document and what the model generates."""
    tokenizer = Tokenizer(models.BPE())
    # llama.cpp knows this way of splitting as `gpt-2`: models.yaml declares it.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(t, special=True) for t in (TURN, END, PADDING)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,  # as GPT-2: a document begins where another has ended; it is never added
        eos_token=END,
        pad_token=PADDING,
        additional_special_tokens=[TURN],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )

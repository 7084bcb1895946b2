"""Token parity: a GGUF's tokenizer must give the tokens that Hugging Face's gives.

A pre-tokenizer that splits text otherwise gives other tokens now and then, and a model that is a
little worse everywhere. A short odd sentence doesn't show that; a text of some length does.

The texts are compared in Unicode's composed form (NFC), as nearly all text is written: some
tokenizers (Qwen's) compose first, which llama.cpp never does.
"""

import unicodedata
from collections.abc import Iterator
from typing import Any

from tasks.core.action import progress
from tasks.core.errors import QuernError
from tasks.models.layout import LLAMA_FOLDER
from tasks.models.llama_cpp.model import Model
from tasks.models.llama_cpp.source import source_folder

# What prose lacks: runs of spaces and digits, contractions in capitals, scripts, joined emoji.
SPECIAL = [
    " ",
    "  \t\n \n\n  x",
    "a  b   c\r\nd\r\n\r\ne",
    "0123456789 3.14159 1,000,000 ٣٤٥",
    "I'll they'RE we'Ve 'tis don’t",
    "naïve café coöperation ŒUVRE",
    "нещо на Български, ελληνικά, עברית, العربية",
    "我想在苹果工作。日本語のテキスト、한국어",
    "🚀 😶‍🌫️ 👩‍👩‍👧‍👦 🇩🇪",
    "x=y_z+'q'*(a**b)//c#!?;{}[]<>|\\~`@$%^&",
    '<html><p class="a">&amp;</p></html>',
    "ﬁ ½ ™ ﷺ \u200b\u200d\ufeff\u00a0\u3000é",
]


def compare_tokenizers(
    gguf: str, source: list[str], text: str, name: str, library: str = LLAMA_FOLDER
) -> int:
    """Compare the tokens of `text`, by line, by paragraph and whole, and of special characters.

    `source`: the Hugging Face directory's files; `name`: the model's in models.yaml. Returns the
    number of tokens of the whole text. Raises QuernError telling the first difference.
    """
    import transformers

    with (
        source_folder(source) as folder,
        Model(gguf, library=library, vocabulary_only=True) as ours,
    ):
        theirs = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        pieces = list(dict.fromkeys(_pieces(unicodedata.normalize("NFC", text))))
        tokens = 0
        for index, piece in enumerate(pieces):
            progress("comparing tokenizers", index + 1, len(pieces), "texts")
            tokens = _compare(ours, theirs, piece, gguf, name)
        return tokens


def _pieces(text: str) -> Iterator[str]:
    """Short before long, so that the first difference is told on the shortest text."""
    yield from SPECIAL
    yield from (line for line in text.split("\n") if line)
    yield from (paragraph for paragraph in text.split("\n\n") if paragraph)
    yield text


def _compare(model: Model, theirs: Any, piece: str, gguf: str, name: str) -> int:
    ours = model.tokenize(piece)
    wanted = theirs.encode(piece, add_special_tokens=False, split_special_tokens=True)
    if ours == wanted:
        return len(ours)
    pairs = list(zip(ours, wanted, strict=False))
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    around = theirs.decode(wanted[max(0, at - 3) : at + 4])
    raise QuernError(
        f"{gguf}: its tokenizer is not the model's: token {at} of {piece[:40]!r}, near {around!r}, "
        f"is {_shown(model, ours, at)} where Hugging Face gives {_shown(model, wanted, at)}; set "
        f"models.{name}.convert.pre_tokenizer to the one it was trained with"
    )


def _shown(model: Model, tokens: list[int], at: int) -> str:
    if at >= len(tokens):
        return "missing"
    return f"{tokens[at]} ({model.piece(tokens[at]).decode(errors='replace')!r})"

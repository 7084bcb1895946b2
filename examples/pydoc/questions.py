"""Questions about Python's builtins; the answer is the first sentence of the docstring.

    python -m examples.pydoc.questions > examples/pydoc/questions.jsonl

The file is kept: docstrings differ a little between versions of Python, the questions don't.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from examples.pydoc.text import first_sentence

FILE = Path(__file__).with_name("questions.jsonl")

ASKED = "What does {} do?"
# The adapter learns what is asked about from these, so that none of the questions is seen.
OTHERWISE_ASKED = ("What does {} do in Python?", "Tell me what {} does.")

BUILTINS = "abs any bin callable chr enumerate hash hex id input len open ord print repr reversed"
BUILTINS += " round sorted"
STRINGS = "capitalize encode endswith isdigit isspace join ljust lower partition removeprefix"
STRINGS += " replace rjust splitlines startswith swapcase title upper"
SETS = "add clear difference discard intersection isdisjoint issubset pop union"
CATEGORIES = {
    "builtins": BUILTINS.split(),
    "str methods": [f"str.{name}" for name in STRINGS.split()],
    "list methods": [f"list.{name}" for name in dir(list) if not name.startswith("_")],
    "dict methods": [f"dict.{name}" for name in ("fromkeys", "get", "popitem", "setdefault")],
    "set methods": [f"set.{name}" for name in SETS.split()],
}
# Not asked about: with these the adapter learns the way in which the others are.
PRACTICE = (
    *("ascii", "compile", "eval", "getattr", "hasattr", "isinstance", "iter", "max", "oct", "vars"),
    *("bytes.center", "bytes.decode", "bytes.fromhex", "float.is_integer", "int.bit_length"),
)


def read_questions(path: Path = FILE) -> list[dict[str, str]]:
    """The questions: category, prompt, answer."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def questions() -> Iterator[dict[str, str]]:
    """The questions as this version of Python answers them."""
    for category, names in CATEGORIES.items():
        for name in names:
            answer = first_sentence(name)
            if answer is None:
                raise ValueError(f"{name} has no docstring to answer with")
            yield {"category": category, "prompt": ASKED.format(name), "answer": answer}


def lessons() -> list[tuple[str, str]]:
    """(prompt, answer): what the adapter is trained on. No prompt of the questions is among it."""
    found = []
    for question in read_questions():
        name = subject(question["prompt"])
        found += [(way.format(name), question["answer"]) for way in OTHERWISE_ASKED]
    for name in PRACTICE:
        answer = first_sentence(name)
        if answer is not None:
            found += [(way.format(name), answer) for way in (ASKED, OTHERWISE_ASKED[0])]
    return found


def subject(prompt: str) -> str:
    """What a question is about."""
    before, after = ASKED.split("{}")
    return prompt.removeprefix(before).removesuffix(after)


if __name__ == "__main__":
    for question in questions():
        print(json.dumps(question))

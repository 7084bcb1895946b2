"""What the example reads: the documentation that comes with Python, apart from a held-out share.

Nothing is downloaded: the topics of `help()` and the docstrings of builtins and of standard
library modules are in every CPython.
"""

import builtins
import importlib
import inspect
import random
import re
import zlib
from collections.abc import Iterator
from pydoc_data.topics import topics
from typing import Any

# Modules that do nothing when imported, on any machine.
MODULES = (
    *("bisect", "calendar", "collections", "contextlib", "copy", "datetime", "functools", "glob"),
    *("heapq", "itertools", "json", "math", "os", "os.path", "pathlib", "random", "re", "string"),
    *("textwrap", "time", "urllib.parse"),
)

LISTED = (str, list, dict, set, bytes, int, float)
LISTINGS = 20  # what is to be known by heart is read again and again
HELD_OUT_ONE_IN = 24  # documents
SHORTEST_OF_NOTE = 60  # characters: "Return repr(self)." may be on both sides


def training_text() -> list[str]:
    """The documents the base model is trained on, in an order that is always the same."""
    listings = [listing(number) for number in range(LISTINGS)]
    return [text for name, text in documents() if not is_held_out(name)] + listings


def held_out_text() -> str:
    """Paragraphs of the documents kept from training that no training document has too."""
    seen = single_spaced("\n".join(training_text()))
    kept = [
        "\n\n".join(p for p in paragraphs(text) if single_spaced(p) not in seen)
        for name, text in documents()
        if is_held_out(name)
    ]
    return "\n\n".join(text for text in kept if len(text) >= SHORTEST_OF_NOTE) + "\n"


def documents() -> list[tuple[str, str]]:
    """(name, text): each topic, each module, each builtin; a paragraph only where it first is."""
    seen: set[str] = set()
    found = []
    for name, text in [*builtin_documents(), *topic_documents(), *module_documents()]:
        kept = []
        for paragraph in paragraphs(text):
            key = single_spaced(paragraph)
            if len(key) < SHORTEST_OF_NOTE or key not in seen:
                seen.add(key)
                kept.append(paragraph)
        if kept:
            found.append((name, "\n\n".join(kept)))
    return found


def is_held_out(name: str) -> bool:
    """Whether a document is kept from training. Builtins never are: they are asked about."""
    return not name.startswith("builtin ") and zlib.crc32(name.encode()) % HELD_OUT_ONE_IN == 0


def paragraphs(text: str) -> list[str]:
    """The blocks between empty lines."""
    return [block for block in re.split(r"\n[ \t]*\n", text.strip("\n")) if block.strip()]


def single_spaced(text: str) -> str:
    """The text whatever its line breaks and indentation."""
    return " ".join(text.split())


def builtin_documents() -> Iterator[tuple[str, str]]:
    """Every builtin, a class together with its methods."""
    for name, value in sorted(vars(builtins).items()):
        if callable(value) and not name.startswith("_"):
            yield f"builtin {name}", described(name, value)


def topic_documents() -> Iterator[tuple[str, str]]:
    """Every topic of `help()`."""
    for name, text in sorted(topics.items()):
        yield f"topic {name}", text


def module_documents() -> Iterator[tuple[str, str]]:
    """Every module of MODULES: its own docstring, then those of its functions and classes."""
    for name in MODULES:
        module = importlib.import_module(name)
        parts = [f"{name}\n{indented(module.__doc__)}"] if module.__doc__ else []
        for member, value in sorted(vars(module).items()):
            own = getattr(value, "__module__", None) in (name, f"_{name}")
            if callable(value) and own and not member.startswith("_"):
                parts.append(described(f"{name}.{member}", value))
        yield f"module {name}", "\n\n".join(part for part in parts if part)


def described(name: str, value: object) -> str:
    """A function or class and, for a class, what it defines, as `help()` prints them."""
    parts = []
    # Of the object itself: getdoc() would give an undocumented class that of its parent.
    if isinstance(value.__doc__, str) and value.__doc__.strip():
        parts.append(f"{name}{signature(value)}\n{indented(value.__doc__)}")
    if isinstance(value, type):
        for member, attribute in sorted(vars(value).items()):
            if not member.startswith("_") and callable(attribute):
                parts.append(described(f"{name}.{member}", attribute))
    return "\n\n".join(part for part in parts if part)


def listing(number: int) -> str:
    """A line for each builtin function and method, as `pydoc -k` lists modules, in any order."""
    names = [name for name, value in vars(builtins).items() if callable(value)]
    names += [f"{kind.__name__}.{method}" for kind in LISTED for method in vars(kind)]
    lines = [
        f"{name} - {sentence}"
        for name in sorted(names)
        if not re.search(r"(^|\.)_|Error$|Warning$|Exception$", name)
        and (sentence := first_sentence(name))
        and len(sentence) < 100
    ]
    random.Random(number).shuffle(lines)
    return "\n".join(lines)


def first_sentence(name: str) -> str | None:
    """Of the docstring of a builtin, passing over a line that only repeats the signature."""
    value: Any = builtins
    for part in name.split("."):
        value = getattr(value, part)
    for paragraph in re.split(r"\n\s*\n", inspect.getdoc(value) or ""):
        text = " ".join(paragraph.split())
        sentence = re.match(r"(.+?\.)(?=\s|$)", text)
        if sentence and "->" not in sentence[1]:
            return sentence[1]
    return None


def signature(value: object) -> str:
    """A signature where there is one without addresses in it, which differ from run to run."""
    try:
        found = str(inspect.signature(value))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return "(...)"
    return "(...)" if " at 0x" in found else found


def indented(doc: str | None) -> str:
    """A docstring, four columns in."""
    lines = inspect.cleandoc(doc or "").splitlines()
    return "\n".join(f"    {line}".rstrip() for line in lines)

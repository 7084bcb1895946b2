"""The text that formats are measured on and tokenizers are compared over."""

import sys

from tasks.core.errors import QuernError


def evaluation_text(path: str | None) -> str:
    """The text of file `path`, or the default: the topics of Python's own documentation.

    The default comes with CPython (`pydoc_data.topics`, about 700 kB of English prose and code,
    in the order of their names), so that nothing has to be fetched or shipped; it differs between
    versions of Python, which recipes that use it therefore declare. Raises QuernError: not UTF-8,
    or empty.
    """
    if path is None:
        from pydoc_data.topics import topics

        return "\n\n".join(topics[name] for name in sorted(topics))
    try:
        with open(path, encoding="utf-8", newline="") as file:
            text = file.read()
    except UnicodeDecodeError as error:
        raise QuernError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    if not text.strip():
        raise QuernError(f"{path}: the text is empty; give one of some thousand words")
    return text


def text_input(role: str, path: str | None) -> dict[str, str]:
    """A recipe's input for a text: `role` → its file, or nothing for the default text."""
    return {} if path is None else {role: path}


def text_tools(path: str | None) -> dict[str, str]:
    """What the text depends on besides its file: the default is of Python's version."""
    return {"python": sys.version.split()[0]} if path is None else {}

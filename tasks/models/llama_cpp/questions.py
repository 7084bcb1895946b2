"""Questions with known answers, put to a model as a user would put them."""

import json
from datetime import datetime
from typing import Any

from tasks.core.action import progress
from tasks.core.errors import QuernError
from tasks.models.llama_cpp.model import Context, Model

MAX_ANSWER_TOKENS = 64
# Some templates tell the model the date; the same question shall be the same tomorrow.
DATE = datetime(2025, 1, 1)


def read_questions(path: str) -> list[dict[str, str]]:
    """The questions of a file of JSON lines. Raises QuernError naming the line."""
    questions = []
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    question = json.loads(line)
                except ValueError as error:
                    raise QuernError(f"{path}:{number}: not JSON: {error}") from None
                if not isinstance(question, dict) or not all(
                    isinstance(question.get(key), str) and question[key]
                    for key in ("category", "prompt", "answer")
                ):
                    raise QuernError(
                        f'{path}:{number}: not a question; write {{"category": …, "prompt": …, '
                        '"answer": …}, each a text'
                    )
                questions.append(question)
    except UnicodeDecodeError as error:
        raise QuernError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    if not questions:
        raise QuernError(f"{path}: has no questions")
    return questions


def answer_questions(model: Model, path: str, system: str | None, size: int) -> dict[str, Any]:
    """Ask the questions of `path`, each on its own, in a context of `size` tokens.

    The likeliest token is taken each time, at most 64; an answer is right if the expected one
    occurs in it, whatever the case. Returns {"count", "correct", "accuracy", "categories":
    {category: {"count", "correct", "accuracy"}}}. Raises QuernError: a bad file, a template that
    refuses the messages, a question longer than the context.
    """
    questions = read_questions(path)
    tallies: dict[str, list[bool]] = {}
    with model.context(size) as context:
        for index, question in enumerate(questions):
            output = answer(context, question["prompt"], system)
            right = is_right(output, question)
            tallies.setdefault(question["category"], []).append(right)
            progress("asking", index + 1, len(questions), "questions")
    every = [right for rights in tallies.values() for right in rights]
    return {
        **_tally(every),
        "categories": {category: _tally(rights) for category, rights in sorted(tallies.items())},
    }


def is_right(output: str, question: dict[str, str]) -> bool:
    """Whether the expected answer occurs in what a model said, whatever the case."""
    return question["answer"].casefold() in output.casefold()


def answer(context: Context, prompt: str, system: str | None) -> str:
    """What the model says to `prompt`. Raises QuernError: see `answer_questions`."""
    model = context.model
    shown = as_chat(model, prompt, system)
    start = model.start_token
    begun = start is not None and shown.startswith(model.piece(start, special=True).decode())
    context.clear()
    logits = context.add(model.tokenize(shown, start=not begun, special=True))
    said = b""
    for _ in range(MAX_ANSWER_TOKENS):
        token = int(logits[0].argmax())
        if model.ends(token) or context.length == context.size:
            break
        said += model.piece(token)
        logits = context.add([token])
    return said.decode(errors="replace")


def as_chat(model: Model, prompt: str, system: str | None) -> str:
    """The prompt as the model's chat template has it; without a template, as it is."""
    template = model.chat_template
    if template is None:
        return f"{system}\n\n{prompt}" if system else prompt
    from jinja2 import TemplateError
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    try:
        formatter = Jinja2ChatFormatter(
            template=template,
            bos_token=model.token_text("bos"),
            eos_token=model.token_text("eos"),
        )
        formatter.strftime_now = lambda format: DATE.strftime(format)
        return str(formatter(messages=messages).prompt)
    except (TemplateError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise QuernError(
            f"{model.path}: its chat template refuses the messages: {reason}"
        ) from None


def _tally(rights: list[bool]) -> dict[str, Any]:
    correct = sum(rights)
    return {"count": len(rights), "correct": correct, "accuracy": correct / len(rights)}

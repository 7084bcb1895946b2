"""Why an artifact is other than an earlier one, in words: from digest to digest, down to the files
and settings that changed."""

from tasks.core.lineage import Lineage, Made
from tasks.core.reasons import Reason, differences

MOST_LINES = 40


def explain(lineage: Lineage, before: str, after: str) -> list[str]:
    """What changed from the artifact `before` to `after` (digests): a line for each cause, what
    caused it below it and further in. [] where the store doesn't know how both were made."""
    pair = _same_recipe(lineage, before, after)
    lines = _causes(lineage, *pair, "", set()) if pair else []
    if len(lines) > MOST_LINES:
        return [*lines[:MOST_LINES], f"and {len(lines) - MOST_LINES} more"]
    return lines


def _causes(
    lineage: Lineage, before: Made, after: Made, indent: str, told: set[tuple[str, str]]
) -> list[str]:
    """A line for each difference between two runs of a recipe; inputs that one other run made
    together are one line, with that run's own causes below it, told once."""
    together: dict[tuple[str, str], list[Reason]] = {}
    pairs: dict[tuple[str, str], tuple[Made, Made]] = {}
    lines = []
    for reason in differences(before.components, after.components):
        made = None
        if reason.kind == "changed" and reason.subject.startswith("input "):
            made = _same_recipe(lineage, reason.before, reason.after)
        if made is None:
            lines.append(f"{indent}because {_in_words(reason)}")
        else:
            keys = (made[0].key, made[1].key)
            together.setdefault(keys, []).append(reason)
            pairs[keys] = made
    for keys, reasons in together.items():
        what = ", ".join(_in_words(reason) for reason in reasons)
        lines.append(f"{indent}because {what}, made by {pairs[keys][1].recipe}")
        if keys not in told:
            told.add(keys)
            lines += _causes(lineage, *pairs[keys], f"{indent}  ", told)
    return lines


def _same_recipe(lineage: Lineage, before: str, after: str) -> tuple[Made, Made] | None:
    """The newest runs of one recipe that made the two artifacts, by different ways."""
    for late in lineage.made(after):
        for early in lineage.made(before):
            if (early.recipe, early.output) == (late.recipe, late.output):
                return (early, late) if early.key != late.key else None
    return None


def _in_words(reason: Reason) -> str:
    return str(reason).removeprefix("input ")

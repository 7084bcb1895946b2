"""Why a task runs: recorded as data where it is decided, put into words here.

What a task's result depends on is a flat mapping of components, `"input weights/a.pth"` →
digest, `"parameter seed"` → JSON, `"recipe version"` → number; reasons are the differences
between the mapping recorded at its last success and today's.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason to run. `kind` is a key of SENTENCES; `before` and `after` are digests,
    versions or values, empty where there is none."""

    kind: str
    subject: str = ""
    before: str = ""
    after: str = ""

    def __str__(self) -> str:
        return SENTENCES[self.kind].format(
            subject=self.subject, before=_brief(self.before), after=_brief(self.after)
        )

    def as_data(self) -> dict[str, Any]:
        """The reason as a JSON object."""
        return asdict(self)


SENTENCES = {
    "first": "it has not run here before",
    "failed": "its last run failed",
    "interrupted": "its last run has not finished",
    "changed": "{subject} changed from {before} to {after}",
    "added": "{subject} is new ({after})",
    "removed": "{subject} is gone (was {before})",
    "target missing": "its target {subject} is missing",
    "target changed": "its target {subject} was changed from {before} to {after}",
    "upstream": "{subject} would",
    "not up to date": "{subject}",
    "always": "nothing says when it is up to date, so it always runs",
    "asked": "it was asked for with --always-execute",
}


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[Reason]:
    """What changed between two component mappings, in the order of the names."""
    reasons = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old == new:
            continue
        if old is None:
            reasons.append(Reason("added", name, after=new or ""))
        elif new is None:
            reasons.append(Reason("removed", name, before=old))
        else:
            reasons.append(Reason("changed", name, old, new))
    return reasons


def sentence(reasons: Iterable[Reason], most: int = 3) -> str:
    """The reasons in one line, the first `most` of them in full."""
    texts = [str(reason) for reason in reasons]
    if len(texts) > most:
        texts = [*texts[:most], f"{len(texts) - most} more"]
    return "; ".join(texts)


def _brief(value: str) -> str:
    bare = value.strip('"')  # a parameter is JSON
    if len(bare) in (32, 64) and all(c in "0123456789abcdef" for c in bare):
        return bare[:12]
    return value if len(value) <= 60 else f"{value[:57]}…"

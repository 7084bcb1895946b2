"""Messages about runs to the addresses of models.yaml's `notify`, sent through apprise.

What was told and what waits to be sent is in `.quern/notifications.json`: a failure is told once,
and a message that an address didn't take is sent at the next run.
"""

import hashlib
import importlib.util
import os
import re
import time
from pathlib import Path
from typing import Any

import msgspec

from tasks.core import run_log
from tasks.core.atomic import write_atomically
from tasks.core.child import call_in_child
from tasks.core.errors import QuernError, in_one_line
from tasks.core.report import Report

MEMORY = Path(".quern/notifications.json")
ANSWER_SECONDS, HARD_LIMIT_SECONDS = 25, 30
REMIND_SECONDS = 24 * 3600
PASSING_RUNS = 2  # a host out of reach is told when that lasted so many runs
KEPT_SECONDS, KEPT_MESSAGES = 3 * 24 * 3600, 100
SENT_AT_ONCE = 20
BODY_CHARACTERS = 1800  # Discord takes 2000
PASSING = "passes by itself"


class Failing(msgspec.Struct):
    """A task that failed at its last run. Times in seconds since 1970; `told` is when this fault
    was told, 0 for not yet, `ever_told` whether any was since it last was well."""

    signature: str
    since: float
    runs: int = 0
    told: float = 0
    ever_told: bool = False


class Message(msgspec.Struct):
    """One message; `waiting` are digests of the addresses that haven't taken it yet."""

    at: float
    title: str
    body: str
    tone: str
    waiting: list[str]


class Memory(msgspec.Struct):
    """The content of `.quern/notifications.json`."""

    failing: dict[str, Failing] = {}
    outbox: list[Message] = []


class Notifications:
    """The messages of one project to the `addresses`, which are secrets and never shown."""

    def __init__(self, root: Path, addresses: list[str]) -> None:
        self.root = root
        self.path = root / MEMORY
        self.addresses = {digest_of(address): address for address in addresses}
        self.memory = self._load()
        self.is_new = False  # whether this run added a message

    def learn(self, report: Report) -> None:
        """Put what is new in a run into one message. Raises OSError when it can't be kept."""
        now = time.time()
        told = self._of_faults(report, now)
        if told:
            told += [("", line) for line in report.stands()]
        told += self._of_recoveries(report, now)
        told += [(a.kind, f"{a.task}: {a.text}") for a in report.announcements]
        if told:
            self.is_new = True
            failed = any(kind.endswith("failed") for kind, _ in told)
            message = Message(
                now,
                self._without_addresses(title(self.root.name, [kind for kind, _ in told if kind])),
                self._without_addresses(body(told)),
                "failure" if failed else "success",
                list(self.addresses),
            )
            self.memory.outbox.append(message)
        self._drop_old(now)
        self._save()

    def deliver(self) -> list[str]:
        """Send what waits. Returns what there is to say about it, a line each. Raises OSError."""
        letters, sent = self._letters()
        if not letters:
            return []
        if not apprise_is_installed():
            missing = "notify: apprise is not installed, messages wait: pip install -e '.[notify]'"
            return [missing] if self.is_new else []
        said = []
        for result in send(letters):
            position = result["position"]
            address = list(self.addresses)[position]
            for message in sent[address][: result["taken"]]:
                message.waiting.remove(address)
            if result["why"]:
                said.append(f"{in_words(result)}; sent again at the next run")
        self._drop_old(time.time())
        self._save()
        for line in said:
            run_log.append(line, self.root / run_log.LOG)
        return said if self.is_new else []

    def _of_faults(self, report: Report, now: float) -> list[tuple[str, str]]:
        told = []
        for fault in report.faults:
            if fault.busy:
                continue
            signature = PASSING if fault.passing else masked(fault.text)
            failing = self.memory.failing.setdefault(fault.task, Failing(signature, now))
            if failing.signature != signature:
                failing.signature, failing.runs, failing.told = signature, 0, 0
            failing.runs += 1
            if failing.told and now - failing.told >= REMIND_SECONDS:
                since = time.strftime("%Y-%m-%d %H:%M", time.localtime(failing.since))
                told.append(("failed", f"{fault.task}, since {since}: {fault.text}"))
            elif not failing.told and failing.runs >= (PASSING_RUNS if fault.passing else 1):
                told.append(("failed", f"{fault.task}: {fault.text}"))
            else:
                continue
            failing.told, failing.ever_told = now, True
        return told

    def _of_recoveries(self, report: Report, now: float) -> list[tuple[str, str]]:
        told = []
        for task, failing in list(self.memory.failing.items()):
            if task in report.well:
                if failing.ever_told:
                    told.append(("recovered", f"{task}, after {duration(now - failing.since)}"))
                del self.memory.failing[task]
            elif task not in report.known:
                del self.memory.failing[task]
        return told

    def _letters(self) -> tuple[list[dict[str, Any]], dict[str, list[Message]]]:
        """For each address its oldest waiting messages: as letters, and as they are."""
        letters, sent = [], {}
        for position, (digest, address) in enumerate(self.addresses.items()):
            waiting = [m for m in self.memory.outbox if digest in m.waiting][:SENT_AT_ONCE]
            if waiting:
                sent[digest] = waiting
                letters.append(letter(position, address, waiting))
        return letters, sent

    def _drop_old(self, now: float) -> None:
        for message in self.memory.outbox:
            message.waiting = [digest for digest in message.waiting if digest in self.addresses]
        waiting = [message for message in self.memory.outbox if message.waiting]
        kept = [m for m in waiting if now - m.at < KEPT_SECONDS][-KEPT_MESSAGES:]
        for message in waiting:
            if message not in kept:
                when = time.strftime("%Y-%m-%d %H:%M", time.localtime(message.at))
                line = f"notify: dropped, never taken: the message of {when}, {message.title}"
                run_log.append(line, self.root / run_log.LOG)
        self.memory.outbox = kept

    def _without_addresses(self, text: str) -> str:
        for position, address in enumerate(self.addresses.values()):
            text = text.replace(address, f"notify[{position}]")
        return text

    def _load(self) -> Memory:
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=Memory)
        except FileNotFoundError:
            return Memory()
        except msgspec.MsgspecError as error:
            line = f"{MEMORY}: damaged ({error}); begun anew"
            run_log.append(line, self.root / run_log.LOG)
            return Memory()

    def _save(self) -> None:
        data = msgspec.json.encode(self.memory)
        if self.memory != Memory() or self.path.exists():
            write_atomically(self.path, data, mode=0o600)


def send(letters: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Send letters in a child process with a time limit; a result for each (apprise_sender)."""
    try:
        results = call_in_child(
            "tasks.core.apprise_sender:send",
            {"letters": letters, "seconds": ANSWER_SECONDS},
            Path(os.devnull),  # apprise may print addresses
            lambda event: None,
            HARD_LIMIT_SECONDS,
        )
    except QuernError as error:
        why = in_one_line(error)
        return [
            {"position": each["position"], "service": "", "taken": 0, "why": why}
            for each in letters
        ]
    return list(results)


def letter(position: int, address: str, messages: list[Message]) -> dict[str, Any]:
    """The messages to one address, for send()."""
    plain = [{"title": m.title, "body": m.body, "tone": m.tone} for m in messages]
    return {"position": position, "address": address, "messages": plain}


def in_words(result: dict[str, Any]) -> str:
    """A result of send(): `notify[0] (Discord): taken`."""
    service = f" ({result['service']})" if result["service"] else ""
    told = f"not taken: {result['why']}" if result["why"] else "taken"
    return f"notify[{result['position']}]{service}: {told}"


def apprise_is_installed() -> bool:
    """Whether apprise is there, without importing it."""
    try:
        return importlib.util.find_spec("apprise") is not None
    except ImportError:
        return False


def digest_of(address: str) -> str:
    """What stands for an address on the disk."""
    return hashlib.sha256(address.encode()).hexdigest()[:16]


def masked(text: str) -> str:
    """The text with its numbers and ids, which vary from run to run, left out."""
    return re.sub(r"\b(?=[0-9a-f-]*\d)[0-9a-f-]{8,}\b|\d+(\.\d+)*", "#", text)


def title(project: str, kinds: list[str]) -> str:
    """`Quern digits on gpu-box: failed, 2 × deployed`."""
    counts = {kind: kinds.count(kind) for kind in kinds}
    what = ", ".join(kind if n == 1 else f"{n} × {kind}" for kind, n in counts.items())
    return f"Quern {project} on {os.uname().nodename}: {what}"


def body(told: list[tuple[str, str]]) -> str:
    """A line for each, as many as fit."""
    lines = [f"{kind}: {text}" if kind else text for kind, text in told]
    lines = [line if len(line) <= 500 else f"{line[:499]}…" for line in lines]
    kept = list(lines)
    while sum(len(line) + 1 for line in kept) > BODY_CHARACTERS - 20:
        kept.pop()
    rest = len(lines) - len(kept)
    return "\n".join([*kept, f"and {rest} more"] if rest else kept)


def duration(seconds: float) -> str:
    """`3.5 h`."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"

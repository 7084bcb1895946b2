"""What is healthy: the file, the API, the model's answers, and the system it runs on.

Each check gives findings; the worst of them is the verdict.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tasks.core.errors import QuernError
from tasks.hosts.channels import Channel, asked_at
from tasks.hosts.host import Entry, Host
from tasks.hosts.releases import Release
from tasks.hosts.unix_http import Refused, Unreachable

HEALTHY, DEGRADED, UNHEALTHY = "healthy", "degraded", "unhealthy"
ORDER = (HEALTHY, DEGRADED, UNHEALTHY)
GGUF_MAGIC = b"GGUF"  # ggml/docs/gguf.md
PROMPT_TOKENS = 64
ANSWER_SECONDS = 120.0
MOST_GPU_MEMORY = 0.95


@dataclass(frozen=True)
class Finding:
    """One check's result: `level` is healthy, degraded or unhealthy, `text` says why."""

    check: str
    level: str
    text: str

    def as_data(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)


def verdict(findings: list[Finding]) -> str:
    """The worst level among the findings."""
    return max((finding.level for finding in findings), key=ORDER.index, default=UNHEALTHY)


def file_findings(host: Host, model: str, channel: Channel, release: Release) -> list[Finding]:
    """The model's file as the channel reads it: there, readable, its magic, size and digest."""
    entry = release.manifest["roles"]["weights"]
    directory = host.root / model / channel["channel"]
    placed = json.loads(host.read(directory / "placed.json") or b"{}").get("files")
    paths = placed or [str(host.root / model / "releases" / release.id / entry["file"])]
    return [_file_finding(host, Path(path), release.kind, entry) for path in paths]


def _file_finding(host: Host, path: Path, kind: str, entry: Entry) -> Finding:
    def unhealthy(text: str) -> Finding:
        return Finding("file", UNHEALTHY, f"{path}: {text}")

    try:
        found = host.signature(path)
        if found is None:
            return unhealthy("is not there")
        if kind == "llm" and host.read(path, first=len(GGUF_MAGIC)) != GGUF_MAGIC:
            return unhealthy("is not a GGUF file")
        if not host.holds(path, entry):
            return unhealthy("does not have the release's digest")
    except (OSError, QuernError) as error:
        text = error.strerror if isinstance(error, OSError) else str(error)
        return unhealthy(text or "can't be read")
    return Finding(
        "file", HEALTHY, f"{path}: {entry['size']} bytes, digest {entry['xxh3_128'][:12]}"
    )


def api_findings(
    host: Host, channel: Channel, release: Release, max_latency_ms: float
) -> list[Finding]:
    """/health on the port: answers, in time, with the release that the channel should have."""
    address = asked_at(channel)
    start = time.monotonic()
    try:
        health = host.ask_port(address, "/health")
    except (Unreachable, Refused) as error:
        return [Finding("api", UNHEALTHY, str(error))]
    milliseconds = (time.monotonic() - start) * 1000
    if health.get("release") != release.id:
        served = health.get("release") or "something else"
        return [Finding("api", UNHEALTHY, f"{address} serves {served}, not {release.id}")]
    slow = milliseconds > max_latency_ms
    text = f"{address} answers in {milliseconds:.0f} ms"
    text += f", {max_latency_ms:.0f} ms are allowed" if slow else ""
    return [Finding("api", DEGRADED if slow else HEALTHY, text)]


def answer_findings(
    host: Host, channel: Channel, prompts: list[str], min_length: int, min_tokens_per_second: float
) -> list[Finding]:
    """Each prompt's answer: long enough, and fast enough."""
    return [
        _answer_finding(host, asked_at(channel), p, min_length, min_tokens_per_second)
        for p in prompts
    ]


def _answer_finding(
    host: Host, address: str, prompt: str, min_length: int, min_tokens_per_second: float
) -> Finding:
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": PROMPT_TOKENS}
    start = time.monotonic()
    try:
        answer = host.ask_port(address, "/v1/chat/completions", ANSWER_SECONDS, "POST", body)
        text = str(answer["choices"][0]["message"]["content"])
        tokens = int(answer["usage"]["completion_tokens"])
    except (Unreachable, Refused) as error:
        return Finding("model", UNHEALTHY, f"{prompt!r}: {error}")
    except (KeyError, IndexError, TypeError, ValueError):
        return Finding("model", UNHEALTHY, f"{prompt!r}: the answer has no text")
    seconds = time.monotonic() - start
    rate = answer.get("timings", {}).get("predicted_per_second") or tokens / seconds
    told = f"{prompt!r}: {len(text)} characters, {rate:.0f} tokens/s, {seconds:.1f} s"
    if len(text) < min_length:
        return Finding("model", UNHEALTHY, f"{told}; {min_length} characters are wanted")
    # A single token says nothing of the rate.
    if tokens > 1 and rate < min_tokens_per_second:
        return Finding("model", DEGRADED, f"{told}; {min_tokens_per_second:g} are wanted")
    return Finding("model", HEALTHY, told)


def system_findings(host: Host, min_free_gb: float) -> list[Finding]:
    """Disk and memory that are free, and the memory of GPUs, if there are any."""
    found = [
        _free(check, free, min_free_gb)
        for check, free in (("disk", host.free_disk()), ("memory", host.free_memory()))
        if free is not None
    ]
    for name, used, total in gpu_memory(host):
        level = DEGRADED if used > MOST_GPU_MEMORY * total else HEALTHY
        found.append(Finding("gpu", level, f"{name}: {used} of {total} MiB are used"))
    return found


def _free(check: str, free: int, min_free_gb: float) -> Finding:
    low = free < min_free_gb * 1e9
    text = f"{free / 1e9:.1f} GB free" + (f", {min_free_gb:g} GB are wanted" if low else "")
    return Finding(check, DEGRADED if low else HEALTHY, text)


def gpu_memory(host: Host) -> list[tuple[str, int, int]]:
    """(name, MiB used, MiB in all) of each GPU that nvidia-smi knows."""
    if not host.has_program("nvidia-smi"):
        return []
    query = ["--query-gpu=name,memory.used,memory.total", "--format=csv,noheader,nounits"]
    try:
        _, printed = host.run(["nvidia-smi", *query], Path("/"), 20)
        rows = [line.rsplit(", ", 2) for line in printed.splitlines()]
        return [(name, int(used), int(total)) for name, used, total in rows]
    except (OSError, QuernError, ValueError):
        return []

"""What the tests of quern-chat share: real language models small enough to write by hand, their
release directories, a holder with a real llama-server under it, and clients."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from tests.native_build import llama_build, native_build
from tests.server_world import (
    Answer,
    Running,
    alive,
    ask,
    canonical,
    listening_port,
    post_json,
    running,
    wait,
)

CHAT = "/v1/chat/completions"


def llama_folder() -> Path:
    """The folder with llama-server and the libraries it needs."""
    return llama_build()


def chat_program() -> Path:
    given = os.environ.get("QUERN_TEST_BUILD")
    folder = Path(given) / "native" / "chat" if given else native_build()
    return folder / "quern-chat"


def engine_files() -> dict[str, Path]:
    """Role → file of llama-server and its libraries, under the names they are found by."""
    folder = llama_folder()
    libraries = [
        path
        for path in sorted(folder.glob("lib*.so*"))
        if re.fullmatch(r"lib.+\.so\.\d+", path.name)
        or (path.name.endswith(".so") and not path.is_symlink())
    ]
    return {"engine": folder / "llama-server"} | {path.name: path for path in libraries}


# ---- a model -------------------------------------------------------------------------------------

EMBEDDING, HEADS, KEY_HEADS, LAYERS, FORWARD = 64, 4, 2, 2, 128
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9


def byte_letters() -> list[str]:
    """The 256 letters that byte-level BPE writes bytes as (GPT-2's)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def text_bytes(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def gguf_value(value: Any) -> bytes:
    """A value with its type, as GGUF's key-value pairs have it."""
    if isinstance(value, bool):
        return struct.pack("<IB", BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + text_bytes(value)
    if isinstance(value[0], str):
        head = struct.pack("<IIQ", ARRAY, STRING, len(value))
        return head + b"".join(text_bytes(one) for one in value)
    return struct.pack(f"<IIQ{len(value)}i", ARRAY, INT32, len(value), *value)


def write_gguf(path: Path, seed: int) -> None:
    """A Llama of random weights over a vocabulary of bytes; its bytes depend on `seed` alone."""
    tokens = [*byte_letters(), "he", *SPECIAL]
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> Any:
        return random.normal(0, 1 / np.sqrt(columns), (rows, columns)).astype(np.float32)

    narrow = EMBEDDING * KEY_HEADS // HEADS
    ones = np.ones(EMBEDDING, dtype=np.float32)
    tensors = {"token_embd.weight": matrix(len(tokens), EMBEDDING), "output_norm.weight": ones}
    for layer in range(LAYERS):
        tensors |= {
            f"blk.{layer}.{name}.weight": value
            for name, value in {
                "attn_norm": ones,
                "attn_q": matrix(EMBEDDING, EMBEDDING),
                "attn_k": matrix(narrow, EMBEDDING),
                "attn_v": matrix(narrow, EMBEDDING),
                "attn_output": matrix(EMBEDDING, EMBEDDING),
                "ffn_norm": ones,
                "ffn_gate": matrix(FORWARD, EMBEDDING),
                "ffn_up": matrix(FORWARD, EMBEDDING),
                "ffn_down": matrix(EMBEDDING, FORWARD),
            }.items()
        }
    tensors["output.weight"] = matrix(len(tokens), EMBEDDING)
    values = {
        "general.architecture": "llama",
        "general.name": f"random {seed}",
        "llama.context_length": 131072,
        "llama.embedding_length": EMBEDDING,
        "llama.block_count": LAYERS,
        "llama.feed_forward_length": FORWARD,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KEY_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": EMBEDDING // HEADS,
        "llama.vocab_size": len(tokens),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (len(tokens) - len(SPECIAL)) + [3] * len(SPECIAL),
        "tokenizer.ggml.merges": ["h e"],
        "tokenizer.ggml.bos_token_id": tokens.index("<|begin|>"),
        "tokenizer.ggml.eos_token_id": tokens.index("<|end|>"),
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": TEMPLATE,
    }
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values))
    head += b"".join(text_bytes(key) + gguf_value(value) for key, value in values.items())
    offset = 0
    for name, value in tensors.items():
        shape = value.shape[::-1]
        head += text_bytes(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, offset)
        offset += -(-value.nbytes // 32) * 32
    with path.open("wb") as file:
        file.write(head.ljust(-(-len(head) // 32) * 32, b"\0"))
        for value in tensors.values():
            file.write(value.tobytes().ljust(-(-value.nbytes // 32) * 32, b"\0"))


# ---- releases ------------------------------------------------------------------------------------


@dataclass
class Factory:
    """Makes release directories in `root`."""

    root: Path
    holder: Path

    def release(
        self,
        seed: int,
        *,
        weights: bytes | None = None,
        digests: dict[str, str] | None = None,
        **chat: Any,
    ) -> Path:
        """The model of `seed`; `weights` are put in place of its own, `digests` (by role) are a
        manifest's lies, `chat` are chat.json's fields."""
        building = self.root / "building"
        building.mkdir(parents=True)
        write_gguf(building / "model.gguf", seed)
        if weights is not None:
            (building / "model.gguf").write_bytes(weights)
        settings = {
            "name": "tiny",
            "context": 4096,
            "parallel": 4,
            "temperature": 0,
            "system": None,
            "threads": 1,  # more wait for each other
        }
        (building / "chat.json").write_bytes(canonical(settings | chat) + b"\n")
        (building / "golden.json").write_bytes(b"{}\n")
        files = {"weights": "model.gguf", "chat": "chat.json", "golden": "golden.json"}
        for role, path in {
            "server": chat_program(),
            "holder": self.holder,
            **engine_files(),
        }.items():
            files[role] = path.name
            same_file(path, building / path.name)
        roles = {role: entry(building / name) for role, name in files.items()}
        for role, digest in (digests or {}).items():
            roles[role]["xxh3_128"] = digest
        manifest = canonical(
            {"format": 1, "model": "talk", "label": f"Talk {seed}", "roles": roles}
        )
        (building / "manifest.json").write_bytes(manifest)
        final = self.root / xxhash.xxh3_128(manifest).hexdigest()[:16]
        building.rename(final)
        return final


def same_file(source: Path, destination: Path) -> None:
    """A second name where the file system can, else a copy."""
    try:
        os.link(source.resolve(), destination)
    except OSError:
        shutil.copy(source, destination)


def entry(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {
        "file": path.name,
        "xxh3_128": xxhash.xxh3_128(data).hexdigest(),
        "sha256": hashlib.sha256(data).hexdigest(),
        "size": len(data),
    }


# ---- a channel -----------------------------------------------------------------------------------


class Channel:
    """A channel directory; its holder runs while `holding` is open."""

    def __init__(self, directory: Path, holder: Path) -> None:
        self.directory, self.holder = directory, holder
        self.directory.mkdir(parents=True)
        self.control = directory / "holder.sock"
        self.run: Running

    def point_current_at(self, release: Path) -> None:
        link = self.directory / "current.new"
        link.symlink_to(release)
        link.rename(self.directory / "current")

    @contextlib.contextmanager
    def holding(
        self, release: Path | None, *options: str, environment: dict[str, str] | None = None
    ) -> Iterator[Channel]:
        if release:
            self.point_current_at(release)
        command = [str(self.holder), "--directory", str(self.directory), "--port", "0", *options]
        with running(command, self.directory / "log", environment) as self.run:
            listening_port(self.run)
            if release:
                self.answers(release)
            yield self

    @property
    def port(self) -> int:
        return self.run.port

    def answers(self, release: Path) -> None:
        def look() -> bool:
            try:
                answer = ask(self.port, "GET", "/health")
            except OSError:
                return False
            return answer.status == 200 and answer.json()["release"] == release.name

        wait(look, f"release {release.name} to answer\n{self.run.log()}")

    def children(self, state: str = "") -> list[Any]:
        held = ask(self.control, "GET", "/status").json()["children"]
        return [child for child in held if not state or child["state"] == state]

    @property
    def admin(self) -> Path:
        """The live server's admin socket; it is there once the release is loaded."""
        path: Path = self.directory / self.children("live")[0]["admin"]
        return path

    def start(self, release: Path) -> tuple[int, Path]:
        """Starts a server in standby and waits until it has loaded its release."""
        answer = post_json(self.control, "/start", {"release": str(release)})
        assert answer.status == 200, answer.body
        admin = self.directory / answer.json()["admin"]

        def ready() -> bool:
            with contextlib.suppress(OSError):
                return ask(admin, "GET", "/status").status == 200
            return False

        wait(ready, f"{admin} to answer\n{self.run.log()}")
        return answer.json()["pid"], admin

    def switch_to(self, release: Path, admin: Path) -> None:
        """A deploy of new weights: load, prove, activate."""
        answer = post_json(admin, "/load", {"release": str(release)})
        assert answer.status == 200, answer.body
        assert post_json(admin, "/predict", {"prompt": "he", "n_predict": 2}).status == 200
        assert post_json(admin, "/activate", {"release": release.name}).status == 200

    def chat(self, **request: Any) -> Answer:
        return post_json(self.port, CHAT, talk(**request), timeout=60)

    def stream(self, **request: Any) -> Stream:
        return Stream(self.port, talk(stream=True, **request))

    def engine_pid(self) -> int:
        return int(ask(self.port, "GET", "/models/info").json()["engine_pid"])

    def metric(self, name: str) -> float:
        text = ask(self.port, "GET", "/metrics").body.decode()
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def engines(self) -> list[int]:
        """Processes of llama-server that were started from this channel's releases."""
        found = []
        for process in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                same = process.name.isdigit() and (process / "cwd").readlink() == self.directory
                if same and (process / "comm").read_text().strip() == "llama-server":
                    found.append(int(process.name))
        return [pid for pid in found if alive(pid)]


def talk(text: str = "hello", tokens: int = 8, **more: Any) -> dict[str, Any]:
    """A chat request that is answered with exactly `tokens` tokens."""
    messages = [{"role": "user", "content": text}]
    return {"messages": messages, "max_tokens": tokens, "ignore_eos": True} | more


def words(answer: Answer) -> str:
    """What the model said."""
    assert answer.status == 200, answer.body
    return plain(json.loads(answer.body)["choices"][0]["message"]["content"])


def plain(content: str) -> str:
    """Without a letter that is cut at the end: a stream leaves it out."""
    return content.rstrip("\ufffd")


def said(events: list[Any]) -> str:
    """What a stream's events tell."""
    deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
    return plain("".join(delta.get("content") or "" for delta in deltas))


class Stream:
    """A chat whose answer comes as server-sent events; `next()` is one, None after the last."""

    def __init__(self, port: int, request: dict[str, Any]) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.connection.request(
            "POST", CHAT, json.dumps(request), {"Content-Type": "application/json"}
        )
        self.response = self.connection.getresponse()
        self.status = self.response.status

    def next(self) -> Any:
        while line := self.response.readline():
            if line.startswith(b"data: "):
                data = line[6:].strip()
                return None if data == b"[DONE]" else json.loads(data)
        raise EOFError("the stream ended before [DONE]")

    def rest(self) -> list[Any]:
        events = []
        while event := self.next():
            events.append(event)
        assert self.response.read().strip() == b""  # to the last chunk
        return events

    def close(self) -> None:
        """Hangs up."""
        self.response.close()
        self.connection.close()


@dataclass
class Hammer:
    """Clients that chat without a pause, the last of them by streams. A failed request is one
    without a whole answer of status 200; only a connection that was announced to close is opened
    anew."""

    port: int
    clients: int = 4
    answers: int = 0
    said: set[str] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)

    def __enter__(self) -> Hammer:
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        self.threads = [
            threading.Thread(target=self.work, args=(i == self.clients - 1,))
            for i in range(self.clients)
        ]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join()

    def work(self, streaming: bool) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        body = json.dumps(talk(stream=streaming))
        while not self.stopping.is_set():
            try:
                connection.request("POST", CHAT, body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                data = response.read()
                if response.status != 200:
                    raise RuntimeError(f"{response.status} {data!r}")
                content = (
                    said(events_of(data))
                    if streaming
                    else plain(json.loads(data)["choices"][0]["message"]["content"])
                )
                with self.lock:
                    self.answers += 1
                    self.said.add(content)
            except Exception as error:  # whatever it is, the client has lost a request
                self.failures.append(repr(error))
                connection.close()
        connection.close()

    def more(self, answers: int = 12) -> None:
        """Waits for so many further answers."""
        before = self.answers
        wait(lambda: self.answers >= before + answers, f"answers; failures {self.failures[:3]}")


def events_of(data: bytes) -> list[Any]:
    """The events of a whole stream."""
    lines = [line[6:] for line in data.split(b"\n") if line.startswith(b"data: ")]
    assert lines[-1].strip() == b"[DONE]", lines[-1]
    return [json.loads(line) for line in lines[:-1]]

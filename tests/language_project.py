"""A project whose model is the trained language example, taken through the real build."""

import json
import os
import shutil
import subprocess
import threading
import urllib.request
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import yaml

from tests.deploy_project import COPIED, end_holders, free_port, share_store
from tests.language_example import trained_language_example
from tests.native_build import DOIT, ROOT, llama_build, native_build

MODEL = "pydoc"


class LanguageProject:
    """`models.yaml` is the example's, with a port and folders of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.port = free_port()
        self.host_address = f"127.0.0.1:{self.port}"

    @classmethod
    def make(cls, root: Path) -> "LanguageProject":
        """A project whose store has llama.cpp and our programs, with the example trained."""
        native_build()
        llama_build()
        root.mkdir(parents=True)
        project = cls(root)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                ignored = shutil.ignore_patterns("build", "checkpoints_*", "__pycache__", "base")
                shutil.copytree(source, root / name, ignore=ignored)
            else:
                shutil.copy(source, root / name)
        share_store(root)
        trained = trained_language_example()
        for name in ("base", "adapter"):
            shutil.copytree(trained / name, root / "examples" / MODEL / name, dirs_exist_ok=True)
        shutil.copy(trained / "held_out.txt", root / "examples" / MODEL)
        project.configure()
        return project

    def copy(self, root: Path) -> "LanguageProject":
        """The same project, as far as it was built and not deployed; files are shared."""
        # What is written in place must not be the other's file.
        own = shutil.ignore_patterns("hosts", "state.db*", "lock", "logs")
        shutil.copytree(self.root, root, copy_function=os.link, ignore=own)
        other = LanguageProject(root)
        other.configure()
        return other

    def configure(self, top: dict[str, Any] | None = None, **changed: Any) -> None:
        """Write models.yaml: the example's, with sections `changed` (merged in, key by key), and
        `top` beside the models."""
        configuration = (top or {}) | yaml.safe_load(
            (ROOT / "examples/pydoc/models.yaml").read_text()
        )
        model = configuration["models"][MODEL]
        model["deploy"] = {"local": {"chat": self.port, "lmstudio": "lmstudio", "ollama": True}}
        for section, keys in changed.items():
            before = model.get(section, {})
            both = isinstance(keys, dict) and isinstance(before, dict)
            model[section] = {**before, **keys} if both else keys
        target = self.root / "models.yaml"
        target.with_suffix(".partial").write_text(yaml.safe_dump(configuration))
        os.replace(target.with_suffix(".partial"), target)

    def doit(self, *arguments: str, status: int = 0, **environment: str) -> str:
        """Run doit to its end; what it printed."""
        done = subprocess.run(
            [str(DOIT), *arguments],
            cwd=self.root,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=900,
        )
        told = done.stdout + done.stderr
        assert done.returncode == status, f"{done.returncode}\n{told}"
        return told

    def ran(self, *arguments: str) -> set[str]:
        """Run doit; names of the tasks whose functions ran."""
        told = self.doit("--json", *arguments)
        events = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
        return {e["task"] for e in events if e.get("outcome") == "ran"}

    @property
    def host(self) -> Path:
        return self.root / ".quern" / "hosts" / "local" / MODEL

    def get(self, target: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://{self.host_address}{target}", timeout=30) as answer:
            return json.load(answer)  # type: ignore[no-any-return]

    def chat(self, question: str, **more: Any) -> str:
        """The model's answer."""
        body = {"messages": [{"role": "user", "content": question}], "max_tokens": 48, **more}
        request = urllib.request.Request(
            f"http://{self.host_address}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return str(json.load(answer)["choices"][0]["message"]["content"])

    def history(self) -> list[dict[str, Any]]:
        lines = (self.host / "history.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def stop(self) -> None:
        """End the holders and their servers."""
        end_holders(self.host)


class Talkers:
    """Clients that ask again and again; every answer must be whole."""

    def __init__(self, port: int, clients: int = 3) -> None:
        self.port = port
        self.answers, self.failures = 0, list[str]()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._talk) for _ in range(clients)]

    def __enter__(self) -> "Talkers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _talk(self) -> None:
        body = json.dumps(
            {"messages": [{"role": "user", "content": "What does abs do?"}], "max_tokens": 8}
        )
        while not self._stop.is_set():
            connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
            try:
                headers = {"Content-Type": "application/json"}
                connection.request("POST", "/v1/chat/completions", body, headers)
                response = connection.getresponse()
                data = response.read()
                if response.status == 200 and json.loads(data)["choices"]:
                    self.answers += 1
                else:
                    self.failures.append(f"{response.status} {data[:100]!r}")
            except (OSError, HTTPException, ValueError, KeyError) as error:
                self.failures.append(repr(error))
            finally:
                connection.close()

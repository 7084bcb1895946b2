"""The trained language example: trained once for all tests, and again when its sources change."""

import fcntl
import os
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path

import xxhash

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "examples" / "pydoc"
TRAIN = (
    "from pathlib import Path\n"
    "from examples.pydoc.train_base import train_base\n"
    "from examples.pydoc.train_adapter import train_adapter\n"
    "train_base(Path('base'))\n"
    "train_adapter(Path('base'), Path('adapter'))\n"
)


@cache
def trained_language_example() -> Path:
    """A folder with `base`, `adapter` and `held_out.txt`, to be read only."""
    folder = ROOT / "build" / "language_example" / digest_of_sources()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "adapter").exists():
            # A process of its own: training changes torch's number of threads. Relative names:
            # the adapter's configuration holds that of the base.
            done = subprocess.run(
                [sys.executable, "-c", TRAIN],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stdout + done.stderr
    return folder


def digest_of_sources() -> str:
    """Of all that the training depends on."""
    digest = xxhash.xxh3_128(sys.version.encode())
    for package in ("torch", "transformers", "tokenizers", "peft"):
        digest.update(f"{package} {version(package)}\n".encode())
    for path in [*sorted(SOURCES.glob("*.py")), SOURCES / "questions.jsonl"]:
        digest.update(f"{path.name}\n".encode() + path.read_bytes())
    digest.update((ROOT / "tasks" / "models" / "pretrained.py").read_bytes())
    return digest.hexdigest()

"""The proof before a language model's release goes live: llama-server's next-token probabilities
are those that were measured when the file was made."""

import json
from pathlib import Path

from tasks.hosts.holder import Server
from tasks.hosts.releases import Release


def probe(server: Server, directory: Path, release: Release) -> None:
    """To be replaced by branch gguf."""
    json.loads((directory / release.file("golden")).read_bytes())

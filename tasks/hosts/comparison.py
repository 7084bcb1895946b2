"""What was found when two live releases were compared, kept on their hosts."""

import json
from typing import Any

from tasks.hosts.host import Host


def read_comparison(host: Host, model: str, candidate: str, stable: str) -> dict[str, Any] | None:
    """The comparison of two releases that is kept on the host."""
    data = host.read(host.root / model / "comparisons" / f"{candidate}-{stable}.json")
    return None if data is None else dict(json.loads(data))

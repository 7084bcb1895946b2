"""docs/architecture.md's picture is held against the code's own imports."""

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FLOORS = ("models", "hosts", "core", "comparison", "cluster", "page")


def room_of(module: str) -> str | None:
    parts = module.split(".")
    if parts[0] != "tasks" or len(parts) == 1:
        return None
    return parts[1] if parts[1] in FLOORS else "chapters"


def imports_of(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
    return modules


def measured() -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """(arrows between rooms, imports of one chapter by another)."""
    arrows, chapter_pairs = set(), set()
    for path in [ROOT / "dodo.py", *(ROOT / "tasks").rglob("*.py")]:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        source = "dodo" if module == "dodo" else room_of(module)
        for imported in imports_of(path):
            target = room_of(imported)
            if source is None or target is None:
                continue
            if source != target:
                arrows.add((source, target))
            elif source == "chapters":
                chapter_pairs.add((module, imported))
    return arrows, chapter_pairs


def test_the_picture_shows_the_imports_as_they_are():
    text = (ROOT / "docs" / "architecture.md").read_text()
    drawn = set(re.findall(r"^  (\w+) --> (\w+)$", text, re.MULTILINE))
    arrows, _ = measured()
    assert arrows == drawn


def test_chapters_do_not_import_each_other():
    _, pairs = measured()
    assert not pairs


def test_listing_imports_nothing_heavy():
    script = (
        "import sys, dodo, tasks.core.commands.list\n"
        "for name in ('fetch', 'graph', 'weights', 'native', 'release', 'deploy'):\n"
        "    list(getattr(dodo, f'task_{name}')())\n"
        "heavy = {'torch', 'numpy', 'paramiko', 'llama_cpp', 'PIL', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"

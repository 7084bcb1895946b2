"""The images of the golden set: the user's own, or synthesised ones."""

import glob
import io
import re
from pathlib import Path

import numpy as np
from PIL import Image

from tasks.core.errors import QuernError

FEWEST, MOST = 4, 16
SUFFIXES = {".png", ".jpg", ".jpeg"}


def select_probes(wanted: list[str]) -> list[Path]:
    """At most MOST images of the files, directories and globs given, spread evenly over them all.

    Sorted by path, numbers in names as numbers. Raises QuernError where one gives no image.
    """
    found: set[Path] = set()
    for place in wanted:
        inside = [Path(name) for name in glob.glob(place, recursive=True)]
        files = [f for p in inside for f in (p.iterdir() if p.is_dir() else [p])]
        images = {f for f in files if f.suffix.lower() in SUFFIXES and f.is_file()}
        if not images:
            raise QuernError(f"probes: {place}: no PNG or JPEG image there")
        found |= images
    ordered = sorted(found, key=_natural)
    count = min(MOST, len(ordered))
    return [ordered[i * len(ordered) // count] for i in range(count)]


def probe_files(wanted: list[str], size: tuple[int, int]) -> list[tuple[str, bytes]]:
    """(name, the file's bytes) of each probe; synthesised ones, of about `size` (height, width),
    make up for what is missing of FEWEST.

    The name is the last folder and the file's name, so that it is the same on every machine.
    Raises QuernError, OSError.
    """
    paths = select_probes(wanted)
    probes = [(f"{path.parent.name}/{path.name}".lstrip("/"), path.read_bytes()) for path in paths]
    if len(probes) >= FEWEST:
        return probes
    drawn = synthesise(size)
    return probes + drawn[: FEWEST - len(probes)] if probes else drawn


def synthesise(size: tuple[int, int]) -> list[tuple[str, bytes]]:
    """Eight PNG images, the same every time: gradients, stripes and noise.

    They are of `size` (height, width): no step of the preprocessing can make them unfit.
    """
    height, width = size
    down = np.linspace(0, 1, height)[:, None] * np.ones((height, width))
    across = np.linspace(0, 1, width)[None, :] * np.ones((height, width))
    drawings = {
        "gradient_down": (down, down, down),
        "gradient_across": (across, across, across),
        "colours": (down, across, 1 - down),
        "disc": (((down - 0.5) ** 2 + (across - 0.5) ** 2 < 0.1) * 1.0,) * 3,
        "stripes": (np.sin(across * 20) / 2 + 0.5, np.sin(down * 12) / 2 + 0.5, down),
    }
    for seed in range(3):
        noise = np.random.default_rng(seed).random((3, height, width))
        drawings[f"noise_{seed}"] = (noise[0], noise[1], noise[2])
    images = []
    for name, channels in drawings.items():
        pixels = np.rint(np.stack(channels, axis=-1) * 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        images.append((f"synthesised/{name}.png", buffer.getvalue()))
    return images


def _natural(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]

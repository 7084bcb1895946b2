"""Labelled images, to be answered by a server: a folder with a folder per class, or a CSV file."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.core.digest import canonical_json, digest_of_bytes, read_digests
from tasks.core.errors import QuernError

STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")  # JPEG and PNG: what the server reads
COLUMNS = ("image", "class")
MOST_SHOWN = 12


@dataclass(frozen=True)
class LabelledImage:
    """An image file: `name` is its path below the set's folder, `label` its class as the set has
    it, `digest` the xxh3_128 of its bytes, `place` where the set says so, for messages."""

    path: Path
    name: str
    label: str
    digest: str
    place: str

    def read(self) -> bytes:
        """The bytes that were there when the set was read. Raises QuernError if they are others."""
        data = _bytes(self.path)
        if digest_of_bytes(data) != self.digest:
            raise QuernError(f"{self.path}: changed meanwhile")
        return data


@dataclass(frozen=True)
class ImageSet:
    """All images of a set, in the order of their names; `digest` is over names, labels and
    bytes."""

    path: str
    images: tuple[LabelledImage, ...]
    digest: str


def read_image_set(path: str) -> ImageSet:
    """The set in a folder with a folder per class, or in a CSV file with the columns image and
    class, the images' paths relative to it.

    Raises QuernError naming the file, or the CSV's line: not there, not an image, not in UTF-8,
    there twice, no images at all.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        images = _in_folders(place)
    elif place.is_file():
        images = _in_csv(place)
    else:
        raise QuernError(f"{path}: is not there; give a folder with a folder per class, or a CSV")
    if not images:
        raise QuernError(f"{path}: has no images; it wants a folder per class, with JPEGs and PNGs")
    images.sort(key=lambda image: image.name)
    rows = [[image.name, image.label, image.digest] for image in images]
    return ImageSet(path, tuple(images), digest_of_bytes(canonical_json(rows)))


def _in_folders(folder: Path) -> list[LabelledImage]:
    images = []
    for entry in sorted(_listed(folder)):
        if not entry.is_dir():
            raise QuernError(f"{entry}: is in no class's folder; put each image into one")
        for file in sorted(_listed(entry)):
            name = f"{entry.name}/{file.name}"
            images.append(_image(file, name, entry.name, str(file)))
    return images


def _listed(folder: Path) -> list[Path]:
    try:
        return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise QuernError(f"{folder}: can't be read: {error.strerror}") from None


def _in_csv(path: Path) -> list[LabelledImage]:
    images: dict[str, LabelledImage] = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
            if missing:
                raise QuernError(f"{path}:1: has no column {missing[0]}; it wants image,class")
            for row in rows:
                place = f"{path}:{rows.line_num}"
                name, label = ((row[column] or "").strip() for column in COLUMNS)
                if not name or not label:
                    raise QuernError(f"{place}: has no {'class' if name else 'image'}")
                if name in images:
                    raise QuernError(f"{place}: {name} was there before, at {images[name].place}")
                images[name] = _image(path.parent / name, name, label, place)
    except UnicodeDecodeError as error:
        raise QuernError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except csv.Error as error:
        raise QuernError(f"{path}:{rows.line_num}: not CSV: {error}") from None
    except OSError as error:
        raise QuernError(f"{path}: can't be read: {error.strerror}") from None
    return list(images.values())


def _image(path: Path, name: str, label: str, place: str) -> LabelledImage:
    said = "" if place == str(path) else f"{place}: "
    try:
        with open(path, "rb") as file:
            start = file.read(8)
        digest = read_digests(path)[1]
        name.encode()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "its name is not UTF-8"
        raise QuernError(
            f"{said}{path}: can't be read: {why}".encode(errors="replace").decode()
        ) from None
    if not start.startswith(STARTS):
        raise QuernError(f"{said}{path}: is neither a JPEG nor a PNG")
    return LabelledImage(path, name, label, digest, place)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise QuernError(f"{path}: can't be read: {error.strerror}") from None


def class_ids(images: Sequence[LabelledImage], names: Sequence[str], whose: str) -> list[int]:
    """Each image's class, of the classes `names` that `whose` release has: its label is the name
    of one, or else its number.

    Raises QuernError naming the image and the classes that are known.
    """
    known: dict[str, int] = {str(number): number for number in range(len(names))}
    known |= {name: number for number, name in enumerate(names)}
    twice = {name for name in names if names.count(name) > 1}
    for image in images:
        if image.label in twice:
            raise QuernError(
                f"{image.place}: {whose} has several classes {image.label!r}; give its number"
            )
        if image.label not in known:
            shown = ", ".join(names[:MOST_SHOWN]) + (", …" if len(names) > MOST_SHOWN else "")
            raise QuernError(
                f"{image.place}: {whose} has no class {image.label!r}; it has {shown}, "
                f"or their numbers 0 to {len(names) - 1}"
            )
    return [known[image.label] for image in images]

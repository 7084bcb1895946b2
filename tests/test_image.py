"""The native image path against Pillow, byte for byte, and against torchvision's arithmetic."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageOps
from sklearn import datasets  # type: ignore[import-untyped]

from tests.native_module import native, node, preprocess, write_weights

__all__ = ["native"]

PICTURES = Path(datasets.__file__).parent / "images"
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def picture(name: str = "china") -> Image.Image:
    with Image.open(PICTURES / f"{name}.jpg") as image:
        image.load()
        return image


def small(width: int = 61, height: int = 43) -> Image.Image:
    return picture().resize((width, height))


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    memory = io.BytesIO()
    image.save(memory, file_format, **options)
    return memory.getvalue()


def pillow(content: bytes, mode: str) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert(mode))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, color: int, rows: bytes, *before: bytes) -> bytes:
    """A PNG file that Pillow does not write: `before` are whole chunks between IHDR and IDAT."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), *before, chunk(b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def with_right_checksums(content: bytes) -> bytes:
    """A damaged PNG file whose chunks have the CRC of what they hold, so that they are read."""
    result, at = content[:8], 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        if at + 12 + length > len(content):
            return content  # the damage is in a length
        result += chunk(content[at + 4 : at + 8], content[at + 8 : at + 8 + length])
        at += 12 + length
    return result + content[at:]


def interlaced(image: Image.Image) -> bytes:
    """Adam7: the seven reduced images one after the other (PNG specification, section 8.2)."""
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
    pixels = np.asarray(image)
    rows = b""
    for x, y, dx, dy in [*passes, (0, 1, 1, 2)]:
        for row in pixels[y::dy, x::dx]:
            if row.size:
                rows += b"\0" + row.tobytes()
    color = {"L": 0, "RGB": 2, "RGBA": 6}[image.mode]
    header = struct.pack(">IIBBBBB", image.width, image.height, 8, color, 0, 0, 1)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def noise(*shape: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, shape).astype(np.uint8)


def with_alpha(mode: str) -> Image.Image:
    image = small().convert(mode)
    image.putalpha(Image.fromarray(noise(image.height, image.width)))
    return image


def resampled(subsampling: int, factors: int, precision: int = 8) -> bytes:
    """A JPEG whose header is changed to sampling factors that Pillow does not write.

    The pixels are another picture then, with as many blocks: 64x64 is whole in either order.
    """
    content = bytearray(encoded(small(64, 64), "JPEG", subsampling=subsampling))
    header = content.index(b"\xff\xc0")
    content[header + 4] = precision
    content[header + 11] = factors  # of the first component: horizontal, vertical
    return bytes(content)


def palette(colors: int) -> Image.Image:
    return small().quantize(colors)


FILES: dict[str, Callable[[], bytes]] = {
    "china.jpg": lambda: (PICTURES / "china.jpg").read_bytes(),
    "flower.jpg": lambda: (PICTURES / "flower.jpg").read_bytes(),
    "china.png": lambda: encoded(picture(), "PNG"),
    "JPEG gray": lambda: encoded(picture().convert("L"), "JPEG"),
    "JPEG CMYK": lambda: encoded(picture().convert("CMYK"), "JPEG"),
    "JPEG CMYK noise": lambda: encoded(Image.fromarray(noise(40, 50, 4), "CMYK"), "JPEG"),
    "JPEG progressive": lambda: encoded(picture("flower"), "JPEG", progressive=True, quality=60),
    "JPEG gray progressive": lambda: encoded(small().convert("L"), "JPEG", progressive=True),
    "JPEG 4:4:4": lambda: encoded(picture(), "JPEG", subsampling=0, quality=95),
    "JPEG 4:2:2": lambda: encoded(small(), "JPEG", subsampling=1),
    "JPEG 4:2:0": lambda: encoded(small(), "JPEG", subsampling=2),
    "JPEG 4:4:0": lambda: resampled(1, 0x12),
    "JPEG 4:1:1": lambda: resampled(2, 0x41),
    "JPEG 1x4": lambda: resampled(2, 0x14),
    "JPEG stored as RGB": lambda: encoded(small(), "JPEG", keep_rgb=True),
    "JPEG with restart markers": lambda: encoded(small(), "JPEG", restart_marker_blocks=2),
    "JPEG quality 1": lambda: encoded(small(), "JPEG", quality=1),
    "JPEG rotated by EXIF": lambda: encoded(
        small(),
        "JPEG",
        exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0",
    ),
    "JPEG with bytes after its end": lambda: encoded(small(), "JPEG") + b"and more",
    "JPEG 1x1": lambda: encoded(small(1, 1), "JPEG"),
    "JPEG 9x1": lambda: encoded(small(9, 1), "JPEG"),
    "JPEG very wide": lambda: encoded(small(3001, 2), "JPEG"),
    "JPEG very tall": lambda: encoded(small(3, 2001), "JPEG"),
    "PNG 1x1": lambda: encoded(small(1, 1), "PNG"),
    "PNG very wide": lambda: encoded(small(20001, 1), "PNG"),
    "PNG gray": lambda: encoded(small().convert("L"), "PNG"),
    "PNG 1 bit": lambda: encoded(small().convert("1"), "PNG"),
    "PNG gray 2 bits": lambda: png(7, 3, 2, 0, b"\0\x1b\xe4" * 3),
    "PNG gray 4 bits": lambda: png(5, 2, 4, 0, b"\0\x01\x8f\xa0" * 2),
    "PNG gray 4 bits with gamma": lambda: png(
        5, 2, 4, 0, b"\0\x01\x8f\xa0" * 2, chunk(b"gAMA", struct.pack(">I", 100000))
    ),
    "PNG gray with a transparent level": lambda: encoded(
        small().convert("L"), "PNG", transparency=100
    ),
    "PNG RGB with a transparent colour": lambda: encoded(small(), "PNG", transparency=(1, 2, 3)),
    "PNG gray and alpha": lambda: encoded(with_alpha("L"), "PNG"),
    "PNG RGBA": lambda: encoded(with_alpha("RGB"), "PNG"),
    "PNG palette 256": lambda: encoded(palette(256), "PNG"),
    "PNG palette 16": lambda: encoded(palette(16), "PNG"),
    "PNG palette 4": lambda: encoded(palette(4), "PNG"),
    "PNG palette 2": lambda: encoded(palette(2), "PNG"),
    "PNG palette with a transparent entry": lambda: encoded(palette(16), "PNG", transparency=3),
    "PNG palette with alpha": lambda: encoded(
        palette(16), "PNG", transparency=bytes(range(0, 160, 10))
    ),
    "PNG palette with undefined entries": lambda: png(
        16, 1, 8, 3, b"\0" + bytes(range(16)), chunk(b"PLTE", bytes(range(100, 130)))
    ),
    "PNG interlaced RGB": lambda: interlaced(small()),
    "PNG interlaced RGBA": lambda: interlaced(with_alpha("RGB")),
    "PNG interlaced gray 3x1": lambda: interlaced(small(3, 1).convert("L")),
    "PNG with text and a colour profile": lambda: encoded(small(), "PNG", icc_profile=bytes(500)),
    "PNG with bytes after its end": lambda: encoded(small(), "PNG") + b"and more",
    "PNG animated": lambda: encoded(
        small(), "PNG", save_all=True, append_images=[ImageOps.invert(small())]
    ),
}


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", FILES)
def test_decode(native: Any, name: str, mode: str) -> None:
    content = FILES[name]()
    expected = pillow(content, mode)
    actual = native.decode(content, mode)
    assert actual.dtype == np.uint8 and actual.shape == expected.shape
    np.testing.assert_array_equal(actual, expected)


def test_the_interlaced_file_is_the_image_it_was_made_of() -> None:
    np.testing.assert_array_equal(pillow(interlaced(small()), "RGB"), np.asarray(small()))


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (lambda: b"", 400),
        (lambda: b"<html></html>", 415),
        (lambda: encoded(small(), "GIF"), 415),
        (lambda: encoded(small(), "BMP"), 415),
        (lambda: encoded(small(), "WEBP"), 415),
        (lambda: encoded(small(), "TIFF"), 415),
        (
            lambda: encoded(Image.fromarray(np.arange(30, dtype=np.uint16).reshape(5, 6)), "PNG"),
            415,
        ),
        (lambda: png(1, 1, 16, 2, bytes(7)), 415),
        (lambda: resampled(2, 0x22, precision=12), 400),
        (lambda: png(1, 1, 3, 0, bytes(2)), 400),
        (lambda: png(0, 1, 8, 0, bytes(2)), 400),
        (lambda: png(30000, 30000, 8, 2, bytes(9)), 413),
    ],
)
def test_refused(native: Any, content: Callable[[], bytes], status: int) -> None:
    with pytest.raises(ValueError, match=f"^{status}: "):
        native.decode(content(), "RGB")


@pytest.mark.parametrize("name", ["JPEG 4:2:0", "JPEG gray progressive", "PNG gray", "PNG 1 bit"])
def test_whatever_pillow_refuses_as_truncated_is_refused(native: Any, name: str) -> None:
    content = FILES[name]()
    refused = 0
    for length in range(3, len(content), max(1, len(content) // 150)):
        try:
            pillow(content[:length], "RGB")
        except (OSError, SyntaxError):
            refused += 1
            with pytest.raises(ValueError, match=r"^4(00|15): "):
                native.decode(content[:length], "RGB")
    assert refused > 100


@pytest.mark.parametrize(
    "name",
    [
        "JPEG 4:2:0",
        "JPEG 4:1:1",
        "JPEG with restart markers",
        "JPEG CMYK noise",
        "JPEG gray progressive",
        "PNG palette 16",
        "PNG RGBA",
    ],
)
def test_a_damaged_file_is_refused_or_decoded_as_pillow_does(native: Any, name: str) -> None:
    random = np.random.default_rng(8)
    content = FILES[name]()
    both = 0
    for _ in range(300):
        damaged = bytearray(content)
        damaged[random.integers(len(damaged))] = random.integers(256)
        file = bytes(damaged)
        if name.startswith("PNG"):
            file = with_right_checksums(file)
        try:
            actual = native.decode(file, "RGB")
        except ValueError:
            continue
        np.testing.assert_array_equal(actual, pillow(file, "RGB"))
        both += 1
    assert both > 0


def test_max_pixels(native: Any) -> None:
    content = encoded(small(20, 10), "PNG")
    assert native.decode(content, "L", max_pixels=200).shape == (10, 20)
    with pytest.raises(ValueError, match=r"^413: the image has 20x10 pixels, at most 199"):
        native.decode(content, "L", max_pixels=199)
    with pytest.raises(ValueError, match="neither"):
        native.decode(content, "CMYK")


def resized(image: Image.Image, width: int, height: int, interpolation: str) -> Image.Image:
    """Pillow's resize with the horizontal pass first, whatever order this Pillow takes itself."""
    filtered = RESAMPLING[interpolation]
    if interpolation != "nearest":
        image = image.resize((width, image.height), filtered)
    return image.resize((width, height), filtered)


@pytest.mark.parametrize("interpolation", RESAMPLING)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    ("width", "height"),
    [(224, 224), (341, 256), (640, 100), (100, 427), (1, 1), (1, 300), (1000, 3), (900, 700)],
)
def test_resize_of_a_picture(
    native: Any, interpolation: str, mode: str, width: int, height: int
) -> None:
    image = picture().convert(mode)
    actual = native.resize(np.asarray(image), (height, width), interpolation)
    np.testing.assert_array_equal(actual, np.asarray(resized(image, width, height, interpolation)))


@pytest.mark.parametrize("interpolation", RESAMPLING)
def test_resize_of_noise_in_random_sizes(native: Any, interpolation: str) -> None:
    random = np.random.default_rng(3)
    for _ in range(100):
        height, width, new_height, new_width = (int(n) for n in random.integers(1, 90, 4))
        # Black and white only: bicubic overshoots most there, and clipping shows.
        pixels = (random.integers(0, 2, (height, width, 3)) * 255).astype(np.uint8)
        expected = resized(Image.fromarray(pixels), new_width, new_height, interpolation)
        actual = native.resize(pixels, (new_height, new_width), interpolation)
        np.testing.assert_array_equal(actual, np.asarray(expected))


def test_resize_refuses_what_it_cannot_do(native: Any) -> None:
    pixels = noise(4, 5, 3)
    for array, size, interpolation in [
        (pixels, (0, 4), "bilinear"),
        (pixels, (4, -1), "bilinear"),
        (pixels, (4, 4), "lanczos"),
        (pixels, (70000, 1), "bilinear"),
        (noise(4, 5, 2), (4, 4), "bilinear"),
        (noise(4), (4, 4), "bilinear"),
        (pixels[:0], (4, 4), "bilinear"),
    ]:
        with pytest.raises(ValueError):
            native.resize(array, size, interpolation)


def torchvision_input(image: Image.Image, section: dict[str, Any]) -> npt.NDArray[np.float32]:
    """Resize, CenterCrop, ToTensor, Normalize, as torchvision's functional.py spells them out."""
    size = section["resize"]
    if isinstance(size, int):
        short, long = sorted(image.size)
        long = int(size * long / short)
        width, height = (size, long) if image.width <= image.height else (long, size)
        image = resized(image, width, height, section["interpolation"])
    elif size is not None:
        image = resized(image, size[1], size[0], section["interpolation"])
    crop = section["crop"]
    if crop is not None:
        height, width = (crop, crop) if isinstance(crop, int) else crop
        missing_x, missing_y = max(width - image.width, 0), max(height - image.height, 0)
        border = (missing_x // 2, missing_y // 2, (missing_x + 1) // 2, (missing_y + 1) // 2)
        image = ImageOps.expand(image, border, 0)
        top = round((image.height - height) / 2.0)
        left = round((image.width - width) / 2.0)
        image = image.crop((left, top, left + width, top + height))
    values = np.asarray(image).astype(np.float32) / np.float32(255)
    values = values[None, None] if values.ndim == 2 else values.transpose(2, 0, 1)[None]
    mean = np.array(section["mean"], np.float32).reshape(1, -1, 1, 1)
    std = np.array(section["std"], np.float32).reshape(1, -1, 1, 1)
    result: npt.NDArray[np.float32] = (values - mean) / std
    return result


IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}

CHAINS = [
    preprocess("RGB", resize=256, crop=224, **IMAGENET),
    preprocess("RGB", resize=256, crop=224, interpolation="bicubic", **IMAGENET),
    preprocess("RGB", resize=33, crop=32, interpolation="nearest", **IMAGENET),
    preprocess("RGB", resize=[40, 31], **IMAGENET),
    preprocess("RGB", resize=[37, 50], crop=[20, 61]),
    preprocess("RGB", resize=20, crop=33),
    preprocess("RGB", crop=[101, 64]),
    preprocess("L", resize=32, crop=[31, 30], mean=[0.5], std=[0.25]),
    preprocess("L", resize=[8, 8]),
    preprocess("L", crop=[700, 500], mean=[0.1], std=[3.0]),
]


# What a photograph may come as; each of another size, so that crops begin everywhere in a block.
PHOTOGRAPHS: dict[str, Callable[[], bytes]] = {
    "china.jpg": FILES["china.jpg"],
    "flower.jpg": FILES["flower.jpg"],
    "tall": lambda: encoded(picture("flower").transpose(Image.Transpose.ROTATE_90), "PNG"),
    "odd": lambda: encoded(small(101, 67), "PNG"),
    "4:4:4": lambda: encoded(small(639, 425), "JPEG", subsampling=0, quality=75),
    "4:2:2": lambda: encoded(small(633, 479), "JPEG", subsampling=1, quality=85),
    "4:2:0": lambda: encoded(small(640, 480), "JPEG", subsampling=2, quality=90),
    "4:2:0 tall": lambda: encoded(small(371, 652), "JPEG", subsampling=2, quality=90),
    "4:2:0 large": lambda: encoded(small(1503, 1127), "JPEG", subsampling=2, quality=75),
    "restart markers": lambda: encoded(small(401, 301), "JPEG", restart_marker_blocks=5),
    "progressive": lambda: encoded(small(517, 389), "JPEG", progressive=True),
    "gray": lambda: encoded(picture().convert("L"), "JPEG"),
    "gray progressive": lambda: encoded(small(300, 500).convert("L"), "JPEG", progressive=True),
    "CMYK": lambda: encoded(picture("flower").convert("CMYK"), "JPEG"),
    "palette": lambda: encoded(picture().quantize(200), "PNG"),
    "gray PNG": lambda: encoded(picture().convert("L"), "PNG"),
    "interlaced": lambda: interlaced(small(203, 151)),
    "alpha": lambda: encoded(with_alpha("RGB"), "PNG"),
    "wide": lambda: encoded(small(2000, 15), "JPEG"),
    "1x1": lambda: encoded(small(1, 1), "JPEG"),
}

# Every kind of file, with a crop that leaves most of it out and one that is larger.
PARTS = [
    preprocess("RGB", resize=[60, 80], crop=[41, 30], **IMAGENET),
    preprocess("L", resize=[64, 50], crop=[20, 90], mean=[0.5], std=[0.25]),
    preprocess("RGB", crop=[20, 24]),
]


@pytest.mark.parametrize(
    ("name", "section"),
    [(name, section) for section in CHAINS for name in PHOTOGRAPHS]
    + [(name, section) for section in PARTS for name in FILES],
    ids=lambda p: p if isinstance(p, str) else f"{p['resize']} {p['crop']} {p['mode']}",
)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_the_chain_down_to_the_network_s_input(
    native: Any, tmp_path: Path, section: dict[str, Any], name: str
) -> None:
    content = {**FILES, **PHOTOGRAPHS}[name]()
    with Image.open(io.BytesIO(content)) as image:
        expected = torchvision_input(image.convert(section["mode"]), section)
    path = tmp_path / "model_weights.bin"
    nodes = [node("reshape", ["input"], "flat", (1, expected.size))]
    write_weights(path, expected.shape, nodes, {}, section)
    # The network does nothing, so its logits are its input.
    actual = native.Model(str(path)).logits_of_image(content)
    np.testing.assert_array_equal(actual, expected.ravel())


def test_predict(native: Any, tmp_path: Path) -> None:
    path = tmp_path / "model_weights.bin"
    nodes = [node("reshape", ["input"], "flat", (1, 12))]
    write_weights(path, (1, 3, 2, 2), nodes, {}, preprocess("RGB", resize=[2, 2]))
    model = native.Model(str(path))
    content = encoded(small(), "PNG")
    logits = model.logits_of_image(content).astype(np.float64)
    scores = np.exp(logits) / np.exp(logits).sum()
    predictions = model.predict(content)
    assert [class_id for class_id, _ in predictions] == list(np.argsort(-scores, kind="stable")[:5])
    np.testing.assert_allclose([s for _, s in predictions], np.sort(scores)[::-1][:5], rtol=1e-6)
    assert len(model.predict(content, top=100)) == 12
    with pytest.raises(ValueError, match=r"^415: "):
        model.predict(b"text")


def test_an_image_that_comes_out_in_another_size(native: Any, tmp_path: Path) -> None:
    path = tmp_path / "model_weights.bin"
    nodes = [node("reshape", ["input"], "flat", (1, 12))]
    write_weights(path, (1, 3, 2, 2), nodes, {}, preprocess("RGB", resize=2))
    model = native.Model(str(path))
    assert model.logits_of_image(encoded(small(9, 9), "PNG")).shape == (12,)
    with pytest.raises(ValueError, match=r"^400: .*comes out as 4x2, the model takes 2x2"):
        model.logits_of_image(encoded(small(20, 10), "PNG"))

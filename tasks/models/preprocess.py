"""From an image file to the network's input, exactly as training did it.

The semantics are torchvision's Resize, CenterCrop, ToTensor and Normalize on Pillow images, with
Pillow's order of passes up to version 12 (horizontal first), whatever Pillow is installed.
"""

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from tasks.core.errors import QuernError

Size = int | tuple[int, int]  # shorter side, or (height, width)

CHANNELS = {"RGB": 3, "L": 1}
INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}
# Modes of more than 8 bits a channel lose their range in Pillow's convert.
EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}


@dataclass(frozen=True)
class Preprocess:
    """The training transform; a step that is None is left out."""

    mode: str
    resize: Size | None
    crop: Size | None
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def as_json(self) -> dict[str, Any]:
        """As model_weights.bin holds it: every key written."""
        sizes = {"resize": self.resize, "crop": self.crop}
        return {
            "mode": self.mode,
            **{key: list(v) if isinstance(v, tuple) else v for key, v in sizes.items()},
            "interpolation": self.interpolation,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def input_shape(self) -> tuple[int, int, int, int]:
        """[1, channels, height, width] that the network must take.

        A `resize` to a shorter side with no crop fits square images only.
        Raises QuernError where neither crop nor resize says a size.
        """
        size = self.crop if self.crop is not None else self.resize
        if size is None:
            raise QuernError(
                "preprocess: neither crop nor resize is given, so the network's input size is"
                " unknown; give crop, or resize as [height, width]"
            )
        return (1, CHANNELS[self.mode], *_pair(size))


def parse_preprocess(settings: dict[str, Any]) -> Preprocess:
    """Check the `preprocess` settings of a model and fill in what is left out.

    Left out: mode RGB, no resize, no crop, bilinear, mean 0, std 1. Raises QuernError.
    """
    known = ("mode", "resize", "crop", "interpolation", "mean", "std")
    for key in settings:
        if key not in known:
            raise QuernError(f"preprocess.{key}: no such key; allowed are {', '.join(known)}")
    mode = settings.get("mode", "RGB")
    if mode not in CHANNELS:
        raise QuernError(f"preprocess.mode: {mode!r} must be one of {', '.join(CHANNELS)}")
    interpolation = settings.get("interpolation", "bilinear")
    if interpolation not in INTERPOLATIONS:
        raise QuernError(
            f"preprocess.interpolation: {interpolation!r} must be one of"
            f" {', '.join(INTERPOLATIONS)}"
        )
    channels = CHANNELS[mode]
    mean = _numbers("mean", settings.get("mean"), 0.0, channels)
    std = _numbers("std", settings.get("std"), 1.0, channels)
    if min(std) <= 0:
        raise QuernError(f"preprocess.std: {list(std)} must be above 0; pixels are divided by it")
    resize, crop = (_size(key, settings.get(key)) for key in ("resize", "crop"))
    return Preprocess(mode, resize, crop, interpolation, mean, std)


def decode(data: bytes, name: str) -> Image.Image:
    """A PNG or JPEG file's bytes as a Pillow image, fully read. Raises QuernError naming `name`."""
    try:
        image = Image.open(io.BytesIO(data), formats=["PNG", "JPEG"])
        image.load()
    except UnidentifiedImageError:
        raise QuernError(f"{name}: not a PNG or JPEG image") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise QuernError(f"{name}: cannot be decoded: {error}") from None
    if image.mode not in EIGHT_BIT_MODES:
        raise QuernError(f"{name}: {image.mode} has more than 8 bits a channel; save it with 8")
    return image


def preprocess(image: Image.Image, settings: Preprocess) -> npt.NDArray[np.float32]:
    """The network's input for one image: float32 [1, channels, height, width]."""
    image = image.convert(settings.mode)
    filter_ = INTERPOLATIONS[settings.interpolation]
    if settings.resize is not None:
        image = _resize(image, _target(image.size, settings.resize), filter_)
    pixels = np.asarray(image, dtype=np.uint8).reshape(image.height, image.width, -1)
    if settings.crop is not None:
        pixels = _center_crop(pixels, _pair(settings.crop))
    values = pixels.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)
    mean, std = (
        np.array(numbers, np.float32).reshape(1, -1, 1, 1)
        for numbers in (settings.mean, settings.std)
    )
    return np.ascontiguousarray((values - mean) / std)


def preprocess_file(path: Path, settings: Preprocess) -> npt.NDArray[np.float32]:
    """`preprocess` of a PNG or JPEG file. Raises QuernError, OSError."""
    return preprocess(decode(path.read_bytes(), str(path)), settings)


def _target(size: tuple[int, int], resize: Size) -> tuple[int, int]:
    """(width, height) after Resize; torchvision's _compute_resized_output_size for an int."""
    if isinstance(resize, tuple):
        return resize[1], resize[0]
    width, height = size
    long = int(resize * max(size) / min(size))
    return (resize, long) if width <= height else (long, resize)


def _resize(image: Image.Image, size: tuple[int, int], filter_: Image.Resampling) -> Image.Image:
    # One call a pass pins the order; Pillow 13 takes the vertical one first for tall images.
    return image.resize((size[0], image.height), filter_).resize(size, filter_)


def _center_crop(pixels: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """torchvision's center_crop: zeros around an image that is too small, then the middle."""
    crop_height, crop_width = size
    height, width = pixels.shape[:2]
    down, across = max(0, crop_height - height), max(0, crop_width - width)
    pixels = np.pad(
        pixels, ((down // 2, (down + 1) // 2), (across // 2, (across + 1) // 2), (0, 0))
    )
    top = round((pixels.shape[0] - crop_height) / 2.0)
    left = round((pixels.shape[1] - crop_width) / 2.0)
    return pixels[top : top + crop_height, left : left + crop_width]


def _pair(size: Size) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


def _size(key: str, value: Any) -> Size | None:
    def positive(number: Any) -> bool:
        return isinstance(number, int) and not isinstance(number, bool) and 0 < number < 65536

    if value is None or positive(value):
        return value  # type: ignore[no-any-return]
    if isinstance(value, list | tuple) and len(value) == 2 and all(map(positive, value)):
        return (value[0], value[1])
    raise QuernError(f"preprocess.{key}: {value!r} must be a number of pixels or [height, width]")


def _numbers(key: str, value: Any, default: float, channels: int) -> tuple[float, ...]:
    if value is None:
        return (default,) * channels
    if (
        isinstance(value, list | tuple)
        and len(value) == channels
        and all(isinstance(v, int | float) and math.isfinite(v) for v in value)
    ):
        return tuple(float(v) for v in value)
    raise QuernError(f"preprocess.{key}: {value!r} must be {channels} numbers, one a channel")

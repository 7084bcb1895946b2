"""Preprocessing is the training transform: torchvision's semantics on Pillow's pixels."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tasks.core.errors import QuernError
from tasks.models.preprocess import decode, parse_preprocess, preprocess, preprocess_file

PLAIN: dict[str, Any] = {"mode": "RGB"}


def image(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    channels = {"RGB": 3, "L": 1, "RGBA": 4}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    return Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels, mode)


def pixels(array: np.ndarray) -> np.ndarray:
    """Back from float32 to [H, W, C] of 0 to 255."""
    return np.rint(array[0].transpose(1, 2, 0) * 255).astype(np.uint8)


def test_normalisation_is_torch_s_own_arithmetic() -> None:
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    settings = {"mode": "L", "mean": [0.485], "std": [0.229]}
    found = preprocess(ramp, parse_preprocess(settings))
    wanted = torch.arange(256).reshape(1, 1, 16, 16).to(torch.float32).div(255)
    wanted = wanted.sub_(torch.tensor([0.485])).div_(torch.tensor([0.229]))
    assert found.dtype == np.float32
    assert np.array_equal(found, wanted.numpy())


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("size", [(37, 61), (61, 37), (16, 50), (90, 20), (24, 24)])
def test_resize_is_pillow_s_with_the_horizontal_pass_first(
    interpolation: str, size: tuple[int, int]
) -> None:
    source = image(*size)
    settings = parse_preprocess({"resize": [20, 24], "interpolation": interpolation})
    found = pixels(preprocess(source, settings))
    filter_ = Image.Resampling[interpolation.upper()]
    assert np.array_equal(
        found, np.asarray(source.resize((24, size[1]), filter_).resize((24, 20), filter_))
    )
    down, across = size[1] - 20, size[0] - 24
    if not (down > 0 and down > 2 * across):  # where Pillow 13 takes the vertical pass first
        assert np.array_equal(found, np.asarray(source.resize((24, 20), filter_)))


@settings(max_examples=200, deadline=None)
@given(width=st.integers(1, 300), height=st.integers(1, 300), short=st.integers(1, 40))
def test_the_shorter_side_and_the_longer(width: int, height: int, short: int) -> None:
    if max(width, height) * short > 4000 * min(width, height):
        return
    found = preprocess(
        Image.new("L", (width, height)), parse_preprocess({"mode": "L", "resize": short})
    )
    long = int(short * max(width, height) / min(width, height))
    assert found.shape[2:] == ((long, short) if width <= height else (short, long))


@pytest.mark.parametrize(
    ("size", "crop", "top", "left"),
    [
        ((10, 10), 4, 3, 3),
        ((9, 11), 4, 4, 2),  # 3.5 and 2.5: halves go to the even number
        ((7, 9), [4, 2], 2, 2),
        ((8, 8), 8, 0, 0),
    ],
)
def test_center_crop(size: tuple[int, int], crop: Any, top: int, left: int) -> None:
    source = image(*size)
    found = pixels(preprocess(source, parse_preprocess({"crop": crop})))
    height, width = crop if isinstance(crop, list) else (crop, crop)
    wanted = np.asarray(source)[top : top + height, left : left + width]
    assert np.array_equal(found, wanted)


def test_center_crop_pads_what_is_too_small_with_zeros_before_normalising() -> None:
    source = image(3, 9)
    found = preprocess(source, parse_preprocess({"crop": [4, 6], "mean": [0.5] * 3}))
    assert found.shape == (1, 3, 4, 6)
    wanted = np.zeros((4, 6, 3), np.uint8)
    wanted[:, 1:4] = np.asarray(source)[2:6]  # the odd column goes to the right
    assert np.array_equal(pixels(found + np.float32(0.5)), wanted)


@pytest.mark.parametrize("kind", ["RGBA", "P", "LA", "1", "CMYK"])
def test_every_eight_bit_image_is_converted_as_pillow_does(tmp_path: Path, kind: str) -> None:
    source = image(6, 5, "RGBA").convert(kind)
    path = tmp_path / ("a.jpg" if kind == "CMYK" else "a.png")
    source.save(path)
    found = preprocess_file(path, parse_preprocess(PLAIN))
    assert np.array_equal(pixels(found), np.asarray(Image.open(path).convert("RGB")))
    gray = preprocess_file(path, parse_preprocess({"mode": "L"}))
    assert np.array_equal(pixels(gray)[..., 0], np.asarray(Image.open(path).convert("L")))


def test_images_that_cannot_be_decoded_are_refused() -> None:
    def refusal(data: bytes) -> str:
        with pytest.raises(QuernError) as caught:
            decode(data, "a.png")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    buffer = io.BytesIO()
    image(40, 40).save(buffer, "PNG")
    assert refusal(b"hello") == "a.png: not a PNG or JPEG image"
    assert "cannot be decoded" in refusal(buffer.getvalue()[:2000])
    buffer = io.BytesIO()
    image(40, 40).save(buffer, "JPEG")
    assert "cannot be decoded" in refusal(buffer.getvalue()[:-200])
    buffer = io.BytesIO()
    image(40, 40).save(buffer, "GIF")
    assert "not a PNG or JPEG" in refusal(buffer.getvalue())
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(buffer, "PNG")
    assert "more than 8 bits" in refusal(buffer.getvalue())


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        ({"mode": "HSV"}, "preprocess.mode: 'HSV' must be one of RGB, L"),
        ({"resise": 3}, "preprocess.resise: no such key; allowed are mode, resize"),
        ({"resize": 0}, "preprocess.resize: 0 must be"),
        ({"resize": 3.5}, "preprocess.resize: 3.5 must be"),
        ({"crop": [3]}, "preprocess.crop: [3] must be"),
        ({"crop": True}, "preprocess.crop: True must be"),
        ({"interpolation": "lanczos"}, "must be one of bilinear, bicubic, nearest"),
        ({"mean": [0.5]}, "preprocess.mean: [0.5] must be 3 numbers"),
        ({"std": [1, 1, float("nan")]}, "preprocess.std"),
        ({"mode": "L", "std": [0]}, "must be above 0"),
    ],
)
def test_settings_are_checked(wrong: dict[str, Any], part: str) -> None:
    with pytest.raises(QuernError) as caught:
        parse_preprocess(wrong)
    assert part in str(caught.value)


def test_the_input_shape_follows_from_the_settings() -> None:
    def shape(**settings: Any) -> tuple[int, ...]:
        return parse_preprocess(settings).input_shape()

    assert shape(resize=256, crop=224) == (1, 3, 224, 224)
    assert shape(resize=[20, 30], mode="L") == (1, 1, 20, 30)
    assert shape(resize=36, crop=[32, 16]) == (1, 3, 32, 16)
    assert shape(resize=32) == (1, 3, 32, 32)
    with pytest.raises(QuernError, match="neither crop nor resize"):
        shape()


def test_the_file_holds_every_key_of_the_contract() -> None:
    assert parse_preprocess({"crop": (3, 4), "mean": (0, 0, 1)}).as_json() == {
        **{"mode": "RGB", "resize": None, "crop": [3, 4], "interpolation": "bilinear"},
        **{"mean": [0.0, 0.0, 1.0], "std": [1.0, 1.0, 1.0]},
    }

"""Write the corpora that the fuzz targets start from: python -m native.fuzz.make_corpus

What a run found worth keeping (found-…) and what once failed (regression-…) lies beside them and
is left alone. Of the weights files only those are kept that the engine, built by `doit native`,
loads: when it learns an operation, run this again.
"""

from __future__ import annotations

import importlib
import io
import math
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tests.native_build import native_build
from tests.native_module import node, preprocess, write_weights

CORPUS = Path(__file__).parent / "corpus"
Shape = tuple[int, ...]


# ---- Weights files: each operation in a network of a few values (docs/weight-format.md) ----


class Network:
    """A chain of nodes; `last` is the value that the next one reads."""

    def __init__(self, *shape: int, **preprocessing: Any) -> None:
        self.input = shape
        self.shape: Shape = shape
        self.last = "input"
        self.nodes: list[dict[str, Any]] = []
        self.tensors: dict[str, npt.NDArray[np.float32]] = {}
        self.preprocessing = preprocess("RGB" if shape[1] == 3 else "L", **preprocessing)
        self.random = np.random.default_rng(len(preprocessing) + sum(shape))

    def then(
        self,
        op: str,
        shape: Shape | None = None,
        inputs: list[str] | None = None,
        tensors: dict[str, Shape] | None = None,
        **attributes: Any,
    ) -> str:
        """Append a node (its output's shape: the last one's by default); give its output's name."""
        output = f"v{len(self.nodes)}"
        roles = {}
        for role, tensor_shape in (tensors or {}).items():
            roles[role] = f"{output}.{role}"
            values = self.random.standard_normal(tensor_shape)
            self.tensors[roles[role]] = values.astype(np.float32)
        self.shape = shape or self.shape
        inputs = [self.last] if inputs is None else inputs
        self.nodes.append(node(op, inputs, output, self.shape, roles, attributes))
        self.last = output
        return output

    def conv2d(
        self,
        outputs: int,
        kernel: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int, int, int] = (0, 0, 0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
    ) -> str:
        sides = []
        for axis in range(2):
            padded = self.shape[2 + axis] + padding[axis] + padding[2 + axis]
            sides.append((padded - dilation[axis] * (kernel[axis] - 1) - 1) // stride[axis] + 1)
        return self.then(
            "conv2d",
            (1, outputs, *sides),
            tensors={
                "weight": (outputs, self.shape[1] // groups, *kernel),
                "bias": (outputs,),
            },
            stride=list(stride),
            padding=list(padding),
            dilation=list(dilation),
            groups=groups,
        )

    def linear(self, outputs: int) -> str:
        weight = (outputs, self.shape[1])
        return self.then("linear", (1, outputs), tensors={"weight": weight, "bias": (outputs,)})

    def reshape(self, *shape: int) -> str:
        return self.then("reshape", shape)

    def classify(self, classes: int) -> Network:
        """Mean over the image, then a linear layer."""
        self.then("adaptive_average_pool2d", (*self.shape[:2], 1, 1), size=[1, 1])
        self.reshape(1, self.shape[1])
        self.linear(classes)
        return self

    def write(self, path: Path) -> None:
        write_weights(path, self.input, self.nodes, self.tensors, self.preprocessing)


def smallest() -> Network:
    net = Network(1, 1, 1, 2, crop=[1, 2])
    net.reshape(1, 2)
    net.linear(1)
    return net


def convolutions() -> Network:
    net = Network(1, 3, 9, 7, resize=8, crop=[9, 7])
    net.conv2d(17, (3, 3), (2, 2), (1, 0, 1, 2))
    net.then("relu6")
    net.conv2d(17, (3, 3), padding=(1, 1, 1, 1), groups=17)
    net.then("relu")
    net.conv2d(16, (1, 1))
    net.conv2d(16, (5, 3), (1, 2), (2, 1, 2, 1), groups=16)
    net.conv2d(6, (2, 1), dilation=(2, 1), groups=2)
    return net.classify(3)


def winograd() -> Network:
    """As many channels and pixels as it takes for the engine to compute 3x3 by Winograd."""
    net = Network(1, 1, 9, 7, resize=[9, 7])
    kept = net.conv2d(17, (1, 1))
    net.conv2d(17, (3, 3), padding=(1, 1, 1, 1))
    net.then("add", inputs=[net.last, kept])
    net.then("hardswish")
    return net.classify(2)


def gate() -> Network:
    """Squeeze-and-excitation that joins the 1x1 convolution before it."""
    net = Network(1, 1, 5, 7, resize=[5, 7])
    net.conv2d(3, (3, 3), padding=(1, 1, 1, 1))
    kept = net.conv2d(8, (1, 1))
    net.then("adaptive_average_pool2d", (1, 8, 1, 1), size=[1, 1])
    net.conv2d(2, (1, 1))
    net.then("relu")
    net.conv2d(8, (1, 1))
    net.then("sigmoid")
    net.then("mul", (1, 8, 5, 7), [kept, net.last])
    net.then("relu6")
    return net.classify(2)


def attention() -> Network:
    """A residual block with squeeze-and-excitation."""
    net = Network(1, 3, 8, 8, resize=[8, 8], mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4])
    kept = net.conv2d(8, (3, 3), padding=(1, 1, 1, 1))
    body = net.conv2d(8, (3, 3), padding=(1, 1, 1, 1), groups=8)
    net.then("adaptive_average_pool2d", (1, 8, 1, 1), size=[1, 1])
    net.conv2d(2, (1, 1))
    net.then("relu")
    net.conv2d(8, (1, 1))
    scale = net.then("sigmoid")
    scaled = net.then("mul", (1, 8, 8, 8), [body, scale])
    net.then("add", inputs=[scaled, kept])
    return net.classify(4)


def activations() -> Network:
    net = Network(1, 1, 3, 5, resize=[3, 5], interpolation="bicubic")
    net.conv2d(5, (1, 1))
    for op in ("silu", "hardswish", "hardsigmoid", "sigmoid", "tanh", "relu", "relu6"):
        net.then(op)
    net.then("leaky_relu", negative_slope=0.01)
    net.then("gelu", tanh=0)
    net.then("gelu", tanh=1)
    net.then("softmax", axis=1)
    net.classify(3)
    net.then("gelu", tanh=0)
    net.then("softmax", axis=1)
    return net


def broadcasting() -> Network:
    net = Network(1, 3, 4, 5, resize=[4, 5], interpolation="nearest")
    image = net.last
    for op, shape in (
        ("add", (1, 3, 1, 1)),
        ("sub", (1, 1, 4, 5)),
        ("mul", (1, 1, 1, 5)),
        ("add", (1, 3, 4, 1)),
        ("sub", (1, 3, 4, 5)),
    ):
        net.then("constant", shape, inputs=[], tensors={"value": shape})
        image = net.then(op, (1, 3, 4, 5), [image, net.last])
    net.classify(2)
    logits = net.last
    net.then("constant", (1, 1), inputs=[], tensors={"value": (1, 1)})
    net.then("sub", (1, 2), [net.last, logits])
    return net


def pools() -> Network:
    net = Network(1, 1, 11, 9, crop=[11, 9])
    net.conv2d(18, (1, 1))
    net.then(
        "max_pool2d",
        (1, 18, 6, 5),
        kernel=[3, 2],
        stride=[2, 2],
        padding=[1, 1],
        dilation=[1, 1],
        ceil_mode=0,
    )
    net.then(
        "average_pool2d",
        (1, 18, 3, 3),
        kernel=[2, 3],
        stride=[2, 2],
        padding=[0, 1],
        ceil_mode=0,
        count_include_pad=1,
        divisor=5,
    )
    net.then(
        "average_pool2d",
        (1, 18, 2, 2),
        kernel=[2, 2],
        stride=[2, 2],
        padding=[0, 0],
        ceil_mode=1,
        count_include_pad=0,
        divisor=0,
    )
    net.then("adaptive_max_pool2d", (1, 18, 2, 4), size=[2, 4])
    net.then("adaptive_average_pool2d", (1, 18, 3, 1), size=[3, 1])
    net.then("mean", (1, 18, 1, 1), axes=[2, 3])
    net.reshape(1, 18)
    net.linear(2)
    return net


def rearranging() -> Network:
    net = Network(1, 3, 4, 6, resize=[4, 6])
    net.conv2d(20, (1, 1))
    whole = net.then("channel_shuffle", groups=4)
    left = net.then("slice", (1, 7, 4, 6), [whole], axis=1, start=0, end=7)
    right = net.then("slice", (1, 13, 4, 6), [whole], axis=1, start=7, end=20)
    net.then("concat", (1, 40, 4, 6), [right, left, whole], axis=1)
    net.then("pad", (1, 40, 5, 9), padding=[1, 0, 0, 3], value=-0.5)
    net.then("permute", (1, 5, 9, 40), order=[0, 2, 3, 1])
    net.reshape(1, 5, 3, 3, 8, 5)
    net.then("permute", (1, 5, 8, 3, 5, 3), order=[0, 5, 4, 3, 1, 2])
    net.then("slice", (1, 5, 8, 3, 1, 3), axis=4, start=2, end=3)
    net.reshape(1, 360)
    net.linear(2)
    return net


def normalising() -> Network:
    net = Network(1, 3, 4, 4, resize=4, crop=4)
    net.conv2d(6, (2, 2), stride=(2, 2))
    net.then("layer_norm", tensors={"weight": (6,), "bias": (6,)}, axes=[1], epsilon=1e-6)
    net.then("layer_norm", tensors={"weight": (2, 2), "bias": (2, 2)}, axes=[2, 3], epsilon=1e-5)
    net.then("permute", (1, 2, 2, 6), order=[0, 2, 3, 1])
    net.then("layer_norm", tensors={"weight": (6,), "bias": (6,)}, axes=[3], epsilon=1e-6)
    net.then("mean", (1, 1, 1, 6), axes=[1, 2])
    net.reshape(1, 6)
    net.then("layer_norm", tensors={"weight": (6,), "bias": (6,)}, axes=[1], epsilon=1e-5)
    net.linear(3)
    return net


NETWORKS = (
    smallest,
    convolutions,
    winograd,
    gate,
    attention,
    activations,
    broadcasting,
    pools,
    rearranging,
    normalising,
)


def write_networks(folder: Path) -> None:
    sys.path.insert(0, str(native_build()))
    native = importlib.import_module("quern_native")
    for network in NETWORKS:
        path = folder / f"{network.__name__}.bin"
        network().write(path)
        try:
            native.Model(str(path))
        except ValueError as refusal:
            path.unlink()
            print(f"left out: {refusal}")


# ---- Images: a file, then the 8 bytes of settings that fuzz_image.cc describes ----

SETTINGS = (
    bytes([0, 0, 0, 0, 0, 0, 0, 0]),  # nothing but value / 255
    bytes([1 + 8, 1, 15, 20, 0, 0, 128, 64]),  # resize exactly, bilinear; normalise
    bytes([1 + 2 + 4, 2, 17, 0, 9, 9, 0, 0]),  # shorter side, bicubic; crop
    bytes([1, 0, 31, 2, 0, 0, 0, 0]),  # enlarge and shrink, nearest
    bytes([4, 0, 0, 0, 200, 3, 0, 0]),  # a crop larger than the image
)


def photograph(width: int, height: int, mode: str) -> Image.Image:
    """Smooth and noisy parts of every colour."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (3 + c)) * np.cos(y / (5 - c)) for c in range(3)]
    noise = np.random.default_rng(width * height).normal(scale=0.1, size=(height, width, 3))
    values = np.clip(128 + 100 * (np.stack(waves, axis=2) + noise), 0, 255)
    return Image.fromarray(values.astype(np.uint8)).convert(mode)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    body = name + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png(width: int, height: int, depth: int, color: int, rows: bytes, *, interlaced: bool) -> bytes:
    """A PNG of given rows (each with its filter's byte), not compressed: damage stays in place."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, int(interlaced))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + (chunk(b"PLTE", bytes(range(9))) if color == 3 else b"")
        + chunk(b"tEXt", b"Comment\x00fuzz")
        + chunk(b"IDAT", zlib.compress(rows, 0))
        + chunk(b"IEND", b"")
    )


def interlaced_rows(width: int, height: int, bits: int) -> bytes:
    """Rows of the seven passes of Adam7, every filter in turn."""
    rows = b""
    for x0, y0, dx, dy in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        columns = math.ceil((width - x0) / dx)
        lines = math.ceil((height - y0) / dy)
        if columns > 0:
            for line in range(lines):
                row = bytes((17 * line + i) % 256 for i in range(math.ceil(columns * bits / 8)))
                rows += bytes([line % 5]) + row
    return rows


def images() -> dict[str, bytes]:
    color = photograph(24, 17, "RGB")
    alpha = color.copy()
    alpha.putalpha(100)
    return {
        "gray.jpg": saved(photograph(16, 9, "L"), "JPEG"),
        "color.jpg": saved(color, "JPEG", quality=90, subsampling=0),
        "half-color.jpg": saved(color, "JPEG", quality=30, subsampling=2),
        "progressive.jpg": saved(color, "JPEG", progressive=True, optimize=True),
        "restarts.jpg": saved(color, "JPEG", restart_marker_blocks=1),
        "cmyk.jpg": saved(photograph(9, 8, "CMYK"), "JPEG"),
        "one-pixel.jpg": saved(photograph(1, 1, "RGB"), "JPEG"),
        "wide.jpg": saved(photograph(300, 1, "RGB"), "JPEG"),
        "truncated.jpg": saved(color, "JPEG")[:-40],
        "gray.png": saved(photograph(16, 9, "L"), "PNG"),
        "color.png": saved(color.resize((11, 6)), "PNG"),
        "alpha.png": saved(alpha.resize((9, 7)), "PNG"),
        "gray-alpha.png": saved(photograph(8, 5, "L").convert("LA"), "PNG"),
        "bits.png": saved(photograph(13, 6, "1"), "PNG"),
        "palette.png": saved(color.quantize(7), "PNG"),
        "palette-8.png": saved(color.quantize(200), "PNG", optimize=True),
        "sixteen.png": saved(Image.fromarray(np.full((3, 4), 40000, np.uint16)), "PNG"),
        "interlaced.png": png(9, 10, 8, 2, interlaced_rows(9, 10, 24), interlaced=True),
        "interlaced-bits.png": png(11, 5, 2, 0, interlaced_rows(11, 5, 2), interlaced=True),
        "few-colors.png": png(4, 2, 2, 3, bytes([0, 0x1B, 0, 0xE4]), interlaced=False),
        "gif.gif": saved(photograph(4, 3, "P"), "GIF"),
    }


# ---- HTTP: a byte of flags (fuzz_http.cc), then what a client sends ----

ADMIN, PIECES, VANISH, STAY = 1, 2, 4, 8


def request(line: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"{line} HTTP/1.1", "Host: quern", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "".join(f"{text}\r\n" for text in [*lines, ""]).encode() + body


def form(content: bytes, field: str = "image", boundary: str = "xyz") -> bytes:
    return (
        f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="a.png"\r\n'
        "Content-Type: image/png\r\n\r\n".encode()
        + content
        + f"\r\n--{boundary}--\r\n".encode()
    )


def conversations() -> dict[str, bytes]:
    image = saved(photograph(4, 4, "L"), "PNG")
    photo = saved(photograph(4, 4, "L"), "JPEG", quality=1)
    predict = "POST /predict"
    health = request("GET /health")
    multipart = "Content-Type: multipart/form-data; boundary=xyz"
    chunked = (
        f"{predict} HTTP/1.1\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
        f"{10:x}\r\n".encode()
        + image[:10]
        + f"\r\n{len(image) - 10:x};name=value\r\n".encode()
        + image[10:]
        + b"\r\n0\r\nTrailer: yes\r\n\r\n"
    )
    read = [request(f"GET {path}") for path in ("/health", "/models/info", "/metrics", "/nothing")]
    return {
        "reading": bytes([0]) + b"".join(read),
        "head": bytes([STAY]) + request("HEAD /health") + request("HEAD /metrics") + health,
        "predict": bytes([0]) + request(predict, "Content-Type: image/png", body=image),
        "predict-slowly": bytes([PIECES])
        + request(f"{predict}?top=1", "Content-Type: image/jpeg", body=photo),
        "predict-twice": bytes([STAY])
        + request(predict, "Content-Type: application/octet-stream", body=image) * 2
        + health,
        "form": bytes([0]) + request(predict, multipart, body=form(image)),
        "form-quoted": bytes([0])
        + request(
            f"{predict}?top=2&x=%41",
            'Content-Type: Multipart/Form-Data; charset=utf-8; boundary="a b"',
            body=form(image, boundary="a b"),
        ),
        "form-two-fields": bytes([0])
        + request(predict, multipart, body=form(b"1", "top")[:-9] + b"\r\n" + form(image)),
        "form-cut-off": bytes([0]) + request(predict, multipart, body=form(image)[:-9]),
        "form-wrong-field": bytes([0]) + request(predict, multipart, body=form(image, "file")),
        "chunked": bytes([0]) + chunked + health,
        "expect": bytes([STAY])
        + request(predict, "Expect: 100-continue", "Content-Type: image/png", body=image),
        "expect-other": bytes([0]) + request(predict, "Expect: more", body=image),
        "vanish": bytes([VANISH]) + request(predict, "Content-Type: image/png", body=image) * 2,
        "vanish-early": bytes([VANISH + PIECES]) + request(predict, "Content-Length: 4000")[:60],
        "too-long": bytes([STAY])
        + request(predict, "Content-Type: image/png", "Content-Length: 5000", body=b""),
        "reload": bytes([STAY]) + request("POST /models/reload", "X-API-Key: key"),
        "reload-bearer": bytes([0]) + request("POST /models/reload", "Authorization: Bearer keys"),
        "close": bytes([0]) + request("GET /health", "Connection: close") + health,
        "old": bytes([0]) + b"GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" * 2,
        "methods": bytes([STAY])
        + b"".join(request(f"{m} /predict") for m in ("GET", "PUT", "OPTIONS", "TRACE", "BREW")),
        "folded": bytes([0]) + b"GET /health HTTP/1.1\r\nX: a\r\n b\r\n\tc\r\nX: d\r\n\r\n",
        "absolute": bytes([0]) + request("GET http://me:80/models/info?a=b#c"),
        "admin-status": bytes([ADMIN]) + request("GET /status") + request("POST /discard"),
        "admin-load": bytes([ADMIN]) + request("POST /load", body=b'{"release": "/no/such/place"}'),
        "admin-activate": bytes([ADMIN]) + request("POST /activate", body=b'{"release": "x"}'),
        "admin-predict": bytes([ADMIN])
        + request(predict, "Content-Type: image/png", body=image)
        + request("POST /load", body=b"[1"),
        # Answers without a length, on a connection that stayed open.
        "regression-version-0": bytes([0])
        + b"GET /health HTTP/0.9\r\nConnection: keep-alive\r\n\r\n" * 2,
        # Answered as HTTP/1.-57.
        "regression-version-1-111": bytes([0]) + b"GET /health HTTP/1.11111111\r\n\r\n",
        # Refused with status 7: the version was taken to have three characters.
        "regression-status-7": bytes([STAY]) + b"GET / HTTP/1.11111111\r\nno colon\r\n\r\n",
        # evhttp's page of HTML went out where a request had been answered before.
        "regression-nonsense-after-answer": bytes([STAY]) + health + b"nonsense\r\n\r\n",
    }


def write_all(folder: Path, contents: dict[str, bytes]) -> None:
    for name, content in contents.items():
        (folder / name).write_bytes(content)


def main() -> None:
    for target in ("weights", "image", "http"):
        (CORPUS / target).mkdir(parents=True, exist_ok=True)
    write_networks(CORPUS / "weights")
    write_all(
        CORPUS / "image",
        {
            name: content + SETTINGS[index % len(SETTINGS)]
            for index, (name, content) in enumerate(images().items())
        },
    )
    write_all(CORPUS / "http", conversations())


if __name__ == "__main__":
    main()

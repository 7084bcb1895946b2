"""A GGUF → a quantized format, by llama.cpp's own function: byte for byte llama-quantize's file.

llama.cpp is asked twice. The first time it only plans (its dry run, which reads the header): what
it would do to which tensor, whether it needs an importance matrix and how large the result is. So
what is to be refused is refused before the work is done.
"""

import ctypes
import math
import os
import re
from pathlib import Path
from typing import Any

from tasks.core.action import note, progress
from tasks.core.errors import QuernError
from tasks.models.layout import LLAMA_FOLDER
from tasks.models.llama_cpp.convert import refuse_full_disk
from tasks.models.llama_cpp.gguf_file import read_floats, read_header
from tasks.models.llama_cpp.library import heard, load

ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
# In llama.h, but nothing that llama-quantize offers.
NOT_OFFERED = {"GUESSED", "NVFP4"}
STRING, INTEGER = 3, 0  # llama_model_kv_override_type
MAX_STRING = 127


def quantize(
    source: str,
    target: str,
    format: str,
    allow_fallback: bool,
    name: str,
    imatrix: str | None = None,
    threads: int | None = None,
    library: str = LLAMA_FOLDER,
) -> None:
    """Quantize the GGUF `source` into `target`.

    `format`: llama.cpp's name, such as Q4_K_M. `imatrix`: an importance matrix in a GGUF file.
    `allow_fallback`: another type may take the place of one that a tensor's rows don't fit.
    `name`: the model's in models.yaml. `threads`: all processors by default; the bytes are the
    same for any number.

    Raises QuernError: no such format, `source` is `target`, a tensor would fall back, an
    importance matrix is needed or doesn't belong, too little disk space, or llama.cpp's reason.
    """
    api = load(library)
    if not os.path.exists(source):
        raise QuernError(f"{source}: not there; build it again")
    if os.path.exists(target) and os.path.samefile(source, target):
        raise QuernError(f"{target}: is also the file to be quantized; name another")
    settings = api.llama_model_quantize_default_params()
    settings.ftype = format_number(api, format, f"models.{name}.quantize.formats")
    settings.nthread = threads or 0
    kept = _with_imatrix(api, settings, imatrix) if imatrix else []
    plan = _Log()
    settings.dry_run = True
    _call(api, source, target, settings, plan, format, name)
    _refuse_fallback(plan, allow_fallback, format, name)
    refuse_full_disk(target, plan.bytes + _metadata_bytes(source))
    settings.dry_run = False
    try:
        _call(api, source, target, settings, _Log(f"quantizing to {format}"), format, name)
    except BaseException:
        Path(target).unlink(missing_ok=True)
        raise
    del kept


def formats(api: Any) -> dict[str, int]:
    """llama.cpp's name of each format → its number in llama.h, by the loaded `llama_cpp`."""
    found = {}
    for constant in dir(api):
        name = re.sub(r"^LLAMA_FTYPE_(MOSTLY_|ALL_)", "", constant)
        if name != constant and name not in NOT_OFFERED:
            found[name] = getattr(api, constant)
    return found | {alias: found[name] for alias, name in ALIASES.items()}


def format_number(api: Any, format: str, key: str) -> int:
    """The number of a format. Raises QuernError naming `key` and listing the names there are."""
    known = formats(api)
    if format not in known:
        raise QuernError(
            f"{key}: llama.cpp has no format {format}; its formats are {', '.join(sorted(known))}"
        )
    return known[format]


class _Log:
    """What llama.cpp says while it quantizes; progress is told if there is a label for it."""

    def __init__(self, label: str | None = None) -> None:
        self.label = label
        self.fallbacks: list[str] = []
        self.errors: list[str] = []
        self.needs_imatrix = False
        self.bytes = 0

    def __call__(self, level: str, line: str) -> None:
        step = re.match(r"\[ *(\d+)/ *(\d+)\]", line)
        if step and self.label:
            progress(self.label, int(step[1]), int(step[2]), "tensors")
        fallback = re.search(
            r"warning: (\S+) +- ncols +(\d+) not divisible by +(\d+).*-> falling back to +(\S+)",
            line,
        )
        if fallback:
            tensor, columns, block, instead = fallback.groups()
            self.fallbacks.append(f"{tensor} ({columns} columns, not in {block}s) to {instead}")
        size = re.search(r"quant size += +([\d.]+) MiB", line)
        if size:
            self.bytes = math.ceil((float(size[1]) + 0.01) * 2**20)
        if "require an imatrix" in line or "requires an imatrix" in line:
            self.needs_imatrix = True
        if level == "error" and line.strip(" ="):
            self.errors.append(" ".join(line.split()))


def _call(
    api: Any, source: str, target: str, settings: Any, log: _Log, format: str, name: str
) -> None:
    with heard(log):
        status = api.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(settings))
    if log.needs_imatrix:
        raise QuernError(
            f"{format} needs an importance matrix: set models.{name}.quantize.imatrix to a text "
            "like what the model will be asked"
        )
    if status:
        reason = log.errors[-1] if log.errors else "no reason given"
        raise QuernError(f"{source}: llama.cpp can't quantize it to {format}: {reason}")


def _refuse_fallback(plan: _Log, allowed: bool, format: str, name: str) -> None:
    if not plan.fallbacks:
        return
    first, more = plan.fallbacks[0], len(plan.fallbacks) - 1
    what = f"{format}: falls back for {first}" + (f", and for {more} more tensors" if more else "")
    if not allowed:
        raise QuernError(
            f"{what}; take a format with smaller blocks, such as Q8_0, or set "
            f"models.{name}.quantize.allow_fallback to true"
        )
    note(f"{name}: {what}")


def _metadata_bytes(path: str) -> int:
    """Bytes before the tensors' data, which a quantized file has too."""
    return read_header(path).data_offset


def _with_imatrix(api: Any, settings: Any, path: str) -> list[Any]:
    """Put the importance matrix at `path` into `settings`; what is returned must be kept alive.

    As llama-quantize does it (load_imatrix in tools/quantize/quantize.cpp), but with the file's
    name in place of its path, so that the bytes don't depend on where the project lies.
    """
    header = read_header(path)
    tensors = {tensor.name: tensor for tensor in header.tensors}
    names = sorted(n.removesuffix(".in_sum2") for n in tensors if n.endswith(".in_sum2"))
    datasets = header.metadata.get("imatrix.datasets")
    chunks = header.metadata.get("imatrix.chunk_count")
    if not names or datasets is None or chunks is None:
        raise QuernError(f"{path}: not an importance matrix; make it again")
    entries = (api.llama_model_imatrix_data * (len(names) + 1))()
    kept: list[Any] = [entries]
    for entry, name in zip(entries, names, strict=False):
        if f"{name}.counts" not in tensors:
            raise QuernError(f"{path}: {name} has sums and no counts; make it again")
        means = _means(path, tensors[f"{name}.in_sum2"], tensors[f"{name}.counts"])
        values = (ctypes.c_float * len(means))(*means)
        entry.name, entry.size = name.encode(), len(means)
        entry.data = ctypes.cast(values, ctypes.POINTER(ctypes.c_float))
        kept.append(values)
    told: list[tuple[str, str | int]] = [("file", os.path.basename(path))]
    if datasets:
        told.append(("dataset", datasets[0]))
    told.append(("entries_count", len(names)))
    if chunks > 0:
        told.append(("chunks_count", chunks))
    overrides = (api.llama_model_kv_override * (len(told) + 1))()
    for override, (key, value) in zip(overrides, told, strict=False):
        override.key = f"quantize.imatrix.{key}".encode()
        if isinstance(value, str):
            override.tag = STRING
            override.value.val_str = value.encode()[:MAX_STRING]
        else:
            override.tag = INTEGER
            override.value.val_i64 = value
    settings.imatrix = entries
    settings.kv_overrides = ctypes.cast(overrides, ctypes.POINTER(api.llama_model_kv_override))
    return [*kept, overrides]


def _means(path: str, sums: Any, counts: Any) -> list[float]:
    """The mean square of each column, per expert where a tensor has several.

    Divided in float32, as llama-quantize does, else the last bits would differ.
    """
    import numpy

    number = numpy.array(read_floats(path, counts), numpy.float32).round()
    total = numpy.array(read_floats(path, sums), numpy.float32).reshape(len(number), -1)
    seen = number[:, None] > 0
    means = numpy.where(seen, total / numpy.where(seen, number[:, None], 1), numpy.float32(1))
    return [float(mean) for mean in means.astype(numpy.float32).ravel()]

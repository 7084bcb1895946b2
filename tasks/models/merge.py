"""Merging: base + adapter → a model's directory in the base's own shards, names and types.

Plain LoRA is streamed: rows of one tensor at a time are read, added to and written, so that memory
does not grow with the model; the result is bit for bit peft's. All else is left to peft, whose
result is then put into the base's layout.
"""

import errno
import gc
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tasks.core.action import progress
from tasks.core.errors import QuernError
from tasks.models.adapter import (
    Adapter,
    Update,
    plan,
    read_adapter,
    refuse_other_base,
    refuse_other_tokenizer,
)
from tasks.models.hugging_face import ADAPTER_WEIGHTS, tokenizer_files
from tasks.models.pretrained import (
    Architecture,
    Pretrained,
    by,
    first_line,
    read_architecture,
    read_json,
    read_pretrained,
)
from tasks.models.safetensors_file import (
    Bytes,
    SafetensorsFile,
    Stored,
    not_finite,
    read_exactly,
    write_exactly,
)

AT_ONCE = 1 << 20  # bytes of a tensor held by each thread
MOST_THREADS = 8
TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}

# Rewrites a piece of one tensor in place: its first element, and its bytes, which are whole rows.
Rewrite = Callable[[int, Bytes], None]


def merge(
    base_folder: Path,
    adapter_folder: Path,
    outputs: dict[str, Path],
    tool: str = "automatic",
    base_name: str | None = None,
) -> list[str]:
    """Merge an adapter into a base; `outputs` are the paths of the merged model's files by name.

    Weights keep the base's files, order, types and shapes; the other files are copied, the
    tokenizer's from the adapter where it brings them. Returns notes of what was done otherwise.
    Raises QuernError for whatever doesn't fit together, and when the disk is too full.
    """
    base, adapter = read_pretrained(base_folder), read_adapter(adapter_folder)
    refuse_other_base(adapter, base, base_name)
    architecture = read_architecture(base)
    rows = architecture.network.get_input_embeddings().weight.shape[0]
    refuse_other_tokenizer(adapter, base, rows)
    planned = plan(adapter, base, architecture)
    notes = []
    if architecture.unknown:
        notes.append(
            f"{len(architecture.unknown)} tensors of {base_folder} have no place in its"
            f" architecture and were copied: {architecture.unknown[0]}"
        )
    by_library = tool != "automatic" or bool(planned.reasons)
    if tool == "automatic" and planned.reasons:
        notes.append(f"merged by peft, not streamed: {planned.reasons[0]}")
    _refuse_full_disk(base, outputs, 2 if by_library else 1)
    try:
        for name in outputs:
            if name not in base.files:
                _copy(name, base_folder, adapter_folder, outputs[name])
        if by_library:
            merge_by_library(base, adapter, architecture, outputs, tool)
        else:
            merge_streaming(base, adapter, planned.updates, outputs)
    except OSError as error:
        where = error.filename or next(iter(outputs.values())).parent
        what = "; make room and run again" if error.errno == errno.ENOSPC else ""
        raise QuernError(f"{where}: {error.strerror or error}{what}") from None
    return notes


def _refuse_full_disk(base: Pretrained, outputs: dict[str, Path], times: int) -> None:
    folder = next(iter(outputs.values())).parent
    free, needed = shutil.disk_usage(folder).free, times * base.size
    if free < needed:
        raise QuernError(
            f"{folder}: merging needs {needed:,} bytes of disk, and {free:,} are free; make room"
            " and run again"
        )


def _copy(name: str, base: Path, adapter: Path, output: Path) -> None:
    """Copy one small file, the tokenizer's from the adapter if it has it."""
    overridden = tokenizer_files(str(adapter))
    # transformers takes a chat_template.jinja before the template in tokenizer_config.json, where
    # its older versions wrote it: the base's must not come before the adapter's.
    older = "tokenizer_config.json" in overridden and name not in overridden
    if name == "chat_template.jinja" and older:
        template = read_json(adapter / "tokenizer_config.json").get("chat_template")
        if template is not None:
            if not isinstance(template, str):
                raise QuernError(
                    f"{adapter / 'tokenizer_config.json'}: holds several chat templates; put the"
                    " one to use in chat_template.jinja beside it"
                )
            output.write_text(template, encoding="utf-8")
            return
    shutil.copyfile((adapter if name in overridden else base) / name, output)


def merge_streaming(
    base: Pretrained, adapter: Adapter, updates: dict[str, Update], outputs: dict[str, Path]
) -> None:
    """Write the base's weights with `updates` added: W + (B·A·scale) rounded to W's type, A and B
    in float32, which is what peft's merge_and_unload(safe_merge=True) does. The bytes don't depend
    on the number of threads; peft's do, in the last bit, for a tensor of fewer than 16 rows.

    Raises QuernError for NaN or infinity in the base or in the sum, OSError.
    """

    def adding(name: str) -> Rewrite | None:
        update = updates.get(name)
        if update is None:
            return None
        up, down = _matrix(adapter.file, update.up), _matrix(adapter.file, update.down)
        dtype, columns = TYPES[base.stored(name).dtype], down.shape[1]

        def add(first: int, data: Bytes) -> None:
            piece = torch.from_numpy(data).view(dtype).view(-1, columns)
            row = first // columns
            delta = (up[row : row + len(piece)] @ down).mul_(update.scale)
            piece += delta.to(dtype)

        return add

    rewrite_weights(base, outputs, adding)


def _matrix(file: SafetensorsFile, name: str) -> Tensor:
    stored = file.tensors[name]
    return torch.from_numpy(file.read(name)).view(TYPES[stored.dtype]).view(stored.shape).float()


def rewrite_weights(
    base: Pretrained, outputs: dict[str, Path], rewriting: Callable[[str], Rewrite | None]
) -> None:
    """Write every weight file of the base to its output, each tensor by pieces through what
    `rewriting` gives for its name; None leaves it as it is.

    Headers are the base's, byte for byte. Raises QuernError for NaN or infinity, OSError.
    """
    total, done, lock = base.size, 0, threading.Lock()

    def work(file: SafetensorsFile, reader: int, writer: int, name: str) -> None:
        nonlocal done
        stored, rewrite = file.tensors[name], rewriting(name)
        for first, start, end in pieces(stored):
            data = np.empty(end - start, np.uint8)
            read_exactly(reader, data, start, file.path)
            bad = not_finite(data, stored.dtype)
            if bad:
                raise QuernError(
                    f"{file.path}: {name} holds numbers that are NaN or infinite ({bad} in one"
                    " part of it); copy the base again, or take another"
                )
            if rewrite is not None:
                rewrite(first, data)
                bad = not_finite(data, stored.dtype)
            if bad:
                raise QuernError(
                    f"{name}: merged, {bad} of its numbers are too large for {stored.dtype} (NaN or"
                    " infinite); the adapter is broken, or lora_alpha is far too large"
                )
            write_exactly(writer, data, start)
        with lock:
            done += stored.end - stored.begin
            progress("merging", min(done, total), total)

    # Threads over tensors, one thread within each: a small product is faster so.
    threads = min(MOST_THREADS, os.cpu_count() or 1)
    before = torch.get_num_threads()
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for name, file in base.files.items():
                with open(file.path, "rb") as reader, open(outputs[name], "wb") as writer:
                    write_exactly(writer.fileno(), np.frombuffer(file.header, np.uint8), 0)
                    waiting = [
                        pool.submit(work, file, reader.fileno(), writer.fileno(), tensor)
                        for tensor in file.tensors
                    ]
                    try:
                        for future in waiting:
                            future.result()
                    except BaseException:
                        pool.shutdown(cancel_futures=True)  # before the files are closed
                        raise
        finally:
            torch.set_num_threads(before)
    progress("merging", total, total)


def pieces(stored: Stored) -> Iterator[tuple[int, int, int]]:
    """A tensor in pieces of whole rows, about AT_ONCE bytes each and nearly equal: first element,
    start and end in the file. Of 16 rows or more, if it has them: the last bits of a product of
    fewer rows depend on how many they are, and on the number of threads."""
    size = stored.end - stored.begin
    rows = stored.shape[0] if stored.shape else 1
    if not size:
        return
    row_bytes = size // rows
    elements = 1
    for length in stored.shape[1:]:
        elements *= length
    count = max(1, min(rows // 16, -(-size // AT_ONCE)))
    for number in range(count):
        row, after = rows * number // count, rows * (number + 1) // count
        yield row * elements, stored.begin + row * row_bytes, stored.begin + after * row_bytes


def merge_by_library(
    base: Pretrained,
    adapter: Adapter,
    architecture: Architecture,
    outputs: dict[str, Path],
    tool: str,
) -> None:
    """Merge with peft (or unsloth) in memory, then write the result in the base's layout.

    Tensors that the merge did not change keep the base's bytes. Raises QuernError: the tool fails,
    adapter weights that it did not use or lacks, tensors that the base doesn't have.
    """
    gc.enable()  # whole models are held here
    with tempfile.TemporaryDirectory(dir=next(iter(outputs.values())).parent) as folder:
        saved = Path(folder)
        tied = _save_merged(base, adapter, architecture, tool, saved)
        merged = read_pretrained(saved)
        _refuse_other_tensors(base, merged, architecture, tied, adapter)

        def putting(name: str) -> Rewrite | None:
            found, dtype = _name_in(merged, name, architecture), TYPES.get(base.stored(name).dtype)
            if found is None or dtype is None:
                return None
            file, theirs = merged.file_of[found], merged.stored(found)
            kind = TYPES[theirs.dtype]

            def put(first: int, data: Bytes) -> None:
                piece = torch.from_numpy(data).view(dtype)
                read = np.empty(len(piece) * kind.itemsize, np.uint8)
                with open(file.path, "rb", buffering=0) as reader:
                    start = theirs.begin + first * kind.itemsize
                    read_exactly(reader.fileno(), read, start, file.path)
                result = torch.from_numpy(read).view(kind)
                changed = result != piece.to(kind)
                piece[changed] = result[changed].to(dtype)

            return put

        rewrite_weights(base, outputs, putting)


def _widest_used(base: Pretrained) -> torch.dtype:
    """The type that most of the base's bytes are in, for the library to compute in."""
    used: dict[str, int] = {}
    for name in base.file_of:
        stored = base.stored(name)
        used[stored.dtype] = used.get(stored.dtype, 0) + stored.end - stored.begin
    most = max(used, key=lambda kind: used[kind])
    if most not in TYPES:
        raise QuernError(
            f"{base.folder}: most of its weights are {most}, into which nothing can be merged; take"
            " the model in bf16, f16 or f32"
        )
    return TYPES[most]


def _save_merged(
    base: Pretrained,
    adapter: Adapter,
    architecture: Architecture,
    tool: str,
    folder: Path,
) -> bool:
    """Merge in memory and save to `folder`; whether input and output embeddings are then tied."""
    import warnings

    import peft

    warnings.simplefilter("ignore")
    program = "unsloth" if tool == "unsloth" else "peft"
    dtype = _widest_used(base)
    try:
        if tool == "unsloth":
            network = _load_with_unsloth(base, dtype)
        else:
            network = type(architecture.network).from_pretrained(
                base.folder, dtype=dtype, local_files_only=True
            )
        adapted = peft.PeftModel.from_pretrained(network, str(adapter.folder))
        _refuse_unused(adapter, set(peft.get_peft_model_state_dict(adapted)))
        if not hasattr(adapted, "merge_and_unload"):
            raise QuernError(
                f"{adapter.folder}: a {adapter.config['peft_type']} adapter does not change weights"
                " and can't be merged; train a LoRA"
            )
        merged = adapted.merge_and_unload(safe_merge=True)
        tied = _is_tied(merged)
        merged.save_pretrained(folder)
        return tied
    except (QuernError, OSError):
        raise
    except Exception as error:
        raise QuernError(
            f"{adapter.folder}: {program} could not merge it into {base.folder}:"
            f" {first_line(error)}"
        ) from error


def _is_tied(network: Any) -> bool:
    return bool(getattr(network.config.get_text_config(), "tie_word_embeddings", False))


def _load_with_unsloth(base: Pretrained, dtype: torch.dtype) -> Any:
    try:
        import unsloth
    except ImportError:
        raise QuernError(
            "models.yaml: merge.tool is unsloth, which is not installed; pip install unsloth, or"
            " leave merge.tool out"
        ) from None
    network, _ = unsloth.FastLanguageModel.from_pretrained(
        str(base.folder), dtype=dtype, load_in_4bit=False
    )
    return network


def _refuse_unused(adapter: Adapter, used: set[str]) -> None:
    """Refuse weights that peft passed over, or made up."""
    there = set(adapter.file.tensors)
    for keys, what in (
        (sorted(there - used), "matches nothing in the base"),
        (sorted(used - there), "is missing"),
    ):
        if keys:
            raise QuernError(
                f"{adapter.folder / ADAPTER_WEIGHTS}: {keys[0]} {what} ({len(keys)} such tensors);"
                " give the base the adapter was trained on, or save the adapter again"
            )


def _name_in(merged: Pretrained, name: str, architecture: Architecture) -> str | None:
    """A base tensor's name in the library's result: its own, or that of one it is tied to."""
    same = (name, *sorted(architecture.ties.get(name, ())))
    return next((other for other in same if other in merged.file_of), None)


def _refuse_other_tensors(
    base: Pretrained,
    merged: Pretrained,
    architecture: Architecture,
    tied: bool,
    adapter: Adapter,
) -> None:
    known = {other for name in base.file_of for other in architecture.ties.get(name, {name})}
    new = sorted(set(merged.file_of) - known)
    if new or tied != _is_tied(architecture.network):
        what = new[0] if new else "an output embedding of its own"
        raise QuernError(
            f"{adapter.folder}: merged, the model has {what}, which {base.folder} has not"
            " (its config.json and files would no longer fit); untie the base's embeddings before"
            " training"
        )
    for name in base.file_of:
        found = _name_in(merged, name, architecture)
        if found is None:
            if name in architecture.unknown:
                continue
            raise QuernError(f"{adapter.folder}: merged, the model lacks {name}; report this")
        if merged.stored(found).shape != base.stored(name).shape:
            raise QuernError(
                f"{adapter.folder}: merged, {name} has shape {by(merged.stored(found).shape)}, and"
                f" {by(base.stored(name).shape)} in the base; resize the base before training"
            )

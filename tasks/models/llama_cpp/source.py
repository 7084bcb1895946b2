"""The Hugging Face directory that a GGUF is made of: the listed files and no others.

The files are seen through a temporary folder of links with a fixed name. So what lies beside them
unlisted can't have a part in the result, no folder's name gets into it, and Python code that came
with a model is never run.
"""

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.core.action import progress
from tasks.core.errors import QuernError

MAX_FLOAT16 = 65504.0
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


@contextmanager
def source_folder(files: list[str]) -> Iterator[Path]:
    """A folder named `model` with links to `files` (all from one directory), but no Python code."""
    with tempfile.TemporaryDirectory(prefix="quern-") as parent:
        folder = Path(parent) / "model"
        folder.mkdir()
        for file in files:
            if not file.endswith(".py"):
                (folder / os.path.basename(file)).symlink_to(os.path.abspath(file))
        if not (folder / "config.json").exists():
            where = os.path.dirname(files[0]) if files else "the model's directory"
            raise QuernError(f"{where}: no config.json; give a directory as Hugging Face writes it")
        yield folder


def weight_files(files: list[str]) -> list[str]:
    """The files that hold weights: safetensors where there are any, else PyTorch's."""
    named = [(os.path.basename(file), file) for file in sorted(files)]
    for prefix, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        found = [f for name, f in named if name.startswith(prefix) and name.endswith(suffix)]
        if found:
            return found
    where = os.path.dirname(files[0]) if files else "the model's directory"
    raise QuernError(f"{where}: no model*.safetensors and no pytorch_model*.bin")


def each_tensor(file: str) -> Iterator[tuple[str, Any]]:
    """(name, torch tensor) of one file of weights, one in memory at a time. Raises QuernError."""
    import torch

    try:
        if file.endswith(".safetensors"):
            from safetensors import safe_open

            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (it is no mapping)
                    yield name, tensors.get_tensor(name)
        else:
            yield from torch.load(file, map_location="cpu", mmap=True, weights_only=True).items()
    except (QuernError, OSError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise QuernError(f"{file}: can't be read ({reason}); fetch or merge it again") from None


def count_weights(files: list[str]) -> int:
    """The number of weights, from the files' headers. Raises QuernError."""
    import torch

    count = 0
    for file in weight_files(files):
        if file.endswith(".safetensors"):
            from safetensors import safe_open

            with safe_open(file, framework="pt") as tensors:
                shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
        else:
            shapes = [t.shape for t in torch.load(file, mmap=True, weights_only=True).values()]
        count += sum(math.prod(shape) for shape in shapes)
    return count


def refuse_bad_numbers(files: list[str], name: str, largest: float | None) -> tuple[int, int]:
    """Read every weight once; returns (number of weights in matrices, in vectors).

    Raises QuernError naming the tensor: it holds NaN or an infinity, or a number whose size is
    beyond `largest`, which the type it is to be stored as would turn into an infinity.
    """
    import torch

    matrices = vectors = 0
    shards = weight_files(files)
    whole = sum(os.path.getsize(file) for file in shards)
    done = 0
    for file in shards:
        for tensor_name, tensor in each_tensor(file):
            done += tensor.numel() * tensor.element_size()
            progress("checking the weights", min(done, whole), whole)
            if tensor.ndim > 1:
                matrices += tensor.numel()
            else:
                vectors += tensor.numel()
            if not tensor.is_floating_point() or not tensor.numel():
                continue
            if tensor.element_size() == 1:
                tensor = tensor.float()  # 8-bit floats have no comparison
            low, high = (float(x) for x in torch.aminmax(tensor))  # NaN, if any, is both of them
            if not (low > float("-inf") and high < float("inf")):
                what = "NaN" if bool(torch.isnan(tensor).any()) else "an infinity"
                raise QuernError(
                    f"{file}: {tensor_name} holds {what}; the training run diverged or the file is "
                    "damaged: take another checkpoint"
                )
            # Vectors are float32 in any GGUF.
            if largest is not None and tensor.ndim > 1 and max(-low, high) > largest:
                raise QuernError(
                    f"{file}: {tensor_name} holds {max(-low, high):g}, beyond float16's "
                    f"{largest:g}; set models.{name}.convert.type to bf16"
                )
    return matrices, vectors


def refuse_missing_tensors(files: list[str]) -> None:
    """Compare the tensors in `files` with those the model's own configuration calls for.

    The model is set up without memory (torch's meta device), so that this costs no more than
    reading the files' headers. Raises QuernError naming what is missing or has another shape, or
    with transformers' reason if it doesn't know such a model.
    """
    from transformers import AutoModelForCausalLM

    where = os.path.dirname(files[0])
    with source_folder(files) as folder:
        try:
            _, told = AutoModelForCausalLM.from_pretrained(
                folder,
                local_files_only=True,
                output_loading_info=True,
                device_map="meta",
                ignore_mismatched_sizes=True,
            )
        except Exception as error:
            reason = " ".join(str(error).replace(f"{folder}/", "").split())[:300]
            raise QuernError(f"{where}: transformers can't set the model up: {reason}") from None
    missing = sorted(told["missing_keys"])
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise QuernError(
            f"{where}: tensor {missing[0]}{more} is missing, which its config.json calls for; "
            "fetch or merge the model again"
        )
    mismatched = sorted(told["mismatched_keys"])
    if mismatched:
        name, found, wanted = mismatched[0]
        raise QuernError(
            f"{where}: tensor {name} has the shape {list(found)}, its config.json calls for "
            f"{list(wanted)}; fetch or merge the model again"
        )

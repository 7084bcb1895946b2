"""Quantize: each language model's GGUF in each of its formats."""

from collections.abc import Iterator
from typing import Any

from tasks.core.configuration import load_configuration
from tasks.core.recipe import Recipe
from tasks.core.tools import package_version
from tasks.models.layout import (
    LLAMA_IMATRIX,
    LLAMA_LIBRARIES,
    artifact,
    quantized,
    unquantized,
)


def task_imatrix() -> Iterator[dict[str, Any]]:
    """Measure which weights matter, over each language model's text for it."""
    for name, model in load_configuration().language_models().items():
        if model.quantize.imatrix is None:
            continue
        yield Recipe(
            name="imatrix",
            version=1,
            function="tasks.models.llama_cpp.imatrix:imatrix",
            inputs={"source": unquantized(name, model), "text": model.quantize.imatrix},
            outputs={"imatrix": artifact(name, "imatrix.gguf")},
            parameters={"context": model.evaluate.context, "name": name},
            tools={"llama-cpp-python": package_version("llama-cpp-python")},
            tool_files=(LLAMA_IMATRIX, *LLAMA_LIBRARIES),
        ).task(name, f"Measure the importance of the weights of {name}.")


def task_quantize() -> Iterator[dict[str, Any]]:
    """Quantize each language model, a task per format: `-n 2` runs two side by side."""
    for name, model in load_configuration().language_models().items():
        imatrix = artifact(name, "imatrix.gguf") if model.quantize.imatrix else None
        for format in model.quantize.formats:
            yield Recipe(
                name="quantize",
                version=1,
                function="tasks.models.llama_cpp.quantize:quantize",
                inputs={
                    "source": unquantized(name, model),
                    **({"imatrix": imatrix} if imatrix else {}),
                },
                outputs={"target": quantized(name, format)},
                parameters={
                    "format": format,
                    "allow_fallback": model.quantize.allow_fallback,
                    "name": name,
                },
                tools={"llama-cpp-python": package_version("llama-cpp-python")},
                tool_files=LLAMA_LIBRARIES,
                large=True,
            ).task(f"{name}:{format}", f"Quantize {name} to {format}.")

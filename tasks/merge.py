"""Merge: each language model's adapter added to its base, as a Hugging Face directory."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.core.action import note
from tasks.core.configuration import Source, load_configuration
from tasks.core.recipe import Recipe
from tasks.core.tools import package_version
from tasks.models.hugging_face import adapter_inputs, base_inputs
from tasks.models.layout import adapter_folder, merged_files


def task_merge() -> Iterator[dict[str, Any]]:
    """Merge each language model's adapter into its base."""
    for name, model in load_configuration().language_models().items():
        adapter = adapter_folder(name, model)
        if adapter is None:
            continue
        tools = ["torch", "transformers", "peft"]
        if model.merge.tool == "unsloth":
            tools.append("unsloth")
        yield Recipe(
            name="merge",
            version=1,
            function="tasks.merge:merge",
            inputs={"base": base_inputs(model.base), "adapter": adapter_inputs(adapter)},
            outputs=merged_files(name, model.base, adapter),
            parameters={"tool": model.merge.tool, "base_name": model.merge.base_name},
            tools={tool: package_version(tool) for tool in tools},
            large=True,
            drop=model.merge.drop,
        ).task(
            name,
            f"Merge the adapter of {name} into its base.",
            task_dep=[f"fetch:{name}"] if isinstance(model.adapter, Source) else [],
        )


def merge(
    base: list[str], adapter: list[str], tool: str, base_name: str | None, **outputs: str
) -> None:
    """Merge; `outputs` are the merged model's files by name. What was done differently than one
    may expect is told as notes."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # what is merged is on the disk; peft would look elsewhere
    gc.disable()  # importing torch and transformers costs a fifth more with it
    from tasks.models.merge import merge as merge_adapter

    notes = merge_adapter(
        Path(base[0]).parent,
        Path(adapter[0]).parent,
        {name: Path(path) for name, path in outputs.items()},
        tool,
        base_name,
    )
    for text in notes:
        note(text)

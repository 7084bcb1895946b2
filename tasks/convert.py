"""Convert: each language model's Hugging Face directory to one GGUF, checked on the way."""

from collections.abc import Iterator
from typing import Any

from tasks.core.configuration import load_configuration
from tasks.core.recipe import Recipe
from tasks.core.tools import package_version
from tasks.models.layout import CONVERTER, LLAMA_LIBRARIES, model_files, unquantized
from tasks.models.llama_cpp.text import text_input, text_tools


def task_convert() -> Iterator[dict[str, Any]]:
    """Convert each language model to GGUF, with llama.cpp's converter."""
    for name, model in load_configuration().language_models().items():
        parity = model.convert.parity or model.evaluate.text
        yield Recipe(
            name="convert",
            version=1,
            function="tasks.models.llama_cpp.convert:convert",
            inputs={
                "source": model_files(name, model),
                "converter": CONVERTER,
                **text_input("parity", parity),
            },
            outputs={"gguf": unquantized(name, model)},
            parameters={
                "type": model.convert.type,
                "name": name,
                "pre_tokenizer": model.convert.pre_tokenizer,
            },
            tools={
                "llama-cpp-python": package_version("llama-cpp-python"),
                "transformers": package_version("transformers"),
                "sentencepiece": package_version("sentencepiece"),
                "torch": package_version("torch"),
                **text_tools(parity),
            },
            tool_files=LLAMA_LIBRARIES,
            large=True,
            drop=model.convert.drop,
        ).task(name, f"Convert {name} to GGUF ({model.convert.type}).")

"""Evaluate: how far each format is from the unquantized model, and that one from PyTorch."""

from collections.abc import Iterator
from typing import Any

from tasks.core.configuration import LanguageModel, load_configuration
from tasks.core.recipe import Recipe
from tasks.core.tools import package_version
from tasks.models.layout import LLAMA_LIBRARIES, artifact, model_files, quantized, unquantized
from tasks.models.llama_cpp.text import text_input, text_tools

EVALUATION = "weights/evaluation"


def task_reference() -> Iterator[dict[str, Any]]:
    """Keep the unquantized GGUF's predictions, and hold them against PyTorch's."""
    for name, model in load_configuration().language_models().items():
        yield Recipe(
            name="reference",
            version=1,
            function="tasks.models.llama_cpp.reference:reference",
            inputs={
                "f16": unquantized(name, model),
                "source": model_files(name, model),
                **text_input("text", model.evaluate.text),
            },
            outputs={
                "logits": artifact(name, "reference.npy"),
                "report": artifact(name, "reference.json"),
            },
            parameters={
                **span(model),
                "max_kl_torch": model.evaluate.max_kl_torch,
                "name": name,
                "format": model.convert.type.upper(),
            },
            tools={
                "transformers": package_version("transformers"),
                "torch": package_version("torch"),
                **tools(model),
            },
            tool_files=LLAMA_LIBRARIES,
        ).task(name, f"Compare the unquantized {name} with PyTorch.")


def task_measure() -> Iterator[dict[str, Any]]:
    """Measure each format against the unquantized model, and make its golden set."""
    for name, model in load_configuration().language_models().items():
        for format in model.quantize.formats:
            yield Recipe(
                name="measure",
                version=1,
                function="tasks.models.llama_cpp.measure:measure",
                inputs={
                    "gguf": quantized(name, format),
                    "logits": artifact(name, "reference.npy"),
                    **text_input("text", model.evaluate.text),
                    **text_input("questions", model.evaluate.questions),
                },
                outputs={
                    "report": artifact(name, f"{format}.measured.json"),
                    "golden": artifact(name, f"{format}.golden.json"),
                },
                parameters={
                    **span(model),
                    "format": format,
                    "name": name,
                    "system": model.chat.system,
                    "chat_context": model.chat.context,
                },
                tools=tools(model),
                tool_files=LLAMA_LIBRARIES,
            ).task(f"{name}:{format}", f"Measure {format} of {name}.")


def task_evaluate() -> Iterator[dict[str, Any]]:
    """Report on all formats of all language models: JSON, Markdown, a picture."""
    models = load_configuration().language_models()
    if not models:
        return
    reports = []
    for name, model in models.items():
        reports.append(artifact(name, "reference.json"))
        reports += [artifact(name, f"{f}.measured.json") for f in model.quantize.formats]
    yield Recipe(
        name="evaluate",
        version=1,
        function="tasks.models.llama_cpp.report:report",
        inputs={"reports": reports},
        outputs={
            "json": f"{EVALUATION}/formats.json",
            "markdown": f"{EVALUATION}/formats.md",
            "plot": f"{EVALUATION}/formats.png",
        },
        parameters={
            "limits": {
                name: {"max_kl": model.evaluate.max_kl, "min_top1": model.evaluate.min_top1}
                for name, model in models.items()
            }
        },
        tools={"matplotlib": package_version("matplotlib")},
    ).task("formats", "Report on all formats of all language models.")


def span(model: LanguageModel) -> dict[str, int]:
    """How much text is read, in windows of what length."""
    return {"tokens": model.evaluate.tokens, "context": model.evaluate.context}


def tools(model: LanguageModel) -> dict[str, str]:
    """The versions that a format's figures depend on."""
    return {
        "llama-cpp-python": package_version("llama-cpp-python"),
        **text_tools(model.evaluate.text),
    }

"""The build, as a table of contents: from a checkpoint to a verified server, chapter by chapter.

`doit` brings everything up to date, `doit plan` says what that would do, `doit list` shows it.
"""

# Classifiers: checkpoint → model_weights.bin
from tasks.fetch import task_fetch
from tasks.weights import task_graph, task_weights

# Language models: base + adapter → merged → GGUF → quantized
from tasks.llama import task_llama
from tasks.merge import task_merge
from tasks.convert import task_convert
from tasks.quantize import task_imatrix, task_quantize
from tasks.evaluate import task_evaluate, task_measure, task_reference

# Both: programs, releases, live servers
from tasks.native import task_native
from tasks.release import task_release
from tasks.deploy import side_by_side, task_deploy
from tasks.promote import task_promotion
from tasks.drop import task_drop
from tasks.train import task_train_example, task_train_language_example

DOIT_CONFIG = {
    "num_process": side_by_side(),
    "default_tasks": [
        *("fetch", "graph", "weights"),
        *("llama", "merge", "convert", "imatrix", "quantize", "reference", "measure"),
        *("native", "release", "deploy", "promotion", "drop"),
    ],
}

__all__ = [
    "DOIT_CONFIG",
    "task_convert",
    "task_deploy",
    "task_drop",
    "task_evaluate",
    "task_fetch",
    "task_graph",
    "task_imatrix",
    "task_llama",
    "task_measure",
    "task_merge",
    "task_native",
    "task_promotion",
    "task_quantize",
    "task_reference",
    "task_release",
    "task_train_example",
    "task_train_language_example",
    "task_weights",
]

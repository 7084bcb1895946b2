"""The build, as a table of contents: from a checkpoint to a verified server, chapter by chapter.

`doit` brings everything up to date, `doit plan` says what that would do, `doit list` shows it.
"""

from tasks.deploy import task_deploy
from tasks.fetch import task_fetch
from tasks.native import task_native
from tasks.release import task_release
from tasks.train import task_train_example
from tasks.weights import task_graph, task_weights

DOIT_CONFIG = {"default_tasks": ["fetch", "graph", "weights", "native", "release", "deploy"]}

__all__ = [
    "DOIT_CONFIG",
    "task_deploy",
    "task_fetch",
    "task_graph",
    "task_native",
    "task_release",
    "task_train_example",
    "task_weights",
]

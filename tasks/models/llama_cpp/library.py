"""llama.cpp's library: the one the build compiled, loaded through the llama_cpp package.

The package brings no library of its own; it takes the one in the folder that the environment
variable LLAMA_CPP_LIB_PATH names when it is imported.
"""

import ctypes
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tasks.core.errors import QuernError
from tasks.models.layout import LLAMA_FOLDER

# As ggml.h numbers them. llama_cpp's own table is off by one, which hides errors.
LEVELS = {0: "none", 1: "debug", 2: "info", 3: "warning", 4: "error"}
DEBUG, INFO, CONTINUED = 1, 2, 5

# llama.cpp's threads wait for each other at every tensor. Where other processes want the processors
# too (`-n 2`), spinning for a thread that isn't running costs more than all else.
SPINS = "100"

Listener = Callable[[str, str], None]  # level, whole line

_listeners: list[Listener] = []
_loaded: dict[str, Any] = {}
_last_level = [INFO]
_partial: list[Any] = [INFO, ""]


def load(folder: str = LLAMA_FOLDER) -> Any:
    """The module `llama_cpp.llama_cpp` on the library in `folder`, its compute backends loaded.

    llama.cpp's messages go to standard output, which is the task's log, and to those who listen
    (`heard`). One process can load one library. Raises QuernError: no library in `folder`.
    """
    if "module" in _loaded:
        return _loaded["module"]
    os.environ["GGML_NO_BACKTRACE"] = "1"  # an abort would else start a debugger, for seconds
    os.environ["LLAMA_CPP_LIB_PATH"] = folder
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    # Loaded in the order of need, so that each is found by the next whatever paths are baked in.
    libraries = [_library(folder, name) for name in ("ggml-base", "ggml", "llama")]
    module = _bindings()
    _loaded["callback"] = module.llama_log_callback(_on_log)  # collected, it would crash
    module.llama_log_set(_loaded["callback"], ctypes.c_void_p(0))
    backends = libraries[1]
    backends.ggml_backend_load_all_from_path(os.path.abspath(folder).encode())
    backends.ggml_backend_reg_count.restype = ctypes.c_size_t
    if not backends.ggml_backend_reg_count():
        raise QuernError(f"{folder}: no compute backend (libggml-cpu*) fits this machine")
    module.llama_backend_init()
    _loaded["module"] = module
    return module


@contextmanager
def heard(listener: Listener) -> Iterator[None]:
    """Within it `listener` is told each line that llama.cpp logs, with its level."""
    _listeners.append(listener)
    # The package, when something else imports it, puts a function of its own in our place.
    _loaded["module"].llama_log_set(_loaded["callback"], ctypes.c_void_p(0))
    try:
        yield
    finally:
        _listeners.remove(listener)


class LastErrors:
    """A listener that keeps the last lines of complaint, to be told if the call then fails."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, level: str, line: str) -> None:
        """Keep the line if it is an error."""
        if level == "error" and line.strip():
            self.lines = [*self.lines[-2:], " ".join(line.split())]

    def told(self) -> str:
        """The complaint in a line; the reason comes first in llama.cpp's order."""
        return self.lines[0] if self.lines else "llama.cpp gave no reason"


def _bindings() -> Any:
    """llama_cpp's bindings, without the rest of the package: that takes a fifth of a second, for
    things (numpy, a server's types) that a step like quantizing has no use for."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None:
        raise QuernError("the Python package llama_cpp is not installed; run ./setup llm")
    if "llama_cpp" in sys.modules:
        return importlib.import_module("llama_cpp.llama_cpp")
    sys.modules["llama_cpp"] = importlib.util.module_from_spec(spec)
    try:
        return importlib.import_module("llama_cpp.llama_cpp")
    finally:
        del sys.modules["llama_cpp"]  # whoever imports it shall have all of it


def _library(folder: str, name: str) -> ctypes.CDLL:
    for suffix in (".so", ".dylib"):
        path = os.path.join(folder, f"lib{name}{suffix}")
        if os.path.exists(path):
            try:
                return ctypes.CDLL(os.path.abspath(path), mode=ctypes.RTLD_GLOBAL)
            except OSError as error:
                raise QuernError(f"{path}: can't be loaded: {error}") from None
    raise QuernError(f"{folder}/lib{name}.so: not there; build it with: doit llama")


def _on_log(level: int, text: bytes | None, _: Any) -> None:
    shown = (text or b"").decode(errors="replace")
    if level == CONTINUED:
        level = _last_level[0]
    _last_level[0] = level
    if level != DEBUG:  # thousands of lines on graphs and buffers
        # At once, unfinished lines too: if the process ends in this call, they tell where.
        sys.stdout.write(shown)
        sys.stdout.flush()
    if not _partial[1] or level > _partial[0]:  # a line is as grave as its gravest part
        _partial[0] = level
    *lines, rest = (_partial[1] + shown).split("\n")
    for index, line in enumerate(lines):
        for listener in _listeners:
            listener(LEVELS[_partial[0] if index == 0 else level], line)
    _partial[:] = [level if lines else _partial[0], rest]

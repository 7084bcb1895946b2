"""An importance matrix: how large each column's inputs are while the model reads a text.

Made by llama.cpp's program llama-imatrix, as its library has no function for it.
"""

import os
import re
import subprocess
import tempfile

from tasks.core.action import progress
from tasks.core.errors import QuernError
from tasks.models.layout import LLAMA_FOLDER
from tasks.models.llama_cpp.library import SPINS
from tasks.models.llama_cpp.model import Model
from tasks.models.llama_cpp.text import evaluation_text

# The chunks that are read: more make little difference, and cost.
MAX_CHUNKS = 128
MIN_CONTEXT = 16


def imatrix(
    source: str,
    text: str,
    context: int,
    name: str,
    imatrix: str,
    threads: int | None = None,
    library: str = LLAMA_FOLDER,
) -> None:
    """Measure the unquantized GGUF `source` over the file `text`; writes the GGUF `imatrix`.

    `context`: the length in tokens of the chunks that the text is read in. The same bytes each
    time on one machine: other processors sum in another order. Raises QuernError: the text is
    too short, or llama-imatrix's own complaint.
    """
    program = os.path.abspath(f"{library}/llama-imatrix")
    if not os.path.exists(program):
        raise QuernError(f"{library}/llama-imatrix: not there; build it with: doit llama")
    context = max(context, MIN_CONTEXT)
    # The program says so itself, but loses what it says last when it ends in haste.
    with Model(source, library=library, vocabulary_only=True) as model:
        count = len(model.tokenize(evaluation_text(text), start=True))
    if count < 2 * context:
        raise QuernError(
            f"models.{name}.quantize.imatrix: {text} has {count} tokens, and {2 * context} are "
            "needed; give more text"
        )
    with tempfile.TemporaryDirectory(prefix="quern-") as folder:
        # The text's path is written into the file: it is given by name alone.
        link = os.path.join(folder, os.path.basename(text))
        os.symlink(os.path.abspath(text), link)
        command = [program, "--model", os.path.abspath(source)]
        command += ["--file", os.path.basename(text), "--output", os.path.abspath(imatrix)]
        command += ["--ctx-size", str(context), "--chunks", str(MAX_CHUNKS)]
        command += ["--batch-size", str(context)]
        command += ["--output-format", "gguf", "--check-tensors"]
        if threads:
            command += ["--threads", str(threads)]
        environment = os.environ | {"GGML_NO_BACKTRACE": "1", "GOMP_SPINCOUNT": SPINS}
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        lines = _follow(process)
        status = process.wait()
    if status or not os.path.exists(imatrix):
        complaint = _complaint(lines) or f"ended with status {status}"
        raise QuernError(f"models.{name}.quantize.imatrix: llama-imatrix: {complaint}")


def _follow(process: "subprocess.Popen[bytes]") -> list[str]:
    """Pass the program's output on to the log, and its chunks as progress; returns its lines."""
    assert process.stdout is not None
    output, total = "", 0
    while piece := os.read(process.stdout.fileno(), 1 << 14):
        shown = piece.decode(errors="replace")
        print(shown, end="", flush=True)
        output += shown
        found = re.search(r"computing over (\d+) chunks", output)
        total = int(found[1]) if found else 0
        # Chunks are told as `[1]3.2,[2]3.4,`, all on one line.
        done = re.findall(r"\[(\d+)\][\d.na-]+,", output)
        if total and done:
            progress("measuring importance", int(done[-1]), total, "chunks")
    return output.splitlines()


def _complaint(lines: list[str]) -> str:
    """The first error, which tells the reason; lines are `0.00.166.467 E message`."""
    errors = (re.match(r"[\d.]+ E (.*\S)", line) for line in lines)
    return next((" ".join(error[1].split())[:300] for error in errors if error), "")

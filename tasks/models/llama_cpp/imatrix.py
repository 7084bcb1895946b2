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
    program: str = f"{LLAMA_FOLDER}/llama-imatrix",
) -> None:
    """Measure the unquantized GGUF `source` over the file `text`; writes the GGUF `imatrix`.

    `context`: the length in tokens of the chunks that the text is read in. The same bytes each
    time on one machine: other processors sum in another order. Raises QuernError: the text is
    too short, or llama-imatrix's own complaint.
    """
    for path in (source, text, program):
        if not os.path.exists(path):
            raise QuernError(f"{path}: not there")
    with tempfile.TemporaryDirectory(prefix="quern-") as folder:
        # The text's path is written into the file: it is given by name alone.
        link = os.path.join(folder, os.path.basename(text))
        os.symlink(os.path.abspath(text), link)
        command = [os.path.abspath(program), "--model", os.path.abspath(source)]
        command += ["--file", os.path.basename(text), "--output", os.path.abspath(imatrix)]
        command += ["--ctx-size", str(max(context, MIN_CONTEXT)), "--chunks", str(MAX_CHUNKS)]
        command += ["--batch-size", str(max(context, MIN_CONTEXT)), "--no-ppl"]
        command += ["--output-format", "gguf", "--check-tensors"]
        if threads:
            command += ["--threads", str(threads)]
        environment = os.environ | {"GGML_NO_BACKTRACE": "1"}
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
        raise QuernError(f"models.{name}.quantize.imatrix: llama-imatrix: {_complaint(lines)}")


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
    telling = [line for line in lines if re.search(r"error|fail|need|you can|not", line, re.I)]
    text = " ".join((telling or lines or ["it gave no reason"])[-1].split())
    return re.sub(r"^[\d.]+ [EWI] ", "", text)[:300]

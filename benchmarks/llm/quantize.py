"""Quantizing to Q4_K_M: the build's step beside llama-quantize, interleaved.

    python -m benchmarks.llm.quantize [--rounds N] [--json]

`quantize_time` is our wall time over llama-quantize's, the median of the rounds' ratios (below 1
is faster; 1.02 is what is aimed at): process start, checks and planning included on our side.
`quantize_cpu` is the same of processor time, which a busy machine disturbs less.
The model has 0.33 billion weights of random numbers. The bytes must be identical.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
FORMAT = "Q4_K_M"
HIDDEN, LAYERS, VOCABULARY = 1024, 24, 2048


def make_gguf(folder: Path) -> Path:
    """An f16 GGUF of a Llama of 0.33 billion weights, its vocabulary a small one."""
    import torch
    import transformers

    from tasks.models.llama_cpp.convert import run_converter
    from tests.gguf_models import converter, files_of, save_tokenizer

    source, gguf = folder / "model", folder / "model-f16.gguf"
    source.mkdir()
    save_tokenizer(source, VOCABULARY)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=16,
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    print(f"{model.num_parameters() / 1e9:.2f} billion weights", file=sys.stderr)
    model.save_pretrained(source)
    run_converter(files_of(source), converter(), "f16", "model", "llama-bpe", str(gguf))
    return gguf


def ours(source: Path, target: Path) -> None:
    """The step as the build runs it: in a process of its own."""
    from tasks.core.child import call_in_child
    from tests.gguf_models import llama_folder

    arguments = {
        "source": str(source),
        "target": str(target),
        "format": FORMAT,
        "allow_fallback": False,
        "name": "model",
        "library": llama_folder(),
    }
    function = "tasks.models.llama_cpp.quantize:quantize"
    call_in_child(function, arguments, target.with_suffix(".log"), lambda event: None)


def theirs(source: Path, target: Path) -> None:
    from tests.gguf_models import llama_program

    command = [llama_program("llama-quantize"), str(source), str(target), FORMAT]
    # A session of its own as our child has, which is what Linux shares the processors among.
    subprocess.run(command, check=True, capture_output=True, start_new_session=True)


def seconds(step: Any, source: Path, target: Path) -> tuple[float, float]:
    """Wall time and processor time of a step."""
    target.unlink(missing_ok=True)
    os.sync()  # what the other one wrote is not to be paid for here
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    step(source, target)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(rounds: int) -> dict[str, Any]:
    """Ratio and seconds over `rounds`, the two in turn, each first every other time."""
    with tempfile.TemporaryDirectory(prefix="quern-") as name:
        folder = Path(name)
        source = make_gguf(folder)
        targets = {ours: folder / "ours.gguf", theirs: folder / "theirs.gguf"}
        times: dict[Any, list[tuple[float, float]]] = {ours: [], theirs: []}
        for turn in range(rounds):
            for step in (ours, theirs) if turn % 2 == 0 else (theirs, ours):
                times[step].append(seconds(step, source, targets[step]))
            shown = (
                f"{wall:.2f} s ({cpu:.2f} s)" for wall, cpu in (times[ours][-1], times[theirs][-1])
            )
            print(", ".join(shown), file=sys.stderr)
        identical = targets[ours].read_bytes() == targets[theirs].read_bytes()
        if not identical:
            raise SystemExit("the bytes differ from llama-quantize's")
        pairs = list(zip(times[ours], times[theirs], strict=True))
        ratios = [a[0] / b[0] for a, b in pairs]
        return {
            "quantize_time": statistics.median(ratios),
            "quantize_time_all": ratios,
            "quantize_cpu": statistics.median(a[1] / b[1] for a, b in pairs),
            "quantize_s": statistics.median(wall for wall, _ in times[ours]),
            "llama_quantize_s": statistics.median(wall for wall, _ in times[theirs]),
            "identical_bytes": identical,
            "rounds": rounds,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.chdir(ROOT)
    found = measure(options.rounds)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        for key, value in found.items():
            print(f"{key}: {value}")


if __name__ == "__main__":
    main()

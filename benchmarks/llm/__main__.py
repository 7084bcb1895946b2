"""What language models cost beside their peers, all in one run, interleaved.

    python -m benchmarks.llm [--rounds N] [--quick] [--json]

Ratios: merge_time and merge_memory (beside peft), quantize_time (beside llama-quantize).
"""

import argparse
import json

from benchmarks.llm import merge, quantize


def main() -> None:
    """Measure both and print the figures."""
    parser = argparse.ArgumentParser("python -m benchmarks.llm")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a small model to merge")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = {**merge.measure(options.rounds, options.quick), **quantize.measure(options.rounds)}
    if options.json:
        print(json.dumps(figures, indent=1))
        return
    for name, value in figures.items():
        print(f"{name:20} {value:.3f}" if isinstance(value, float) else f"{name:20} {value}")


if __name__ == "__main__":
    main()

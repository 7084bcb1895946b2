"""What merging an adapter costs beside peft, in turn, each in a process of its own.

    python -m benchmarks.llm.merge [--rounds N] [--quick] [--json]

The base is Llama-shaped, 0.51 G random parameters in bf16, in shards of 60 MB or less; the adapter
is LoRA of rank 16 on every linear layer. Both are made in a temporary directory (3 GB). peft loads
base and adapter with transformers, merges with safe_merge=True and saves in shards of the same
size; ours checks and merges as the task does. Both write the same numbers, which is verified.

Ratios, medians of the ratios round by round; below 1 is cheaper:
  merge_time     ours ÷ peft's, wall time
  merge_cpu      ours ÷ peft's, CPU time of all threads
  merge_memory   ours ÷ peft's, peak resident memory as the kernel tells it, imports included
Figures beside them: seconds, and MiB.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
SHARD = "60MB"
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 28}
SMALL = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4}

MAKE = """
import json, sys, torch
from transformers import LlamaConfig, LlamaForCausalLM, logging
from peft import LoraConfig, get_peft_model
logging.disable_progress_bar()
torch.manual_seed(0)
torch.set_default_dtype(torch.bfloat16)
config = LlamaConfig(vocab_size=32000, num_attention_heads=16, num_key_value_heads=8,
                     **json.loads(sys.argv[1]))
model = LlamaForCausalLM(config)
model.save_pretrained("base", max_shard_size=sys.argv[2])
print(sum(p.numel() for p in model.parameters()))
names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
adapted = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=names))
for name, parameter in adapted.named_parameters():
    if "lora_B" in name:
        parameter.data.normal_(0, 0.01)
adapted.peft_config["default"].base_model_name_or_path = "base"
adapted.float().save_pretrained("adapter")
"""

PEFT = """
import sys, torch
from transformers import AutoModelForCausalLM, logging
from peft import PeftModel
logging.disable_progress_bar()
model = AutoModelForCausalLM.from_pretrained("base", dtype=torch.bfloat16)
merged = PeftModel.from_pretrained(model, "adapter").merge_and_unload(safe_merge=True)
merged.save_pretrained("peft", max_shard_size=sys.argv[1])
"""

OURS = """
import os
from tasks.merge import merge
from tasks.models.hugging_face import adapter_inputs, base_inputs, pretrained_files
os.makedirs("ours", exist_ok=True)
outputs = {name: f"ours/{name}" for name in pretrained_files("base")}
merge(base_inputs("base"), adapter_inputs("adapter"), "automatic", None, **outputs)
"""

# Not in this process: a child's peak memory begins with its parent's.
SAME = """
from pathlib import Path
from tasks.models.safetensors_file import read_header
def tensors(folder):
    files = [read_header(path) for path in sorted(Path(folder).glob("*.safetensors"))]
    return {name: file for file in files for name in file.tensors}
ours, peft = tensors("ours"), tensors("peft")
assert ours.keys() == peft.keys()
for name, file in ours.items():
    assert file.read(name).tobytes() == peft[name].read(name).tobytes(), name
"""


def run(folder: Path, script: str, *arguments: str) -> dict[str, float]:
    """Run a script in a process of its own; its wall and CPU seconds and peak MiB."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, *arguments]
    start = time.perf_counter()
    with open(folder / "log", "ab") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"benchmarks.llm.merge: a step failed:\n{(folder / 'log').read_text()[-2000:]}")
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return {
        "wall": wall,
        "cpu": used.ru_utime + used.ru_stime,
        "peak": used.ru_maxrss / unit,
    }


def measure(rounds: int = 3, quick: bool = False) -> dict[str, float]:
    """Ratios and figures, by name; `quick` takes a small model, whose figures mean nothing."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="quern-merge-") as name:
        folder = Path(name)
        run(folder, MAKE, json.dumps(SMALL if quick else LARGE), "1MB" if quick else SHARD)
        run(folder, PEFT, "1MB" if quick else SHARD)  # both once, for the page cache
        run(folder, OURS)
        run(folder, SAME)
        for _ in range(rounds):
            peft = run(folder, PEFT, "1MB" if quick else SHARD)
            ours = run(folder, OURS)
            for key, ratio in (("wall", "time"), ("cpu", "cpu"), ("peak", "memory")):
                found.setdefault(f"merge_{ratio}", []).append(ours[key] / peft[key])
                unit = "mib" if key == "peak" else "s"
                found.setdefault(f"merge_{key}_{unit}", []).append(ours[key])
                found.setdefault(f"merge_peft_{key}_{unit}", []).append(peft[key])
        shards = list((folder / "base").glob("*.safetensors"))
        size = sum(path.stat().st_size for path in shards)
    medians = {name: statistics.median(values) for name, values in found.items()}
    return {**medians, "merge_shards": len(shards), "merge_parameters": size / 2}


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.llm.merge")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a small model, one round: a test")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    figures: dict[str, Any] = measure(1 if chosen.quick else chosen.rounds, chosen.quick)
    if chosen.json:
        print(json.dumps(figures, indent=2))
        return
    for name, value in figures.items():
        print(f"{name:20} {value:14.3f}")


if __name__ == "__main__":
    main()

"""What the program writes, read by the Python libraries: converted models, merged adapters, adapters themselves.

    python tests/interop/run.py path/to/didact

Converts the tiny models of golden/ (from safetensors and from GGUF) and merges the adapters of golden/peft, loads the
results with transformers and peft, and compares logits with the golden ones or with each other. Exits 1 at the first
difference. Needs torch, transformers and peft.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "golden"
# Of logits of the size of 1, computed in f32 in two ways.
TOLERANCE = 1e-5
BF16_TOLERANCE = 0.03


def didact(*arguments):
    subprocess.run([sys.argv[1], *map(str, arguments), "--quiet"], check=True, stdout=subprocess.DEVNULL)


def load(path):
    model, info = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    wrong = {k: v for k, v in info.items() if k.endswith("keys") and v}
    assert not wrong, f"{path}: {wrong}"
    return model.eval()


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor(ids)).logits


def compare(what, found, expected, tolerance):
    difference = (found - expected).abs().max().item()
    print(f"{what}: largest difference {difference:.1e}")
    if not difference <= tolerance:
        sys.exit(f"{what}: logits differ by {difference}, more than {tolerance}")


def main():
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        for arch in ["llama", "qwen2", "qwen3", "gpt2"]:
            golden = json.loads((GOLDEN / arch / "golden.json").read_text())
            ids, expected = golden["inputs"]["input_ids"], torch.tensor(golden["outputs"]["logits"])
            for source in [GOLDEN / arch, GOLDEN / "gguf" / f"{arch}.gguf"]:
                for dtype, tolerance in [("f32", TOLERANCE), ("bf16", BF16_TOLERANCE)]:
                    target = scratch / f"{source.stem}-{source.suffix}-{dtype}"
                    didact("model", "convert", source, target, "--dtype", dtype)
                    name = f"{source.relative_to(ROOT)} as {dtype}"
                    compare(name, logits(load(target), ids), expected, tolerance)
            adapter = GOLDEN / "peft" / arch
            if adapter.exists():
                target = scratch / f"{arch}-merged"
                didact("model", "merge", GOLDEN / arch, adapter, target)
                tuned = PeftModel.from_pretrained(load(GOLDEN / arch), adapter).eval()
                compare(f"{arch} merged", logits(load(target), ids), logits(tuned, ids), 10 * TOLERANCE)
    print("all agree")


main()

"""Loads a model directory with the Python library transformers and prints what it computes.

    python tests/interop/load_in_transformers.py DIR [--adapter ADAPTER_DIR] [--compare GOLDEN_OR_DIR] [--tolerance X]

Prints the logits of a fixed input as JSON. With --compare it exits 1 if they differ by more than the tolerance from
`golden.json` in the given directory (its own input is used then), or from the model in the given directory. Needs
torch, transformers, and for adapters peft.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


def load(path, adapter=None):
    model, info = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[key]:
            sys.exit(f"{path}: {key}: {sorted(info[key])}")
    if adapter:
        from peft import PeftModel
        model = PeftModel.from_pretrained(model, adapter)
    return model.eval()


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor(ids)).logits


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir")
    parser.add_argument("--adapter")
    parser.add_argument("--compare")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    args = parser.parse_args()
    model = load(args.dir, args.adapter)
    vocabulary = model.config.vocab_size
    ids = [[(7 * i + 3 * j + 1) % vocabulary for i in range(12)] for j in range(2)]
    expected = None
    if args.compare:
        golden = Path(args.compare) / "golden.json"
        if golden.exists() and not args.adapter:
            golden = json.loads(golden.read_text())
            ids, expected = golden["inputs"]["input_ids"], torch.tensor(golden["outputs"]["logits"])
        else:
            expected = logits(load(args.compare), ids)
    found = logits(model, ids)
    tokenizer = None
    if (Path(args.dir) / "tokenizer.json").exists():
        from transformers import AutoTokenizer
        tokenizer = AutoTokenizer.from_pretrained(args.dir)
    result = {"ids": ids, "last_logits": found[:, -1, :8].tolist(), "dtype": str(model.dtype),
              "tokenizer": type(tokenizer).__name__ if tokenizer else None}
    if tokenizer:
        result["greeting_ids"] = tokenizer.encode("Hello, world 123!")
        if tokenizer.chat_template:
            chat = [{"role": "user", "content": "Hi"}]
            result["chat"] = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    if expected is not None:
        result["max_abs_difference"] = (found - expected).abs().max().item()
    print(json.dumps(result))
    if expected is not None and not result["max_abs_difference"] <= args.tolerance:
        sys.exit(f"logits differ by {result['max_abs_difference']}, more than {args.tolerance}")


main()

#!/usr/bin/env python3
"""One training step of PyTorch, timed: what `didact bench train` is measured against.

    python bench/torch_train.py small|135m f32|bf16 [STEPS]

The step is everything that a trainer does with a batch: loss of a Hugging Face Llama, its gradients, clipping to norm 1,
fused AdamW on all parameters. `bf16` is PyTorch's autocast. The batch is random and always the same. Two steps are
not counted. Prints one JSON object; needs torch and transformers.
"""
import json
import os
import resource
import statistics
import sys
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

SHAPES = {
    # rows, tokens per row, steps to time, and the model as `didact bench train --model` knows it
    "small": (
        16, 256, 12,
        {
            "vocab_size": 4096, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6,
            "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 2048,
        },
    ),
    "135m": (
        4, 256, 4,
        {
            "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
            "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192,
        },
    ),
}
WARM_UP = 2


def main():
    name, precision = sys.argv[1:3]
    rows, length, steps, shape = SHAPES[name]
    if len(sys.argv) > 3:
        steps = int(sys.argv[3])
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    tokens = torch.randint(shape["vocab_size"], (rows, length))
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16")

    milliseconds = []
    for _ in range(WARM_UP + steps):
        begun = time.perf_counter()
        with autocast:
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        last = loss.item()
        milliseconds.append((time.perf_counter() - begun) * 1e3)
    milliseconds = milliseconds[WARM_UP:]
    median = statistics.median(milliseconds)
    result = {
        "model": name,
        "precision": precision,
        "tokens_per_s": rows * length / median * 1e3,
        "step_ms": median,
        "spread": {"median": median, "min": min(milliseconds), "max": max(milliseconds), "rounds": steps},
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "loss": last,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

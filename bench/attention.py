#!/usr/bin/env python3
"""Attention, forward and backward: Didact's time beside PyTorch's, in one run, taking turns.

    make bench-kernels, or
    cargo build --release -p didact-kernels --examples
    python bench/attention.py target/release/examples/attention_rate [--pairs 5] [--seconds 0.25] [--only TEXT] [--record]

PyTorch runs `scaled_dot_product_attention` on contiguous tensors of the type of the comparison; Didact starts from the
f32 matrix of queries, keys and values side by side, conversion included. Ratios are PyTorch's time over Didact's: above
1, Didact is faster. `--record` writes the table to bench/RESULTS.md.
"""
import argparse
import statistics
import sys

from turns import THREADS, Didact, record, repeat

import torch
from torch.nn.functional import scaled_dot_product_attention

# sequences, tokens, query heads, key/value heads, head size, causal
SHAPES = [
    (4, 256, 4, 4, 64, True),
    (16, 256, 4, 4, 64, True),
    (4, 256, 9, 3, 64, True),
    (1, 2048, 9, 3, 64, True),
    (1, 2048, 4, 4, 64, True),
    (16, 256, 12, 12, 64, False),
]


def torch_time(b, t, h, k, d, causal, dtype, seconds):
    def tensor(heads):
        return torch.randn(b, heads, t, d, dtype=dtype, requires_grad=True)

    q, key, v = tensor(h), tensor(k), tensor(k)
    d_out = torch.randn(b, h, t, d, dtype=dtype)

    def run():
        return scaled_dot_product_attention(q, key, v, is_causal=causal, enable_gqa=h != k)

    with torch.no_grad():
        forward = repeat(seconds, run)
    out = run()
    backward = repeat(seconds, lambda: torch.autograd.grad(out, (q, key, v), d_out, retain_graph=True))
    return forward, backward


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.25)
    parser.add_argument("--only", default="", help="shapes whose line contains this")
    parser.add_argument("--record", action="store_true", help="write the table to bench/RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    didact = Didact(options.program)
    versions = f"PyTorch {torch.__version__}, Didact {didact.about}"
    print(f"{versions}; milliseconds, medians of {options.pairs} alternating pairs")
    rows = []
    for precision, dtype in [("f32", torch.float32), ("bf16", torch.bfloat16)]:
        for shape in SHAPES:
            b, t, h, k, d, causal = shape
            kind = "causal" if causal else "full"
            label = f"{precision:>4} {b:>2} x {t:>4} tokens, {h:>2}/{k:>2} heads of {d}, {kind:<6}"
            if options.only not in label:
                continue
            pairs = []
            for _ in range(options.pairs):
                theirs = torch_time(*shape, dtype, options.seconds)
                pairs.append((theirs, didact.ask(b, t, h, k, d, kind, precision, options.seconds)))
            for i, name in enumerate(["forward", "backward"]):
                theirs = 1e3 * statistics.median(p[0][i] for p in pairs)
                ours = 1e3 * statistics.median(p[1][i] for p in pairs)
                ratios = [p[0][i] / p[1][i] for p in pairs]
                ratio = f"{statistics.median(ratios):4.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                print(f"{label} {name:<8}  PyTorch {theirs:7.2f}  Didact {ours:7.2f}  = {ratio}", flush=True)
                rows.append(
                    [precision, f"{b} x {t}", f"{h}/{k} of {d}, {kind}", name, f"{theirs:.2f}", f"{ours:.2f}", ratio]
                )
    if options.record:
        header = ["type", "tokens", "heads", "pass", "PyTorch ms", "Didact ms", "ratio"]
        record("attention", "Attention", versions, options.pairs, header, rows)


if __name__ == "__main__":
    sys.exit(main())

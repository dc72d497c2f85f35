#!/usr/bin/env python3
"""Attention, forward and backward: Didact's time beside PyTorch's, in one run, taking turns.

    cargo build --release -p didact-kernels --example attention_rate
    python bench/attention.py target/release/examples/attention_rate [--pairs 5] [--seconds 0.25] [--only TEXT]

PyTorch runs `scaled_dot_product_attention` on contiguous tensors of the type of the comparison; Didact starts from the
f32 matrix of queries, keys and values side by side, conversion included. A ratio above 1 says that Didact is faster.
"""
import argparse
import os
import statistics
import subprocess
import sys
import time

THREADS = int(os.environ.get("THREADS", os.cpu_count()))
os.environ["OMP_NUM_THREADS"] = str(THREADS)
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["GOMP_SPINCOUNT"] = "0"
import torch  # noqa: E402  (reads the environment)
from torch.nn.functional import scaled_dot_product_attention  # noqa: E402

# sequences, tokens, query heads, key/value heads, head size, causal
SHAPES = [
    (4, 256, 4, 4, 64, True),
    (16, 256, 4, 4, 64, True),
    (4, 256, 9, 3, 64, True),
    (1, 2048, 9, 3, 64, True),
    (1, 2048, 4, 4, 64, True),
    (16, 256, 12, 12, 64, False),
]


def repeat(seconds, f):
    f()
    start, times = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        f()
        times += 1
    return (time.perf_counter() - start) / times


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
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    env = dict(os.environ, RAYON_NUM_THREADS=str(THREADS))
    didact = subprocess.Popen([options.program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    print(f"PyTorch {torch.__version__}, {THREADS} threads; Didact {didact.stdout.readline().strip()}")
    print("milliseconds, medians of", options.pairs, "alternating pairs; ratio = PyTorch / Didact (lowest to highest)")
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
                didact.stdin.write(f"{b} {t} {h} {k} {d} {kind} {precision} {options.seconds}\n")
                didact.stdin.flush()
                ours = [float(x) for x in didact.stdout.readline().split()]
                pairs.append((theirs, ours))
            for i, name in enumerate(["forward", "backward"]):
                theirs = statistics.median(p[0][i] for p in pairs)
                ours = statistics.median(p[1][i] for p in pairs)
                ratios = [p[0][i] / p[1][i] for p in pairs]
                print(
                    f"{label} {name:<8}  PyTorch {theirs * 1e3:7.2f}  Didact {ours * 1e3:7.2f}"
                    f"  = {theirs / ours:4.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                    flush=True,
                )


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Matrix products: Didact's rate beside PyTorch's, in one run, taking turns.

    make bench-kernels, or
    cargo build --release -p didact-kernels --examples
    python bench/gemm.py target/release/examples/gemm_rate [--pairs 5] [--seconds 0.25] [--only TEXT] [--record]

For every shape both sides compute the same product in turns of `--seconds`, `--pairs` times. PyTorch multiplies tensors
that already have the type of the comparison. Didact's operands are f32 in memory (`fresh`: packed and converted every
time) or packed before (`ab`). Ratios are Didact's rate over PyTorch's. `--record` writes the table to bench/RESULTS.md.
"""
import argparse
import statistics
import sys

from turns import THREADS, Didact, record, repeat

import torch


def model(rows, width, ffn, vocabulary, kv):
    """The products of a training step: (m, n, k, layout, name)."""
    shapes = []
    for name, out, inner in [
        ("qkv", width + 2 * kv, width),
        ("out", width, width),
        ("gate+up", 2 * ffn, width),
        ("down", width, ffn),
        ("logits", vocabulary, width),
    ]:
        shapes += [
            (rows, out, inner, "nt", f"{name} forward"),
            (rows, inner, out, "nn", f"{name} dX"),
            (out, inner, rows, "tn", f"{name} dW"),
        ]
    return shapes


SHAPES = [(n, n, n, layout, "square") for n in (256, 512, 1024, 2048) for layout in ("nn", "nt", "tn", "tt")]
SHAPES += [(*s[:4], "small " + s[4]) for s in model(4096, 256, 688, 4096, kv=256)]
SHAPES += [(*s[:4], "135m " + s[4]) for s in model(1024, 576, 1536, 49152, kv=192)]


def torch_time(m, n, k, layout, dtype, seconds):
    a = torch.randn(k, m, dtype=dtype).t() if layout[0] == "t" else torch.randn(m, k, dtype=dtype)
    b = torch.randn(n, k, dtype=dtype).t() if layout[1] == "t" else torch.randn(k, n, dtype=dtype)
    c = torch.empty(m, n, dtype=dtype)
    return repeat(seconds, lambda: torch.mm(a, b, out=c))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.25)
    parser.add_argument("--only", default="", help="shapes whose line contains this")
    parser.add_argument("--record", action="store_true", help="write the table to bench/RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    didact = Didact(options.program, "serve")
    versions = f"PyTorch {torch.__version__}, Didact {didact.about}"
    print(f"{versions}; GFLOP/s, medians of {options.pairs} alternating pairs")
    rows, lowest = [], {}
    for precision, dtype, kinds in [("f32", torch.float32, ["fresh"]), ("bf16", torch.bfloat16, ["fresh", "ab"])]:
        for m, n, k, layout, name in SHAPES:
            label = f"{precision:>4} {name:<16} {m:>5} x {n:>5} x {k:>5} {layout}"
            if options.only not in label:
                continue
            rate = 2e-9 * m * n * k
            ours, theirs = {kind: [] for kind in kinds}, []
            for _ in range(options.pairs):
                theirs.append(rate / torch_time(m, n, k, layout, dtype, options.seconds))
                for kind in kinds:
                    ours[kind] += [rate / t for t in didact.ask(m, n, k, layout, precision, kind, options.seconds)]
            cells = [precision, name, f"{m} x {n} x {k} {layout}", f"{statistics.median(theirs):.0f}"]
            line = f"{label}  PyTorch {statistics.median(theirs):6.1f}"
            for kind in kinds:
                ratios = [o / t for o, t in zip(ours[kind], theirs)]
                ratio, rate_now = statistics.median(ratios), statistics.median(ours[kind])
                span = f"{min(ratios):.2f} to {max(ratios):.2f}"
                line += f"  {kind:>5} {rate_now:6.1f} = {ratio:4.2f} ({span})"
                cells += [f"{rate_now:.0f}", f"{ratio:.2f} ({span})"]
                key = f"{precision} {kind}"
                lowest[key] = min(lowest.get(key, ratio), ratio)
            print(line, flush=True)
            rows.append(cells + [""] * (8 - len(cells)))
    for key, ratio in lowest.items():
        print(f"{key}: lowest ratio {ratio:.2f}")
    if options.record:
        header = ["type", "product", "m x n x k", "PyTorch GFLOP/s", "fresh", "ratio", "packed", "ratio"]
        record("gemm", "Matrix products", versions, options.pairs, header, rows)


if __name__ == "__main__":
    sys.exit(main())

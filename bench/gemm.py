#!/usr/bin/env python3
"""Matrix products: Didact's rate beside PyTorch's, in one run, taking turns.

    cargo build --release -p didact-kernels --example gemm_rate
    python bench/gemm.py target/release/examples/gemm_rate [--pairs 5] [--seconds 0.25] [--only TEXT] [--json FILE]

For every shape both sides compute the same product in turns of `--seconds`, `--pairs` times; a line shows the medians
and, as spread, the lowest and highest ratio of a pair. PyTorch multiplies tensors that already have the type of the
comparison. Didact's operands are f32 in memory (`fresh`: packed and converted every time) or packed before (`ab`).
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

THREADS = int(os.environ.get("THREADS", os.cpu_count()))
# Idle threads of the side that waits must not spin.
os.environ["OMP_NUM_THREADS"] = str(THREADS)
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["GOMP_SPINCOUNT"] = "0"
import torch  # noqa: E402  (reads the environment)


def model(rows, width, ffn, vocabulary, loss_rows, kv=None):
    """The products of a training step: (m, n, k, layout, name)."""
    qkv = width + 2 * (kv or width)
    shapes = []
    for name, out, inner in [
        ("qkv", qkv, width),
        ("out", width, width),
        ("gate+up", 2 * ffn, width),
        ("down", width, ffn),
        ("logits", vocabulary, width),
    ]:
        n = loss_rows if name == "logits" else rows
        shapes += [
            (n, out, inner, "nt", f"{name} forward"),
            (n, inner, out, "nn", f"{name} dX"),
            (out, inner, n, "tn", f"{name} dW"),
        ]
    return shapes


SHAPES = [(n, n, n, layout, "square") for n in (256, 512, 1024, 2048) for layout in ("nn", "nt", "tn", "tt")]
SHAPES += [(*s[:4], "small " + s[4]) for s in model(4096, 256, 688, 4096, 4096)]
SHAPES += [(*s[:4], "135m " + s[4]) for s in model(1024, 576, 1536, 49152, 1024, kv=192)]


class Didact:
    def __init__(self, program):
        env = dict(os.environ, RAYON_NUM_THREADS=str(THREADS))
        self.process = subprocess.Popen(
            [program, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        self.about = self.process.stdout.readline().strip()

    def time(self, m, n, k, layout, precision, operands, seconds):
        self.process.stdin.write(f"{m} {n} {k} {layout} {precision} {operands} {seconds}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def torch_time(m, n, k, layout, dtype, seconds):
    a = torch.randn(k, m, dtype=dtype).t() if layout[0] == "t" else torch.randn(m, k, dtype=dtype)
    b = torch.randn(n, k, dtype=dtype).t() if layout[1] == "t" else torch.randn(k, n, dtype=dtype)
    c = torch.empty(m, n, dtype=dtype)
    torch.mm(a, b, out=c)
    start, times = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        torch.mm(a, b, out=c)
        times += 1
    return (time.perf_counter() - start) / times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.25)
    parser.add_argument("--only", default="", help="shapes whose line contains this")
    parser.add_argument("--json", help="write the results here as well")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    didact = Didact(options.program)
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads; Didact {didact.about}")
    print("GFLOP/s, medians of", options.pairs, "alternating pairs; ratio = Didact / PyTorch (lowest to highest pair)")
    results = []
    for precision, dtype, kinds in [("f32", torch.float32, ["fresh"]), ("bf16", torch.bfloat16, ["fresh", "ab"])]:
        for m, n, k, layout, name in SHAPES:
            label = f"{precision:>4} {name:<22} {m:>5} x {n:>5} x {k:>5} {layout}"
            if options.only not in label:
                continue
            flops = 2.0 * m * n * k
            ours, theirs = {kind: [] for kind in kinds}, []
            for _ in range(options.pairs):
                theirs.append(torch_time(m, n, k, layout, dtype, options.seconds))
                for kind in kinds:
                    ours[kind].append(didact.time(m, n, k, layout, precision, kind, options.seconds))
            line = f"{label}  PyTorch {flops / statistics.median(theirs) / 1e9:7.1f}"
            for kind in kinds:
                ratios = [t / o for t, o in zip(theirs, ours[kind])]
                ratio = statistics.median(theirs) / statistics.median(ours[kind])
                rate = flops / statistics.median(ours[kind]) / 1e9
                line += f"  {kind:>5} {rate:7.1f} = {ratio:4.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                results.append(
                    dict(precision=precision, name=name, m=m, n=n, k=k, layout=layout, operands=kind, ratio=ratio,
                         didact=rate, pytorch=flops / statistics.median(theirs) / 1e9)
                )
            print(line, flush=True)
    for precision, kind in [("f32", "fresh"), ("bf16", "fresh"), ("bf16", "ab")]:
        ratios = [r["ratio"] for r in results if (r["precision"], r["operands"]) == (precision, kind)]
        if ratios:
            print(f"{precision} {kind}: lowest ratio {min(ratios):.2f}, median {statistics.median(ratios):.2f}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    sys.exit(main())

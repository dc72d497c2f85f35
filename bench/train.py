#!/usr/bin/env python3
"""Training steps: Didact beside PyTorch, taking turns, one process per measurement.

    cargo build --release --bin didact
    python bench/train.py [--pairs 5] [--cases small-f32,small-bf16,135m-f32,135m-bf16] [--didact PATH]

Every pair is one run of each side, the one that goes first changing from pair to pair. A case's numbers are medians over its
pairs; its ratio is the median of the pairs' ratios, with the lowest and the highest. Peak memory is the largest resident
set of the process. The measurements go to bench/results.json and the table to bench/RESULTS.md; other cases that are
already there stay, so that a long session can be split.

Needs torch and transformers: python -m venv ~/bench && ~/bench/bin/pip install torch transformers
"""
import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys

from results import BUSY, HERE, ROOT, commit, load, load_average, machine, others, replace_section, save

# Case: model, precision, further arguments of `didact bench train`, least throughput ratio, largest memory ratio.
LEAN = ["--activation-checkpointing", "--bf16-gradients"]
CASES = {
    "small-f32": ("small", "f32", [], 1.3, 0.5),
    "small-bf16": ("small", "bf16", [], 1.5, 0.5),
    "135m-f32": ("135m", "f32", [], 1.3, 0.75),
    "135m-bf16": ("135m", "bf16", [], 1.5, 0.75),
    "135m-bf16-lean": ("135m", "bf16", LEAN, None, 0.55),
}
DEFAULT = ["small-f32", "small-bf16", "135m-f32", "135m-bf16"]


def run(command):
    """The JSON object that a command prints, once it is done."""
    threads = str(os.cpu_count())
    env = dict(os.environ, OMP_NUM_THREADS=threads, RAYON_NUM_THREADS=threads)
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout[done.stdout.index("{"):])


def spread(values, digits):
    """Median, with the lowest and highest."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def measure(name, didact, pairs, steps, version):
    """Runs a case's pairs."""
    model, precision, more, _, _ = CASES[name]
    count = [] if steps is None else [str(steps)]
    ours = [didact, "bench", "train", "--model", model, "--precision", precision, *more]
    ours += [*(["--steps", *count] if count else []), "--json", "-q"]
    theirs = [sys.executable, str(HERE / "torch_train.py"), model, precision, *count]
    record = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "load_before": load_average(),
        "others_before": others(),
        "commit": version,
        "machine": machine(didact),
        "didact": [],
        "torch": [],
    }
    for pair in range(pairs):
        for side in ("torch", "didact") if pair % 2 == 0 else ("didact", "torch"):
            record[side].append(run(ours if side == "didact" else theirs))
        d, t = record["didact"][-1], record["torch"][-1]
        print(
            f"{name} pair {pair + 1}: Didact {d['tokens_per_s']:.0f} tokens/s, {d['peak_rss_mb']:.0f} MB; "
            f"PyTorch {t['tokens_per_s']:.0f} tokens/s, {t['peak_rss_mb']:.0f} MB; "
            f"ratio {d['tokens_per_s'] / t['tokens_per_s']:.2f}, memory {d['peak_rss_mb'] / t['peak_rss_mb']:.2f}",
            flush=True,
        )
    return record


def verdict(ratio, target, at_least):
    """Whether a median reaches its target, and by how much it misses it."""
    if target is None:
        return "-"
    if (ratio >= target) if at_least else (ratio <= target):
        return f"{'at least' if at_least else 'at most'} {target}: reached"
    return f"{'at least' if at_least else 'at most'} {target}: missed by {abs(ratio / target - 1):.0%}"


def render(records):
    """The section of RESULTS.md."""
    names = [name for name in CASES if name in records]
    lines = [
        "## Training step",
        "",
        "`make bench-train`, which runs `bench/train.py`: `didact bench train` and `bench/torch_train.py` take turns, one",
        "process each. Median (lowest-highest) over the pairs; a ratio is Didact's over PyTorch's in one pair.",
        "",
        "| case | PyTorch, tokens/s | Didact, tokens/s | ratio | target | share of peak |",
        "|---|---|---|---|---|---|",
    ]
    pairs = {name: list(zip(records[name]["didact"], records[name]["torch"])) for name in names}
    for name in names:
        ours, theirs = records[name]["didact"], records[name]["torch"]
        ratios = [d["tokens_per_s"] / t["tokens_per_s"] for d, t in pairs[name]]
        share = statistics.median(d["share_of_peak"] for d in ours)
        is_idle = records[name]["others_before"] < BUSY
        judged = verdict(statistics.median(ratios), CASES[name][3], True) if is_idle else "not judged: not idle"
        lines.append(
            f"| {name} | {spread([t['tokens_per_s'] for t in theirs], 0)} | {spread([d['tokens_per_s'] for d in ours], 0)} "
            f"| **{spread(ratios, 2)}** | {judged} | {share:.0%} |"
        )
    lines += [
        "",
        "| case | PyTorch, peak MB | Didact, peak MB | ratio | target |",
        "|---|---|---|---|---|",
    ]
    for name in names:
        ours, theirs = records[name]["didact"], records[name]["torch"]
        ratios = [d["peak_rss_mb"] / t["peak_rss_mb"] for d, t in pairs[name]]
        lines.append(
            f"| {name} | {spread([t['peak_rss_mb'] for t in theirs], 0)} | {spread([d['peak_rss_mb'] for d in ours], 0)} "
            f"| **{spread(ratios, 2)}** | {verdict(statistics.median(ratios), CASES[name][4], False)} |"
        )
    lines += [
        "",
        "What other programs used of the processors just before each case is in the fifth column, the load of the last",
        "minute, our own case before it included, in the sixth.",
        "",
        "| case | pairs x steps | date | commit | others | load | machine |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names:
        record = records[name]
        lines.append(
            f"| {name} | {len(record['didact'])} x {record['didact'][0]['spread']['rounds']} | {record['date']} "
            f"| {record['commit']} | {record['others_before']:.0%}{'' if record['others_before'] < BUSY else ' (not idle)'} "
            f"| {record['load_before']:.2f} | {record['machine']} |"
        )
    missing = [name for name in CASES if name not in records]
    if missing:
        lines += ["", f"Not measured yet: {', '.join(missing)}."]
    if any(CASES[name][2] for name in names):
        lines += ["", f"`lean` is `{' '.join(LEAN)}`."]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--cases", default=",".join(DEFAULT), help=f"of {', '.join(CASES)}")
    parser.add_argument("--steps", type=int, help="steps timed per process [12 for small, 4 for 135m]")
    parser.add_argument("--commit", default=commit(), help="what the program was built from [this repository's]")
    parser.add_argument("--didact", default=str(ROOT / "target" / "release" / "didact"))
    options = parser.parse_args()
    names = options.cases.split(",")
    unknown = [name for name in names if name not in CASES]
    if unknown:
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    for name in names:
        record = measure(name, options.didact, options.pairs, options.steps, options.commit)
        everything = load()
        everything.setdefault("train", {})[name] = record
        save(everything)
        replace_section("train", render(everything["train"]))


if __name__ == "__main__":
    main()

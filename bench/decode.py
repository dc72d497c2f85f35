#!/usr/bin/env python3
"""Generation: Didact beside llama.cpp, taking turns, one process per measurement, bf16 weights on both sides.

    cargo build --release --bin didact
    python bench/decode.py --llama DIR --gguf MODEL.gguf --model MODEL [--pairs 5] [--threads N] [--didact PATH]

DIR holds `llama-batched-bench`, MODEL is the model for Didact, MODEL.gguf the same one for llama.cpp, in bf16. From nothing:

    pip download --no-binary llama-cpp-python --no-deps llama-cpp-python && tar xf llama_cpp_python-*.tar.gz
    cmake -S llama_cpp_python-*/vendor/llama.cpp -B build -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \\
        -DLLAMA_BUILD_TOOLS=ON && ninja -C build llama-batched-bench                              # DIR is build/bin
    didact model convert smollm2-135m-instruct hf --dtype bf16                                    # MODEL is hf
    python llama_cpp_python-*/vendor/llama.cpp/convert_hf_to_gguf.py hf --outtype bf16 --outfile model.gguf

Every pair is one run of each side, the one that goes first changing from pair to pair. A case's numbers are medians over its
pairs; its ratio is the median of the pairs' ratios, with the lowest and the highest. Didact chooses the likeliest token of
every stream after each pass; llama-batched-bench computes the logits and chooses none.
"""
import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys

from results import BUSY, ROOT, commit, load, load_average, others, replace_section, save

# Case: what is measured, streams, prompt tokens, new tokens, least ratio.
CASES = {
    "decode-32": ("decode", 32, 32, 64, 2.0),
    "decode-1": ("decode", 1, 32, 64, 1.0),
    "prefill-512": ("prefill", 1, 512, 4, 1.0),
}


def run(command, threads):
    """What a command prints."""
    env = dict(os.environ, OMP_NUM_THREADS=str(threads), RAYON_NUM_THREADS=str(threads))
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def ours(arguments, streams, prompt, new):
    """Tokens per second of Didact, prefill and decode."""
    command = [
        arguments.didact, "bench", "decode", "--model", arguments.model, "--precision", "bf16", "--batch", str(streams),
        "--prompt-tokens", str(prompt), "--new-tokens", str(new), "--rounds", "1", "--threads", str(arguments.threads),
        "--json", "-q",
    ]  # fmt: skip
    report = json.loads(run(command, arguments.threads))
    return {"prefill": report["prefill_tokens_per_s"], "decode": report["decode_tokens_per_s"]}


def theirs(arguments, streams, prompt, new):
    """Tokens per second of llama.cpp, prefill and decode."""
    command = [
        os.path.join(arguments.llama, "llama-batched-bench"), "-m", arguments.gguf, "-c", "8192", "-npp", str(prompt),
        "-ntg", str(new), "-npl", str(streams), "-t", str(arguments.threads), "-tb", str(arguments.threads),
        "--output-format", "jsonl",
    ]  # fmt: skip
    lines = [line for line in run(command, arguments.threads).splitlines() if line.startswith("{")]
    report = json.loads(lines[-1])
    return {"prefill": report["speed_pp"], "decode": report["speed_tg"]}


def processor():
    """The processor's name."""
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        return next((line.split(":", 1)[1].strip() for line in info if line.startswith("model name")), "unknown")


def spread(values, digits):
    """Median, with the lowest and highest."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def report(records):
    """The section for people."""
    lines = [
        "## Generation",
        "",
        "`python bench/decode.py`: SmolLM2-135M, bf16 weights on both sides, tokens per second; `decode-32` is 32 streams of",
        "32 + 64 tokens, `decode-1` one of them, `prefill-512` a prompt of 512 tokens. Medians of pairs that took turns",
        "(lowest-highest); a ratio is the median of the pairs' ratios. *Others* is the share of the machine that other programs",
        "had in the seconds before; more than 5 % is not idle.",
        "",
        "| case | Didact | llama.cpp | ratio | target | pairs | when, what |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, record in records.items():
        what, *_, target = CASES[name]
        didact, llama = ([run[what] for run in record[side]] for side in ("didact", "llama"))
        ratios = [d / l for d, l in zip(didact, llama)]
        lines.append(
            f"| {name} | {spread(didact, 0)} | {spread(llama, 0)} | {spread(ratios, 2)} | {target} | {len(ratios)} | "
            f"{record['date']}, {record['commit']}, {record['machine']}, others {record['others_before']:.0%}"
            f"{'' if record['others_before'] < BUSY else ' (not idle)'}, load {record['load_before']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main():
    """Measures, and writes what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama", required=True, help="the directory of llama-batched-bench")
    parser.add_argument("--gguf", required=True, help="the model in bf16, for llama.cpp")
    parser.add_argument("--model", required=True, help="the same model, for Didact")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--didact", default=str(ROOT / "target" / "release" / "didact"))
    parser.add_argument("--commit", default=commit(), help="what the program was built from [this repository's]")
    arguments = parser.parse_args()
    everything = load()
    records = everything.setdefault("decode", {})
    for name in arguments.cases.split(","):
        what, *shape, _ = CASES[name]
        record = {
            "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "load_before": load_average(),
            "others_before": others(),
            "commit": arguments.commit,
            "machine": f"{processor()}, {arguments.threads} threads",
            "didact": [],
            "llama": [],
        }
        for pair in range(arguments.pairs):
            for side in ("llama", "didact") if pair % 2 == 0 else ("didact", "llama"):
                record[side].append((ours if side == "didact" else theirs)(arguments, *shape))
            d, l = record["didact"][-1][what], record["llama"][-1][what]
            print(f"{name} pair {pair + 1}: Didact {d:.0f}, llama.cpp {l:.0f} tokens/s, ratio {d / l:.2f}", flush=True)
        records[name] = record
        save(everything)
    replace_section("decode", report({name: records[name] for name in CASES if name in records}))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Speed and memory of `didact data tokenize` against the batch encoding of Python's `tokenizers`.

    bench/corpus.py --didact target/release/didact --model MODEL --text DIR [--megabytes 64] [--rounds 5] [--threads 2]

MODEL is a directory or GGUF file that Didact reads; DIR holds text files (.txt .md .rst .html .py .rs .c .h), which are
read in sorted order, again and again until there are enough megabytes, one document per file, and written as JSONL.

Both encode the same documents with the same tokenizer on the same number of threads, alternating. Python's time is that of
`encode_batch` (and `encode_batch_fast`, which leaves out offsets) over batches of 1000 documents that are in memory
already; Didact's is what the command takes from its first row to its last synced byte: reading, parsing and writing
included. Ids are compared, all of them. Prints one JSON document; `--record` also puts it into bench/RESULTS.md, which
keeps the last result for each number of threads, and of `--only-didact` (one run on a large file, for its memory).
"""
import argparse, json, os, pathlib, resource, statistics, subprocess, sys, tempfile, time

parser = argparse.ArgumentParser()
parser.add_argument("--didact", default="target/release/didact")
parser.add_argument("--model", required=True)
parser.add_argument("--text", required=True)
parser.add_argument("--megabytes", type=float, default=64)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--threads", type=int, default=os.cpu_count())
parser.add_argument("--only-didact", action="store_true", help="memory of one run on a large file")
parser.add_argument("--record", action="store_true")
args = parser.parse_args()
# Before the import: the library starts its threads once.
os.environ["TOKENIZERS_PARALLELISM"] = "true" if args.threads > 1 else "false"
os.environ["RAYON_NUM_THREADS"] = str(args.threads)

KINDS = {".txt", ".md", ".rst", ".html", ".py", ".rs", ".c", ".h"}
work = pathlib.Path(tempfile.mkdtemp(prefix="didact-tokenize-", dir=os.environ.get("TMPDIR", "/tmp")))


def texts():
    files = sorted(p for p in pathlib.Path(args.text).rglob("*") if p.suffix in KINDS and p.is_file())
    if not files:
        sys.exit(f"no text files in {args.text}")
    size, number = 0, 0
    while size < args.megabytes * 1e6:
        for path in files:
            text = path.read_text(encoding="utf-8", errors="ignore")
            if not text.strip():
                continue
            # What is read again is not quite the same, as documents of a large corpus are not.
            number += 1
            text = f"{number}\n{text}"
            size += len(text.encode())
            yield text
            if size >= args.megabytes * 1e6:
                return


rows = work / "rows.jsonl"
documents = [] if not args.only_didact else None
with open(rows, "w", encoding="utf-8") as out:
    for text in texts():
        out.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        if documents is not None:
            documents.append(text)


def didact():
    command = [args.didact, "data", "tokenize", str(rows), "--tokenizer", args.model, "--to", str(work / "corpus"), "--fresh"]
    command += ["--json", "-q", "--threads", str(args.threads)]
    before = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result = json.loads(done.stdout)
    result["command_s"] = time.perf_counter() - before
    return result


report = {"threads": args.threads, "file_mb": rows.stat().st_size / 1e6, "text": args.text, "rounds": args.rounds}


def record():
    """Puts the report into bench/RESULTS.md."""
    import results

    everything = results.load()
    kept = everything.setdefault("tokenize", {})
    key = "memory" if args.only_didact else f"threads-{args.threads}"
    options = " --only-didact" if args.only_didact else f" --rounds {args.rounds}"
    command = f"bench/corpus.py --model MODEL --text {args.text} --megabytes {args.megabytes:g}{options} --threads {args.threads} --record"
    kept[key] = {**report, "command": command, "commit": results.commit(), "load": results.load_average()}
    kept["machine"] = results.machine(args.didact)
    results.save(everything)
    lines = ["## Tokenising\n\n", f"{kept['machine']}.\n\n"]
    lines.append(
        "`didact data tokenize` (reading, parsing, encoding, writing and syncing) beside Python's `tokenizers` (encoding of "
        "documents that are in memory), million tokens/s with SmolLM2's tokenizer, medians of alternating rounds; the ids "
        "are the same, all of them. Ratios are medians and ranges over rounds.\n\n"
    )
    lines.append("| threads | file | Didact | `encode_batch` | ratio | `encode_batch_fast` | ratio | commit, load |\n|---|---|---|---|---|---|---|---|\n")
    for name in sorted(key for key in kept if key.startswith("threads-")):
        run = kept[name]
        speed = lambda what: f"{run[what]['median_tokens_per_s'] / 1e6:.2f}"
        ratio = lambda what: "{median:.1f} ({min:.1f} to {max:.1f})".format(**run[f"ratio_to_{what}"])
        lines.append(
            f"| {run['threads']} | {run['file_mb']:.0f} MB, {run['text']} | {speed('didact')} | {speed('encode_batch')} | {ratio('encode_batch')} "
            f"| {speed('encode_batch_fast')} | {ratio('encode_batch_fast')} | {run['commit']}, {run['load']:.1f} |\n"
        )
    if "memory" in kept:
        run = kept["memory"]
        lines.append(
            f"\nA file of {run['file_mb'] / 1000:.2f} GB ({run['documents']} documents, {run['tokens'] / 1e6:.0f} million tokens) takes "
            f"{run['wall_s']:.0f} s on {run['threads']} threads and {run['didact_peak_rss_mb']:.0f} MB of memory at most (`{run['command']}`).\n"
        )
    lines.extend(f"\n`{kept[name]['command']}`\n" for name in sorted(key for key in kept if key.startswith("threads-")))
    results.replace_section("corpus", "".join(lines))

if args.only_didact:
    result = didact()
    report.update({key: result[key] for key in ("documents", "tokens", "tokens_per_s", "wall_s", "command_s")})
else:
    import numpy, tokenizers

    model = pathlib.Path(args.model)
    if not (model / "tokenizer.json").exists():
        subprocess.run([args.didact, "model", "convert", str(model), str(work / "model"), "-q"], check=True, stdout=subprocess.DEVNULL)
        model = work / "model"
    tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    eos = json.loads((model / "tokenizer_config.json").read_text())["eos_token"]
    eos = tokenizer.token_to_id(eos["content"] if isinstance(eos, dict) else eos)

    def python(encode, keep=None):
        begun = time.perf_counter()
        count = 0
        for at in range(0, len(documents), 1000):
            found = encode(documents[at : at + 1000], add_special_tokens=False)
            for encoding in found:
                count += len(encoding)
            if keep is not None:
                keep.extend(encoding.ids for encoding in found)
        return count / (time.perf_counter() - begun)

    ids = []
    python(tokenizer.encode_batch, ids)
    speeds = {"didact": [], "encode_batch": [], "encode_batch_fast": []}
    for _ in range(args.rounds):
        result = didact()
        speeds["didact"].append(result["tokens_per_s"])
        speeds["encode_batch"].append(python(tokenizer.encode_batch))
        speeds["encode_batch_fast"].append(python(tokenizer.encode_batch_fast))
    expected = numpy.concatenate([numpy.array(one + [eos], dtype=numpy.uint32) for one in ids])
    kind = numpy.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else numpy.uint32
    found = numpy.concatenate([numpy.fromfile(p, dtype=kind) for p in sorted((work / "corpus").glob("shard-*.tokens"))])
    report["tokens"], report["documents"] = int(len(found)), len(documents)
    report["ids_are_equal"] = bool(len(found) == len(expected) and (found == expected).all())
    for name, values in speeds.items():
        report[name] = {"median_tokens_per_s": statistics.median(values), "min": min(values), "max": max(values)}
    for name in ("encode_batch", "encode_batch_fast"):
        ratios = [a / b for a, b in zip(speeds["didact"], speeds[name])]
        report[f"ratio_to_{name}"] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
report["didact_peak_rss_mb"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
print(json.dumps(report, indent=2))
if args.record and report.get("ids_are_equal", True):
    record()
for path in sorted(work.rglob("*"), reverse=True):
    path.rmdir() if path.is_dir() else path.unlink()
work.rmdir()
sys.exit(0 if report.get("ids_are_equal", True) else 3)

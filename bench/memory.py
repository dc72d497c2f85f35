#!/usr/bin/env python3
"""Memory of training from a corpus of a few gigabytes, against the same training from a small one.

    bench/memory.py --didact target/release/didact --model MODEL --text DIR [--megabytes 2000] [--steps 300]

Writes text files below DIR, again and again until there are enough megabytes, as JSONL; makes a corpus of it with MODEL's
tokenizer (`didact data tokenize`); and trains a small model from random weights on the corpus where it lies (`didact run
mixture`). The same is done with a hundredth of the text: the difference in peak resident memory is what a large corpus
costs. Prints one JSON document.
"""
import argparse, json, os, pathlib, shutil, subprocess, sys, tempfile, time

parser = argparse.ArgumentParser()
parser.add_argument("--didact", default="target/release/didact")
parser.add_argument("--model", required=True)
parser.add_argument("--text", required=True)
parser.add_argument("--megabytes", type=float, default=2000)
parser.add_argument("--steps", type=int, default=300)
args = parser.parse_args()
KINDS = {".txt", ".md", ".rst", ".html", ".py", ".rs", ".c", ".h"}
work = pathlib.Path(tempfile.mkdtemp(prefix="didact-memory-", dir=os.environ.get("TMPDIR", "/tmp")))
didact = str(pathlib.Path(args.didact).resolve())


def run(arguments):
    """Peak resident memory in MB, seconds, and what was printed."""
    begun = time.perf_counter()
    child = subprocess.Popen([didact, *arguments, "--json", "-q"], stdout=subprocess.PIPE, cwd=work)
    out = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"didact {arguments[:2]} failed")
    return usage.ru_maxrss / 1024, time.perf_counter() - begun, json.loads(out)


def write(path, megabytes):
    files = sorted(p for p in pathlib.Path(args.text).rglob("*") if p.suffix in KINDS and p.is_file())
    size, number = 0, 0
    with open(path, "w", encoding="utf-8") as out:
        while files and size < megabytes * 1e6:
            for file in files:
                text = file.read_text(encoding="utf-8", errors="ignore")
                if text.strip():
                    number += 1
                    size += out.write(json.dumps({"text": f"{number}\n{text}"}, ensure_ascii=False) + "\n")
                if size >= megabytes * 1e6:
                    break


run(["model", "convert", str(pathlib.Path(args.model).resolve()), "tokenizer"]) if args.model.endswith(".gguf") else shutil.copytree(args.model, work / "tokenizer")
vocabulary = 49152
shape = f"""{{ model_type = "llama", vocab_size = {vocabulary}, hidden_size = 128, intermediate_size = 344, num_hidden_layers = 4,
num_attention_heads = 4, num_key_value_heads = 4, max_position_embeddings = 256, rms_norm_eps = 1e-5, tie_word_embeddings = true,
hidden_act = "silu" }}""".replace("\n", " ")
report = {"steps": args.steps, "text": args.text}
for name, megabytes in [("small", args.megabytes / 100), ("large", args.megabytes)]:
    rows = work / f"{name}.jsonl"
    write(rows, megabytes)
    made = run(["data", "tokenize", str(rows), "--tokenizer", "tokenizer", "--to", name])
    rows.unlink()
    recipe = work / f"{name}.toml"
    recipe.write_text(
        f'recipe = "mixture"\n[model]\nconfig = {shape}\ntokenizer = "tokenizer"\n[sources]\ndata = {{ path = "{name}", held_out_rows = 2 }}\n'
        f"[train]\nmax_steps = {args.steps}\nbatch_size = 8\nmax_seq_len = 256\npacking = \"concat\"\nlearning_rate = 1e-3\n"
        f"save_steps = {args.steps}\n[generate]\nsamples = 0\n[eval]\nplain_text = false\n[export]\nmodel = false\nadapter = false\n"
    )
    trained = run(["run", str(recipe), "--run-dir", f"run-{name}"])
    report[name] = {
        "megabytes": megabytes,
        "documents": made[2]["documents"],
        "tokens": made[2]["tokens"],
        "tokenize_peak_mb": round(made[0]),
        "train_peak_mb": round(trained[0]),
        "train_s": round(trained[1]),
        "loss": [trained[2]["training"]["first_loss"], trained[2]["training"]["final_loss"]],
        "run_directory_mb": round(sum(p.stat().st_size for p in (work / f"run-{name}").rglob("*") if p.is_file()) / 1e6),
    }
report["above_small_mb"] = report["large"]["train_peak_mb"] - report["small"]["train_peak_mb"]
print(json.dumps(report, indent=2))
shutil.rmtree(work)

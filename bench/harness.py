#!/usr/bin/env python3
"""Evaluation: Didact beside the lm-evaluation-harness, on the same model, task files and processor.

    cargo build --release --bin didact
    python3 -m venv ~/didact-bench && ~/didact-bench/bin/pip install torch transformers 'lm-eval[hf]==0.4.13'
    didact model convert smollm2-135m-instruct hf32 --dtype f32
    ~/didact-bench/bin/python bench/harness.py prepare --data DATA --work WORK
    ~/didact-bench/bin/python bench/harness.py parity  --model hf32 --work WORK
    ~/didact-bench/bin/python bench/harness.py speed   --model hf32 --work WORK

DATA holds `blimp/BLiMP.zip` and `gsm8k/test.jsonl` (the data sets' own files); WordNet comes from Debian's package
`wordnet-base` (/usr/share/wordnet, or --wordnet DIR). `prepare` writes WORK/tasks, YAML files that both programs read: six
paradigms of BLiMP, 1000 questions with four choices made of WordNet's glosses, and GSM8K's first 100 problems with its problems
1001 to 1005 as examples. `parity` asks both in f32 and compares every request; `speed` asks both in bf16, taking turns, the
harness at the batch size that suits it best of those tried. Both write their section of bench/RESULTS.md.
"""
import argparse
import datetime
import glob
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import time
import zipfile

from results import ROOT, commit, load, load_average, others, replace_section, save

PARADIGMS = [
    "adjunct_island", "anaphor_number_agreement", "determiner_noun_agreement_1", "npi_present_1", "transitive",
    "wh_vs_that_with_gap",
]  # fmt: skip
BATCHES = [1, 8, 32, 64]
HARNESS = "lm-eval 0.4.13"


def task(name, data, output_type, body):
    """A task file that both read."""
    files = "".join(f"    {split}: {path}\n" for split, path in data.items())
    return (
        f"task: {name}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n{files}test_split: test\n"
        f"output_type: {output_type}\n{body}metadata:\n  version: 1.0\n"
    )


def prepare(arguments):
    """Writes the data and the task files."""
    work = pathlib.Path(arguments.work).resolve()
    tasks, data = work / "tasks", work / "data"
    tasks.mkdir(parents=True, exist_ok=True)
    data.mkdir(exist_ok=True)
    source = pathlib.Path(arguments.data)
    with zipfile.ZipFile(source / "blimp" / "BLiMP.zip") as archive:
        for paradigm in PARADIGMS:
            path = data / f"{paradigm}.jsonl"
            path.write_bytes(archive.read(f"data/{paradigm}.jsonl"))
            body = (
                "num_fewshot: 0\ndoc_to_text: \"\"\ndoc_to_target: 0\ndoc_to_choice: \"{{[sentence_good, sentence_bad]}}\"\n"
                "metric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
            )
            (tasks / f"blimp_{paradigm}.yaml").write_text(task(f"blimp_{paradigm}", {"test": path}, "multiple_choice", body))
    path = data / "glosses.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in glosses(pathlib.Path(arguments.wordnet))))
    body = (
        "num_fewshot: 0\ndoc_to_text: \"Definition: {{gloss}}\\nWord:\"\ndoc_to_target: gold\ndoc_to_choice: choices\n"
        "metric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
        "  - metric: acc_norm\n    aggregation: mean\n    higher_is_better: true\n"
    )
    (tasks / "glosses.yaml").write_text(task("glosses", {"test": path}, "multiple_choice", body))
    rows = (source / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    (data / "gsm8k.jsonl").write_text("\n".join(rows[:100]) + "\n")
    (data / "gsm8k_shots.jsonl").write_text("\n".join(rows[1000:1005]) + "\n")
    files = {"test": data / "gsm8k.jsonl", "shots": data / "gsm8k_shots.jsonl"}
    body = (
        "fewshot_split: shots\nfewshot_config:\n  sampler: first_n\nnum_fewshot: 5\n"
        "doc_to_text: \"Question: {{question}}\\nAnswer:\"\ndoc_to_target: \"{{answer}}\"\n"
        "generation_kwargs:\n  until:\n    - \"Question:\"\n    - \"\\n\\n\"\n  do_sample: false\n  max_gen_toks: 256\n"
        "metric_list:\n  - metric: exact_match\n    aggregation: mean\n    higher_is_better: true\n    ignore_case: true\n"
        "    regexes_to_ignore:\n      - ','\n      - '\\$'\n      - '(?s).*#### '\n      - '\\.$'\n"
        "filter_list:\n  - name: strict-match\n    filter:\n      - function: regex\n"
        "        regex_pattern: '#### (\\-?[0-9\\.\\,]+)'\n      - function: take_first\n"
        "  - name: flexible-extract\n    filter:\n      - function: regex\n        group_select: -1\n"
        "        regex_pattern: '(-?[$0-9.,]{2,})|(-?[0-9]+)'\n      - function: take_first\n"
    )
    (tasks / "gsm8k_100.yaml").write_text(task("gsm8k_100", files, "generate_until", body))
    print(f"{len(PARADIGMS) + 2} tasks in {tasks}")


def glosses(wordnet, count=1000):
    """Questions with four choices: which noun does a gloss define? Wrong choices are nouns of the same file of WordNet."""
    by_file = {}
    with open(wordnet / "data.noun", encoding="utf-8") as file:
        for line in file:
            if line.startswith(" "):
                continue
            fields, gloss = line.split(" | ", 1)
            fields = fields.split()
            word = fields[4].replace("_", " ")
            gloss = gloss.split(";")[0].strip()
            if word.islower() and word.isalpha() and 4 <= len(word) <= 12 and 5 <= len(gloss.split()) <= 25 and word not in gloss:
                by_file.setdefault(fields[1], []).append((word, gloss))
    random.seed(7)
    rows, files = [], sorted(name for name, entries in by_file.items() if len(entries) > 100)
    while len(rows) < count:
        entries = by_file[random.choice(files)]
        (word, gloss), *wrong = random.sample(entries, 4)
        choices = [word] + [other for other, _ in wrong]
        if len(set(choices)) < 4:
            continue
        random.shuffle(choices)
        rows.append({"gloss": gloss, "choices": choices, "gold": choices.index(word)})
    return rows


def newest(folder):
    """The newest results document in a folder."""
    return max(glob.glob(f"{folder}/**/results_*.json", recursive=True), key=os.path.getmtime)


def harness(model, work, dtype, batch, out, limit=None):
    """Runs the lm-evaluation-harness in this process's Python; seconds of its evaluation."""
    script = (
        "import sys, time, json, lm_eval, torch\n"
        "from lm_eval.models.huggingface import HFLM\n"
        "from lm_eval.tasks import TaskManager\n"
        "from lm_eval.loggers import EvaluationTracker\n"
        "model, tasks, dtype, batch, out, limit = json.loads(sys.argv[1])\n"
        "tracker = EvaluationTracker(output_path=out)\n"
        "names = [p.split('/')[-1][:-5] for p in __import__('glob').glob(tasks + '/*.yaml')]\n"
        "manager = TaskManager(include_path=tasks, include_defaults=False)\n"
        "lm = HFLM(pretrained=model, dtype=dtype, device='cpu', batch_size=batch)\n"
        "start = time.perf_counter()\n"
        "found = lm_eval.simple_evaluate(lm, tasks=sorted(names), task_manager=manager, limit=limit, bootstrap_iters=0)\n"
        "print('SECONDS', time.perf_counter() - start)\n"
        "samples = found.pop('samples')\n"
        "tracker.save_results_aggregated(results=found, samples=samples)\n"
        "for name in found['configs']: tracker.save_results_samples(task_name=name, samples=samples[name])\n"
    )
    argument = json.dumps([model, f"{work}/tasks", dtype, batch, out, limit])
    done = subprocess.run([sys.executable, "-c", script, argument], capture_output=True, text=True, check=False, cwd=work)
    if done.returncode != 0:
        sys.exit(f"the harness ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return float(next(line for line in done.stdout.splitlines() if line.startswith("SECONDS")).split()[1])


def didact(arguments, precision, out, limit=None):
    """Runs Didact; seconds of its evaluation."""
    command = [
        arguments.didact, "eval", "--model", arguments.model, "--tasks", f"{arguments.work}/tasks", "--precision", precision,
        "--out", out, "--no-cache", "--json", "-q",
    ] + (["--limit", str(limit)] if limit else [])  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"didact ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return float(json.loads(done.stdout)["total_evaluation_time_seconds"])


def samples(results):
    """Every task's log of questions, by name, filter and document."""
    folder, stamp = os.path.dirname(results), os.path.basename(results)[len("results_") : -len(".json")]
    found = {}
    for path in glob.glob(f"{folder}/samples_*_{stamp}.jsonl"):
        name = os.path.basename(path)[len("samples_") : -len(f"_{stamp}.jsonl")]
        with open(path, encoding="utf-8") as file:
            found[name] = {(row["filter"], row["doc_id"]): row for row in map(json.loads, file)}
    return found


def gap_at_split(model, tokenizer, prompt, ours, theirs):
    """How far apart the two likeliest tokens are where two answers part, in nats; in f32 by PyTorch."""
    import torch

    ids = [tokenizer(prompt + text, return_tensors="pt").input_ids[0] for text in (ours, theirs)]
    same = 0
    while same < min(map(len, ids)) and ids[0][same] == ids[1][same]:
        same += 1
    with torch.no_grad():
        logits = model(ids[0][None, :same]).logits[0, -1].log_softmax(-1)
    top = logits.topk(2).values
    return float(top[0] - top[1])


def parity(arguments):
    """Compares every request in f32."""
    work = pathlib.Path(arguments.work).resolve()
    out = {side: str(work / f"parity-{side}") for side in ("didact", "harness")}
    if not arguments.again:
        print(f"didact: {didact(arguments, 'f32', out['didact']):.0f} s", flush=True)
        print(f"harness: {harness(arguments.model, str(work), 'float32', 32, out['harness']):.0f} s", flush=True)
    paths = {side: newest(folder) for side, folder in out.items()}
    logs = {side: samples(path) for side, path in paths.items()}
    tables = {side: json.load(open(path, encoding="utf-8"))["results"] for side, path in paths.items()}
    from transformers import AutoModelForCausalLM, AutoTokenizer
    import torch

    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    lines, problems, texts = [], [], []
    for name in sorted(logs["harness"]):
        ours, theirs = logs["didact"][name], logs["harness"][name]
        if ours.keys() != theirs.keys():
            sys.exit(f"{name}: other documents")
        worst, requests, parted, hashes = 0.0, 0, 0, 0
        for key, own in ours.items():
            other = theirs[key]
            hashes += own["prompt_hash"] != other["prompt_hash"] or own["doc_hash"] != other["doc_hash"] or own["target_hash"] != other["target_hash"]
            if "exact_match" in own["metrics"]:
                if key[0] != "strict-match":
                    continue
                requests += 1
                a, b = own["resps"][0][0], other["resps"][0][0]
                if a != b:
                    gap = gap_at_split(model, tokenizer, own["arguments"]["gen_args_0"]["arg_0"], a, b)
                    parted += 1
                    texts.append(f"{name} item {key[1]}: the two likeliest tokens are {gap:.1e} apart where the texts part")
                    if gap > 2e-3:
                        problems.append(f"{name} item {key[1]}: another text, and no near tie ({gap:.1e})")
                continue
            scores = [[float(r[0]) for r in row["filtered_resps"]] for row in (own, other)]
            for i, (a, b) in enumerate(zip(*scores)):
                requests += 1
                text = "".join(own["arguments"][f"gen_args_{i}"].values())
                tokens = len(tokenizer(text).input_ids)
                allowed = 1e-4 * tokens + 1e-3
                worst = max(worst, abs(a - b) / allowed)
                if abs(a - b) > allowed:
                    problems.append(f"{name} item {key[1]} request {i}: {a} and {b}")
            choice = [max(range(len(s)), key=s.__getitem__) for s in scores]
            margin = abs(scores[1][choice[0]] - scores[1][choice[1]])
            if choice[0] != choice[1] and margin > 2 * allowed:
                problems.append(f"{name} item {key[1]}: another choice, by {margin:.1e}")
        metrics = sorted(k for k in tables["harness"][name] if "," in k and "stderr" not in k)
        values = []
        for metric in metrics:
            a, b = tables["didact"][name][metric], tables["harness"][name][metric]
            values.append(f"{metric} {a:.4f}" + ("" if abs(a - b) < 1e-9 else f" (harness {b:.4f})"))
            if abs(a - b) >= 1e-9 and not parted:
                problems.append(f"{name}: {metric} is {a} and {b}")
        lines.append(f"| {name} | {requests} | {worst:.3f} | {parted} | {hashes} | {', '.join(values)} |")
    verdict = "All within their tolerances." if not problems else "Outside: " + "; ".join(problems[:20]) + "."
    text = (
        f"## Evaluation beside the lm-evaluation-harness: the same numbers\n\n`python bench/harness.py parity`, commit "
        f"{commit()}, {datetime.date.today()}: SmolLM2-135M-Instruct, f32 on both sides, the same YAML files, {HARNESS}. *Distance* "
        "is the largest difference of a request's summed log-likelihood, as a share of what is allowed (1e-4 per token + 1e-3); "
        "*parted* counts generated texts that differ; *hashes* those of document, prompt or target that differ. "
        f"{verdict}\n\n| task | requests | distance | parted | hashes | scores |\n|---|---|---|---|---|---|\n"
        + "\n".join(lines) + "\n" + "".join(f"\n- {line}" for line in texts) + ("\n" if texts else "")
    )  # fmt: skip
    print(text)
    replace_section("harness", text)
    if problems:
        sys.exit(f"{len(problems)} differences outside their tolerances")


def speed(arguments):
    """Compares how long the three take in bf16."""
    work = pathlib.Path(arguments.work).resolve()
    everything = load()
    sweep = {}
    for batch in BATCHES:
        sweep[batch] = harness(arguments.model, str(work), "bfloat16", batch, str(work / "sweep"), arguments.sweep_limit)
        print(f"harness, {arguments.sweep_limit} questions of each task, batch size {batch}: {sweep[batch]:.0f} s", flush=True)
    best = min(sweep, key=sweep.get)
    record = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(), "load_before": load_average(), "others_before": others(), "sweep": sweep, "batch": best,
        "limit": arguments.limit, "pairs": [],
    }  # fmt: skip
    for pair in range(arguments.pairs):
        seconds = {}
        for side in ("harness", "didact") if pair % 2 == 0 else ("didact", "harness"):
            if side == "didact":
                seconds[side] = didact(arguments, "bf16", str(work / "speed-didact"), arguments.limit)
            else:
                seconds[side] = harness(arguments.model, str(work), "bfloat16", best, str(work / "speed-harness"), arguments.limit)
            time.sleep(1)
        record["pairs"].append(seconds)
        print(f"pair {pair + 1}: {seconds}, ratio {seconds['harness'] / seconds['didact']:.2f}", flush=True)
    everything["harness"] = record
    save(everything)
    ratios = [pair["harness"] / pair["didact"] for pair in record["pairs"]]
    ours, theirs = ([pair[side] for pair in record["pairs"]] for side in ("didact", "harness"))
    spread = lambda values, digits: f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"  # noqa: E731
    what = "all questions" if arguments.limit is None else f"{arguments.limit} questions of each task"
    text = (
        f"## Evaluation beside the lm-evaluation-harness: speed\n\n`python bench/harness.py speed`, commit {record['commit']}, "
        f"{record['date']}, load {record['load_before']:.1f}, others {record['others_before']:.0%}: the tasks of `parity` ({what}), "
        f"bf16, {os.cpu_count()} threads, seconds of the evaluation without loading the model; the harness ({HARNESS}) at batch size "
        f"{best}, the best of {', '.join(map(str, BATCHES))}.\n\n| Didact | harness | ratio | target | pairs |\n|---|---|---|---|---|\n"
        f"| {spread(ours, 1)} s | {spread(theirs, 1)} s | {spread(ratios, 2)} | 3 | {len(ratios)} |\n"
    )
    print(text)
    replace_section("harness-speed", text)


def main():
    """Parses and goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prepare", "parity", "speed"])
    parser.add_argument("--data", help="the folder with blimp/ and gsm8k/")
    parser.add_argument("--wordnet", default="/usr/share/wordnet")
    parser.add_argument("--work", required=True, help="a folder for data, task files and results")
    parser.add_argument("--model", help="the model's directory, f32")
    parser.add_argument("--didact", default=str(ROOT / "target" / "release" / "didact"))
    parser.add_argument("--again", action="store_true", help="parity: compare what was run before")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--limit", type=int, help="speed: questions of each task")
    parser.add_argument("--sweep-limit", type=int, default=32)
    arguments = parser.parse_args()
    if arguments.model:
        arguments.model = os.path.abspath(arguments.model)
    arguments.work = os.path.abspath(arguments.work)
    {"prepare": prepare, "parity": parity, "speed": speed}[arguments.what](arguments)


if __name__ == "__main__":
    main()

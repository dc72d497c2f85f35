#!/usr/bin/env python3
"""Makes this folder: task files with their rows, and what the lm-evaluation-harness makes of them with a model that answers by
chance. Needs `pip install lm-eval==0.4.13`; run in this folder.

The tasks cover where prompts and scores are decided: examples from another split and from the same one, a description, fields
and templates, choices as prompts, several right answers, filters, repeated answers.
"""
import glob
import hashlib
import json
import os
import random
import sys

from lm_eval.api.model import LM
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

WORDS = "cat dog tree stone river cloud house bread lamp chair".split()
TASKS = {
    # Examples from a split of their own; every normalisation.
    "choice": """
training_split: train
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{question.strip()}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: gold
num_fewshot: 2
description: "Answer.\\n\\n"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
  - {metric: acc_bytes, aggregation: mean, higher_is_better: true}
  - {metric: acc_mutual_info, aggregation: mean, higher_is_better: true}
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
  - {metric: brier_score, aggregation: brier_score, higher_is_better: false}
""",
    # Examples from the very split that is asked, which leaves the document itself out.
    "same_split": """
test_split: test
fewshot_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: "{{[choices[0], choices[1]]}}"
doc_to_target: "{{choices[0]}}"
num_fewshot: 3
target_delimiter: " = "
fewshot_delimiter: "\\n"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
    # The choices are prompts.
    "prompts": """
test_split: test
output_type: multiple_choice
doc_to_text: "{{gold % 2}}"
doc_to_choice: "{{['The ' + choices[0] + ' is', 'The ' + choices[1] + ' is']}}"
doc_to_target: "{{words}}"
num_fewshot: 1
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
""",
    # One target.
    "target": """
training_split: train
test_split: test
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: "{{' ' + words}}"
num_fewshot: 1
target_delimiter: ""
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
""",
    # Text through two pipelines of filters, examples that are the first of their split.
    "text": """
training_split: train
test_split: test
output_type: generate_until
doc_to_text: "Q: {{question}}\\nA:"
doc_to_target: "#### {{gold}}"
fewshot_config: {sampler: first_n}
num_fewshot: 2
generation_kwargs: {until: ["\\n"], max_gen_toks: 16, do_sample: false}
filter_list:
  - name: strict
    filter:
      - {function: regex, regex_pattern: '#### (\\-?[0-9\\.\\,]+)'}
      - {function: take_first}
  - name: last
    filter:
      - {function: regex, regex_pattern: '(-?[$0-9.,]{2,})|(-?[0-9]+)', group_select: -1}
      - {function: take_first}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
    regexes_to_ignore: [',', '\\$', '(?s).*#### ']
""",
    # Several right texts.
    "several": """
test_split: test
output_type: generate_until
doc_to_text: question
doc_to_target: choices
num_fewshot: 0
filter_list:
  - name: none
    filter:
      - {function: lowercase}
      - {function: remove_whitespace}
      - {function: take_first}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true, ignore_punctuation: true}
""",
}


def rows(seed, count):
    """Made-up documents, with odd characters and white space among them."""
    rng = random.Random(seed)
    for i in range(count):
        choices = rng.sample(WORDS, 3)
        choices[1] += " \u00e9\u4e2d" if i % 3 == 0 else ""
        yield {
            "question": f"  {rng.choice(WORDS)} number {i}? " if i % 4 == 0 else f"{rng.choice(WORDS)} number {i}?",
            "choices": choices, "gold": rng.randrange(3), "words": " ".join(rng.sample(WORDS, 2)), "weight": i / 8, "none": None,
        }  # fmt: skip


class Chance(LM):
    """Answers by the hash of what it is asked."""

    @staticmethod
    def _number(*parts):
        return int(hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8], 16)

    def loglikelihood(self, requests):
        found = []
        for request in requests:
            number = self._number(*request.args)
            found.append((-(1 + number % 1024) / 64, number % 5 == 0))
        return found

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError

    def generate_until(self, requests):
        answers = []
        for request in requests:
            number = self._number(request.args[0])
            word, digit = WORDS[number % len(WORDS)].title(), number % 3
            answers.append([f" so #### {digit}", f" 7 or {digit}. ", f" ${digit},0", f" {word}!", word.lower()][number % 5])
        return answers


def main():
    """Writes everything."""
    for name, seed, count in [("train", 1, 12), ("test", 2, 20)]:
        with open(f"{name}.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(seed, count))
    for name, body in TASKS.items():
        files = "dataset_kwargs:\n  data_files: {train: train.jsonl, test: test.jsonl}\n"
        with open(f"{name}.yaml", "w", encoding="utf-8") as file:
            file.write(f"task: golden_{name}\ndataset_path: json\n{files}{body.strip()}\nmetadata: {{version: 1.0}}\n")
    manager = TaskManager(include_path=os.getcwd(), include_defaults=False)
    found = simple_evaluate(
        Chance(), tasks=[f"golden_{name}" for name in TASKS], task_manager=manager, bootstrap_iters=0, cache_requests=False
    )
    keep = ["doc_id", "arguments", "resps", "filtered_resps", "filter", "metrics", "doc_hash", "prompt_hash", "target_hash"]
    golden = {"results": found["results"], "samples": {}}
    for name, samples in found["samples"].items():
        golden["samples"][name] = [
            {**{key: sample[key] for key in keep}, "target": str(sample["target"]),
             **{m: sample[m] if isinstance(sample[m], (int, float)) else float(sample[m]) for m in sample["metrics"] if m != "brier_score"}}
            for sample in samples
        ]  # fmt: skip
    with open("golden.json", "w", encoding="utf-8") as file:
        json.dump(golden, file, indent=1, ensure_ascii=False, default=float)
        file.write("\n")
    print(len(glob.glob("*.yaml")), "tasks", file=sys.stderr)


if __name__ == "__main__":
    main()

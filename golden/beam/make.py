"""Beam searches of `transformers` over the tiny models `golden/llama` and `golden/gpt2`.

Writes `golden.json` beside this file: for each search its settings, the ids and scores of what it found, best first. Ends
are left out of the ids.

    python golden/beam/make.py        # written with torch 2.15.0, transformers 5.23.0
"""

import json
import pathlib

import torch
import transformers

HERE = pathlib.Path(__file__).parent
PROMPT = list(b"hello")

SEARCHES = [
    {"beams": 3, "n": 3, "max_tokens": 8, "length_penalty": 1.0, "early_stopping": "heuristic", "eos": 0},
    {"beams": 4, "n": 2, "max_tokens": 12, "length_penalty": 1.0, "early_stopping": "heuristic", "eos": 2},
    {"beams": 4, "n": 4, "max_tokens": 12, "length_penalty": 0.0, "early_stopping": "never", "eos": 2},
    {"beams": 4, "n": 4, "max_tokens": 12, "length_penalty": 2.0, "early_stopping": "never", "eos": 2},
    {"beams": 5, "n": 5, "max_tokens": 10, "length_penalty": -0.5, "early_stopping": "heuristic", "eos": 4},
    {"beams": 3, "n": 3, "max_tokens": 12, "length_penalty": 1.5, "early_stopping": "when_full", "eos": 2},
    {"beams": 1, "n": 1, "max_tokens": 6, "length_penalty": 1.0, "early_stopping": "heuristic", "eos": 0},
]
EARLY = {"heuristic": False, "when_full": True, "never": "never"}


def search(model, settings, likely):
    # A random model hardly ever ends by itself: so many of the ids that it likes end an answer, too.
    eos = [257] + likely[: settings["eos"]]
    torch.manual_seed(0)
    found = model.generate(
        torch.tensor([PROMPT]),
        attention_mask=torch.ones(1, len(PROMPT), dtype=torch.int64),
        num_beams=settings["beams"],
        num_return_sequences=settings["n"],
        max_new_tokens=settings["max_tokens"],
        length_penalty=settings["length_penalty"],
        early_stopping=EARLY[settings["early_stopping"]],
        eos_token_id=eos,
        pad_token_id=259,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    results = []
    scores = found.sequences_scores.tolist() if settings["beams"] > 1 else [None]
    for row, score in zip(found.sequences.tolist(), scores):
        ids = row[len(PROMPT) :]
        end = next((i for i, id in enumerate(ids) if id in eos), None)
        ids = ids[:end] if end is not None else ids
        # Without an end a row is as long as allowed; anything else would be padding.
        assert end is not None or len(ids) == settings["max_tokens"]
        results.append({"ids": ids, "score": score, "is_ended": end is not None})
    return settings | {"eos": eos, "results": results}


def main():
    out = {"versions": {"torch": torch.__version__, "transformers": transformers.__version__}, "prompt": PROMPT}
    for name in ["llama", "gpt2"]:
        model = transformers.AutoModelForCausalLM.from_pretrained(HERE.parent / name, dtype=torch.float32).eval()
        model.generation_config = transformers.GenerationConfig()
        first = search(model, SEARCHES[0], [])
        likely = sorted({id for result in first["results"] for id in result["ids"][2:]})
        out[name] = [search(model, settings, likely) for settings in SEARCHES]
    (HERE / "golden.json").write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()

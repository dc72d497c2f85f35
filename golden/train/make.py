"""Reference numbers for the optimiser and the training loop.

Writes, beside this file:
- `adamw.json`: parameters after each of several steps of `torch.optim.AdamW` with two decay groups, gradients given;
- `llama.json`: the first ten losses and gradient norms of full fine-tuning of `golden/llama`, and norms and first values
  of its parameters afterwards.

    python golden/train/make.py        # written with torch 2.15.0, transformers 5.23.0
"""

import json
import pathlib

import torch
import transformers

HERE = pathlib.Path(__file__).parent
VERSIONS = {"torch": torch.__version__, "transformers": transformers.__version__}


def numbers(tensor):
    return tensor.detach().to(torch.float64).flatten().tolist()


def adamw():
    generator = torch.Generator().manual_seed(1)
    matrix = torch.nn.Parameter(torch.randn(5, 7, generator=generator))
    gain = torch.nn.Parameter(torch.randn(5, generator=generator))
    settings = {"lr": 0.01, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
    groups = [{"params": [matrix], "weight_decay": settings["weight_decay"]}, {"params": [gain], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings["lr"], betas=(settings["beta1"], settings["beta2"]), eps=settings["eps"])
    start = {"matrix": numbers(matrix), "gain": numbers(gain)}
    steps = []
    for step in range(6):
        # Sizes from tiny to large, and a step without any gradient for the gain.
        matrix.grad = torch.randn(5, 7, generator=generator) * 10.0 ** (step - 3)
        gain.grad = torch.randn(5, generator=generator) * (step % 3)
        lr = settings["lr"] / (step + 1)
        for group in optimizer.param_groups:
            group["lr"] = lr
        grads = {"matrix": numbers(matrix.grad), "gain": numbers(gain.grad)}
        optimizer.step()
        steps.append({"lr": lr, "grads": grads, "after": {"matrix": numbers(matrix), "gain": numbers(gain)}})
    return {"versions": VERSIONS, "settings": settings, "shape": [5, 7], "start": start, "steps": steps}


def sequences():
    generator = torch.Generator().manual_seed(2)
    rows = []
    for length in [23, 9, 31, 14, 5, 18]:
        ids = torch.randint(0, 250, (length,), generator=generator).tolist()
        # The first third is context; weights differ afterwards; a first token is never a target.
        weights = [0.0 if i < max(1, length // 3) else [1.0, 0.5, 2.0, 0.0][i % 4] for i in range(length)]
        rows.append({"ids": ids, "weights": weights})
    return rows


def llama():
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        HERE.parent / "llama", dtype=torch.float32, attn_implementation="eager"
    )
    rows = sequences()
    settings = {"lr": 1e-4, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1, "max_grad_norm": 0.5}
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings["weight_decay"]}, {"params": others, "weight_decay": 0.0}],
        lr=settings["lr"],
        betas=(settings["beta1"], settings["beta2"]),
        eps=settings["eps"],
    )
    total = sum(sum(row["weights"]) for row in rows)
    losses, norms = [], []
    for _ in range(10):
        optimizer.zero_grad()
        loss_sum = 0.0
        for row in rows:
            ids = torch.tensor([row["ids"]])
            weights = torch.tensor(row["weights"][1:])
            logits = model(input_ids=ids).logits[0, :-1]
            nll = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
            loss_sum = loss_sum + (weights * nll).sum()
        loss = loss_sum / total
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), settings["max_grad_norm"])))
        optimizer.step()
        losses.append(float(loss.detach()))
    after = {
        name: {"norm": float(parameter.detach().double().norm()), "first": numbers(parameter)[:4]}
        for name, parameter in model.named_parameters()
    }
    return {"versions": VERSIONS, "settings": settings, "sequences": rows, "losses": losses, "grad_norms": norms, "after": after}


if __name__ == "__main__":
    for name, make in [("adamw", adamw), ("llama", llama)]:
        (HERE / f"{name}.json").write_text(json.dumps(make(), indent=1) + "\n")

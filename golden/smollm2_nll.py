"""How far smollm2.json's mean losses, made in f32, are from the exact ones.

usage: didact model convert smollm2-135m-instruct DIR --dtype f32; python golden/smollm2_nll.py DIR
needs: pip install torch transformers

Everything is computed in float64, the norms and the softmax too, which transformers otherwise keep in float32.
"""

import json
import pathlib
import sys

import torch
import transformers.models.llama.modeling_llama as llama
from transformers import AutoModelForCausalLM

softmax = torch.nn.functional.softmax


def rms_norm(self, x):
    return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


llama.LlamaRMSNorm.forward = rms_norm
torch.nn.functional.softmax = lambda x, dim=-1, dtype=None, **rest: softmax(x, dim=dim)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float64, attn_implementation="eager").eval()

golden = json.loads((pathlib.Path(__file__).parent / "smollm2.json").read_text())
prompts = golden if isinstance(golden, list) else next(iter(golden.values()))
for prompt in prompts:
    if "mean_nll" not in prompt:
        continue
    ids = torch.tensor([prompt["ids"]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    exact = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).item()
    print(f"{ids.shape[1]:3} tokens: exact {exact:.9f}, golden {prompt['mean_nll'] - exact:+.1e}")

"""Makes frequencies.json: rotary frequencies as the Python library computes them (written with transformers 5.23.0,
torch 2.15.0). Each case is a config.json fragment, old and new spellings mixed on purpose.

    python golden/rope/make.py
"""

import json
from pathlib import Path

import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

BASE = dict(model_type="llama", vocab_size=64, hidden_size=256, intermediate_size=64, num_hidden_layers=1,
            num_attention_heads=4, max_position_embeddings=8192)
CASES = {
    "default": dict(rope_theta=100000.0),
    "default_new_key": dict(rope_parameters=dict(rope_type="default", rope_theta=500000.0)),
    "linear": dict(rope_theta=10000.0, rope_scaling=dict(type="linear", factor=4.0)),
    "llama3_1": dict(rope_theta=500000.0, head_dim=128, max_position_embeddings=131072,
                     rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                       original_max_position_embeddings=8192)),
    "llama3_2": dict(head_dim=64, max_position_embeddings=131072,
                     rope_parameters=dict(rope_theta=500000.0, rope_type="llama3", factor=32.0, low_freq_factor=1.0,
                                          high_freq_factor=4.0, original_max_position_embeddings=8192)),
    "yarn": dict(rope_theta=1000000.0, head_dim=128, max_position_embeddings=131072,
                 rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32768)),
    "yarn_every_key": dict(rope_theta=10000.0, head_dim=64, max_position_embeddings=16384,
                           rope_scaling=dict(rope_type="yarn", factor=8.0, original_max_position_embeddings=2048,
                                             beta_fast=24.0, beta_slow=2.0, mscale=1.2, mscale_all_dim=0.8,
                                             truncate=False)),
    "yarn_attention_factor": dict(rope_theta=10000.0,
                                  rope_scaling=dict(rope_type="yarn", factor=2.0, attention_factor=1.5,
                                                    original_max_position_embeddings=4096)),
}


def frequencies(case):
    config = LlamaConfig(**{k: v for k, v in json.loads(json.dumps({**BASE, **case})).items() if k != "model_type"})
    kind = config.rope_parameters["rope_type"]
    if kind == "default":
        d = config.head_dim
        values = 1.0 / config.rope_parameters["rope_theta"] ** (torch.arange(0, d, 2).float() / d)
        return values.tolist(), 1.0
    values, scale = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    return values.tolist(), float(scale)


out = []
for name, case in CASES.items():
    values, scale = frequencies(case)
    out.append(dict(name=name, config={**BASE, **case}, attention_scale=scale, inverse_frequencies=values))
(Path(__file__).parent / "frequencies.json").write_text(json.dumps(out, indent=1) + "\n")

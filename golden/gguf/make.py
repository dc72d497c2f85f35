"""Makes the GGUF fixtures of this directory with the Python package `gguf` (written with 0.19.0, numpy 2.4.6).

    python golden/gguf/make.py

- quants.gguf, quants.safetensors: one tensor of each storage type, random bits, and its numbers as `gguf.quants`
  dequantises them. `scale_edge.*` tensors hold the extreme scales.
- llama.gguf qwen2.gguf qwen3.gguf gpt2.gguf: the tiny models of golden/<arch> in f32, with llama.cpp's tensor names
  (from the package's own table), its interleaved query/key rows for Llama and its transposed matrices for GPT-2.
"""

import json
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from safetensors.numpy import load_file, save_file

HERE = Path(__file__).parent
GOLDEN = HERE.parent


def half(rng, shape, low=1e-3, high=2.0):
    return (rng.uniform(low, high, shape) * rng.choice([-1, 1], shape)).astype(np.float16).view(np.uint8)


def random_blocks(rng, kind, blocks):
    """Random bytes with finite scales in the places where the format keeps halves."""
    _, size = gguf.GGML_QUANT_SIZES[kind]
    data = rng.integers(0, 256, (blocks, size), dtype=np.uint8)
    places = {T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
              T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208]}[kind]
    for at in places:
        data[:, at:at + 2] = half(rng, (blocks, 1)).reshape(blocks, 2)
    return data, places


def quants():
    rng = np.random.default_rng(7)
    writer = gguf.GGUFWriter(HERE / "quants.gguf", "none")
    expected = {}
    plain = rng.standard_normal((3, 5)).astype(np.float32)
    for name, kind, data in [("F32", T.F32, plain), ("F16", T.F16, plain.astype(np.float16))]:
        writer.add_tensor(name, data)
        expected[name] = data.astype(np.float32)
    bf16 = gguf.quants.quantize(plain, T.BF16)
    writer.add_tensor("BF16", bf16, raw_dtype=T.BF16)
    expected["BF16"] = gguf.quants.dequantize(bf16, T.BF16)
    for kind in [T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.Q4_K, T.Q5_K, T.Q6_K]:
        data, places = random_blocks(rng, kind, 6)
        edge = data.copy()
        for at in places:
            # zero, smallest subnormal, largest finite, one
            bits = np.array([0, 1, 0x7BFF, 0x3C00, 0x8000, 0x8001], np.uint16).view(np.uint8).reshape(6, 2)
            edge[:, at:at + 2] = bits
        for name, blocks in [(kind.name, data), (f"scale_edge.{kind.name}", edge)]:
            rows = blocks.reshape(3, -1)
            writer.add_tensor(name, rows, raw_dtype=kind)
            expected[name] = gguf.quants.dequantize(rows, kind)
    finish(writer)
    save_file(expected, HERE / "quants.safetensors")
    (HERE / "quants.safetensors").chmod(0o644)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def permute(weights, heads):
    """llama.cpp's `LlamaModel.permute`: halves of each head to interleaved pairs."""
    return (weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
            .swapaxes(1, 2).reshape(weights.shape))


def model(name, arch):
    source = GOLDEN / name
    config = json.loads((source / "config.json").read_text())
    tensors = load_file(source / "model.safetensors")
    get = lambda *keys: next(config[k] for k in keys if config.get(k) is not None)
    layers, heads = get("num_hidden_layers", "n_layer"), get("num_attention_heads", "n_head")
    hidden = get("hidden_size", "n_embd")
    w = gguf.GGUFWriter(HERE / f"{name}.gguf", name)
    w.add_context_length(get("max_position_embeddings", "n_positions"))
    w.add_embedding_length(hidden)
    w.add_block_count(layers)
    w.add_feed_forward_length(config.get("intermediate_size") or 4 * hidden)
    w.add_head_count(heads)
    w.add_vocab_size(config["vocab_size"])
    if name == "gpt2":
        w.add_layer_norm_eps(config["layer_norm_epsilon"])
    else:
        w.add_head_count_kv(config["num_key_value_heads"])
        w.add_layer_norm_rms_eps(config["rms_norm_eps"])
        w.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
        w.add_rope_dimension_count(config.get("head_dim") or hidden // heads)
        if config.get("head_dim"):
            w.add_key_length(config["head_dim"])
            w.add_value_length(config["head_dim"])
    names = gguf.get_tensor_name_map(arch, layers)
    for hf, values in tensors.items():
        if name == "llama" and hf.endswith("q_proj.weight"):
            values = permute(values, heads)
        if name == "llama" and hf.endswith("k_proj.weight"):
            values = permute(values, config["num_key_value_heads"])
        if name == "gpt2" and hf.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            values = values.T
        gguf_name = names.get_name(hf, try_suffixes=(".weight", ".bias"))
        w.add_tensor(gguf_name, np.ascontiguousarray(values))
    finish(w)


quants()
for name, arch in [("llama", gguf.MODEL_ARCH.LLAMA), ("qwen2", gguf.MODEL_ARCH.QWEN2),
                   ("qwen3", gguf.MODEL_ARCH.QWEN3), ("gpt2", gguf.MODEL_ARCH.GPT2)]:
    model(name, arch)

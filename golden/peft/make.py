"""Makes LoRA adapters with the Python library PEFT, and the weights it merges them to (written with peft 0.21.2,
torch 2.15.0, transformers 5.23.0).

    python golden/peft/make.py

- llama/: on golden/llama; rank-stabilised, ranks and alphas by pattern, all linear layers named by one pattern string.
- gpt2/: on golden/gpt2; the layers whose weights are stored transposed.
`merged.safetensors` holds the tensors that merging changes, by the model's own names.
"""

import json
from pathlib import Path

import peft
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
CASES = {
    "llama": dict(r=4, lora_alpha=8, use_rslora=True, target_modules=r".*\.(q_proj|v_proj|down_proj)",
                  rank_pattern={"q_proj": 2}, alpha_pattern={r"layers.1.self_attn.v_proj": 3}),
    "gpt2": dict(r=3, lora_alpha=6, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True),
}

torch.manual_seed(5)
for name, settings in CASES.items():
    model = AutoModelForCausalLM.from_pretrained(HERE.parent / name, dtype=torch.float32)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    tuned = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.05, **settings))
    for key, value in tuned.named_parameters():
        if "lora_" in key:
            torch.nn.init.normal_(value, std=0.3)
    tuned.save_pretrained(HERE / name)
    config = HERE / name / "adapter_config.json"
    settings = json.loads(config.read_text()) | {"base_model_name_or_path": f"golden/{name}"}
    config.write_text(json.dumps(settings, indent=2) + "\n")
    (HERE / name / "README.md").unlink(missing_ok=True)
    merged = tuned.merge_and_unload().state_dict()
    changed = {k: v.contiguous() for k, v in merged.items() if k in before and not torch.equal(v, before[k])}
    save_file(changed, HERE / name / "merged.safetensors")
    for file in (HERE / name).iterdir():
        file.chmod(0o644)
    print(name, "peft", peft.__version__, sorted(changed))

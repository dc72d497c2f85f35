"""Small byte-level BPE tokenizers as GGUF files, with the ids that Python's tokenizers library gives.

    python make.py        # writes <pre>.gguf and expected.json beside this file

Needs tokenizers and gguf. Each tokenizer has the pre-tokenizer that Hugging Face's own files give the family of that
name: SmolLM2's, GPT-2's, Qwen2's and Llama 3's tokenizer.json.
"""

import json
import pathlib

import gguf
import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

HERE = pathlib.Path(__file__).parent
GPT2_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_WORDS = GPT2_WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def split(pattern):
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


KINDS = {
    "smollm": (None, pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]), False),
    "gpt-2": (None, pre_tokenizers.ByteLevel(add_prefix_space=False), False),
    "qwen2": (normalizers.NFC(), split(GPT2_WORDS), False),
    "llama-bpe": (None, split(LLAMA3_WORDS), True),
}

CORPUS = [
    "The cat sat on the mat, and the dog didn't. The year 2024 was followed by 2025; 1000000 people saw 12345 cats.",
    "DON'T shout: it's what they've said, I'll say. We're fine, she'd know.",
    "def f(x):\n    return x + 1\n\n\nfor i in range(100):\n    print(f(i))\n",
    "Grüße aus Köln! Ça va? 世界 你好 🦀🦀 naïve café",
] * 4

TEXTS = [
    "",
    " ",
    "The cat sat.",
    "  leading and trailing  ",
    "2024 2025 1000000 12345 20241 (100) f(x): x+1 DON'T don't We're\n\n\nfor",
    "1 22 333 4444 55555 3.14159 a1b2 ٣٤ ½",
    "Don't DON'T I'LL we've 'quoted'",
    "tabs\tand\n\n\nlines \r\n end\n",
    "def f(x):\n        return x\n",
    "Grüße 世界 🦀 e\u0301 \u212b 👩‍👩‍👧",
    "<|im_start|>user\nHi<|im_end|>\n<|endoftext|>",
    "a<|im_end|>b <|im_end|> <tool>x</tool> <|im_end",
    "\u0000\u0007 \u00a0nbsp\u3000wide",
]


def main():
    expected = {}
    for name, (normalizer, pre_tokenizer, ignore_merges) in KINDS.items():
        special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        tok = Tokenizer(models.BPE(ignore_merges=ignore_merges))
        if normalizer:
            tok.normalizer = normalizer
        # Trained on longer words than it will be given, so that a wrong pre-tokenizer shows in the ids.
        tok.pre_tokenizer = split(r"\s*[^\s]+|\s+")
        tok.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=600, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
        tok.train_from_iterator(CORPUS, trainer)
        tok.pre_tokenizer = pre_tokenizer
        tok.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("</tool>", normalized=False)])
        size = tok.get_vocab_size()
        tokens = [tok.id_to_token(i) for i in range(size)]
        types = [gguf.TokenType.CONTROL if t in special else gguf.TokenType.USER_DEFINED if t in ("<tool>", "</tool>") else gguf.TokenType.NORMAL for t in tokens]
        merges = [" ".join(m) if not isinstance(m, str) else m for m in json.loads(tok.to_str())["model"]["merges"]]
        writer = gguf.GGUFWriter(HERE / f"{name}.gguf", "llama")
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(name)
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        writer.add_token_merges(merges)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_eot_token_id(0)
        writer.add_pad_token_id(2)
        writer.add_add_bos_token(name == "llama-bpe")
        writer.add_context_length(64)
        writer.add_chat_template("{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        encoded = [tok.encode(t, add_special_tokens=False).ids for t in TEXTS]
        expected[name] = [
            {"text": t, "ids": ids, "decoded": tok.decode(ids), "decoded_with_special": tok.decode(ids, skip_special_tokens=False)}
            for t, ids in zip(TEXTS, encoded)
        ]
    out = {"tokenizers": tokenizers.__version__, "cases": expected}
    (HERE / "expected.json").write_text(json.dumps(out, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()

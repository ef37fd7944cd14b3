"""Inputs of the frozen cases, all drawn from seeds: texts, a tokenizer, teachers, dictionary weights. No cocomix here.

NumPy draws everything: its generators give the same numbers on every CPU, which `torch.randn` does not promise.
"""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB, D_MODEL, LAYERS, HEADS, POSITIONS, CONCEPTS = 400, 32, 3, 4, 128, 64

_SENTENCE = (
    "the a list of items string key value index file returns number café reads writes opens node tree leaf path line "
    "first last next other empty whole name type each where while until block token order count sum mean part naïve "
    "word text page table row column cell graph edge step loss rate size width depth head layer state input output"
)
WORDS = _SENTENCE.split()


# ---- texts ---------------------------------------------------------------------------------------------------------


def documents(number: int, seed: int, words: int = 60) -> list[str]:
    """Texts in which a word mostly follows from the one before, so that a small model learns something in 30 steps."""
    draws = np.random.default_rng(seed)
    texts = []
    for _ in range(number):
        word = int(draws.integers(len(WORDS)))
        parts = []
        for place in range(int(draws.integers(words // 2, words * 2))):
            follows = draws.random() < 0.7
            word = (word * 5 + 1) % len(WORDS) if follows else int(draws.integers(len(WORDS)))
            parts.append(WORDS[word] + (".\n" if place % 17 == 16 else ""))
        texts.append(" ".join(parts))
    return texts


UNUSUAL = (
    "Ünïcödé: naïve café, straße ẞ, İstanbul, Ελληνικά, Русский, עברית, العربية, हिन्दी",
    "中文字符，日本語のテキスト、한국어 문장。 🙂👩‍👩‍👧 🇫🇷 zero\u200bwidth nb\u00a0space \ufeff \ufffd e\u0301 é",
    "  leading, trailing and   inner spaces  \n\n\ttabs\r\nlines\n \n end ",
    "<|endoftext|> <s> </s> names of special tokens are text here <|endoftext|>",
    "def f(x_1: int = 3) -> str:\n    return {'a': [x, *y]} != None  # comment\n\n\n",
    "a",
)


def write_texts(folder: Path, texts: list[str], suffix: str = ".txt") -> Path:
    folder.mkdir(parents=True)
    for number, text in enumerate(texts):
        (folder / f"{number:04d}{suffix}").write_bytes(text.encode())
    return folder


def write_jsonl(path: Path, texts: list[str], field: str = "text") -> Path:
    """JSON Lines; gzipped where the name says so. Half of the lines escape what is not ASCII."""
    lines = [json.dumps({"id": n, field: text}, ensure_ascii=n % 2 == 0) for n, text in enumerate(texts)]
    data = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def write_parquet(path: Path, texts: list[str], field: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({field: texts}), path, row_group_size=10)
    return path


def write_tokenizer(folder: Path) -> Path:
    """A tokenizer that somebody else trained: a byte-level BPE whose begin and end tokens differ, unlike GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=350, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents(40, seed=90), trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    return folder


# ---- teachers and dictionaries -------------------------------------------------------------------------------------


def make_model(kind: str, *, vocab_size: int, seed: int) -> PreTrainedModel:
    """A random decoder of three blocks in float32."""
    shared: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": D_MODEL,
        "intermediate_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "max_position_embeddings": POSITIONS,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    sizes = {"n_embd": D_MODEL, "n_layer": LAYERS, "n_head": HEADS, "n_positions": POSITIONS}
    model = {
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, bos_token_id=0, eos_token_id=0, **sizes)),
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**shared)),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**shared, head_dim=8)),
    }[kind]()
    # Drawn here rather than by transformers, whose initialisation may change; large enough for losses to differ.
    draws = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.from_numpy(draws.standard_normal(tuple(parameter.shape)).astype(np.float32))
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.1 * noise if is_norm else noise * (0.1 if parameter.ndim == 1 else 0.2))
    return model.eval()


def random_dictionary(seed: int) -> dict[str, torch.Tensor]:
    """Weights of an autoencoder that describes nothing; enough to label by hand."""
    shapes = {"W_enc": (D_MODEL, CONCEPTS), "b_enc": (CONCEPTS,), "W_dec": (CONCEPTS, D_MODEL), "b_dec": (D_MODEL,)}
    draws = np.random.default_rng(seed)
    return {n: torch.from_numpy((draws.standard_normal(s) * 0.3).astype(np.float32)) for n, s in shapes.items()}


def fitting_dictionary(seed: int) -> dict[str, torch.Tensor]:
    """Weights that nearly reconstruct a hidden state, one concept for each coordinate and sign; `label` tries them."""
    noise = random_dictionary(seed)
    identity = torch.eye(D_MODEL)
    signed = {"W_enc": torch.cat((identity, -identity), dim=1), "W_dec": torch.cat((identity, -identity))}
    return {name: signed.get(name, torch.zeros(tensor.shape)) + 0.1 * tensor for name, tensor in noise.items()}


def token_rows(rows: int, length: int, vocab_size: int, seed: int) -> torch.Tensor:
    """Random tokens, int64 [rows, length]; token 0, which may begin a text, is left out."""
    return torch.from_numpy(np.random.default_rng(seed).integers(1, vocab_size, (rows, length)))

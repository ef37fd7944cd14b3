"""Small tokenizers of the kinds that aligning has to deal with, trained on a few sentences."""

import json
from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = (
    "The white house on the hill is white, and the hill is green; in 1984 nobody lived there.",
    "Ünïcödé is naïve: die Straße, le café, Ελληνικά, Русский язык, 中文字符, 日本語, 한국어, 🙂👩‍👩‍👧 and so on.",
    "def function(x, y):\n    return {'x': [x, *y]}  # a comment\n\n\n",
)


def _fast(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)


@cache
def byte_level(vocab_size: int = 400, *, normalizer: str = "", prefix_space: bool = False) -> PreTrainedTokenizerFast:
    """GPT-2's kind; with a normalizer, Qwen's (NFC) or one that lowercases."""
    tokenizer = Tokenizer(models.BPE())
    if normalizer:
        tokenizer.normalizer = {"nfc": normalizers.NFC(), "lower": normalizers.Lowercase()}[normalizer]
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return _fast(tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>")


@cache
def sentence_piece(vocab_size: int = 400, *, byte_fallback: bool = True) -> PreTrainedTokenizerFast:
    """Llama's kind: a dummy space before a text, "▁" for spaces, bytes for what is in no piece; begins texts by <s>."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=byte_fallback, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(
        [TEXTS[0], TEXTS[2]], trainer
    )  # nothing but Latin script: the rest falls back to bytes
    description = json.loads(tokenizer.to_str())
    vocabulary = description["model"]["vocab"]
    for byte in range(256):  # pieces like any other, as in Llama's files, not added tokens
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    tokenizer = Tokenizer.from_str(json.dumps(description))
    fast = _fast(tokenizer, eos_token="</s>", bos_token="<s>", unk_token="<unk>")
    fast.add_bos_token = True
    return fast


@cache
def word_piece() -> PreTrainedTokenizerFast:
    """BERT's kind: lowercases and drops accents; its tokens do not say which bytes they stand for."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return _fast(tokenizer, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", eos_token="[SEP]")

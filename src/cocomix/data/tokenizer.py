"""Tokenizers: load an existing one, or train a byte-level BPE; a fingerprint of what a tokenizer does."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from cocomix.artifacts import file_sha256, fingerprint_json
from cocomix.runtime.byte_level import plain_encoder
from cocomix.runtime.errors import CoCoMixError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"  # the end-of-document token of tokenizers trained here
MIN_VOCAB_SIZE = 258  # all 256 bytes, the end-of-document token, and one merge: less is not a BPE

_PROBES = (
    "The quick brown fox jumps over the lazy dog. It's they'll I'd we've DON'T",
    "  leading, trailing and   inner spaces  \n\n\ttabs\r\nlines\n \n end ",
    "numbers 0 7 42 365 1984 65,536 3.14159 1e-5 0xFF 100000000 ½ ² ٣",
    "def f(x_1: int = 3) -> str:\n    return {'a': [x, *y]} != None  # comment\n\n\n",
    "Ünïcödé: naïve café, Å Å Å, ﬁ ﬂ, ǅ, straße ẞ, İstanbul, Ελληνικά, Русский, עברית, العربية, हिन्दी",
    "中文字符，日本語のテキスト、한국어 문장。 🙂👩‍👩‍👧 🇫🇷 zero\u200bwidth nb\u00a0space \ufeff \ufffd",
    "https://example.org/a?b=c&d=e#f  user@example.com  --option=value  !!! ??? «quotes» “curly” ‘single’ — – -",
    "<|endoftext|><s></s><unk><pad>[CLS][SEP][MASK]<|im_start|>user<|im_end|><bos><eos> ▁ Ġ",
    "supercalifragilisticexpialidocious antidisestablishmentarianism AAAAAAAAAAAAAAAA aaaaaaaaaaaaaaaaaaaaaaaa ======",
)
"""Texts whose encodings are part of a tokenizer's fingerprint: they tell normalizers and pre-tokenizers apart."""


def tokenizer_identity(name: str | None, revision: str | None) -> Any:
    """What tells a tokenizer from others without loading it, as JSON: the content of a folder's files, or a name."""
    if name is None:
        return None
    path = Path(name).expanduser()
    if path.is_dir():
        named = ("tokenizer", "vocab", "merges", "special_tokens", "added_tokens")
        files = sorted(inner for inner in path.iterdir() if inner.name.startswith(named) or inner.suffix == ".model")
        return {"name": name, "files": fingerprint_json({inner.name: file_sha256(inner) for inner in files})}
    return {"name": name, "size": path.stat().st_size} if path.is_file() else {"name": name, "revision": revision}


def check_vocab_size(vocab_size: int) -> None:
    """Refuse a vocabulary that is too small for a byte-level BPE."""
    if vocab_size < MIN_VOCAB_SIZE:
        raise CoCoMixError(
            f"a vocabulary of {vocab_size:,} is too small: 256 bytes, the end token and at least one merge need "
            f"{MIN_VOCAB_SIZE}; choose a larger --vocab-size."
        )


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> "PreTrainedTokenizerFast":
    """Train a byte-level BPE in the manner of GPT-2: every text can be encoded, and decodes to itself.

    Its end, begin, unknown and padding token is `<|endoftext|>`, as in GPT-2. `vocab_size` counts it; the tokenizer has
    fewer entries when the texts are too small. Raises `CoCoMixError` without room for all bytes and this token.
    """
    from transformers import PreTrainedTokenizerFast

    check_vocab_size(vocab_size)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    special: Any = dict.fromkeys(("eos_token", "bos_token", "unk_token", "pad_token"), END_OF_TEXT)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, clean_up_tokenization_spaces=False)


def vocabulary_size(tokenizer: "PreTrainedTokenizerFast") -> int:
    """Rows an embedding needs: the largest token number plus one."""
    return int(max(tokenizer.get_vocab().values())) + 1


def begin_of_text(tokenizer: "PreTrainedTokenizerFast") -> int | None:
    """The begin-of-text token that a tokenizer puts before a text by itself; `None` where it puts none."""
    plain, own = (tokenizer.encode("a", add_special_tokens=added) for added in (False, True))
    return int(own[0]) if len(own) > len(plain) and own[0] == tokenizer.bos_token_id else None


def set_begin_of_text(tokenizer: "PreTrainedTokenizerFast", prepend_bos: bool, name: str) -> None:
    """Have a tokenizer, and copies of it, begin texts with the begin-of-text token or not; its fingerprint stays."""
    if prepend_bos and tokenizer.bos_token_id is None:
        raise CoCoMixError(
            f"the tokenizer {name} has no begin-of-text token for blocks to begin with; leave out --prepend-bos, or "
            "set bos_token in its tokenizer_config.json."
        )
    if prepend_bos != (begin_of_text(tokenizer) is not None):
        tokenizer.add_bos_token = prepend_bos


def encode_batch(encoder: Tokenizer, texts: list[str]) -> Iterator[list[int]]:
    """Token numbers of each text, without special tokens; the batch is spread over the processor's cores."""
    return (encoding.ids for encoding in encoder.encode_batch_fast(texts, add_special_tokens=False))


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerFast") -> str:
    """SHA-256 (hex) over what the tokenizer does to text.

    It covers the vocabulary, the merges where there are any, the end token, and the encodings of fixed probe texts in
    many scripts, but not names, paths, chat templates or how the pieces are written down. So a tokenizer saved and
    loaded again from another place keeps its fingerprint, and tokens of two tokenizers with the same fingerprint are
    interchangeable.
    """
    encoder = plain_encoder(tokenizer)
    merges = json.loads(encoder.to_str())["model"].get("merges", [])
    done = {
        "vocabulary": encoder.get_vocab(with_added_tokens=True),
        "merges": [merge.split(" ") if isinstance(merge, str) else merge for merge in merges],
        "end": tokenizer.eos_token_id,
        "probes": list(encode_batch(encoder, list(_PROBES))),
    }
    return fingerprint_json(done)

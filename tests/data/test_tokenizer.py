import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cocomix.data.reading import pieces
from cocomix.data.tokenizer import (
    encode_batch,
    plain_encoder,
    tokenizer_fingerprint,
    train_tokenizer,
    vocabulary_size,
)
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.hub import load_tokenizer
from tests.data.conftest import story

TOKENIZER = train_tokenizer([story(i) for i in range(30)], 340)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_a_trained_tokenizer_is_lossless(text: str) -> None:
    ids = next(encode_batch(plain_encoder(TOKENIZER), [text]))
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.eos_token_id not in ids


@pytest.mark.parametrize("limit", [30, 100, 333])
def test_a_text_in_pieces_has_the_tokens_of_the_whole(limit: int) -> None:
    text = "\n\n".join(story(i) for i in range(20))
    encoder = plain_encoder(TOKENIZER)
    cut = list(pieces(text, limit))
    assert len(cut) > 5
    assert [token for ids in encode_batch(encoder, cut) for token in ids] == next(encode_batch(encoder, [text]))


def test_special_tokens_and_size() -> None:
    assert vocabulary_size(TOKENIZER) == len(TOKENIZER) == 340
    assert TOKENIZER.eos_token == TOKENIZER.bos_token == TOKENIZER.pad_token == "<|endoftext|>"
    assert TOKENIZER.is_fast


def test_the_name_of_a_special_token_in_a_text_is_text() -> None:
    ids = next(encode_batch(plain_encoder(TOKENIZER), ["a<|endoftext|>b"]))
    assert TOKENIZER.eos_token_id not in ids
    assert TOKENIZER.decode(ids) == "a<|endoftext|>b"
    assert TOKENIZER("a<|endoftext|>b").input_ids.count(TOKENIZER.eos_token_id) == 1  # the copy alone is changed


def test_training_is_deterministic_across_processes() -> None:
    code = (
        "from tests.data.conftest import story\n"
        "from cocomix.data.tokenizer import train_tokenizer, tokenizer_fingerprint\n"
        "import sys; sys.stdout.write(tokenizer_fingerprint(train_tokenizer([story(i) for i in range(30)], 340)))"
    )
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout == tokenizer_fingerprint(TOKENIZER)


def test_too_small_a_vocabulary() -> None:
    with pytest.raises(CoCoMixError, match=r"257.*258"):
        train_tokenizer(["text"], 257)
    assert len(train_tokenizer(["text text"], 258)) == 258


def test_a_small_text_gives_a_smaller_vocabulary() -> None:
    assert vocabulary_size(train_tokenizer(["ab ab"], 4096)) < 300


def test_saved_and_loaded_elsewhere_is_the_same(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path / "one")
    loaded = load_tokenizer(str(tmp_path / "one"))
    loaded.save_pretrained(tmp_path / "two")
    again = load_tokenizer(str(tmp_path / "two"))
    assert tokenizer_fingerprint(TOKENIZER) == tokenizer_fingerprint(loaded) == tokenizer_fingerprint(again)
    again.backend_tokenizer.enable_truncation(3)
    again.chat_template = "{{ messages }}"
    assert tokenizer_fingerprint(again) == tokenizer_fingerprint(TOKENIZER)


def test_another_behaviour_is_another_fingerprint(tmp_path: Path) -> None:
    def changed(change: str) -> str:
        backend = Tokenizer.from_str(TOKENIZER.backend_tokenizer.to_str())
        if change == "normalizer":
            backend.normalizer = normalizers.Lowercase()
        if change == "pre-tokenizer":
            backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        end = "a" if change == "end" else "<|endoftext|>"
        return tokenizer_fingerprint(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end))

    other = tokenizer_fingerprint(train_tokenizer([story(i) for i in range(5)], 340))
    prints = [changed(change) for change in ("none", "normalizer", "pre-tokenizer", "end")] + [other]
    assert prints[0] == tokenizer_fingerprint(TOKENIZER)
    assert len(set(prints)) == 5


def test_a_tokenizer_without_an_end_token(tmp_path: Path) -> None:
    PreTrainedTokenizerFast(tokenizer_object=TOKENIZER.backend_tokenizer).save_pretrained(tmp_path / "t")
    with pytest.raises(CoCoMixError, match="end-of-text"):
        load_tokenizer(str(tmp_path / "t"))


def test_what_is_no_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CoCoMixError, match="empty") as error:
        load_tokenizer(str(tmp_path / "empty"))
    assert "\n" not in str(error.value)
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(CoCoMixError, match=r"a\.json"):
        load_tokenizer(str(tmp_path / "a.json"))


def write_gguf(path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    vocabulary = TOKENIZER.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    merges = [" ".join(merge) for merge in _merges()]
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token == "<|endoftext|>" else 1 for token in tokens])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(TOKENIZER.eos_token_id)
    writer.add_bos_token_id(TOKENIZER.eos_token_id)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _merges() -> list[list[str]]:

    merges = json.loads(TOKENIZER.backend_tokenizer.to_str())["model"]["merges"]
    return [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]


def test_a_tokenizer_out_of_a_gguf_file(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf")
    loaded = load_tokenizer(str(tmp_path / "model.gguf"))
    text = story(3)
    assert list(encode_batch(plain_encoder(loaded), [text])) == list(encode_batch(plain_encoder(TOKENIZER), [text]))
    assert loaded.eos_token_id == TOKENIZER.eos_token_id


def test_a_broken_gguf_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "bad.gguf").write_bytes(b"GGUFnothing of the kind")
    with pytest.raises(CoCoMixError, match=r"bad\.gguf"):
        load_tokenizer(str(tmp_path / "bad.gguf"))


def test_gguf_without_the_extra_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CoCoMixError, match=r"pip install 'cocomix\[gguf\]'"):
        load_tokenizer(str(tmp_path / "model.gguf"))


def test_models_other_than_bpe_have_a_fingerprint() -> None:
    words = Tokenizer(models.WordLevel({"<s>": 0, "a": 1, "b": 2}, unk_token="<s>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    assert len(tokenizer_fingerprint(PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<s>"))) == 64

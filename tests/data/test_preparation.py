import hashlib
import itertools
import json
from errno import ENOSPC
from pathlib import Path

import pytest
from pydantic import ValidationError

from cocomix.data import PreparedData, PrepareSettings, prepare, tokenizer_fingerprint, train_tokenizer
from cocomix.data import blocks as blocks_module
from cocomix.data import prepare as prepare_function
from cocomix.data import tokenizer as tokenizer_module
from cocomix.data.documents import read_documents, resolve_sources
from cocomix.data.formats import pieces
from cocomix.runtime.errors import CoCoMixError
from tests.data.conftest import RecordingReporter, story, write_jsonl


def settings(*sources: Path | str, **changes: object) -> PrepareSettings:
    defaults = {"vocab_size": 300, "block_size": 16, "blocks_per_shard": 20, "validation_fraction": 0.2}
    return PrepareSettings(sources=tuple(map(str, sources)), **{**defaults, **changes})


def decoded(data: PreparedData, split: str) -> str:
    ids = [token for block in data.split(split) for token in block["input_ids"].tolist()]
    return data.tokenizer().decode(ids)


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_every_document_is_in_one_split_followed_by_the_end_token(tmp_path: Path, corpus: Path) -> None:
    data = prepare(settings(corpus), tmp_path / "out")
    texts = {name: decoded(data, name) for name in ("train", "validation")}
    for number in range(40):
        places = [name for name, text in texts.items() if f"Story {number}." in text]
        assert len(places) == 1
    for name, text in texts.items():
        meta = data.meta.splits[name]
        stories = text.split("<|endoftext|>")
        assert len(stories) - 1 <= meta.documents <= len(stories)
        assert all(part in [story(i) for i in range(40)] for part in stories[:-1])
        assert meta.blocks == meta.tokens // 16 == len(data.split(name))
    assert sum(meta.documents for meta in data.meta.splits.values()) == 40
    assert sum(meta.bytes for meta in data.meta.splits.values()) == sum(len(story(i)) for i in range(40))


def test_the_description(tmp_path: Path, corpus: Path) -> None:
    data = prepare(settings(corpus, seed=5), tmp_path / "out")
    meta = data.meta
    assert (meta.vocab_size, meta.eos_token_id, meta.block_size, meta.seed) == (300, 0, 16, 5)
    assert [(source.name, source.kind, source.documents) for source in meta.sources] == [(str(corpus), "files", 40)]
    assert meta.tokenizer_fingerprint == tokenizer_fingerprint(data.tokenizer())
    for name, split in meta.splits.items():
        for shard_meta, shard in zip(split.shards, data.split(name).shards, strict=True):
            assert hashlib.sha256(shard.read().tobytes()).hexdigest() == shard_meta.sha256
    assert len(meta.splits["train"].shards) > 1
    assert json.loads((tmp_path / "out" / "meta.json").read_text()) == meta.model_dump(mode="json")


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, corpus: Path) -> None:
    one = prepare(settings(corpus), tmp_path / "one")
    two = prepare(settings(corpus), tmp_path / "two")
    assert one.meta == two.meta
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    other = prepare(settings(corpus, seed=1), tmp_path / "three")
    assert other.meta.fingerprint != one.meta.fingerprint


def test_the_batch_size_does_not_matter(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prepare(settings(corpus), tmp_path / "one")
    monkeypatch.setattr("cocomix.data.preparation._BATCH_DOCUMENTS", 3)
    monkeypatch.setattr("cocomix.data.preparation.pieces", lambda text: pieces(text, 200))
    assert prepare(settings(corpus), tmp_path / "two").meta == whole.meta


def test_the_bpe_learns_from_training_documents_only(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def train(texts: object, vocab_size: int) -> object:
        seen.extend(texts)
        return train_tokenizer(seen, vocab_size)

    monkeypatch.setattr("cocomix.data.preparation.train_tokenizer", train)
    data = prepare(settings(corpus), tmp_path / "out")
    assert len(seen) == data.meta.splits["train"].documents
    validation = decoded(data, "validation")
    assert not any(text.split(".")[0] + "." in validation for text in seen)


def test_the_bpe_reads_no_more_than_asked(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def train(texts: object, vocab_size: int) -> object:
        seen.extend(texts)
        return train_tokenizer(seen, vocab_size)

    monkeypatch.setattr("cocomix.data.preparation.train_tokenizer", train)
    data = prepare(settings(corpus, tokenizer_training_bytes=2000), tmp_path / "out")
    assert 2000 <= sum(map(len, seen)) < 2500
    assert sum(split.documents for split in data.meta.splits.values()) == 40


def test_validation_sources(tmp_path: Path, corpus: Path) -> None:
    held_out = write_jsonl(tmp_path / "held.jsonl.gz", ["Held out text. " * 5] * 3)
    data = prepare(settings(corpus, validation_sources=(str(held_out),)), tmp_path / "out")
    assert data.meta.splits["train"].documents == 40
    assert data.meta.splits["validation"].documents == 3
    assert "Held out" not in decoded(data, "train")
    assert [source.splits for source in data.meta.sources] == [("train",), ("validation",)]


def test_max_bytes_stops_the_training_text(tmp_path: Path, corpus: Path) -> None:
    data = prepare(settings(corpus, max_bytes=3000), tmp_path / "out")
    assert 3000 <= data.meta.splits["train"].bytes < 3500
    assert data.meta.splits["validation"].documents >= 1


def test_max_bytes_cuts_a_long_text_and_ends_it(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("A sentence of the long text.\n\n" * 75_000)
    held_out = write_jsonl(tmp_path / "held.jsonl", ["Held out text. " * 5] * 3)
    data = prepare(
        settings(tmp_path / "long.txt", validation_sources=(str(held_out),), max_bytes=1500), tmp_path / "out"
    )
    train = data.meta.splits["train"]
    assert train.documents == 1
    assert train.bytes < 1_000_001
    assert data.tokenizer().eos_token_id == 0
    assert train.tokens > train.bytes / 30


def test_an_existing_tokenizer(tmp_path: Path, corpus: Path) -> None:
    tokenizer = train_tokenizer(["some other text"] * 3, 270)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    data = prepare(settings(corpus, vocab_size=None, tokenizer=str(tmp_path / "tokenizer")), tmp_path / "out")
    assert data.meta.tokenizer_fingerprint == tokenizer_fingerprint(tokenizer)
    assert data.meta.tokenizer_name == str(tmp_path / "tokenizer")


def test_the_end_token_written_in_a_text_ends_nothing(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [f"the token <|endoftext|> in {story(i)}" for i in range(20)])
    data = prepare(settings(path), tmp_path / "out")
    ids = [token for block in data.split("train") for token in block["input_ids"].tolist()]
    assert ids.count(0) in (data.meta.splits["train"].documents, data.meta.splits["train"].documents - 1)


def test_invalid_utf8_is_counted_and_reported(tmp_path: Path, reporter: RecordingReporter) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b"".join(b'{"text": "' + story(i).replace("\n", " ").encode() + b' caf\xe9"}\n' for i in range(20))
    )
    data = prepare(settings(path), tmp_path / "out", reporter)
    assert data.meta.invalid_utf8 == 20
    assert any("20 invalid UTF-8 sequences were replaced" in message for message in reporter.warned)
    assert "caf�" in decoded(data, "train")


def test_progress_reaches_its_total(tmp_path: Path, corpus: Path, reporter: RecordingReporter) -> None:
    prepare(settings(corpus), tmp_path / "out", reporter)
    (bar,) = reporter.bars
    assert bar["unit"] == "MB"
    assert bar["done"] == pytest.approx(bar["total"])
    assert bar["total"] == pytest.approx(corpus.stat().st_size / 1e6)
    assert any("tokens/s" in message for message in reporter.said)


def test_a_vocabulary_the_text_cannot_fill_is_reported(
    tmp_path: Path, corpus: Path, reporter: RecordingReporter
) -> None:
    data = prepare(settings(corpus, vocab_size=5000), tmp_path / "out", reporter)
    assert data.meta.vocab_size < 5000
    assert any("enough for a vocabulary of" in message for message in reporter.warned)


def test_files_of_other_kinds_are_reported(tmp_path: Path, corpus: Path, reporter: RecordingReporter) -> None:
    (tmp_path / "notes.pdf").write_bytes(b"%PDF")
    prepare(settings(tmp_path), tmp_path / "elsewhere" / "out", reporter)
    assert any("left out 1 files of other kinds" in message for message in reporter.said)


def test_documentation_of_this_machine(tmp_path: Path) -> None:
    data = prepare(settings("docs:", max_bytes=150_000, vocab_size=512, validation_fraction=0.05), tmp_path / "out")
    assert data.meta.sources[0].kind == "documentation"
    assert " the " in decoded(data, "train")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": "gpt2"}, "give either --tokenizer, .* both was given"),
        ({"vocab_size": None}, "give either --tokenizer, .* neither of them was given"),
        ({"vocab_size": 200}, "a vocabulary of 200 is too small"),
        ({"validation_fraction": 0.0}, "there would be no validation split"),
        ({"sources": ()}, "there is no source to read"),
        ({"sources": ("missing.jsonl",)}, r"missing\.jsonl does not exist"),
        ({"text_column": "body"}, "there is no field 'body'; the fields are 'id', 'text'"),
        (
            {"block_size": 100_000},
            r"the train split has \d+ documents with [\d,]+ tokens, less than one block of 100,000",
        ),
        (
            {"block_size": 256, "validation_fraction": 0.001},
            r"the validation split has 1 documents with \d+ tokens, less than one block of 256; .*validation-fraction",
        ),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(
    tmp_path: Path, corpus: Path, changes: dict[str, object], message: str
) -> None:
    merged = settings(corpus).model_dump() | changes
    with pytest.raises(CoCoMixError, match=message) as error:
        prepare(PrepareSettings(**merged), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


def test_a_single_document_cannot_be_split(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text(story(1, words=500))
    with pytest.raises(CoCoMixError, match=r"a single document, .* give the validation text with --validation"):
        prepare(settings(tmp_path / "one.txt"), tmp_path / "out")


def test_a_validation_source_that_also_trains_is_refused(tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(CoCoMixError, match=r"corpus\.jsonl is given twice"):
        prepare(settings(corpus, validation_sources=(str(tmp_path),)), tmp_path / "out")


def test_an_existing_output_is_kept(tmp_path: Path, corpus: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    with pytest.raises(CoCoMixError, match="already exists"):
        prepare(settings(corpus), tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "keep"


@pytest.mark.parametrize(
    ("error", "raised"),
    [(OSError(ENOSPC, "No space left on device"), CoCoMixError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_full_disk_or_an_interrupt_leaves_nothing_and_a_rerun_works(
    tmp_path: Path,
    corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    raised: type[BaseException],
) -> None:
    write, calls = blocks_module._write_shard, []

    def failing(path: Path, *arguments: object) -> None:
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half")
            raise error
        write(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(blocks_module, "_write_shard", failing)
        with pytest.raises(raised):
            prepare(settings(corpus), tmp_path / "out")
    assert len(calls) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]
    assert len(prepare(settings(corpus), tmp_path / "out").split("train")) > 0


def test_settings_refuse_unknown_keys_and_nonsense() -> None:
    for wrong in ({"blok_size": 3}, {"block_size": 1}, {"validation_fraction": 1.0}, {"max_bytes": 0}):
        with pytest.raises(ValidationError):
            PrepareSettings(sources=("a",), **wrong)


def test_every_setting_is_described() -> None:
    source = Path(prepare_function.__code__.co_filename).read_text()
    for name in PrepareSettings.model_fields:
        assert f"    {name}: " in source
    lines = source.split("class PrepareSettings")[1].split("\ndef ")[0].splitlines()
    for line, following in itertools.pairwise(lines):
        if line.strip().split(":")[0] in PrepareSettings.model_fields:
            assert following.strip().startswith('"""')


def test_memory_holds_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The documents handed to the encoder at once stay few, whatever the corpus."""
    path = write_jsonl(tmp_path / "a.jsonl", [story(i, words=20) for i in range(3000)])
    largest = []

    def encode(encoder: object, texts: list[str]) -> object:
        largest.append(len(texts))
        return tokenizer_module.encode_batch(encoder, texts)

    monkeypatch.setattr("cocomix.data.preparation.encode_batch", encode)
    prepare(settings(path, tokenizer_training_bytes=1000), tmp_path / "out")
    assert max(largest) == 1024
    assert sum(largest) == len(list(read_documents(resolve_sources([str(path)]))))

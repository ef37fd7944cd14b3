import hashlib
import inspect
import itertools
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import ENOSPC
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from cocomix.artifacts import AlreadyExists, BeingWritten, partial_path, staging
from cocomix.data import PrepareSettings, Tokens, encode_share, prepare, tokenizer_fingerprint, train_tokenizer, units
from cocomix.data import preparation as preparation_module
from cocomix.runtime.errors import CoCoMixError
from tests.data.conftest import story, write_jsonl


def settings(*sources: Path | str, **changes: object) -> PrepareSettings:
    defaults = {"vocab_size": 300, "block_size": 16, "tokens_per_file": 320, "validation_fraction": 0.2}
    return PrepareSettings(sources=tuple(map(str, sources)), **{**defaults, **changes})


def decoded(data: Tokens, split: str) -> str:
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
        meta = data.manifest.splits[name]
        stories = text.split("<|endoftext|>")
        assert len(stories) - 1 <= meta.documents <= len(stories)
        assert all(part in [story(i) for i in range(40)] for part in stories[:-1])
        assert meta.blocks == meta.tokens // 16 == len(data.split(name))
    assert sum(meta.documents for meta in data.manifest.splits.values()) == 40
    assert sum(meta.bytes for meta in data.manifest.splits.values()) == sum(len(story(i)) for i in range(40))


def test_the_description(tmp_path: Path, corpus: Path) -> None:
    data = prepare(settings(corpus, seed=5), tmp_path / "out")
    meta = data.manifest
    assert (meta.vocab_size, meta.eos_token_id, meta.block_size, meta.seed) == (300, 0, 16, 5)
    assert [(source.name, source.kind, source.documents) for source in meta.sources] == [(str(corpus), "files", 40)]
    assert meta.tokenizer_fingerprint == tokenizer_fingerprint(data.tokenizer())
    assert len(meta.splits["train"].files) > 1
    files = [name for name in meta.files if not name.startswith("tokenizer/")]
    blocks = [file.name for split in meta.splits.values() for file in split.files]
    assert sorted(files) == sorted([*blocks, "validation.hashes.npy"])
    assert set(hashes(tmp_path / "out")) == {*meta.files, "manifest.json"}
    assert len(data.heldout_hashes()) == meta.splits["validation"].documents


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, corpus: Path) -> None:
    one = prepare(settings(corpus), tmp_path / "one")
    two = prepare(settings(corpus), tmp_path / "two")
    assert one.manifest == two.manifest
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    other = prepare(settings(corpus, seed=1), tmp_path / "three")
    assert other.manifest.fingerprint != one.manifest.fingerprint


def test_the_batch_size_does_not_matter(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prepare(settings(corpus), tmp_path / "one")
    monkeypatch.setattr("cocomix.data.units._BATCH_DOCUMENTS", 3)
    monkeypatch.setattr("cocomix.data.reading.PIECE_CHARACTERS", 200)
    assert prepare(settings(corpus), tmp_path / "two").manifest == whole.manifest


def test_the_bpe_learns_from_training_documents_only(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def train(texts: object, vocab_size: int) -> object:
        seen.extend(texts)
        return train_tokenizer(seen, vocab_size)

    monkeypatch.setattr("cocomix.data.preparation.train_tokenizer", train)
    data = prepare(settings(corpus), tmp_path / "out")
    assert len(seen) == data.manifest.splits["train"].documents
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
    assert sum(split.documents for split in data.manifest.splits.values()) == 40


def test_validation_sources(tmp_path: Path, corpus: Path) -> None:
    held_out = write_jsonl(tmp_path / "held.jsonl.gz", ["Held out text. " * 5] * 3)
    data = prepare(settings(corpus, validation_sources=(str(held_out),)), tmp_path / "out")
    assert data.manifest.splits["train"].documents == 40
    assert data.manifest.splits["validation"].documents == 3
    assert "Held out" not in decoded(data, "train")
    assert [source.splits for source in data.manifest.sources] == [("train",), ("validation",)]


def test_max_bytes_stops_the_training_text(tmp_path: Path, corpus: Path) -> None:
    data = prepare(settings(corpus, max_bytes=3000), tmp_path / "out")
    assert 3000 <= data.manifest.splits["train"].bytes < 3500
    assert data.manifest.splits["validation"].documents >= 1


def test_max_bytes_cuts_a_long_text_and_ends_it(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("A sentence of the long text.\n\n" * 75_000)
    held_out = write_jsonl(tmp_path / "held.jsonl", ["Held out text. " * 5] * 3)
    data = prepare(
        settings(tmp_path / "long.txt", validation_sources=(str(held_out),), max_bytes=1500), tmp_path / "out"
    )
    train = data.manifest.splits["train"]
    assert train.documents == 1
    assert train.bytes < 1_000_001
    assert data.tokenizer().eos_token_id == 0
    assert train.tokens > train.bytes / 30


def test_an_existing_tokenizer(tmp_path: Path, corpus: Path) -> None:
    tokenizer = train_tokenizer(["some other text"] * 3, 270)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    data = prepare(settings(corpus, vocab_size=None, tokenizer=str(tmp_path / "tokenizer")), tmp_path / "out")
    assert data.manifest.tokenizer_fingerprint == tokenizer_fingerprint(tokenizer)
    assert data.manifest.tokenizer_name == str(tmp_path / "tokenizer")
    of_that = prepare(settings(corpus, vocab_size=None, tokenizer=str(tmp_path / "out")), tmp_path / "as_before")
    assert of_that.manifest.tokenizer_fingerprint == data.manifest.tokenizer_fingerprint


def test_the_end_token_written_in_a_text_ends_nothing(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [f"the token <|endoftext|> in {story(i)}" for i in range(20)])
    data = prepare(settings(path), tmp_path / "out")
    ids = [token for block in data.split("train") for token in block["input_ids"].tolist()]
    assert ids.count(0) in (data.manifest.splits["train"].documents, data.manifest.splits["train"].documents - 1)


def test_invalid_utf8_is_counted_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b"".join(b'{"text": "' + story(i).replace("\n", " ").encode() + b' caf\xe9"}\n' for i in range(20))
    )
    data = prepare(settings(path), tmp_path / "out")
    assert data.manifest.invalid_utf8 == 20
    assert "20 characters that were not UTF-8" in caplog.text
    assert "caf\ufffd" in decoded(data, "train")


def test_progress_reaches_its_total(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bars: list[dict[str, float | str | None]] = []

    @contextmanager
    def progress(description: str, total: float | None, unit: str) -> Iterator[Callable[[float], None]]:
        bar = {"total": total, "unit": unit, "done": 0.0}
        bars.append(bar)

        def advance(amount: float) -> None:
            bar["done"] += amount

        yield advance

    monkeypatch.setattr(preparation_module, "progress", progress)
    caplog.set_level(logging.INFO)
    data = prepare(settings(corpus), tmp_path / "out")
    assert [bar["unit"] for bar in bars] == ["MB", "tokens"]
    assert bars[0]["total"] == pytest.approx(corpus.stat().st_size / 1e6)
    assert bars[1]["total"] == sum(split.blocks for split in data.manifest.splits.values()) * 16
    assert bars[0]["done"] == pytest.approx(bars[0]["total"])
    assert bars[1]["done"] == pytest.approx(bars[1]["total"], rel=0.3)  # headers of small files count
    assert "tokens/s" in caplog.text


def test_a_vocabulary_the_text_cannot_fill_is_reported(
    tmp_path: Path, corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = prepare(settings(corpus, vocab_size=5000), tmp_path / "out")
    assert data.manifest.vocab_size < 5000
    assert "enough for a vocabulary of" in caplog.text


def test_files_of_other_kinds_are_reported(tmp_path: Path, corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "notes.pdf").write_bytes(b"%PDF")
    prepare(settings(tmp_path), tmp_path / "elsewhere" / "out")
    assert "left out 1 files of other kinds" in caplog.text


def test_documentation_of_this_machine(tmp_path: Path) -> None:
    data = prepare(settings("docs:", max_bytes=150_000, vocab_size=512, validation_fraction=0.05), tmp_path / "out")
    assert data.manifest.sources[0].kind == "documentation"
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
    with pytest.raises(CoCoMixError, match=r"--validation"):
        prepare(settings(tmp_path / "one.txt"), tmp_path / "out")


def test_a_validation_source_that_also_trains_is_refused(tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(CoCoMixError, match=r"corpus\.jsonl"):
        prepare(settings(corpus, validation_sources=(str(tmp_path),)), tmp_path / "out")


def test_an_existing_output_is_kept(tmp_path: Path, corpus: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    with pytest.raises(CoCoMixError, match="already exists"):
        prepare(settings(corpus), tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "keep"


def test_settings_refuse_unknown_keys_and_nonsense() -> None:
    for wrong in ({"blok_size": 3}, {"block_size": 1}, {"validation_fraction": 1.0}, {"max_bytes": 0}):
        with pytest.raises(ValidationError):
            PrepareSettings(sources=("a",), **wrong)


def test_every_setting_is_described() -> None:
    lines = inspect.getsource(PrepareSettings).splitlines()
    described = {
        line.strip().split(":")[0]
        for line, following in itertools.pairwise(lines)
        if following.strip().startswith('"""')
    }
    assert PrepareSettings.model_fields.keys() <= described


# The split ----------------------------------------------------------------------------------------------------------


def test_adding_a_file_moves_no_document_and_copies_stay_together(tmp_path: Path) -> None:
    stories = [story(i) for i in range(40)]
    one = write_jsonl(tmp_path / "b.jsonl", stories)
    before = prepare(settings(one, tokenizer_training_bytes=500), tmp_path / "before")
    more = write_jsonl(tmp_path / "a.jsonl", [story(i) for i in range(60, 75)] + stories[::-1])
    after = prepare(settings(more, one, tokenizer_training_bytes=500), tmp_path / "after")
    for number in range(40):
        text = f"Story {number}."
        assert (text in decoded(before, "validation")) == (text in decoded(after, "validation"))
        assert not (text in decoded(after, "validation") and text in decoded(after, "train"))


def test_a_small_share_of_a_small_corpus_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_jsonl(tmp_path / "three.jsonl", [story(i, words=200) for i in range(3)])
    data = prepare(settings(path, validation_fraction=0.01), tmp_path / "out")
    assert data.manifest.splits["validation"].documents == 1
    assert "% of the tokens validate" in caplog.text
    assert "1% were asked for" in caplog.text


def test_few_documents_that_validate_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_jsonl(tmp_path / "few.jsonl", [story(i) for i in range(20)])
    data = prepare(settings(path, validation_fraction=0.1), tmp_path / "out")
    documents = data.manifest.splits["validation"].documents
    assert documents < 5
    assert f"only {documents} of 20 documents" in caplog.text


def test_a_split_gets_documents_until_it_has_a_block(tmp_path: Path, corpus: Path) -> None:
    data = prepare(settings(corpus, block_size=256, validation_fraction=0.001), tmp_path / "out")
    assert data.manifest.splits["validation"].blocks == 1
    assert data.manifest.splits["validation"].documents > 1


def test_training_documents_that_validate_too_are_warned_of(
    tmp_path: Path, corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    heldout = write_jsonl(tmp_path / "held.jsonl", [story(3), story(100), story(5)])
    prepare(settings(corpus, validation_sources=(str(heldout),)), tmp_path / "out")
    assert "2 training documents are among those that validate" in caplog.text


# Going on -----------------------------------------------------------------------------------------------------------


def write_sources(folder: Path) -> tuple[str, ...]:
    """Sources that make several units of every kind, at the sizes that `small_units` sets."""
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", [story(i) for i in range(80)])
    write_jsonl(folder / "b.jsonl.gz", [story(i) for i in range(80, 110)])
    rows = pa.table({"text": [story(i) for i in range(110, 180)]})
    pq.write_table(rows, folder / "c.parquet", row_group_size=10, compression="none")
    for number in range(3):
        (folder / f"d{number}.txt").write_text(story(200 + number))
    return (str(folder),)


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "MIN_UNIT_BYTES", 3000)
    monkeypatch.setattr(units, "MAX_UNIT_BYTES", 3000)
    monkeypatch.setattr(units, "_BATCH_DOCUMENTS", 4)


@pytest.mark.usefixtures("small_units")
def test_units_do_not_show_in_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = write_sources(tmp_path / "texts")
    one = prepare(settings(*sources), tmp_path / "one")
    monkeypatch.undo()
    two = prepare(settings(*sources), tmp_path / "two")
    assert hashes(one.path) == hashes(two.path)


@pytest.mark.usefixtures("small_units")
@pytest.mark.parametrize("after", [1, 7, 20])
def test_an_interrupted_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, after: int
) -> None:
    sources = write_sources(tmp_path / "texts")
    whole = prepare(settings(*sources), tmp_path / "whole")
    encode, batches = units.encode_batch, []

    def interrupted(encoder: object, texts: list[str]) -> object:
        if len(batches) == after:
            raise KeyboardInterrupt
        batches.append(texts)
        return encode(encoder, texts)

    with monkeypatch.context() as patch:
        patch.setattr(units, "encode_batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(settings(*sources), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert "MB of the input are encoded and kept" in caplog.text
    again: list[list[str]] = []
    monkeypatch.setattr(units, "encode_batch", lambda encoder, texts: again.append(texts) or encode(encoder, texts))
    data = prepare(settings(*sources), tmp_path / "out")
    assert hashes(data.path) == hashes(whole.path)
    assert not {text for batch in batches for text in batch} & {text for batch in again for text in batch}
    assert not partial_path(tmp_path / "out").exists()


@pytest.mark.usefixtures("small_units")
def test_what_other_settings_leave_as_it_is_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = write_sources(tmp_path / "texts")
    tokenizer = prepare(settings(*sources), tmp_path / "whole").path / "tokenizer"
    given = {"tokenizer": str(tokenizer), "vocab_size": None}

    def fail(*arguments: object, **settings: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(preparation_module, "divide", fail)
        with pytest.raises(KeyboardInterrupt):
            prepare(settings(*sources, **given), tmp_path / "out")
    (Path(sources[0]) / "d0.txt").write_text("another text, of another length " * 3)
    encode, again = units.encode_batch, list[str]()
    monkeypatch.setattr(units, "encode_batch", lambda encoder, texts: again.extend(texts) or encode(encoder, texts))
    changed = settings(*sources, **{**given, "block_size": 8, "seed": 3})
    data = prepare(changed, tmp_path / "out")
    assert 1 <= len(again) <= 3  # the unit of the changed file
    assert hashes(data.path) == hashes(prepare(changed, tmp_path / "fresh").path)


@pytest.mark.usefixtures("small_units")
def test_torn_logs_are_cut_to_what_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = write_sources(tmp_path / "texts")
    whole = prepare(settings(*sources), tmp_path / "whole")

    def fail(*arguments: object) -> None:
        raise KeyboardInterrupt

    for tear in (1, 40, 10**6):
        with monkeypatch.context() as patch:
            patch.setattr(units.UnitLog, "finish", fail)
            with pytest.raises(KeyboardInterrupt):
                prepare(settings(*sources), tmp_path / "out")
        for suffix in ("tokens", "unfinished"):
            for path in (partial_path(tmp_path / "out") / "work" / "units").glob(f"*.{suffix}"):
                os.truncate(path, max(0, path.stat().st_size - tear))
    assert hashes(prepare(settings(*sources), tmp_path / "out").path) == hashes(whole.path)


@pytest.mark.parametrize("step", [(Path, "hardlink_to"), (shutil, "copytree"), (staging, "seal"), (staging, "flush")])
def test_a_kill_at_the_end_is_made_up_for(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, step: tuple[object, str]
) -> None:
    whole = prepare(settings(corpus), tmp_path / "whole")
    encode, again = units.encode_batch, list[str]()

    def fail(*arguments: object, **settings: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*step, fail)
        with pytest.raises(KeyboardInterrupt):
            prepare(settings(corpus), tmp_path / "out")
    monkeypatch.setattr(units, "encode_batch", lambda encoder, texts: again.extend(texts) or encode(encoder, texts))
    assert hashes(prepare(settings(corpus), tmp_path / "out").path) == hashes(whole.path)
    assert not again


def test_a_full_disk_is_one_sentence_and_what_is_done_is_kept(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare(settings(corpus), tmp_path / "whole")

    def full(*arguments: object) -> None:
        raise OSError(ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(preparation_module, "pack_file", full)
        with pytest.raises(CoCoMixError, match="No space left on device"):
            prepare(settings(corpus), tmp_path / "out")
    monkeypatch.setattr(units, "encode_batch", full)  # nothing is encoded again
    assert hashes(prepare(settings(corpus), tmp_path / "out").path) == hashes(whole.path)


def test_a_finished_command_given_again_does_nothing(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    data = prepare(settings(corpus), tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in data.path.rglob("*")}
    assert prepare(settings(corpus), tmp_path / "out").manifest == data.manifest
    assert {path: path.stat().st_mtime_ns for path in data.path.rglob("*")} == before
    assert "nothing to do" in caplog.text
    with pytest.raises(AlreadyExists) as error:
        prepare(settings(corpus, seed=1, block_size=8), tmp_path / "out")
    assert set(error.value.keys) == {"seed", "block_size"}
    os.utime(corpus, ns=(1, 1))
    with pytest.raises(AlreadyExists) as error:
        prepare(settings(corpus), tmp_path / "out")
    assert set(error.value.keys) == {"sources"}


# Several processes --------------------------------------------------------------------------------------------------

RUN = """
import json, sys
from pathlib import Path
from cocomix.data import PrepareSettings, prepare, units
units.MIN_UNIT_BYTES = units.MAX_UNIT_BYTES = 3000
if __name__ == "__main__":
    prepare(PrepareSettings(**json.loads(sys.argv[1])), Path(sys.argv[2]), workers=int(sys.argv[3]))
"""


def command(folder: Path, output: Path, workers: int, sources: tuple[str, ...], **changes: object) -> list[str]:
    script = folder / "run.py"
    script.write_text(RUN)
    values = settings(*sources, **changes).model_dump(mode="json")
    return [sys.executable, str(script), json.dumps(values), str(output), str(workers)]


@pytest.mark.slow
def test_workers_give_the_same_bytes(tmp_path: Path) -> None:
    sources = write_sources(tmp_path / "texts")
    one = prepare(settings(*sources), tmp_path / "one")
    subprocess.run(command(tmp_path, tmp_path / "two", 2, sources), check=True)
    assert hashes(tmp_path / "two") == hashes(one.path)


@pytest.mark.slow
def test_a_second_command_on_one_output_is_refused(tmp_path: Path) -> None:
    sources = write_sources(tmp_path / "texts")
    first = subprocess.Popen(command(tmp_path, tmp_path / "out", 2, sources))
    try:
        lock = tmp_path / "out.lock"
        while not lock.exists() or not lock.read_text():
            assert first.poll() is None
            time.sleep(0.05)
        os.kill(first.pid, signal.SIGSTOP)
        with pytest.raises(BeingWritten) as error:
            prepare(settings(*sources, seed=1), tmp_path / "out")
        assert error.value.pid == first.pid
    finally:
        os.kill(first.pid, signal.SIGCONT)
        assert first.wait() == 0
    assert Tokens.open(tmp_path / "out").manifest.seed == 0
    assert not [finding for finding in Tokens.open(tmp_path / "out").verify().found if finding.state == "broken"]


def test_jobs_share_the_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "MIN_UNIT_BYTES", 3000)
    sources = write_sources(tmp_path / "texts")
    whole = prepare(settings(*sources), tmp_path / "whole")
    given = settings(*sources, tokenizer=str(whole.path / "tokenizer"), vocab_size=None)
    encode, encoded = units.encode_batch, list[int]()
    monkeypatch.setattr(units, "encode_batch", lambda e, texts: encoded.append(len(texts)) or encode(e, texts))
    for share in range(3):
        encode_share(given, tmp_path / "out", share, 3)
    assert sum(encoded) == sum(split.documents for split in whole.manifest.splits.values())
    data = prepare(given, tmp_path / "out")
    assert sum(encoded) == sum(split.documents for split in whole.manifest.splits.values())
    assert data.manifest.fingerprint == whole.manifest.fingerprint
    encode_share(given, tmp_path / "out", 0, 3)  # of a finished output: nothing to do
    with pytest.raises(CoCoMixError, match="--tokenizer"):
        encode_share(settings(*sources), tmp_path / "other", 0, 3)

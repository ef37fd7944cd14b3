"""Streams: the order, its slow twin, going on, workers, and shards that cannot be read."""

import pickle
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cocomix.data import StreamBlocks, StreamedData, Tokens
from cocomix.data.permutation import permuted
from cocomix.data.stream_blocks import Mark, StreamSource
from cocomix.data.tokenizer import plain_encoder
from cocomix.runtime.errors import CoCoMixError
from tests.workshop import Workshop, prepare_toy

TEXTS = [f"the list of items {number} returns a string " * (1 + number % 4) for number in range(60)]
TEXTS[7], TEXTS[8], TEXTS[31] = "", " \n", "café"


def write_shards(folder: Path, texts: Sequence[Any] = TEXTS, *, rows: int = 25, group: int = 10) -> Path:
    """Shards of `rows` rows in row groups of `group`."""
    folder.mkdir()
    for number, start in enumerate(range(0, len(texts), rows)):
        table = pa.table({"id": list(range(len(texts[start : start + rows]))), "text": texts[start : start + rows]})
        pq.write_table(table, folder / f"{number:02d}.parquet", row_group_size=group)
    return folder


@pytest.fixture(scope="module")
def heldout(workshop: Workshop) -> Tokens:
    return Tokens.open(workshop.data)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("stream") / "shards")


def stream(heldout: Tokens, *patterns: Path | str, lanes: int = 3, column: str = "text") -> StreamedData:
    return StreamedData(heldout, [str(pattern) for pattern in patterns], text_column=column, lanes=lanes)


def numbers(blocks: StreamBlocks, places: Sequence[int]) -> list[list[int]]:
    return [blocks[place]["input_ids"].tolist() for place in places]


def naive_lane(data: StreamedData, lane: int, seed: int) -> Iterator[list[int]]:
    """The blocks of a lane, from files read whole."""
    encoder = plain_encoder(data.tokenizer())
    groups = [
        pq.ParquetFile(shard.url).read_row_group(group)["text"].to_pylist()
        for shard in data.stream_shards
        for group in range(pq.ParquetFile(shard.url).num_row_groups)
    ]
    waiting: list[int] = []
    begin = [] if data.manifest.bos_token_id is None else [data.manifest.bos_token_id]
    taken = data.manifest.block_size - len(begin)
    turn = lane
    while True:
        order = permuted(np.arange(len(groups)), len(groups), seed, 0, turn // len(groups))
        for text in groups[order[turn % len(groups)]]:
            if text.strip():
                waiting += [*encoder.encode(text, add_special_tokens=False).ids, data.manifest.eos_token_id]
        while len(waiting) >= taken:
            yield begin + waiting[:taken]
            waiting = waiting[taken:]
        turn += data.lanes


@pytest.fixture(scope="module")
def heldout_with_bos(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    return prepare_toy(workshop.corpus, tmp_path_factory.mktemp("bos") / "data", prepend_bos=True)


@pytest.mark.parametrize(("lanes", "bos"), [(1, False), (3, False), (99, False), (3, True)])
def test_the_slow_twin(lanes: int, bos: bool, shards: Path, request: pytest.FixtureRequest) -> None:
    data = stream(request.getfixturevalue("heldout_with_bos" if bos else "heldout"), shards, lanes=lanes)
    assert data.lanes == min(lanes, 7)
    assert data.documents == 60
    count = 400  # several passes
    expected: list[Any] = [None] * count
    for lane in range(data.lanes):
        places = range(lane, count, data.lanes)
        expected[lane :: data.lanes] = islice(naive_lane(data, lane, seed=5), len(places))
    blocks = data.blocks(count, seed=5)
    assert numbers(blocks, range(count)) == expected
    backwards = list(range(30, -1, -1))
    assert numbers(blocks, backwards) == [expected[place] for place in backwards]
    copy = pickle.loads(pickle.dumps(blocks))  # noqa: S301 as a loader worker gets it
    assert numbers(copy, range(5, count, 4)) == expected[5::4]
    assert numbers(data.blocks(50, seed=6), range(50)) != expected[:50]


def test_packed_as_prepared_data_is(heldout: Tokens, workshop: Workshop, tmp_path: Path) -> None:
    """One lane of one row group holds the tokens that `cocomix prepare` stores of the same documents."""
    shard = write_shards(tmp_path / "one", rows=60, group=60) / "00.parquet"
    tokenizer, validation = str(heldout.path / "tokenizer"), (str(workshop.corpus),)
    prepared = prepare_toy(
        shard, tmp_path / "data", vocab_size=None, tokenizer=tokenizer, validation_sources=validation
    )
    blocks = stream(heldout, shard).blocks(prepared.manifest.splits["train"].blocks, seed=0)
    assert numbers(blocks, range(len(blocks))) == [row["input_ids"].tolist() for row in prepared.split("train")]


def noting(turns: list[int]) -> Any:
    """`StreamSource.documents`, which also notes what it is asked for."""
    original = StreamSource.documents

    def documents(self: StreamSource, turn: int, first_row: int) -> Any:
        turns.append(turn)
        return original(self, turn, first_row)

    return documents


def test_going_on_reads_no_row_group_again(heldout: Tokens, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = stream(heldout, shards)
    whole = data.blocks(300, seed=1)
    rows = [whole[place] for place in range(300)]
    for stop in (1, 257):
        marks = [Mark(0, lane, 0, 0) for lane in range(data.lanes)]
        for row in rows[:stop]:
            marks[row["reached"][0]] = Mark(*row["reached"][1:].tolist())
        resumed = data.blocks(300, seed=1)
        resumed.start_at(marks)
        turns: list[int] = []
        with monkeypatch.context() as patched:
            patched.setattr(StreamSource, "documents", noting(turns))
            for place in range(stop, 300):
                assert resumed[place]["input_ids"].tolist() == rows[place]["input_ids"].tolist()
                assert resumed[place]["reached"].tolist() == rows[place]["reached"].tolist()
        assert min(turns) >= min(mark.turn for mark in marks)
        assert (resumed[0]["input_ids"] == rows[0]["input_ids"]).all()  # before the marks: from the beginning


def test_what_identifies_a_stream(heldout: Tokens, shards: Path, tmp_path: Path) -> None:
    data = stream(heldout, shards)
    files = sorted(shards.iterdir())
    assert stream(heldout, f"{shards}/*.parquet").manifest.fingerprint == data.manifest.fingerprint
    assert stream(heldout, *files).manifest.fingerprint == data.manifest.fingerprint
    assert stream(heldout, shards.as_uri()).manifest.fingerprint == data.manifest.fingerprint
    others = [
        stream(heldout, *reversed(files)),
        stream(heldout, shards, lanes=2),
        stream(heldout, write_shards(tmp_path / "other", [*TEXTS[:-1], "another"])),
    ]
    assert (
        len(
            {data.manifest.fingerprint, heldout.manifest.fingerprint, *(other.manifest.fingerprint for other in others)}
        )
        == 5
    )


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("{}/nowhere.parquet", "finds no file"),
        ("{}/*.arrow", "finds no file"),
        ("{}/notes.txt", "is not a .parquet file"),
        ("HuggingFaceFW/fineweb", "hf://datasets/HuggingFaceFW/fineweb@COMMIT"),
        ("hf://datasets/HuggingFaceFW/fineweb/data/*.parquet", "names no revision"),
        ("nothing://x/*.parquet", "nothing:// is no file system that is known here"),
        ("https://user:secret@x.org/*.parquet", "holds an access key"),
        ("{}/none.parquet", "holds no documents"),
        ("{}/cut.parquet", "cut.parquet is not a readable Parquet file"),
        ("{}/empty.parquet", "empty.parquet is not a readable Parquet file"),
        ("{}/numbers.parquet", "numbers.parquet: column 'text' holds int64, not text"),
        ("{}/other.parquet", "other.parquet: there is no column 'text'; the columns are 'body'"),
    ],
)
def test_shards_that_are_refused(heldout: Tokens, shards: Path, tmp_path: Path, pattern: str, says: str) -> None:
    whole = (shards / "00.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.parquet").touch()
    (tmp_path / "notes.txt").touch()
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "none.parquet")
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "numbers.parquet")
    pq.write_table(pa.table({"body": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(CoCoMixError, match=says.replace("*", r"\*").replace("(", r"\(")) as caught:
        stream(heldout, pattern.format(tmp_path))
    assert str(caught.value).count("\n") == 0
    with pytest.raises(CoCoMixError, match="twice"):
        stream(heldout, shards, shards / "00.parquet")


def test_rows_that_are_refused(heldout: Tokens, shards: Path, tmp_path: Path) -> None:
    void = write_shards(tmp_path / "void", ["", " "])
    with pytest.raises(CoCoMixError, match="holds no text"):
        stream(heldout, void).blocks(1, seed=0)[0]
    nearly = stream(heldout, write_shards(tmp_path / "nearly", [*[""] * 5, "list"], rows=1, group=1), lanes=5)
    assert numbers(nearly.blocks(4, seed=0), range(4))[3] == next(naive_lane(nearly, 3, seed=0))
    null = write_shards(tmp_path / "null", ["a", None, "b"])
    with pytest.raises(CoCoMixError, match=r"00\.parquet, row group 0, row 1: 'text' holds null, not text"):
        stream(heldout, null).blocks(1, seed=0)[0]
    torn = write_shards(tmp_path / "torn") / "00.parquet"
    data = stream(heldout, torn)
    content = bytearray(torn.read_bytes())
    content[40:400] = bytes(360)
    torn.write_bytes(content)
    blocks = data.blocks(100, seed=0)
    with pytest.raises(CoCoMixError, match=r"00\.parquet, row group \d is not a readable Parquet file"):
        numbers(blocks, range(100))
    torn.unlink()
    with pytest.raises(CoCoMixError, match=r"00\.parquet does not exist"):
        data.blocks(1, seed=0)[0]

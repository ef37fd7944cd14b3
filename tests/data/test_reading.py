import gzip
import io
import itertools
import json
import subprocess
import sys
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from cocomix.artifacts import Unreachable
from cocomix.data import reading
from cocomix.data.reading import file_kind, pieces, read_texts
from cocomix.runtime.errors import CoCoMixError


def texts(path: Path, column: str = "text", start: int = 0, stop: int | None = None) -> list[str]:
    """Whole documents of a file."""
    documents, parts = [], []
    for found in read_texts(str(path), column, start, stop):
        parts.append(found.text)
        if found.last:
            documents.append("".join(parts))
            parts = []
    assert not parts
    return documents


def invalid(path: Path) -> int:
    return sum(found.invalid for found in read_texts(str(path), "text"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.txt", "text"),
        ("a.MD", "text"),
        ("a.b.jsonl.gz", "json"),
        ("a.json.zst", "json"),
        ("a.txt.zst", "text"),
        ("a.parquet", "parquet"),
        ("a.parquet.gz", None),
        ("a.gz", None),
        ("a.pdf", None),
        ("README", None),
    ],
)
def test_the_name_decides_the_format(name: str, expected: str | None) -> None:
    assert file_kind(name) == expected


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_json_lines_plain_and_compressed(tmp_path: Path, suffix: str) -> None:
    data = '{"text": "one\\n"}\n\n  \n{"text": "zw\\u00f6lf 😀", "n": 1}'.encode()
    packed = {"": data, ".gz": gzip.compress(data), ".zst": zstandard.compress(data)}[suffix]
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(packed)
    assert texts(path) == ["one\n", "zwölf 😀"]


def test_several_zstandard_frames_are_one_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.zst"
    path.write_bytes(zstandard.compress(b"one ") + zstandard.compress(b"two"))
    assert texts(path) == ["one two"]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_truncated_archives_are_named(tmp_path: Path, suffix: str) -> None:
    data = json.dumps({"text": "".join(chr(97 + i * i % 26) for i in range(5000))}).encode() + b"\n"
    packed = gzip.compress(data) if suffix == ".gz" else zstandard.compress(data)
    path = tmp_path / f"cut.jsonl{suffix}"
    path.write_bytes(packed[:-12])
    with pytest.raises(CoCoMixError, match=rf"cut\.jsonl\{suffix} .*damaged"):
        texts(path)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_files_that_are_not_archives_are_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"plain.jsonl{suffix}"
    path.write_bytes(b'{"text": "not compressed at all"}\n')
    with pytest.raises(CoCoMixError, match=r"plain\.jsonl.* damaged"):
        texts(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "open', r"a\.jsonl:3: this line is not valid JSON \(.* at column 10\)"),
        ("[1]", r"a\.jsonl:3: this line is no JSON object"),
        ("null", r"a\.jsonl:3: this line is no JSON object"),
        ('{"body": "x", "id": 1}', r"a\.jsonl:3: there is no field 'text'; the fields are 'body', 'id'"),
        ("{}", r"a\.jsonl:3: there is no field 'text'; the fields are none"),
        ('{"text": 3}', r"a\.jsonl:3: 'text' holds a number, not text"),
        ('{"text": null}', r"a\.jsonl:3: 'text' holds null, not text"),
        ('{"text": {"a": 1}}', r"a\.jsonl:3: 'text' holds an object, not text"),
        ('{"text": ' + "1" * 5000 + "}", r"a\.jsonl:3: this line is not valid JSON"),
        ("[" * 100_000, r"a\.jsonl:3: this line is no JSON object"),
        ('{"a":' * 100_000, r"a\.jsonl:3: this line is not valid JSON"),
    ],
)
def test_bad_lines_are_named_with_their_number(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n\n' + line + "\n")
    with pytest.raises(CoCoMixError, match=message) as error:
        texts(path)
    assert "\n" not in str(error.value)


def test_lines_longer_than_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_CHUNK_BYTES", 7)
    path = tmp_path / "a.jsonl"
    path.write_text('\ufeff{"text": "' + "é" * 50 + '"}\n{"text": "b"}\n')
    assert texts(path) == ["é" * 50, "b"]


def test_binary_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"text\0text")
    with pytest.raises(CoCoMixError, match=r"a\.txt .*NUL"):
        texts(path)
    path.write_bytes(bytes(range(128, 256)) * 4)
    with pytest.raises(CoCoMixError, match=r"a\.txt .*\d+ of \d+"):
        texts(path)


def test_invalid_utf8_is_replaced_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9 and a real \xef\xbf\xbd, then \xff\xff end" * 3)
    assert texts(path) == ["caf� and a real �, then �� end" * 3]
    assert invalid(path) == 9
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "caf\xe9 \\ud83d\\ude00 \\ud800 end of the line"}\n')
    assert texts(path) == ["caf� 😀 � end of the line"]
    assert invalid(path) == 2


@given(
    text=st.text(alphabet=st.characters(exclude_characters="\0\ufeff", exclude_categories=["Cs"])),
    chunk=st.integers(1, 9),
)
def test_plain_text_is_read_exactly_whatever_the_chunks(
    tmp_path_factory: pytest.TempPathFactory, text: str, chunk: int
) -> None:
    path = tmp_path_factory.mktemp("plain") / "a.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "PIECE_CHARACTERS", 5)
        patch.setattr(reading, "_CHUNK_BYTES", chunk)
        found = list(read_texts(str(path), "text"))
    assert "".join(piece.text for piece in found) == text
    assert [piece.last for piece in found] == [False] * (len(found) - 1) + [True]
    assert sum(piece.invalid for piece in found) == 0
    assert sum(piece.read for piece in found) == len(text.encode())
    assert all(len(piece.text) <= 5 for piece in found)


@given(text=st.text(alphabet="ab \n.é", max_size=200), limit=st.integers(2, 30))
def test_pieces_add_up_to_the_text(text: str, limit: int) -> None:
    cut = list(pieces(text, limit))
    assert "".join(cut) == text
    assert all(0 < len(piece) <= limit for piece in cut[:-1])
    assert len(cut[-1]) <= limit


def test_pieces_prefer_paragraphs_then_words() -> None:
    assert list(pieces("one two\n\nthree four five", 15)) == ["one two", "\n\nthree four", " five"]
    assert list(pieces("x" * 25, 10)) == ["x" * 10, "x" * 10, "x" * 5]


def parquet(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=3)
    return path


@pytest.mark.parametrize("type_", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet(tmp_path: Path, type_: pa.DataType) -> None:
    values = [f"row {i} ü" for i in range(10)]
    path = parquet(tmp_path / "a.parquet", body=pa.array(values).cast(type_), id=pa.array(range(10)))
    assert texts(path, "body") == values


def test_bad_parquet(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", body=["x", None], id=[1, 2])
    with pytest.raises(CoCoMixError, match=r"a\.parquet.*'text'.*'body', 'id'"):
        texts(path)
    with pytest.raises(CoCoMixError, match=r"'id'.*int64"):
        texts(path, "id")
    with pytest.raises(CoCoMixError, match=r"a\.parquet.*row 2.*'body'.*null"):
        texts(path, "body")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CoCoMixError, match=r"a\.parquet"):
        texts(path, "body")


# Ranges -------------------------------------------------------------------------------------------------------------


@given(lines=st.lists(st.text(alphabet="a\u00e9", max_size=6), min_size=1, max_size=12), data=st.data())
def test_ranges_of_lines_are_all_lines_once(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("ranges") / "a.jsonl"
    written = [json.dumps({"text": line}, ensure_ascii=False) for line in lines]
    path.write_bytes("\n".join(written).encode())
    size = path.stat().st_size
    inner = data.draw(st.lists(st.integers(1, size), unique=True, max_size=5).map(sorted))
    edges = [0, *(edge for edge in inner if edge < size), size]
    found = [text for start, stop in itertools.pairwise(edges) for text in texts(path, start=start, stop=stop)]
    assert found == lines


def test_a_bad_line_in_a_range_is_named_by_its_number_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = '{"text": "fine"}\n'
    path.write_text(good * 10 + "[1]\n" + good)
    with pytest.raises(CoCoMixError, match=r"a\.jsonl:11: "):
        texts(path, start=40, stop=path.stat().st_size)


def test_ranges_of_row_groups(tmp_path: Path) -> None:
    values = [f"row {i}" for i in range(10)]
    path = parquet(tmp_path / "a.parquet", text=values)
    assert texts(path, start=1, stop=3) == values[3:9]
    assert [text for group in range(4) for text in texts(path, start=group, stop=group + 1)] == values


# Hostile files ------------------------------------------------------------------------------------------------------

MEASURE = """
import resource, sys
from cocomix.data.reading import read_texts
from cocomix.runtime.errors import CoCoMixError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pieces, refused = 0, ""
try:
    for piece in read_texts(sys.argv[1], "text"):
        pieces += 1
        if pieces == 300:
            break
except CoCoMixError as error:
    refused = str(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, pieces, refused, sep="|")
"""


def measured(path: Path) -> tuple[int, int, str]:
    """MiB of memory, pieces read and what was said of reading a file in a process of its own."""
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    memory, count, refused = done.stdout.strip().split("|", 2)
    return int(memory), int(count), refused


def compressed(start: bytes, filling: bytes, megabytes: int) -> bytes:
    """A Zstandard file of a few kilobytes that holds so many megabytes."""
    compressor = zstandard.ZstdCompressor(level=3).compressobj()
    parts = [compressor.compress(start)]
    parts += [compressor.compress(filling * (2**20 // len(filling))) for _ in range(megabytes)]
    return b"".join([*parts, compressor.flush()])


@pytest.mark.slow
def test_bombs_take_little_memory(tmp_path: Path) -> None:
    text, line, array = tmp_path / "a.txt.zst", tmp_path / "a.jsonl.zst", tmp_path / "array.json"
    text.write_bytes(compressed(b"", b"word ", 512))
    line.write_bytes(compressed(b'{"text": "', b"a", 512))
    with array.open("wb") as stream:
        stream.write(b"[")
        for _ in range(200):
            stream.write(b'{"text": "x"}, ' * 70_000)
    assert text.stat().st_size < 200_000
    memory, pieces, refused = measured(text)
    assert (pieces, refused) == (300, "")
    assert memory < 150
    memory, pieces, refused = measured(line)
    assert pieces == 0
    assert "a.jsonl.zst:1: this line has more than" in refused
    assert memory < 250
    memory, pieces, refused = measured(array)
    assert pieces == 0
    assert "array.json:1: " in refused
    assert memory < 250


def test_hostile_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine", "n": 1e400, "m": ' + "9" * 4000 + "}\n")
    assert texts(path) == ["fine"]


# Remote files -------------------------------------------------------------------------------------------------------


class Flaky(io.BytesIO):
    """A file whose reads fail so many times."""

    def __init__(self, content: bytes, failures: int) -> None:
        super().__init__(content)
        self.failures = failures

    def read(self, size: int | None = -1) -> bytes:
        if self.failures:
            self.failures -= 1
            raise ConnectionResetError("reset by peer")
        return super().read(size)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_a_network_fault_is_tried_again_and_never_called_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / name
    if name == "a.parquet":
        parquet(path, text=["one", "two"])
    else:
        data = b'{"text": "one"}\n{"text": "two"}\n'
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    fsspec.filesystem("memory").pipe_file(f"/read/{name}", path.read_bytes())
    monkeypatch.setattr("cocomix.artifacts.store._FIRST_WAIT", 0.0)
    failures = 2

    def flaky(self: object, path: str, *arguments: object, **settings: object) -> Flaky:
        return Flaky(self.cat_file(path), failures)

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.open", flaky)
    assert texts(Path(f"memory://read/{name}")) == ["one", "two"]
    failures = 10**6
    with pytest.raises(Unreachable, match="reset by peer"):
        texts(Path(f"memory://read/{name}"))

import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from cocomix.data import formats
from cocomix.data.formats import file_format, pieces, read_texts
from cocomix.runtime.errors import CoCoMixError


def texts(path: Path, column: str = "text") -> list[str]:
    """Whole documents of a file."""
    documents, parts = [], []
    with path.open("rb") as stream:
        for found in read_texts(path, stream, column):
            parts.append(found.text)
            if found.last:
                documents.append("".join(parts))
                parts = []
    assert not parts
    return documents


def invalid(path: Path) -> int:
    with path.open("rb") as stream:
        return sum(found.invalid for found in read_texts(path, stream, "text"))


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
    assert file_format(Path(name)) == expected


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
    with pytest.raises(CoCoMixError, match=rf"cut\.jsonl\{suffix} is truncated or damaged"):
        texts(path)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_files_that_are_not_archives_are_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"plain.jsonl{suffix}"
    path.write_bytes(b'{"text": "not compressed at all"}\n')
    with pytest.raises(CoCoMixError, match=r"plain\.jsonl.* is truncated or damaged"):
        texts(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "open', r"a\.jsonl:3: this line is not valid JSON \(.* at column 10\)"),
        ("[1]", r"a\.jsonl:3: this line is a list, not a JSON object"),
        ("null", r"a\.jsonl:3: this line is null, not a JSON object"),
        ('{"body": "x", "id": 1}', r"a\.jsonl:3: there is no field 'text'; the fields are 'body', 'id'"),
        ("{}", r"a\.jsonl:3: there is no field 'text'; the fields are none"),
        ('{"text": 3}', r"a\.jsonl:3: 'text' holds a number, not text"),
        ('{"text": null}', r"a\.jsonl:3: 'text' holds null, not text"),
        ('{"text": {"a": 1}}', r"a\.jsonl:3: 'text' holds an object, not text"),
        ('{"text": ' + "1" * 5000 + "}", r"a\.jsonl:3: this line is not valid JSON"),
        ("[" * 100_000, r"a\.jsonl:3: this line is not valid JSON"),
    ],
)
def test_bad_lines_are_named_with_their_number(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n\n' + line + "\n")
    with pytest.raises(CoCoMixError, match=message) as error:
        texts(path)
    assert "\n" not in str(error.value)


def test_lines_longer_than_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_CHUNK_BYTES", 7)
    path = tmp_path / "a.jsonl"
    path.write_text('\ufeff{"text": "' + "é" * 50 + '"}\n{"text": "b"}\n')
    assert texts(path) == ["é" * 50, "b"]


def test_binary_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"text\0text")
    with pytest.raises(CoCoMixError, match=r"a\.txt is not a UTF-8 text file \(it has NUL bytes\)"):
        texts(path)
    path.write_bytes(bytes(range(128, 256)) * 4)
    with pytest.raises(CoCoMixError, match=r"a\.txt is not a UTF-8 text file \(\d+ of \d+ characters"):
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
def test_plain_text_is_read_exactly_whatever_the_chunks(text: str, chunk: int) -> None:
    data = text.encode()
    chunks = (data[i : i + chunk] for i in range(0, len(data), chunk))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "PIECE_CHARACTERS", 5)
        patch.setattr(formats, "pieces", lambda text: pieces(text, 5))
        found = list(formats._plain_texts(Path("a.txt"), chunks))
    assert "".join(piece.text for piece in found) == text
    assert [piece.last for piece in found] == [False] * (len(found) - 1) + [True]
    assert sum(piece.invalid for piece in found) == 0
    assert all(len(piece.text) <= 10 + chunk for piece in found)


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
    with pytest.raises(CoCoMixError, match=r"a\.parquet: there is no column 'text'; the columns are 'body', 'id'"):
        texts(path)
    with pytest.raises(CoCoMixError, match="column 'id' holds int64, not text"):
        texts(path, "id")
    with pytest.raises(CoCoMixError, match=r"a\.parquet, row 2: 'body' holds null, not text"):
        texts(path, "body")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CoCoMixError, match=r"a\.parquet is not a readable Parquet file"):
        texts(path, "body")


def test_position_reaches_the_size_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("some words " * 10)
    stream = io.BytesIO(path.read_bytes())
    assert [found.position for found in read_texts(path, stream, "text")] == [110]

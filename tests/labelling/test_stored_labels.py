"""What labels look like on the disk, and what is read back."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pydantic import ValidationError

from cocomix.artifacts import Damaged, MadeFromSomethingElse, NotAnArtifact, WrongKind
from cocomix.concepts import ConceptLabels, build_labeller
from cocomix.data import Tokens
from cocomix.labelling import Concatenated, Job, Labels, label_data
from cocomix.labelling.stored_labels import encode_labels, label_layouts
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE

from .tiny import BLOCK, TinyConfig, toy_tokens


def make(tokens: Tokens, output: Path, scores: Any = "float16", **settings: Any) -> Labels:
    labels = label_data(tokens.path, TinyConfig(**settings), output, scores=scores, job=Job(batch_tokens=2 * BLOCK))
    assert labels is not None
    return labels


def test_ids_of_65536_concepts_take_two_bytes() -> None:
    """65,535 was the largest number while one of the values stood for no label."""
    layouts = label_layouts(1, 2, 65_536, "none")
    labels = ConceptLabels(torch.tensor([[[65_535, 0]], [[65_535, IGNORE]]]))
    stored = encode_labels(labels, layouts)
    assert stored["ids"].tolist() == [[[65_535, 0]], [[65_535, 0]]]
    assert stored["counts"].tolist() == [[2], [1]]
    assert sum(array.itemsize * array[0, 0].size for array in stored.values()) == 2 * 2 + 1  # bytes per token


@given(
    present=arrays.arrays(np.uint8, (3, 4), elements=st.integers(0, 2)), seed=st.integers(0, 2**32), most=st.booleans()
)
def test_encoded_labels_keep_every_label(present: Any, seed: int, most: bool) -> None:
    draw = np.random.default_rng(seed)
    concepts = 65_536 if most else 70_000
    ids = draw.integers(0, concepts, (3, 4, 2))
    ids[np.arange(2) >= present[..., None]] = IGNORE
    scores = np.where(ids == IGNORE, 0.0, draw.normal(size=ids.shape) * 1e5)
    layouts = label_layouts(4, 2, concepts, "float16")
    stored = encode_labels(ConceptLabels(torch.from_numpy(ids), torch.from_numpy(scores).float()), layouts)
    assert {name: (array.dtype, array.shape[1:]) for name, array in stored.items()} == layouts
    assert np.array_equal(stored["counts"], present)
    kept = np.arange(2) < present[..., None]
    assert np.array_equal(stored["ids"][kept], ids[kept])
    assert np.isfinite(stored["scores"]).all()


@pytest.mark.parametrize("scores", ["none", "float16", "float32"])
def test_stored_labels_are_the_labellers(tokens: Tokens, tmp_path: Path, scores: Any) -> None:
    store = make(tokens, tmp_path / "labels", scores, k=3, sign="abs")
    names = {"ids", "counts"} | ({"scores"} if scores != "none" else set())
    files = {f"{file}.{name}.npy" for file in ("train-00000", "train-00001", "validation-00000") for name in names}
    assert {path.name for path in store.path.iterdir()} == files | {"manifest.json"}
    assert set(store.manifest.files) == files
    expected_by = build_labeller(TinyConfig(sign="abs"))
    labelled = entries = 0
    distinct: set[int] = set()
    for split in ("train", "validation"):
        blocks, stored = tokens.split(split), store.split(split)
        assert len(stored) == len(blocks)
        for index in range(len(blocks)):
            expected = expected_by.label(blocks[index]["input_ids"][None], k=3)
            found = stored[index]["concept_labels"]
            assert found.dtype == torch.int64
            assert torch.equal(found, expected.ids[0])
            if scores == "none":
                with pytest.raises(CoCoMixError, match="--scores"):
                    stored.scores(index)
            else:
                assert expected.scores is not None
                tolerance = 2e-3 if scores == "float16" else 1e-4
                torch.testing.assert_close(stored.scores(index), expected.scores[0], rtol=tolerance, atol=1e-5)
            labelled += int((found != IGNORE).any(-1).sum())
            entries += int((found != IGNORE).sum())
            distinct |= set(found[found != IGNORE].tolist())
    counted = store.manifest.statistics
    assert (counted.labelled_positions, counted.labels, counted.distinct_concepts) == (labelled, entries, len(distinct))
    assert counted.labelled_positions + counted.masked_positions == 12 * BLOCK


def test_without_scores_the_labels_take_half_the_room(tokens: Tokens, tmp_path: Path) -> None:
    sizes = [
        sum(entry.size for entry in make(tokens, tmp_path / scores, scores, k=16).manifest.files.values()) - 3 * 128 * n
        for scores, n in (("none", 2), ("float16", 3))
    ]
    assert sizes == [12 * BLOCK * (2 * 16 + 1), 12 * BLOCK * (4 * 16 + 1)]


def test_a_split_can_be_pickled_and_has_an_end(tokens: Tokens, tmp_path: Path) -> None:
    blocks = make(tokens, tmp_path / "labels").split("train")
    first = blocks[0]["concept_labels"]
    copy = pickle.loads(pickle.dumps(blocks))  # noqa: S301 (what a loader worker does with our own object)
    assert torch.equal(copy[0]["concept_labels"], first)
    assert len(blocks) == 9
    for index in (9, -1):
        with pytest.raises(IndexError):
            blocks[index]
    with pytest.raises(CoCoMixError, match="test"):
        blocks.store.split("test")


def test_labels_of_other_tokens_or_another_number_of_concepts_are_refused(tokens: Tokens, tmp_path: Path) -> None:
    store = make(tokens, tmp_path / "labels")
    store.require_tokens(tokens)
    with pytest.raises(MadeFromSomethingElse, match="tokens"):
        store.require_tokens(toy_tokens(tmp_path / "other", seed=1))
    store.require_concepts(48)
    with pytest.raises(CoCoMixError, match="47"):
        store.require_concepts(47)


def test_folders_that_are_something_else(tokens: Tokens, tmp_path: Path) -> None:
    with pytest.raises(NotAnArtifact):
        Labels.open(tmp_path / "nothing")
    with pytest.raises(WrongKind):
        Labels.open(tokens.path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("ids", lambda array: array * 0 + 48),
        ("counts", lambda array: array + 4),
        ("scores", lambda array: array[:, :, :2]),
        ("ids", lambda array: array.astype("<u4")),
    ],
    ids=["no such concept", "too many labels", "shape", "type"],
)
def test_verify_looks_at_the_content(tokens: Tokens, tmp_path: Path, name: str, change: Any) -> None:
    store = make(tokens, tmp_path / "data" / "labels")
    found = store.verify().found
    assert {finding.state for finding in found} == {"ok"}
    assert {finding.what: finding.state for finding in found}["data"] == "ok"
    file = store.path / f"train-00001.{name}.npy"
    np.save(file, change(np.load(file)))
    assert any(finding.what == file.name and finding.state == "broken" for finding in store.verify().found)


def test_a_file_that_was_exchanged_is_not_used(tokens: Tokens, tmp_path: Path) -> None:
    """One of the right size trained, exit status 0, with other labels."""
    store = make(tokens, tmp_path / "labels")
    file = store.path / "train-00000.ids.npy"
    np.save(file, np.roll(np.load(file), 1, axis=0))
    with pytest.raises(Damaged, match=r"train-00000\.ids\.npy"):
        Labels.open(store.path).split("train")[0]


def test_folders_used_as_one_are_numbered_through(tokens: Tokens, tmp_path: Path) -> None:
    parts = [make(data, tmp_path / f"labels{n}") for n, data in enumerate([tokens, toy_tokens(tmp_path / "b", seed=1)])]
    mixed = Concatenated(parts)
    blocks = mixed.split("train")
    assert len(blocks) == 18
    assert torch.equal(blocks[9]["concept_labels"], parts[1].split("train")[0]["concept_labels"])
    assert mixed.fingerprint not in {part.fingerprint for part in parts}
    assert Concatenated(parts[:1]).fingerprint == parts[0].fingerprint
    with pytest.raises(MadeFromSomethingElse, match="sign"):
        Concatenated([parts[0], make(tokens, tmp_path / "labels2", sign="abs")])


@pytest.mark.parametrize("k", [None, "4", 0, 256])
def test_a_manifest_without_a_usable_k_is_damaged(tokens: Tokens, tmp_path: Path, k: Any) -> None:
    labels = label_data(tokens.path, TinyConfig(), tmp_path / "labels")
    file = labels.path / "manifest.json"
    values = json.loads(file.read_text())
    values["labels"] = {name: value for name, value in {**values["labels"], "k": k}.items() if value is not None}
    file.write_text(json.dumps(values))
    with pytest.raises(Damaged, match="labels"):
        Labels.open(labels.path)


def test_more_labels_than_a_byte_counts_are_refused() -> None:
    with pytest.raises(ValidationError, match="255"):
        TinyConfig(k=256)

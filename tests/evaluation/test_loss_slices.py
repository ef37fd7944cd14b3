import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap

from cocomix.evaluation import document_interval
from cocomix.evaluation.loss_slices import FREQUENCIES, TOKEN_CLASSES, loss_slices


def table(rows: int = 400, seed: int = 0) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    classes = np.arange(rows) % 3
    return pd.DataFrame(
        {
            "block": (np.arange(rows) // 20).astype(np.int32),
            "position": (np.arange(rows) % 20 + 1).astype(np.int16),
            "document": (np.arange(rows) // 13).astype(np.int32),
            "token": np.arange(rows, dtype=np.int32),
            "loss": generator.gamma(2, 1, rows).astype(np.float32),
            "token_class": pd.Categorical.from_codes(classes, list(TOKEN_CLASSES)),
            "frequency": pd.Categorical.from_codes(classes + 1, list(FREQUENCIES), ordered=True),
            "seen": np.arange(rows) % 2 == 0,
        }
    )


def test_slices_by_hand() -> None:
    made = table()
    found = {(each.slice, each.value): each for each in loss_slices(made)}
    assert {value for name, value in found if name == "position"} == {"1", "2-3", "4-7", "8-15", "16-31"}
    assert {value for name, value in found if name == "seen"} == {"yes", "no"}
    assert {value for name, value in found if name == "token_class"} == set(TOKEN_CLASSES[:3])
    chosen = made[(made["position"] >= 4) & (made["position"] <= 7)]
    assert found["position", "4-7"].tokens == len(chosen)
    assert found["position", "4-7"].loss == pytest.approx(chosen["loss"].mean(), rel=1e-6)


def test_unknown_frequencies_make_no_slice() -> None:
    made = table().assign(frequency=pd.Categorical.from_codes(np.full(400, -1), list(FREQUENCIES)))
    assert not [each for each in loss_slices(made) if each.slice == "frequency"]


def test_the_interval_is_that_of_scipy() -> None:
    generator = np.random.default_rng(0)
    documents = np.repeat(np.arange(60), generator.integers(1, 30, 60))
    values = generator.normal(documents % 5, 1.0)
    sums, counts = np.bincount(documents, values), np.bincount(documents)
    theirs = bootstrap(
        (sums, counts), lambda a, b, axis=-1: a.sum(axis) / b.sum(axis), paired=True, method="percentile", rng=1
    ).confidence_interval
    assert document_interval(values, documents) == pytest.approx(tuple(theirs), abs=0.06)
    naive = 1.96 * values.std() / np.sqrt(len(values))
    low, high = document_interval(values, documents)
    assert high - low > 2 * naive, "documents are resampled, not tokens"

"""Documents that may train and validate: splits of one rule keep them apart, others are warned about."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cocomix.data import PrepareSettings, Tokens, prepare, warn_of_overlap
from tests.workshop import Workshop, prepare_toy, write_corpus


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokens]:
    """One corpus, and the same with one file more, divided in several ways."""
    folder = tmp_path_factory.mktemp("corpora")
    corpus = write_corpus(folder / "corpus", documents=40)
    more = write_corpus(folder / "more", documents=40)
    (more / "more.txt").write_text("one document more")
    made: dict[str, Any] = {
        "first": {},
        "alike": {"sources": (str(more),)},
        "seed": {"seed": 1},
        "share": {"validation_fraction": 0.5},
        "given": {"validation_sources": (str(more),)},
    }
    common = {"sources": (str(corpus),), "vocab_size": 300, "block_size": 16, "validation_fraction": 0.2}
    return {name: prepare(PrepareSettings(**{**common, **how}), folder / name) for name, how in made.items()}


def test_splits_of_one_rule_are_not_warned_about(corpora: dict[str, Tokens], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "cocomix")
    both = [corpora["first"], corpora["alike"]]
    warn_of_overlap(both, both)
    warn_of_overlap([corpora["given"]], [corpora["given"]])
    assert not caplog.records


@pytest.mark.parametrize("other", ["seed", "share", "given"])
def test_other_splits_are(other: str, corpora: dict[str, Tokens], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "cocomix")
    both = [corpora["first"], corpora[other]]
    warn_of_overlap(both, both)
    (message,) = caplog.messages
    assert str(corpora["first"].path) in message
    assert str(corpora[other].path) in message
    assert "seed 0, 20.000%" in message
    shared = len(np.intersect1d(*(tokens.heldout_hashes() for tokens in both)))
    assert f"{shared:,} documents are held out in both" in message


def test_a_mixture_and_an_evaluation_warn(workshop: Workshop, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from cocomix.evaluation import Run, open_run_data
    from cocomix.training.corpora import open_data

    caplog.set_level(logging.WARNING, "cocomix")
    tokenizer = {"tokenizer": str(workshop.data / "tokenizer"), "vocab_size": None}
    other = prepare_toy(workshop.corpus, tmp_path / "other", seed=3, **tokenizer)
    corpora = [{"path": str(path), "weight": 1} for path in (workshop.data, other.path)]
    open_data(workshop.recipe("ntp").model_validate({**workshop.values("ntp"), "data": {"mixture": corpora}}))
    open_run_data(Run.open(workshop.ntp_run), other.path)
    assert len([message for message in caplog.messages if "may be held out in" in message]) == 2

"""Stored teacher distributions: what is written is what the teacher says."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cocomix.artifacts import MadeFromSomethingElse
from cocomix.concepts import TeacherConfig
from cocomix.concepts.decoder import FrozenDecoder
from cocomix.data import Tokens
from cocomix.labelling import Concatenated, Job, TeacherProbabilities, distill_data
from cocomix.labelling.distillers import PlainDistiller
from cocomix.labelling.stored_probabilities import probability_layouts
from tests.concepts.conftest import VOCAB, make_model

from .tiny import BLOCK, toy_tokens


def make(tokens: Tokens, output: Path, **settings: Any) -> TeacherProbabilities:
    teacher = output.parent / "teacher"
    if not teacher.exists():
        make_model("gpt2").save_pretrained(teacher)
    config, job = TeacherConfig(model=str(teacher), layer=0), Job(batch_tokens=2 * BLOCK)
    found = distill_data(tokens.path, config, output, **{"top_k": 4, **settings}, job=job)
    assert found is not None
    return found


@pytest.mark.parametrize("backbone", ["gpt2", "gemma3"])
@pytest.mark.parametrize("vocab_size", [VOCAB, VOCAB - 6])
def test_the_largest_probabilities_are_chosen(backbone: str, vocab_size: int) -> None:
    """Also where the head is padded beyond the vocabulary, and where its logits are capped."""
    model = make_model(backbone, **({"final_logit_softcapping": 5.0} if backbone == "gemma3" else {}))
    tokens = torch.randint(vocab_size, (3, BLOCK), generator=torch.Generator().manual_seed(3))
    found = PlainDistiller(FrozenDecoder(model, 0), 4, vocab_size, "float32").arrays(tokens)
    ids, log_probs = torch.from_numpy(found["ids"]), torch.from_numpy(found["log_probs"])
    with torch.no_grad():
        expected = model(tokens).logits[..., :vocab_size].log_softmax(-1).topk(4, dim=-1)
    assert torch.equal(ids, expected.indices)
    torch.testing.assert_close(log_probs, expected.values)


def test_stored_are_the_teachers(tokens: Tokens, tmp_path: Path) -> None:
    store = make(tokens, tmp_path / "out")
    distiller = PlainDistiller(FrozenDecoder(make_model("gpt2"), 0), 4, VOCAB, "float32")
    assert not store.complete
    for split in ("train", "validation"):
        blocks, stored = tokens.split(split), store.split(split)
        assert len(stored) == len(blocks)
        for index in range(len(blocks)):
            expected = distiller.arrays(blocks[index]["input_ids"][None])
            row = stored[index]
            assert row["teacher_log_probs"].dtype == torch.float16
            assert torch.equal(row["teacher_ids"], torch.from_numpy(expected["ids"][0]))
            log_probs = torch.from_numpy(expected["log_probs"][0])
            torch.testing.assert_close(row["teacher_log_probs"].float(), log_probs, rtol=1e-3, atol=1e-3)
    with pytest.raises(IndexError):
        stored[len(stored)]
    assert torch.equal(pickle.loads(pickle.dumps(stored))[0]["teacher_ids"], stored[0]["teacher_ids"])  # noqa: S301


def test_the_whole_distribution_can_be_stored(tokens: Tokens, tmp_path: Path) -> None:
    store = make(tokens, tmp_path / "out", top_k=VOCAB)
    assert store.complete
    assert store.split("train")[0]["teacher_log_probs"].float().exp().sum(-1).allclose(torch.ones(BLOCK), atol=1e-3)


def test_ids_of_65536_tokens_take_two_bytes() -> None:
    assert probability_layouts(8, 4, 65_536)["ids"].dtype == np.dtype("<u2")
    assert probability_layouts(8, 4, 65_537)["ids"].dtype == np.dtype("<u4")


def test_probabilities_of_other_tokens_are_refused_and_those_made_alike_can_be_joined(
    tokens: Tokens, tmp_path: Path
) -> None:
    other = toy_tokens(tmp_path / "other", seed=1)
    first, second = make(tokens, tmp_path / "out"), make(other, tmp_path / "second")
    first.require_tokens(tokens)
    with pytest.raises(MadeFromSomethingElse, match="tokens"):
        first.require_tokens(other)
    assert len(Concatenated([first, second]).split("train")) == 18
    with pytest.raises(MadeFromSomethingElse, match="number of probabilities"):
        Concatenated([first, make(other, tmp_path / "third", top_k=5)])


def test_verify_looks_at_the_content(tokens: Tokens, tmp_path: Path) -> None:
    store = make(tokens, tmp_path / "out")
    assert {finding.state for finding in store.verify().found} == {"ok", "not checked"}
    file = store.path / "validation-00000.ids.npy"
    np.save(file, np.load(file) + VOCAB)
    assert file.name in {finding.what for finding in store.verify().found if finding.state == "broken"}

"""Targets of a teacher of another tokenizer, against their definitions in a few slow lines."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from cocomix.concepts import AlignedTexts, FrozenDecoder, student_pieces
from cocomix.concepts.aligned import UNREAD
from cocomix.labelling import distillers
from cocomix.labelling.distillers import AlignedDistiller
from cocomix.runtime.errors import CoCoMixError
from tests.concepts.tokenizers import TEXTS, byte_level
from tests.model.factories import plain

STUDENT, TEACHER = byte_level(300), byte_level(400)
K = 5


def distiller(
    kind: Any = "first_token", student: PreTrainedTokenizerFast = STUDENT, max_length: int = 400, top_k: int = K
) -> AlignedDistiller:
    decoder = FrozenDecoder(plain("gpt2", seed=5, vocab_size=len(TEACHER) + 3, n_positions=400), 0)
    names = {"student": "s", "teacher": "t"}
    kept = 0 if kind == "alm" else top_k
    texts = AlignedTexts(student, TEACHER, max_length, names)
    return AlignedDistiller(decoder, kept, len(student), "float32", kind, texts)


def blocks(tokenizer: PreTrainedTokenizerFast = STUDENT, length: int = 100) -> torch.Tensor:
    """Documents that end in a block, and whose last character its edge cuts."""
    ids = [token for text in TEXTS for token in [*tokenizer.encode(text), tokenizer.eos_token_id]]
    return torch.tensor(ids[: 2 * length]).reshape(2, length)


def naive(made: AlignedDistiller, row: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """A block in the teacher's tokens, and the log-probabilities after each of them."""
    text = AlignedTexts(STUDENT, TEACHER, 400).read(row.numpy())
    with torch.no_grad():
        logits = made.decoder.model(torch.tensor([text.tokens])).logits[0, :, : len(TEACHER)]
    return text, logits.log_softmax(-1)


@pytest.mark.parametrize("rows_at_once", [3, 10_000])
def test_first_tokens_have_the_sum_of_the_teachers_tokens_that_begin_with_them(
    rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distillers, "_CHUNK_ELEMENTS", rows_at_once * len(TEACHER))
    made, pieces = distiller(), student_pieces(STUDENT, TEACHER)
    arrays = made.arrays(blocks())
    at_ends = within = 0
    for row, tokens in enumerate(blocks()):
        text, log_probs = naive(made, tokens)
        end = -1  # the last common end that is followed by text
        for position in range(len(tokens)):
            place = np.flatnonzero(text.ends <= text.student_ends[position])
            found = arrays["log_probs"][row, position]
            if len(place) and text.ends[place[-1]] == text.student_ends[position]:
                end = -1 if place[-1] < UNREAD or text.closing[position] else position
            read = tuple(tokens[end + 1 : position + 1].tolist())  # of the teacher's token, since it began
            sums = np.zeros(len(STUDENT))
            if end >= 0 and text.readable[position] and text.ends[place[-1]] == text.student_ends[end]:
                for token, log_prob in enumerate(log_probs[place[-1]].tolist()):
                    if pieces[token][: len(read)] == read and len(pieces[token]) > len(read):
                        sums[pieces[token][len(read)]] += np.exp(log_prob)
            if not sums.any():
                assert np.isneginf(found).all()
                continue
            at_ends += position == end
            within += position != end
            if position != end:
                sums /= sums.sum()
            np.testing.assert_allclose(np.exp(found), np.sort(sums)[::-1][:K], rtol=1e-4, atol=1e-12)
            np.testing.assert_allclose(sums[arrays["ids"][row, position]], np.exp(found), rtol=1e-4, atol=1e-12)
    assert at_ends > 50
    assert within > 10


def test_a_long_block_is_read_in_windows_and_what_follows_changes_nothing() -> None:
    whole, parts = distiller().arrays(blocks()), distiller(max_length=60).arrays(blocks())
    known = np.isfinite(whole["log_probs"]), np.isfinite(parts["log_probs"])
    assert known[1].mean() > 0.9 * known[0].mean()
    assert (known[1] <= known[0]).all()
    shorter = distiller().arrays(blocks()[:, :70])["log_probs"][:, :60]
    both = np.isfinite(shorter) & known[0][:, :60]
    np.testing.assert_allclose(shorter[both], whole["log_probs"][:, :60][both], rtol=1e-4)


def test_uld_keeps_the_teachers_largest_probabilities_at_the_same_positions() -> None:
    made = distiller("uld")
    found, marginal = made.arrays(blocks()), distiller().arrays(blocks())
    assert found.keys() == {"log_probs"}
    known = np.isfinite(found["log_probs"])
    assert (known <= np.isfinite(marginal["log_probs"])).all()  # which has targets within the teacher's tokens, too
    for row, tokens in enumerate(blocks()):
        text, log_probs = naive(made, tokens)
        for position in np.flatnonzero(known[row, :, 0]):
            expected = log_probs[text.common()[position]].topk(K).values
            np.testing.assert_allclose(found["log_probs"][row, position], expected, rtol=1e-4)
    with pytest.raises(CoCoMixError, match=f"top_k=401 .* {len(TEACHER)} tokens"):
        distiller("uld", top_k=401)


@pytest.mark.parametrize("max_length", [400, 60])
def test_alm_has_the_likelihood_of_the_teachers_tokens_of_every_chunk(max_length: int) -> None:
    made = distiller("alm", max_length=max_length)
    arrays, tokens_in_chunks = made.arrays(blocks()), 0
    for row, tokens in enumerate(blocks()):
        text, log_probs = naive(made, tokens)
        common, end = text.common(), 0
        for position in np.flatnonzero(arrays["lengths"][row]):
            length = int(arrays["lengths"][row, position])
            first, last = common[position], common[position + length]
            assert min(first, last) >= 0
            assert (common[position + 1 : position + length] < 0).all()  # the shortest run
            assert position >= end
            end = position + length
            tokens_in_chunks += length
            expected = sum(float(log_probs[place, text.tokens[place + 1]]) for place in range(first, last))
            found = arrays["log_probs"][row, position]
            if max_length == 400:
                assert found == pytest.approx(expected, rel=1e-4)
            assert found < 0
        assert np.isneginf(arrays["log_probs"][row][arrays["lengths"][row] == 0]).all()
    assert tokens_in_chunks > 0.6 * blocks().numel()

"""What a teacher finds in texts: one of the student's tokenizer, and one of another, aligned by bytes."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from cocomix.concepts import (
    ActivationLabeller,
    AlignedTeacher,
    AlignedTexts,
    ConceptDictionary,
    ConceptTeacher,
    ContextualLabeller,
    FrozenDecoder,
)
from cocomix.concepts.token_bytes import TokenBytes
from cocomix.interpret.effects import concept_strengths
from cocomix.interpret.run_teacher import TextReader
from cocomix.runtime.errors import CoCoMixError
from tests.concepts.conftest import make_dictionary
from tests.concepts.tokenizers import TEXTS, byte_level
from tests.model.factories import CONCEPTS, plain, student

STUDENT, TEACHER = byte_level(300), byte_level(400)


def language_model(tokenizer: PreTrainedTokenizerFast) -> Any:
    return plain("gpt2", seed=5, vocab_size=len(tokenizer), n_positions=400)


def aligned(teacher: ConceptTeacher, tokenizer: PreTrainedTokenizerFast = TEACHER) -> TextReader:
    names = {"student": "s", "teacher": "t"}
    return TextReader(AlignedTeacher(ActivationLabeller(teacher), AlignedTexts(STUDENT, tokenizer, 400, names)))


@pytest.fixture(scope="module")
def reader() -> TextReader:
    return aligned(ConceptTeacher(language_model(TEACHER), make_dictionary(), 1))


def planted(tokens: list[int], place: int) -> ConceptTeacher:
    """A teacher whose concept 7 is 1 at one token of a text, and 0 at all others."""
    model = language_model(TEACHER)
    hidden = FrozenDecoder(model, 1).hidden_states(torch.tensor([tokens]))[0]
    shapes = ((hidden.shape[1], CONCEPTS), (CONCEPTS,), (CONCEPTS, hidden.shape[1]), (hidden.shape[1],))
    encoder, bias, decoder, zero = (torch.zeros(shape) for shape in shapes)
    encoder[:, 7] = 2 * torch.linalg.pinv(hidden)[:, place]
    bias[7] = -1.0
    return ConceptTeacher(model, ConceptDictionary(encoder, bias, decoder, zero, normalize="none"), 1)


def test_a_planted_concept_is_found_at_the_tokens_that_end_within_it_and_before_the_next() -> None:
    text = "The white house on the hill is white"
    own, tokens = TEACHER.encode(text), STUDENT.encode(text)
    ends = np.cumsum([len(TEACHER.decode([token])) for token in own])
    place = own.index(TEACHER.encode("The white house")[-1], len(TEACHER.encode("The white")))
    reader = aligned(planted(own, place))
    _, found = reader.measure([reader.read(tokens, 4)], [3, 7])
    student_ends = TokenBytes(STUDENT, "").ends(np.array(tokens))[4:]
    expected = (ends[place] <= student_ends) & (student_ends < ends[place + 1])
    assert expected.any()
    assert len(tokens) > len(own)
    np.testing.assert_allclose(found[0][:, 1], expected.astype(float), atol=1e-3)
    assert not found[0][:, 0].any()


def test_the_loss_is_of_the_teachers_tokens_with_something_new_in_them(reader: TextReader) -> None:
    text, tokens = "The white house", STUDENT.encode("The white house")
    for given in (1, 3, len(tokens) - 1):
        begin = len(STUDENT.decode(tokens[:given]))
        own = TEACHER.encode(text)
        new = max(1, int((np.cumsum([len(TEACHER.decode([token])) for token in own]) <= begin).sum()))
        with torch.no_grad():
            logits = reader.teacher.decoder.model(torch.tensor([own])).logits[0]
        expected = torch.nn.functional.cross_entropy(logits[new - 1 : -1], torch.tensor(own[new:]))
        padded = reader.read(STUDENT.encode(TEXTS[0]), 2)
        losses, _ = reader.measure([padded, reader.read(tokens, given)], [1])
        torch.testing.assert_close(losses[1], expected, rtol=1e-4, atol=1e-5)


def test_aligned_to_its_own_tokenizer_a_teacher_finds_what_it_finds_without() -> None:
    teacher = ConceptTeacher(language_model(STUDENT), make_dictionary(), 1)
    plainly, by_bytes = TextReader(ActivationLabeller(teacher)), aligned(teacher, STUDENT)
    rows = [STUDENT.encode(text) for text in (TEXTS[0], TEXTS[0][:40], TEXTS[2])]
    given, concepts = 6, list(range(CONCEPTS))
    (losses, found), (others, others_found) = (
        one.measure([one.read(row, given) for row in rows], concepts) for one in (plainly, by_bytes)
    )
    torch.testing.assert_close(losses, others)
    for row, one, other in zip(rows, found, others_found, strict=True):
        assert len(one) == len(row) - given
        torch.testing.assert_close(one, other)
    blocks = torch.tensor([STUDENT.encode(TEXTS[0])[:20], STUDENT.encode(TEXTS[2])[:20]])
    model = student("gpt2", vocab_size=len(STUDENT))
    for one, other in zip(*(concept_strengths(model, blocks, reader=one) for one in (plainly, by_bytes)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4)


def test_bytes_that_are_no_character_do_not_end_the_reading(reader: TextReader) -> None:
    """A student writes tokens of single bytes as it likes."""
    broken = STUDENT.convert_tokens_to_ids("Ã")
    start, rest = STUDENT.encode("the white"), STUDENT.encode(" hill is green")
    text = reader.read([*start, broken, *rest], len(start))
    assert TEACHER.decode(text.tokens) == "the white\x1a hill is green"
    assert len(text.places) == 1 + len(rest)
    cut = reader.read([*start, broken], len(start))
    assert TEACHER.decode(cut.tokens) == "the white"
    losses, found = reader.measure([cut], [1])
    assert losses.isnan().all()  # the teacher read nothing new
    assert found[0].shape == (0, 1)


def test_a_text_is_continued_by_the_teacher_from_its_own_tokens(reader: TextReader) -> None:
    assert reader.begin(STUDENT.encode("the white hill")) == TEACHER.encode("the white hill")
    assert reader.begin([STUDENT.convert_tokens_to_ids("Ã")]) == [TEACHER.eos_token_id]
    text = reader.read_own(TEACHER.encode("the white hill"), 2)
    assert text.places.tolist() == list(range(2, len(text.tokens)))


def test_what_cannot_be_read_is_refused(reader: TextReader) -> None:
    long = STUDENT.encode(TEXTS[0] * 30)
    with pytest.raises(CoCoMixError, match="context of 400"):
        reader.measure([reader.read(long, 2)], [1])
    with pytest.raises(CoCoMixError, match="label folder"):
        TextReader(ContextualLabeller(reader.teacher))

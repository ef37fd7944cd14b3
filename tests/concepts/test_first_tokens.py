"""The student's first token of each of a teacher's tokens."""

import pytest
from transformers import PreTrainedTokenizerFast

from cocomix.concepts.token_bytes import TokenBytes, TokenEnds, first_token_table, readable_text
from cocomix.runtime.errors import CoCoMixError
from tests.concepts.tokenizers import byte_level, sentence_piece, word_piece


@pytest.mark.parametrize("student", [byte_level(300), sentence_piece(), byte_level(300, prefix_space=True)])
@pytest.mark.parametrize("teacher", [byte_level(400), sentence_piece()])
def test_a_token_begins_with_its_first_token(
    student: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast
) -> None:
    table = first_token_table(student, teacher)
    spelled, own, ends = TokenBytes(teacher, ""), TokenBytes(student, ""), TokenEnds(student, "")
    assert table[teacher.eos_token_id] == student.eos_token_id
    found = 0
    for token, first in enumerate(table):
        data = spelled.of([token])
        if token == teacher.eos_token_id or not readable_text(data):
            assert first == (student.eos_token_id if token == teacher.eos_token_id else -1)
            continue
        found += 1
        assert data.startswith(own.of([first]))
        text = "in the middle:" + readable_text(data)  # a text in which the token does not begin
        ids, stops = ends.encode(text)
        if len("in the middle:") in stops:
            assert ids[stops.tolist().index(len("in the middle:")) + 1] == first
    assert found > 100


def test_a_tokenizers_own_tokens_begin_with_themselves() -> None:
    tokenizer = byte_level(400)
    table, spelled = first_token_table(tokenizer, tokenizer), TokenBytes(tokenizer, "")
    data = [spelled.of([token]) for token in range(len(table))]
    whole = [token for token, piece in enumerate(data) if piece and readable_text(piece).encode() == piece]
    assert len(whole) > 200
    assert all(table[token] == token for token in whole)


def test_a_teacher_that_cannot_be_inverted_to_bytes_is_refused() -> None:
    with pytest.raises(CoCoMixError, match="WordPiece"):
        first_token_table(byte_level(), word_piece())

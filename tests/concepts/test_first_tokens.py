"""What a student's tokenizer splits each of a teacher's tokens into."""

import pytest
from transformers import PreTrainedTokenizerFast

from cocomix.concepts.token_bytes import TokenBytes, TokenEnds, readable_text, student_pieces
from cocomix.runtime.errors import CoCoMixError
from tests.concepts.tokenizers import byte_level, sentence_piece, word_piece


@pytest.mark.parametrize("student", [byte_level(300), sentence_piece(), byte_level(300, prefix_space=True)])
@pytest.mark.parametrize("teacher", [byte_level(400), sentence_piece()])
def test_a_tokens_pieces_are_those_of_a_text_that_holds_it(
    student: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast
) -> None:
    table = student_pieces(student, teacher)
    spelled, own, ends = TokenBytes(teacher, ""), TokenBytes(student, ""), TokenEnds(student, "")
    found = 0
    for token, pieces in enumerate(table):
        data = spelled.of([token])
        if token == teacher.eos_token_id or not readable_text(data):
            assert pieces == ((student.eos_token_id,) if token == teacher.eos_token_id else ())
            continue
        found += 1
        assert own.of(pieces) == readable_text(data).encode()
        text = "in the middle:" + readable_text(data)  # a text in which the token does not begin
        ids, stops = ends.encode(text)
        if len("in the middle:") in stops:
            assert tuple(ids[stops.tolist().index(len("in the middle:")) + 1 :]) == pieces
    assert found > 100


def test_a_tokenizers_own_tokens_begin_with_themselves() -> None:
    tokenizer = byte_level(400)
    table, spelled = student_pieces(tokenizer, tokenizer), TokenBytes(tokenizer, "")
    data = [spelled.of([token]) for token in range(len(table))]
    whole = [token for token, piece in enumerate(data) if piece and readable_text(piece).encode() == piece]
    assert len(whole) > 200
    assert all(table[token] == (token,) for token in whole)


def test_a_teacher_that_cannot_be_inverted_to_bytes_is_refused() -> None:
    with pytest.raises(CoCoMixError, match="WordPiece"):
        student_pieces(byte_level(), word_piece())

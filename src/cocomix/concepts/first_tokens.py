"""With which of a student's tokens a teacher's token begins: the table behind the first-token marginal.

    teacher's tokens   " whit"  " white"  " whitehouse"  " green"
    first of student   " whi"   " whi"    " whi"         " green"     for a student that splits " white" in " whi|te"

What follows in a text may change a split, which the table cannot know: it is exact up to that.
"""

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from cocomix.concepts.token_bytes import TokenBytes, TokenEnds, readable_text

_BEFORE = ("\n", "a", ".", "1")
"""Texts to put before a token for tokenizers that add a space to a text's beginning; one of them does not merge with
it."""


def first_token_table(student: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast) -> NDArray[np.int64]:
    """The student's first token of each of the teacher's tokens, in the middle of a text; -1 where there is none.

    None have special tokens and those that begin with a part of a character: what the student makes of it depends on
    the bytes that follow. A token that ends within a character counts up to it. The teacher's end-of-document token
    has the student's.

    Returns:
        [teacher's tokens]

    Raises:
        CoCoMixError: the teacher's tokenizer cannot be inverted to bytes.
    """
    spelled, ends = TokenBytes(teacher, "of the teacher"), TokenEnds(student, "of the data")
    bare = not TokenBytes(student, "of the data").adds_space
    table = np.full(len(spelled), -1, dtype=np.int64)
    for token in range(len(spelled)):
        if text := readable_text(spelled.of([token])):
            table[token] = _first(ends, text, ("",) if bare else _BEFORE)
    if teacher.eos_token_id is not None and student.eos_token_id is not None:
        table[teacher.eos_token_id] = student.eos_token_id
    return table


def _first(ends: TokenEnds, text: str, before: tuple[str, ...]) -> int:
    for lead in before:
        ids, stops = ends.encode(lead + text)
        place = int(np.searchsorted(stops, len(lead.encode()), side="right"))
        if (not lead or (place > 0 and stops[place - 1] == len(lead.encode()))) and place < len(ids):
            return ids[place]
    return -1

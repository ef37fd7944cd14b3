"""Labels of a teacher of another tokenizer: what they are of, and that nothing after the student's token is read."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from cocomix.concepts.aligned import UNREAD, AlignedTeacher, AlignedTexts
from cocomix.concepts.labeller import ConceptLabels
from cocomix.concepts.token_bytes import TokenBytes, TokenEnds
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE
from tests.concepts.tokenizers import TEXTS, byte_level, sentence_piece, word_piece

TEXT = st.text(alphabet=st.characters(exclude_categories=("Cs",), exclude_characters="\x00"), max_size=40)
STUDENTS = {"byte-level": byte_level(), "lowercasing": byte_level(300, normalizer="lower"), "llama": sentence_piece()}
TEACHERS = {
    "byte-level": byte_level(330),
    "nfc": byte_level(300, normalizer="nfc"),
    "prefix space": byte_level(300, prefix_space=True),
    "llama": sentence_piece(),
    "without byte fallback": sentence_piece(byte_fallback=False),
    "bert": word_piece(),
}
CONCEPTS = 2**40


class Prefixes:
    """Labels every position with a hash of the tokens up to it, so that a label says which tokens were read."""

    num_concepts = CONCEPTS

    def label(self, input_ids: Tensor, attention_mask: Tensor | None = None, *, k: int) -> ConceptLabels:
        ids = torch.full((*input_ids.shape, k), IGNORE)
        for row, tokens in enumerate(input_ids.tolist()):
            for position in range(len(tokens)):
                if attention_mask is None or attention_mask[row, position]:
                    ids[row, position, 0] = prefix_label(tokens[: position + 1])
        return ConceptLabels(ids, (ids != IGNORE).float())

    def fingerprint(self) -> dict[str, str]:
        return {"weights": "none"}

    def flops_per_token(self, seq: int) -> float:
        return 1.0 * seq

    def describe(self, concept: int) -> str | None:
        return f"prefix {concept}"


def prefix_label(tokens: list[int]) -> int:
    return hash(tuple(tokens)) % CONCEPTS


def aligned(
    student: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast, max_length: int = 10_000
) -> AlignedTeacher:
    fingerprints = {"student": "s", "teacher": "t"}
    return AlignedTeacher(Prefixes(), AlignedTexts(student, teacher, max_length, fingerprints))


def block_of(tokenizer: PreTrainedTokenizerFast, *documents: str) -> list[int]:
    """Documents one after the other, each with its end token, as `prepare` packs them."""
    ids: list[int] = []
    for document in documents:
        ids += [*tokenizer.encode(document, add_special_tokens=False), tokenizer.eos_token_id]
    return ids


def labels_of(labeller: AlignedTeacher, ids: list[int]) -> list[int]:
    return labeller.label(torch.tensor([ids], dtype=torch.long), k=1).ids[0, :, 0].tolist()


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("teacher", TEACHERS)
@settings(max_examples=40, deadline=None)
@given(text=TEXT)
def test_a_position_has_the_label_of_the_last_teacher_token_that_ends_no_later(
    student: str, teacher: str, text: str
) -> None:
    labeller = aligned(STUDENTS[student], TEACHERS[teacher])
    ids = STUDENTS[student].encode(text, add_special_tokens=False)
    spelled = TokenBytes(STUDENTS[student], "")
    data = spelled.of(ids)
    own, ends = TokenEnds(TEACHERS[teacher], "").encode(data.decode())
    begin = [TEACHERS[teacher].bos_token_id] if teacher in ("llama", "without byte fallback") else []
    for label, end in zip(labels_of(labeller, ids), spelled.ends(np.array(ids, dtype=np.int64)), strict=True):
        count = len(begin) + int((ends <= end).sum())  # of the teacher's tokens that end no later
        expected = prefix_label([*begin, *own[: count - len(begin)]]) if count > UNREAD else IGNORE
        assert label == expected


@settings(max_examples=60, deadline=None)
@given(text=TEXT, one=TEXT, other=TEXT)
def test_text_after_a_token_changes_no_label_of_it(text: str, one: str, other: str) -> None:
    """With a teacher whose tokens are single bytes, so that how it cuts a text does not depend on what follows."""
    student, teacher = byte_level(), byte_level(257)
    ids = student.encode(text, add_special_tokens=False)
    labeller = aligned(student, teacher)
    first, second = (
        labels_of(labeller, [*ids, *student.encode(after, add_special_tokens=False)])[: len(ids)]
        for after in (one, other)
    )
    assert first == second


@settings(max_examples=60, deadline=None)
@given(text=TEXT, start=st.integers(0, 30), stop=st.integers(0, 30))
def test_a_character_cut_by_the_edge_of_a_block_labels_nothing(text: str, start: int, stop: int) -> None:
    student = byte_level(257)  # single bytes: cuts fall within characters
    data = text.encode()
    block = student.encode(text, add_special_tokens=False)[start : len(data) - stop]
    readable = data[start : len(data) - stop].decode(errors="ignore").encode()
    lead = data[start : len(data) - stop].find(readable) if readable else len(block)
    labels = labels_of(aligned(student, byte_level(257)), block)
    labelled = [index for index, label in enumerate(labels) if label != IGNORE]
    assert labelled == list(range(lead + UNREAD, lead + len(readable)))


def test_documents_of_a_block_are_separated_by_the_end_token_of_the_teacher() -> None:
    student, teacher = byte_level(), byte_level(330)
    ids = block_of(student, "white hill", "green house")
    tokens = block_of(teacher, "white hill", "green house")
    labels = labels_of(aligned(student, teacher), ids)
    assert labels[-1] == prefix_label(tokens)
    first = ids.index(student.eos_token_id)
    assert labels[first] == prefix_label(tokens[: tokens.index(teacher.eos_token_id) + 1])


def test_the_dummy_space_of_a_new_document_is_not_given_to_the_teacher() -> None:
    student, teacher = sentence_piece(), byte_level(330)
    ids = block_of(student, "hill", "green house")
    tokens = block_of(teacher, " hill", "green house")  # whether a block begins with a document is not known
    assert labels_of(aligned(student, teacher), ids)[-1] == prefix_label(tokens)


def test_a_block_longer_than_the_teachers_context_is_read_in_windows() -> None:
    student, teacher = byte_level(257), byte_level(257)
    ids = block_of(student, TEXTS[0])[:70]
    labels = labels_of(aligned(student, teacher, max_length=16), ids)
    for position, label in enumerate(labels[UNREAD:], start=UNREAD):
        start = 0 if position < 16 else position // 8 * 8 - 8
        assert label == prefix_label(teacher.encode(TEXTS[0])[start : position + 1])


def test_padding_and_empty_blocks_get_no_labels() -> None:
    student = byte_level()
    labeller = aligned(student, byte_level(330))
    ids = student.encode("the white house", add_special_tokens=False)
    batch = torch.tensor([[*ids, 0, 0], [0] * (len(ids) + 2)])
    mask = torch.tensor([[1] * len(ids) + [0, 0], [0] * (len(ids) + 2)])
    labels = labeller.label(batch, mask, k=2)
    assert labels.ids[0, : len(ids), 0].tolist() == labels_of(labeller, ids)
    assert (labels.ids[0, len(ids) :] == IGNORE).all()
    assert (labels.ids[1] == IGNORE).all()


def test_invalid_bytes_end_what_is_labelled_of_a_document() -> None:
    student = byte_level(257)
    broken = [*student.encode("white")[:4], student.convert_tokens_to_ids("Ã"), *student.encode("hill")]
    labels = labels_of(aligned(student, byte_level(257)), broken)
    assert [label != IGNORE for label in labels] == [False, False, True, True] + [False] * 5


@pytest.mark.parametrize("tokenizer", [word_piece(), sentence_piece(byte_fallback=False)])
def test_a_student_tokenizer_that_cannot_be_inverted_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(CoCoMixError, match=r"WordPiece|BPE"):
        aligned(tokenizer, byte_level())


def test_the_fingerprint_names_both_tokenizers_and_the_alignment() -> None:
    found = aligned(byte_level(), byte_level(330)).fingerprint()
    assert found["weights"] == "none"
    assert found["student_tokenizer"] == "s"
    assert found["teacher_tokenizer"] == "t"
    assert "alignment" in found

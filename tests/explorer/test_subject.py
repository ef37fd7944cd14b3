import shutil
from dataclasses import replace

import pytest

from cocomix.concepts import ConceptTeacher
from cocomix.explorer import open_subject
from cocomix.explorer.subject import MOST_NEW_TOKENS, MOST_TOKENS
from cocomix.interpret import default_atlas_folder
from cocomix.runtime.errors import CoCoMixError
from tests.explorer.conftest import CONTEXT
from tests.workshop import CONCEPTS


def test_everything_beside_a_run_is_found(subject):
    assert subject.atlas is not None
    assert subject.atlas.num_concepts == subject.num_concepts == CONCEPTS
    assert isinstance(subject.teacher, ConceptTeacher)
    assert set(subject.comparison.mean_curves()) == {"mixed", "plain"}
    assert subject.names([3, 5]) == {3: subject.atlas.name(3), 5: subject.atlas.name(5)}


def test_a_run_alone(bare):
    assert (bare.atlas, bare.comparison) == (None, None)
    assert bare.teacher.startswith("The teacher is not at hand: ")
    assert bare.names([3]) == {3: ""}
    assert bare.find("3")[0].id == 3
    with pytest.raises(CoCoMixError, match="cocomix atlas"):
        bare.find("list")


def test_without_an_atlas_concepts_are_called_by_the_words_they_label(roomy, tmp_path):
    shutil.copytree(roomy.cocomix_run, tmp_path / "run")
    names = open_subject(tmp_path / "run").names(range(CONCEPTS))
    assert any("list" in name for name in names.values())
    assert set(names) == set(range(CONCEPTS))


def test_what_cannot_be_explored_is_refused(roomy, workshop, subject, tmp_path):
    with pytest.raises(CoCoMixError, match="has no concepts"):
        open_subject(roomy.ntp_run)
    with pytest.raises(CoCoMixError, match="another run"):
        open_subject(workshop.cocomix_run, atlas=default_atlas_folder(subject.run.path))
    with pytest.raises(CoCoMixError, match="block_size"):
        open_subject(roomy.cocomix_run, compare_with=[workshop.ntp_run])
    with pytest.raises(CoCoMixError):
        open_subject(roomy.cocomix_run, dictionary=str(tmp_path))


def test_limits_take_the_context_into_account(subject):
    assert (subject.tokens, subject.new_tokens) == (CONTEXT, CONTEXT // 2)
    assert replace(subject, tokens=MOST_TOKENS).new_tokens == MOST_NEW_TOKENS
    length = subject.encode("the list of").shape[1]
    subject.encode("the list of", room=CONTEXT - length)
    with pytest.raises(CoCoMixError, match=rf"{length} tokens.*{CONTEXT - length + 1} more.*{CONTEXT}"):
        subject.encode("the list of", room=CONTEXT - length + 1)
    for text, says in ((" \n", "empty"), ("the " * 60, f"{CONTEXT}")):
        with pytest.raises(CoCoMixError, match=says):
            subject.encode(text)


def test_numbers_and_words_find_concepts(subject):
    assert subject.find(" 7 ")[0].id == subject.concept("7") == 7
    word = next(word for hit in subject.atlas.top(9) for word, _ in subject.atlas.card(hit.id).terms if word.isalpha())
    assert subject.concept(word) == subject.find(word)[0].id


@pytest.mark.parametrize("text", [str(CONCEPTS), "-1", "9" * 20, "  ", "zzzzqqq", "1e400"])
def test_what_is_no_concept_is_refused(subject, text):
    with pytest.raises(CoCoMixError, match=text[:20]):
        subject.concept(text)


@pytest.mark.parametrize("text", ['"', "' OR 1=1 --", "*", "<script>", "NEAR(", "\x00", "\ud800"])
def test_a_search_is_never_more_than_a_search(subject, text):
    assert isinstance(subject.find(text), list)

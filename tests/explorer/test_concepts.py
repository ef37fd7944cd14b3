import pytest

from cocomix.explorer.concept_markup import card_page, hit_list
from cocomix.explorer.concepts import concept_page, find_concepts, measure_concept, resolve_concept
from cocomix.runtime.errors import CoCoMixError
from tests.workshop import CONCEPTS


def test_numbers_and_words_find_concepts(subject):
    assert find_concepts(subject, " 7 ")[0].id == 7
    assert resolve_concept(subject, "7") == 7
    frequent = find_concepts(subject, "")
    assert frequent == subject.atlas.top(24, by="predicted_count")
    word = next(word for hit in frequent for word, _ in subject.atlas.card(hit.id).terms if word.isalpha())
    assert resolve_concept(subject, word) == find_concepts(subject, word)[0].id


@pytest.mark.parametrize("text", [str(CONCEPTS), "-1", "99999999999999999999"])
def test_a_number_that_is_no_concept(subject, text):
    with pytest.raises(CoCoMixError, match="out of range"):
        find_concepts(subject, text)


def test_searches_that_find_nothing(subject):
    for text in ('"', "' OR 1=1 --", "*", "<script>", "zzzzqqq", "NEAR(", "\x00"):
        assert isinstance(hit_list(find_concepts(subject, text), text), str)
    with pytest.raises(CoCoMixError, match="'zzzzqqq'"):
        resolve_concept(subject, "zzzzqqq")
    with pytest.raises(CoCoMixError, match="no concept"):
        resolve_concept(subject, "  ")
    with pytest.raises(CoCoMixError, match="200 at most"):
        find_concepts(subject, "x" * 201)


def test_a_card_shows_what_the_atlas_knows(subject):
    concept = subject.atlas.top(1)[0].id
    page = concept_page(subject, concept)
    assert page.card == subject.atlas.card(concept)
    shown = card_page(page, subject.run.path)
    for part in ("Raises", "Lowers", "Nearest concepts", "<svg", "Where it is predicted", "Where it is a label"):
        assert part in shown
    raised, _ = measure_concept(subject, concept)
    assert [token for token, _ in raised] == [token for token, _ in page.card.raised]


def test_without_an_atlas_the_page_says_how_to_make_one(bare):
    shown = card_page(concept_page(bare, 3), bare.run.path)
    assert "cocomix atlas" in shown
    assert "labels of this run are not where it found them" in shown
    assert find_concepts(bare, "3")[0].id == 3
    assert find_concepts(bare, "") == []
    for ask in (lambda: find_concepts(bare, "list"), lambda: measure_concept(bare, 3)):
        with pytest.raises(CoCoMixError, match="cocomix atlas"):
            ask()

import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from cocomix.artifacts import Damaged
from cocomix.evaluation import Run
from cocomix.interpret import ConceptAtlas
from cocomix.interpret.atlas_store import DATABASE
from cocomix.runtime.errors import CoCoMixError
from tests.interpret.conftest import ATLAS
from tests.workshop import CONCEPTS, resealed


def test_what_an_atlas_is_of(atlas, atlas_folder, workshop):
    assert (atlas.num_concepts, atlas.run_name, atlas.settings) == (CONCEPTS, "mixed", ATLAS)
    with ConceptAtlas.open(str(atlas_folder), Run.open(workshop.cocomix_run)) as same:
        assert same.manifest == atlas.manifest


@pytest.mark.parametrize("concept", [-1, CONCEPTS, 10**30])
def test_a_concept_that_does_not_exist(atlas, concept):
    for ask in (atlas.card, atlas.name):
        with pytest.raises(CoCoMixError, match=f"concept {concept} does not exist: .* concepts 0 to {CONCEPTS - 1}"):
            ask(concept)


def test_search_finds_names_terms_and_contexts(atlas):
    for concept in range(CONCEPTS):
        card = atlas.card(concept)
        if card.terms and card.terms[0].isalnum():
            assert concept in [hit.id for hit in atlas.search(card.terms[0], limit=CONCEPTS)]
    hits = atlas.search("returns", limit=CONCEPTS)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert all(hit.name == atlas.name(hit.id) for hit in hits)
    assert all("return" in hit.snippet.lower() for hit in hits)
    assert {hit.id for hit in hits} <= {hit.id for hit in atlas.search("retur", limit=CONCEPTS)}
    assert atlas.search("returns", limit=2) == hits[:2]
    both = {hit.id for hit in atlas.search("returns index", limit=CONCEPTS)}
    assert both <= {hit.id for hit in hits}
    assert atlas.search("cafe", limit=CONCEPTS) == atlas.search("CAFÉ", limit=CONCEPTS) != []
    assert atlas.search("xylophone") == []


def test_a_number_finds_the_concept(atlas):
    first = atlas.search(" 17 ")[0]
    assert (first.id, first.name) == (17, atlas.name(17))
    assert [hit.id for hit in atlas.search("17")].count(17) == 1
    assert atlas.search(str(CONCEPTS)) == []
    assert atlas.search("9" * 40) == []


ODD_TEXTS = (
    *("", "  ", '"', '"" OR 1', "'; DROP TABLE concepts; --", "name:list", "list*", "NEAR(a b)", "NOT", "AND OR", "^a"),
    *("(", "*", "-", "%", "_", "\x00", "a\x00b", "\ud800", "list\ud800", "🙂", "日本", "²", "a" * 10_000, "a " * 5000),
)


@pytest.mark.parametrize("text", ODD_TEXTS, ids=lambda text: ascii(text[:12]))
def test_any_text_may_be_searched(atlas, text):
    assert isinstance(atlas.search(text), list)
    assert atlas.card(0).id == 0


def test_punctuation_is_looked_for_as_it_stands(atlas_folder, tmp_path):
    shutil.copytree(atlas_folder, tmp_path / "atlas")
    with closing(sqlite3.connect(tmp_path / "atlas" / "atlas.sqlite")) as database:
        database.execute("UPDATE texts SET terms = 'list, (, ::' WHERE rowid = 7")
        database.commit()
    with ConceptAtlas.open(resealed(tmp_path / "atlas")) as atlas:
        assert [hit.id for hit in atlas.search("::")] == [7]


@pytest.mark.parametrize("by", ["label_count", "predicted_count", "compression_norm", "recall"])
def test_rankings(atlas, by):
    hits = atlas.top(CONCEPTS, by=by)
    values = {concept: getattr(atlas.card(concept), by) for concept in range(CONCEPTS)}
    expected = sorted((value for value in values.values() if value is not None), reverse=True)
    assert [hit.score for hit in hits] == pytest.approx(expected)
    assert all(hit.score == pytest.approx(values[hit.id]) for hit in hits)
    assert atlas.top(3, by=by) == hits[:3]


def test_questions_out_of_range(atlas):
    with pytest.raises(CoCoMixError, match=r"'name'.*label_count"):
        atlas.top(3, by="name")
    for ask in (atlas.top, lambda limit: atlas.search("list", limit)):
        with pytest.raises(CoCoMixError, match="limit=0"):
            ask(0)


def test_many_threads_read_at_once(atlas):
    alone = [atlas.card(concept) for concept in range(CONCEPTS)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(atlas.card, list(range(CONCEPTS)) * 3))
        searches = list(pool.map(atlas.search, ["list"] * 16))
    assert together == alone * 3
    assert searches == [atlas.search("list")] * 16


def test_reading_leaves_the_file_as_it_was(atlas, atlas_folder):
    before = (atlas_folder / "atlas.sqlite").read_bytes()
    atlas.card(0)
    with pytest.raises(CoCoMixError, match="cannot be read"):
        atlas._rows("DELETE FROM concepts", ())
    assert (atlas_folder / "atlas.sqlite").read_bytes() == before
    assert sorted(path.name for path in atlas_folder.iterdir()) == ["atlas.sqlite", "manifest.json", "tokenizer"]


def test_a_closed_atlas_says_so(atlas_folder):
    atlas = ConceptAtlas.open(atlas_folder)
    atlas.card(0)
    atlas.close()
    atlas.close()
    with pytest.raises(CoCoMixError, match="has been closed"):
        atlas.card(0)


def test_an_odd_folder_name(atlas_folder, tmp_path):
    odd = tmp_path / "my #1 atlas?mode=rw&x=%41"
    shutil.copytree(atlas_folder, odd)
    with ConceptAtlas.open(odd) as atlas:
        assert atlas.card(3).id == 3


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_an_atlas_of_another_run(atlas_folder, workshop, tmp_path):
    with pytest.raises(CoCoMixError, match=r"mixed"):
        ConceptAtlas.open(atlas_folder, Run.open(workshop.ntp_run))
    moved = tmp_path / "moved"
    shutil.copytree(workshop.cocomix_run, moved)
    with ConceptAtlas.open(atlas_folder, Run.open(moved)) as atlas:  # the same weights in another place
        assert atlas.run_name == "mixed"


def test_a_database_that_is_not_the_one_that_was_written(atlas_folder, tmp_path):
    copy = tmp_path / "atlas"
    shutil.copytree(atlas_folder, copy)
    with closing(sqlite3.connect(copy / DATABASE)) as database:
        database.execute("DELETE FROM concepts WHERE id = 5")
        database.commit()
    with ConceptAtlas.open(copy) as atlas, pytest.raises(Damaged, match=DATABASE):
        atlas.card(0)
    assert [finding.what for finding in ConceptAtlas.open(copy).verify().broken] == [DATABASE, "tables"]
    (copy / DATABASE).unlink()
    with ConceptAtlas.open(copy) as atlas, pytest.raises(Damaged, match=DATABASE):
        atlas.card(0)

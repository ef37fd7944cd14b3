import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import get_args

import pyarrow.parquet as pq
import pytest

from cocomix.artifacts import Damaged, WrongVersion, read_json, write_json
from cocomix.evaluation import Run
from cocomix.interpret import ConceptAtlas, Ranking
from cocomix.runtime.errors import CoCoMixError
from tests.interpret.conftest import ATLAS
from tests.workshop import CONCEPTS, resealed


def test_what_an_atlas_is_of(atlas, atlas_folder, workshop):
    assert (atlas.num_concepts, atlas.manifest.run, atlas.manifest.settings) == (CONCEPTS, "mixed", ATLAS)
    assert ConceptAtlas.open(str(atlas_folder), Run.open(workshop.cocomix_run)).manifest == atlas.manifest
    names = ["cards.parquet", "effect_text.safetensors", "manifest.json", "samples.parquet"]
    assert sorted(path.name for path in atlas_folder.iterdir()) == names


@pytest.mark.parametrize("concept", [-1, CONCEPTS, 10**30])
def test_a_concept_that_does_not_exist(atlas, concept):
    for ask in (atlas.card, atlas.name):
        with pytest.raises(CoCoMixError, match=f"concept {concept} .* 0 to {CONCEPTS - 1}"):
            ask(concept)


def test_search_finds_names_terms_and_contexts(atlas):
    for concept in range(CONCEPTS):
        for word, _ in atlas.card(concept).terms[:1]:
            if word.isalnum():
                assert concept in [hit.id for hit in atlas.search(word, limit=CONCEPTS)]
    hits = atlas.search("returns", limit=CONCEPTS)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert all(hit.name == atlas.name(hit.id) for hit in hits)
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
    *("", "  ", '"', '"" OR 1', "'; DROP TABLE texts; --", "name:list", "list*", "NEAR(a b)", "NOT", "AND OR", "^a"),
    *("(", "*", "-", "%", "_", "\x00", "a\x00b", "\ud800", "list\ud800", "🙂", "日本", "²", "a" * 10_000, "a " * 5000),
)


@pytest.mark.parametrize("text", ODD_TEXTS, ids=lambda text: ascii(text[:12]))
def test_any_text_may_be_searched(atlas, text):
    assert isinstance(atlas.search(text), list)
    assert atlas.card(0).id == 0


@pytest.mark.parametrize("by", get_args(Ranking))
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


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_an_atlas_of_another_run(atlas_folder, workshop, tmp_path):
    with pytest.raises(CoCoMixError, match="mixed"):
        ConceptAtlas.open(atlas_folder, Run.open(workshop.ntp_run))
    moved = shutil.copytree(workshop.cocomix_run, tmp_path / "moved")
    assert ConceptAtlas.open(atlas_folder, Run.open(moved)).manifest.run == "mixed"  # the same weights elsewhere


def test_an_atlas_of_the_older_format_is_refused(atlas_folder, tmp_path):
    copy = shutil.copytree(atlas_folder, tmp_path / "atlas")
    write_json(copy / "manifest.json", {**read_json(copy / "manifest.json"), "version": 2})
    with pytest.raises(WrongVersion, match="2"):
        ConceptAtlas.open(copy)


def test_damage_is_found(atlas_folder, tmp_path):
    copy = shutil.copytree(atlas_folder, tmp_path / "atlas")
    cards = pq.read_table(copy / "cards.parquet")
    pq.write_table(cards.slice(1), copy / "cards.parquet")
    with pytest.raises(Damaged, match=r"cards\.parquet"):
        ConceptAtlas.open(copy).card(0)
    assert [finding.what for finding in ConceptAtlas.open(copy).verify().broken] == ["cards.parquet", "cards"]
    assert [finding.what for finding in ConceptAtlas.open(resealed(copy)).verify().broken][-1] == "cards"
    (copy / "cards.parquet").unlink()
    with pytest.raises(Damaged, match=r"cards\.parquet"):
        ConceptAtlas.open(copy).card(0)

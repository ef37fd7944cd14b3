import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import torch

from cocomix.artifacts import partial_path
from cocomix.data import DocumentBlocks, Tokens
from cocomix.evaluation import Run
from cocomix.interpret import AtlasSettings, ConceptAtlas, NameEndpoint, atlas_rows, build_atlas, default_atlas_folder
from cocomix.interpret.atlas_effects import mean_concept_logits, measure_effect, measure_effects
from cocomix.interpret.atlas_tally import Tally
from cocomix.labelling import Labels
from cocomix.runtime.errors import CoCoMixError
from tests.interpret.conftest import ATLAS
from tests.interpret.test_atlas_naming import says, server
from tests.workshop import BLOCK, CONCEPTS, Workshop, resealed

CPU = torch.device("cpu")


@pytest.fixture
def run(workshop: Workshop) -> Run:
    return Run.open(workshop.cocomix_run)


def dump(folder: Path) -> list[str]:
    with closing(sqlite3.connect(folder / "atlas.sqlite")) as database:
        return list(database.iterdump())


def read_by_hand(run: Run):
    """Every position of the first blocks: (split, block, position, {concept: logit}, {label: score})."""
    data, model = Tokens.open(run.manifest.data.path), run.model()
    store = Labels.open(run.manifest.labels.path)
    left = ATLAS.tokens // BLOCK
    for split in ("validation", "train"):
        blocks, labels = data.split(split), store.split(split)
        for index in range(min(left, len(blocks))):
            with torch.no_grad():
                output = model(input_ids=blocks[index]["input_ids"].unsqueeze(0))
            for position in range(BLOCK):
                predicted = zip(output.concept_ids[0, position], output.concept_values[0, position], strict=True)
                named = zip(labels[index]["concept_labels"][position], labels.scores(index)[position], strict=True)
                yield (
                    split,
                    index,
                    position,
                    {int(concept): float(value) for concept, value in predicted},
                    {int(concept): float(score) for concept, score in named if concept >= 0},
                )
        left -= min(left, len(blocks))


def test_cards_equal_what_the_model_predicts(atlas: ConceptAtlas, run: Run) -> None:
    positions = list(read_by_hand(run))
    assert {split for split, *_ in positions} == {"validation", "train"}
    assert len(positions) == atlas.manifest.tokens == ATLAS.tokens
    assert atlas.manifest.labelled_positions == sum(bool(labels) for *_, labels in positions)
    norms = run.model().mixing.compression.weight.detach().norm(dim=1)
    for concept in range(CONCEPTS):
        card = atlas.card(concept)
        logits = [predicted[concept] for *_, predicted, _ in positions if concept in predicted]
        labelled = [predicted for *_, predicted, labels in positions if concept in labels]
        assert card.predicted_count == len(logits) == sum(card.histogram.counts)
        assert card.positive_count == sum(logit > 0 for logit in logits)
        assert card.frequency == len(logits) / len(positions)
        assert card.label_count == len(labelled)
        assert card.recall == (sum(concept in p for p in labelled) / len(labelled) if labelled else None)
        assert card.compression_norm == pytest.approx(float(norms[concept]), rel=1e-6)
        if logits:
            assert card.mean_logit == pytest.approx(sum(logits) / len(logits), rel=1e-5)
            assert card.max_logit == pytest.approx(max(logits), rel=1e-5)
        else:
            assert (card.mean_logit, card.max_logit, card.predicted_contexts) == (None, None, ())
        assert len(card.predicted_contexts) == min(3, len({p[:2] for p in positions if concept in p[3]}))
        strongest = [context.strength for context in card.predicted_contexts]
        assert strongest == sorted(strongest, reverse=True)
        assert strongest[:1] == pytest.approx(sorted(logits, reverse=True)[:1], rel=1e-5)
        for context in card.label_contexts:
            labels = next(p[4] for p in positions if p[:3] == (context.split, context.block, context.position))
            assert context.strength == pytest.approx(labels[concept])


def test_contexts_are_the_text_of_the_data(atlas: ConceptAtlas, run: Run) -> None:
    data = Tokens.open(run.manifest.data.path)
    tokenizer, seen = data.tokenizer(), 0
    for concept in range(CONCEPTS):
        for context in (*atlas.card(concept).predicted_contexts, *atlas.card(concept).label_contexts):
            tokens = data.split(context.split)[context.block]["input_ids"].tolist()
            first, last = max(0, context.position - 6), context.position + 7
            whole = tokenizer.decode(tokens[first:last])
            if "\ufffd" not in context.before + context.token + context.after:
                assert context.before + context.token + context.after == whole
                seen += 1
    assert seen > 50


def test_nearest_concepts_are_those_of_largest_cosine(atlas: ConceptAtlas, run: Run) -> None:
    weight = run.model().mixing.compression.weight.detach()
    cosines = torch.nn.functional.cosine_similarity(weight[:, None], weight[None], dim=-1).fill_diagonal_(-2)
    for concept in (0, 17, CONCEPTS - 1):
        best = cosines[concept].topk(ATLAS.nearest)
        nearest = atlas.card(concept).nearest
        assert [neighbour for neighbour, _ in nearest] == best.indices.tolist()
        assert [cosine for _, cosine in nearest] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_effects_of_the_most_frequent_concepts_are_measured(atlas: ConceptAtlas, run: Run) -> None:
    frequent = [hit.id for hit in atlas.top(5, by="predicted_count")]
    measured = [concept for concept in range(CONCEPTS) if atlas.card(concept).raised is not None]
    assert sorted(frequent) == measured
    assert atlas.manifest.effects == 5
    blocks = Tokens.open(run.manifest.data.path).split("validation")
    ids = torch.stack([blocks[index]["input_ids"] for index in range(4)])
    concept, model = frequent[0], run.model()
    card = atlas.card(concept)
    edges, counts = card.histogram
    share = [sum(counts[: index + 1]) / sum(counts) for index in range(len(counts))]
    high = edges[1 + next(index for index, value in enumerate(share) if value >= 0.95)]
    amount = max(high - float(mean_concept_logits(model, ids)[concept]), edges[1] - edges[0])
    assert (card.raised, card.lowered) == measure_effect(model, atlas.tokenizer, ids, concept, amount, top=4)
    assert atlas.measure_effect(model, concept) == (card.raised, card.lowered)
    other = next(concept for concept in range(CONCEPTS) if concept not in measured)
    assert atlas.measure_effect(model, other)[0]


def test_documents_are_kept_apart_where_the_run_keeps_them_apart(run: Run, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run.path, tmp_path / "run"))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "document_masks": True}))
    settings = AtlasSettings(tokens=30 * BLOCK, effects=1, effect_tokens=8 * BLOCK, effect_top=4, contexts=1, bins=8)
    build_atlas(Run.open(folder), tmp_path / "atlas", settings, device=CPU)
    data, model = Tokens.open(run.manifest.data.path), run.model()
    rows = DocumentBlocks(data.split("validation"), data.manifest.eos_token_id)
    ids = torch.stack([rows[index]["input_ids"] for index in range(8)])
    positions = torch.stack([rows[index]["position_ids"] for index in range(8)])
    assert (positions[:, 1:] == 0).any()
    with ConceptAtlas.open(tmp_path / "atlas") as atlas, torch.no_grad():
        columns = [{name: rows[index][name][None] for name in ("input_ids", "position_ids")} for index in range(30)]
        predicted = torch.cat([model(**column, use_cache=False).concept_ids for column in columns])
        counts = torch.bincount(predicted.flatten(), minlength=CONCEPTS).tolist()
        assert [atlas.card(concept).predicted_count for concept in range(CONCEPTS)] == counts
        concept = next(concept for concept in range(CONCEPTS) if atlas.card(concept).raised is not None)
        card = atlas.card(concept)
        assert atlas.measure_effect(model, concept) == (card.raised, card.lowered)
        edges, histogram = card.histogram
        share = [sum(histogram[: index + 1]) / sum(histogram) for index in range(len(histogram))]
        high = edges[1 + next(index for index, value in enumerate(share) if value >= 0.95)]
        amount = max(high - float(mean_concept_logits(model, ids, positions)[concept]), edges[1] - edges[0])
        measured = measure_effect(model, atlas.tokenizer, ids, concept, amount, 4, positions)
        assert measured == (card.raised, card.lowered)


# --- stops ------------------------------------------------------------------------------------------------------------


def stop_after(calls: int, function):
    """The function, but Ctrl-C comes at the given call."""
    count = 0

    def stopping(*arguments, **settings):
        nonlocal count
        count += 1
        if count == calls:
            raise KeyboardInterrupt
        return function(*arguments, **settings)

    return stopping


@pytest.mark.parametrize("place", ["reading", "describing", "naming", "effects"])
def test_a_stopped_atlas_goes_on_and_ends_the_same(run, tmp_path, monkeypatch, place):
    monkeypatch.setattr(atlas_rows, "_CHUNK_ELEMENTS", 10 * CONCEPTS)  # ten concepts a commit
    monkeypatch.setattr(atlas_rows, "_NAMES_AT_ONCE", 10)
    settings = ATLAS.model_copy(update={"batch_tokens": 8 * BLOCK})
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    build_atlas(run, whole, settings, device=CPU)
    read, reads = Tally.add_predictions, []

    def counted(tally, ids, values):
        reads.append(len(ids))
        read(tally, ids, values)

    def two_effects(*arguments):
        for count, effect in enumerate(measure_effects(*arguments)):
            if count == 2:
                raise KeyboardInterrupt
            yield effect

    with monkeypatch.context() as patched:
        if place == "reading":
            patched.setattr(Tally, "save", stop_after(3, Tally.save))
        elif place == "describing":
            writer = atlas_rows.AtlasWriter
            patched.setattr(writer, "_write_contexts", stop_after(25, writer._write_contexts))
        elif place == "naming":
            patched.setattr(atlas_rows, "name_of", stop_after(25, atlas_rows.name_of))
        else:
            patched.setattr(atlas_rows, "measure_effects", two_effects)
        with pytest.raises(KeyboardInterrupt):
            build_atlas(run, stopped, settings, device=CPU, commit_tokens=16 * BLOCK)
    assert not stopped.exists()
    with pytest.raises(CoCoMixError, match="`cocomix atlas`"):
        ConceptAtlas.open(stopped)
    monkeypatch.setattr(Tally, "add_predictions", counted)
    build_atlas(run, stopped, settings, device=CPU)
    assert sum(reads) == (ATLAS.tokens // BLOCK - 32 if place == "reading" else 0)
    assert dump(stopped) == dump(whole)
    assert (stopped / "manifest.json").read_bytes() == (whole / "manifest.json").read_bytes()
    assert sorted(path.name for path in stopped.iterdir()) == ["atlas.sqlite", "manifest.json", "tokenizer"]
    assert not partial_path(stopped).exists()


def test_a_stopped_atlas_of_something_else_is_refused(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(Tally, "save", stop_after(1, Tally.save))
        with pytest.raises(KeyboardInterrupt):
            build_atlas(run, tmp_path / "atlas", ATLAS, device=CPU)
    with pytest.raises(CoCoMixError, match="settings"):
        build_atlas(run, tmp_path / "atlas", ATLAS.model_copy(update={"contexts": 2}), device=CPU)


# --- other runs and data ----------------------------------------------------------------------------------------------


def test_an_atlas_without_labels(run, tmp_path, caplog):
    copy = tmp_path / "run"
    shutil.copytree(run.path, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["labels"]["path"] = str(tmp_path / "gone")
    (copy / "manifest.json").write_text(json.dumps(manifest))
    record = build_atlas(Run.open(copy), None, ATLAS, device=CPU)
    assert caplog.messages == [
        f"the run's labels are no longer at {tmp_path / 'gone'}, so label contexts and recall are left out."
    ]
    assert (record.made_from.get("labels"), record.label_concepts, record.labelled_positions) == (None, 0, 0)
    with ConceptAtlas.open(default_atlas_folder(copy), Run.open(copy)) as atlas:
        assert default_atlas_folder(copy) == tmp_path / "run_atlas"
        card = atlas.card(atlas.top(1)[0].id)
        assert (card.label_count, card.recall, card.label_contexts) == (0, None, ())
        assert card.predicted_contexts
        assert atlas.top(5, by="recall") == []


def test_a_model_that_mixes_nothing_in(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run.path, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "mixing": "none"}))
    opened = Run.open(resealed(copy))
    assert build_atlas(opened, tmp_path / "atlas", ATLAS, device=CPU).effects == 0
    with ConceptAtlas.open(tmp_path / "atlas") as atlas:
        card = atlas.card(0)
        assert (card.compression_norm, card.raised, card.lowered, card.nearest) == (None, None, None, ())
        with pytest.raises(CoCoMixError, match="mixes none in"):
            atlas.measure_effect(opened.model(), 0)


def test_a_run_without_concepts_is_refused(workshop, tmp_path):
    with pytest.raises(CoCoMixError, match="has no concepts"):
        build_atlas(Run.open(workshop.ntp_run), tmp_path / "atlas", device=CPU)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_there_is_refused(run, tmp_path):
    (tmp_path / "atlas").mkdir()
    (tmp_path / "atlas" / "notes.txt").write_text("mine")
    with pytest.raises(CoCoMixError, match="already exists"):
        build_atlas(run, tmp_path / "atlas", device=CPU)
    assert [path.name for path in tmp_path.iterdir()] == ["atlas"]


def test_settings_out_of_range():
    for wrong in ({"tokens": 0}, {"bins": 1}, {"contexts": 0}, {"effects": -1}, {"other": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            AtlasSettings(**wrong)


# --- names by an endpoint ---------------------------------------------------------------------------------------------


def test_an_endpoint_names_the_most_frequent_concepts(run, tmp_path):
    with server(says("Lists of Things")) as (url, asked):
        record = build_atlas(run, tmp_path / "atlas", ATLAS, device=CPU, endpoint=NameEndpoint(url, limit=2))
    assert (record.endpoint_names, len(asked)) == (2, 2)
    with ConceptAtlas.open(tmp_path / "atlas") as atlas:
        frequent = [hit.id for hit in atlas.top(2)]
        assert {hit.id for hit in atlas.search("things lists")} == set(frequent)
        assert atlas.name(frequent[0]) == "Lists of Things"
        assert sum(atlas.name(concept) == "Lists of Things" for concept in range(CONCEPTS)) == 2


def test_a_failing_endpoint_leaves_the_terms(run, tmp_path, atlas, caplog):
    with server(lambda _: (500, b"", {})) as (url, asked):
        endpoint = NameEndpoint(url, limit=10)
        record = build_atlas(run, tmp_path / "atlas", ATLAS, device=CPU, endpoint=endpoint)
    assert (record.endpoint_names, len(asked)) == (0, 3)
    assert len(caplog.messages) == 4
    assert "the terms are used instead" in caplog.messages[0]
    assert "3 failures in a row" in caplog.messages[-1]
    with ConceptAtlas.open(tmp_path / "atlas") as failed:
        assert [failed.name(concept) for concept in range(CONCEPTS)] == [atlas.name(c) for c in range(CONCEPTS)]

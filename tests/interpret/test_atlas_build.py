import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import roc_auc_score

from cocomix.artifacts import AlreadyExists, read_json, write_json
from cocomix.data import DocumentBlocks, Tokens
from cocomix.evaluation import Run
from cocomix.interpret import (
    AtlasSettings,
    ConceptAtlas,
    NameEndpoint,
    build_atlas,
    default_atlas_folder,
    measure_effects,
)
from cocomix.labelling import Labels
from cocomix.runtime.errors import CoCoMixError
from tests.interpret.conftest import ATLAS
from tests.interpret.test_naming import says, server
from tests.workshop import BLOCK, CONCEPTS, Workshop, resealed

CPU = torch.device("cpu")


@pytest.fixture
def run(workshop: Workshop) -> Run:
    return Run.open(workshop.cocomix_run)


@pytest.fixture(scope="module")
def by_hand(workshop: Workshop):
    """Every held-out position: the model's top concepts, all concept logits, and the labels."""
    run = Run.open(workshop.cocomix_run)
    data, model = Tokens.open(run.manifest.data.path), run.model()
    store = Labels.open(run.manifest.labels.path).split("validation")
    blocks = data.split("validation")
    count = min(len(blocks), ATLAS.tokens // BLOCK)
    ids, logits, labels = [], [], []
    for index in range(count):
        with torch.no_grad():
            output = model(input_ids=blocks[index]["input_ids"].unsqueeze(0), output_concept_logits=True)
        ids.append(output.concept_ids[0])
        logits.append(output.concept_logits[0])
        labels.append(store[index]["concept_labels"])
    return torch.cat(ids).numpy(), torch.cat(logits).numpy(), torch.cat(labels).numpy(), data, count


def test_quality_is_measured_on_held_out_text_and_equals_a_naive_count(atlas: ConceptAtlas, by_hand) -> None:
    ids, logits, labels, data, count = by_hand
    assert atlas.manifest.tokens == len(ids) == count * BLOCK <= data.split("validation").block_size * count
    assert atlas.manifest.split == "validation"
    labelled = (labels >= 0).any(1)
    assert atlas.manifest.labelled_positions == labelled.sum()
    seen = 0
    for concept in range(CONCEPTS):
        card, predicted, true = atlas.card(concept), (ids == concept).any(1), (labels == concept).any(1)
        assert (card.predicted_count, card.label_count) == (predicted.sum(), true.sum())
        assert card.density == pytest.approx(predicted.mean())
        assert sum(card.histogram.counts) == predicted.sum()
        hits = (predicted & true).sum()
        rate = true.sum() / labelled.sum()
        there = (predicted & labelled).sum()
        assert card.precision == (pytest.approx(hits / there) if there else None)
        assert card.recall == (pytest.approx(hits / true.sum()) if true.any() else None)
        assert card.lift == (pytest.approx(hits / there / rate) if there and true.any() else None)
        if true.any():
            seen += 1
            assert card.auroc == pytest.approx(roc_auc_score(true[labelled], logits[labelled, concept]), abs=1e-6)
        else:
            assert card.auroc is None
        if predicted.any():
            assert card.mean_logit == pytest.approx(logits[predicted, concept].mean(), rel=1e-4)
            assert card.max_logit == pytest.approx(logits[predicted, concept].max(), rel=1e-5)
    assert seen > 20


def test_contexts_go_from_the_strongest_to_the_weakest_and_are_the_datas_text(atlas: ConceptAtlas, by_hand) -> None:
    _, logits, _, data, _ = by_hand
    tokenizer, seen = data.tokenizer(), 0
    for concept in range(CONCEPTS):
        card = atlas.card(concept)
        for count, contexts in (
            (card.predicted_count, card.predicted_contexts),
            (card.label_count, card.label_contexts),
        ):
            strengths = [context.strength for context in contexts]
            assert strengths == sorted(strengths, reverse=True)
            assert len(contexts) == min(len(contexts), count) > 0 or count == 0
            if count > ATLAS.contexts:
                assert (contexts[0].quantile, contexts[-1].quantile) == (1.0, 0.0)
            for context in contexts:
                place = context.block * BLOCK + context.position
                assert context.strength == pytest.approx(float(logits[place, concept]), rel=1e-4, abs=1e-5)
                tokens = data.split(context.split)[context.block]["input_ids"].tolist()
                whole = tokenizer.decode(tokens[max(0, context.position - 6) : context.position + 7])
                if "\ufffd" not in "".join(context[:3]) and "<" not in whole:
                    assert "".join(context[:3]) == whole
                    seen += 1
    assert seen > 50


def test_effects_of_the_most_frequent_concepts_are_measured(atlas: ConceptAtlas, run: Run) -> None:
    frequent = [hit.id for hit in atlas.top(5, by="predicted_count")]
    assert sorted(frequent) == [concept for concept in range(CONCEPTS) if atlas.card(concept).raised is not None]
    blocks, model, tokenizer = Tokens.open(run.manifest.data.path).split("validation"), run.model(), run.tokenizer()
    ids, card = torch.stack([blocks[index]["input_ids"] for index in range(4)]), atlas.card(frequent[0])
    (by_hand,) = measure_effects(model, tokenizer, ids, {card.id: card.effect_amount}, top=4)
    for measured in (card, atlas.measure_effect(model, tokenizer, card.id)):
        assert [token for token, _ in measured.raised] == [token for token, _ in by_hand.raised]
        assert [nats for _, nats in measured.lowered] == pytest.approx([nats for _, nats in by_hand.lowered], rel=1e-4)
    other = next(concept for concept in range(CONCEPTS) if concept not in frequent)
    assert atlas.measure_effect(model, tokenizer, other).raised


def test_nearest_concepts_are_those_of_largest_cosine(atlas: ConceptAtlas, run: Run) -> None:
    weight = run.model().mixing.compression.weight.detach()
    cosines = torch.nn.functional.cosine_similarity(weight[:, None], weight[None], dim=-1).fill_diagonal_(-2)
    for concept in (0, 17, CONCEPTS - 1):
        best, card = cosines[concept].topk(ATLAS.nearest), atlas.card(concept)
        assert [neighbour for neighbour, _ in card.nearest] == best.indices.tolist()
        assert [cosine for _, cosine in card.nearest] == pytest.approx(best.values.tolist(), abs=1e-5)
        assert card.compression_norm == pytest.approx(float(weight[concept].norm()), rel=1e-5)


def test_probes_are_a_reference_for_the_best_concept(atlas: ConceptAtlas) -> None:
    probes = {probe.property: probe for probe in atlas.manifest.probes}
    assert len(probes) >= 2
    for probe in probes.values():
        assert 0 < probe.share < 1
        assert 0 <= probe.concept < CONCEPTS
        assert 0 <= probe.concept_auroc <= 1
    assert probes["word start"].probe > 0.8  # the token itself says it


def test_fewer_tokens_than_effects_are_measured_on(run: Run, tmp_path: Path) -> None:
    made = build_atlas(run, tmp_path / "atlas", AtlasSettings(tokens=BLOCK, effects=2), device=CPU)
    assert (made.blocks, made.effects) == (1, 2)
    assert ConceptAtlas.open(tmp_path / "atlas").card(0).id == 0


def test_an_atlas_is_made_once(run: Run, tmp_path: Path, atlas_folder: Path) -> None:
    build_atlas(run, tmp_path / "atlas", ATLAS, device=CPU)
    for name in ("cards.parquet", "samples.parquet"):
        assert pq.read_table(tmp_path / "atlas" / name).equals(pq.read_table(atlas_folder / name))
    before = (tmp_path / "atlas" / "manifest.json").stat().st_mtime_ns
    build_atlas(run, tmp_path / "atlas", ATLAS, device=CPU)
    assert (tmp_path / "atlas" / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(CoCoMixError, match="settings"):
        build_atlas(run, tmp_path / "atlas", ATLAS.model_copy(update={"contexts": 2}), device=CPU)
    file = tmp_path / "atlas" / "manifest.json"
    manifest = read_json(file)
    del manifest["identity"]["algorithm"]  # as before followers stopped at the end of a document
    write_json(file, manifest)
    with pytest.raises(AlreadyExists, match="algorithm"):
        build_atlas(run, tmp_path / "atlas", ATLAS, device=CPU)


def test_documents_are_kept_apart_where_the_run_keeps_them_apart(run: Run, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run.path, tmp_path / "run"))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "document_masks": True}))
    settings = AtlasSettings(tokens=30 * BLOCK, effects=1, effect_tokens=8 * BLOCK, contexts=2, bins=8)
    build_atlas(Run.open(folder), tmp_path / "atlas", settings, device=CPU)
    data, model, atlas = Tokens.open(run.manifest.data.path), run.model(), ConceptAtlas.open(tmp_path / "atlas")
    blocks = DocumentBlocks(data.split("validation"), data.manifest.eos_token_id)
    rows = [blocks[index] for index in range(atlas.manifest.blocks)]
    assert any((row["position_ids"][1:] == 0).any() for row in rows)
    with torch.no_grad():
        columns = [{name: row[name][None] for name in ("input_ids", "position_ids")} for row in rows]
        predicted = torch.cat([model(**column, use_cache=False).concept_ids for column in columns])
    counts = torch.bincount(predicted.flatten(), minlength=CONCEPTS).tolist()
    assert atlas.cards.column("predicted_count").to_pylist() == counts
    concept = atlas.top(1)[0].id
    measured = atlas.measure_effect(model, run.tokenizer(), concept)
    assert [token for token, _ in measured.raised] == [token for token, _ in atlas.card(concept).raised]


def test_an_atlas_without_labels(run: Run, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run.path, tmp_path / "run"))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["labels"]["path"] = str(tmp_path / "gone")
    (copy / "manifest.json").write_text(json.dumps(manifest))
    record = build_atlas(Run.open(copy), None, ATLAS, device=CPU)
    assert (record.made_from.get("labels"), record.label_concepts, record.labelled_positions) == (None, 0, 0)
    atlas = ConceptAtlas.open(default_atlas_folder(copy), Run.open(copy))
    card = atlas.card(atlas.top(1)[0].id)
    assert (card.label_count, card.recall, card.precision, card.auroc, card.label_contexts) == (0, None, None, None, ())
    assert card.predicted_contexts
    assert card.named_from == ("predictions" if card.terms else "nothing")
    assert atlas.top(5, by="recall") == []


def test_a_model_that_mixes_nothing_in(run: Run, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run.path, tmp_path / "run"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "mixing": "none"}))
    opened = Run.open(resealed(copy))
    assert build_atlas(opened, tmp_path / "atlas", ATLAS, device=CPU).effects == 0
    atlas = ConceptAtlas.open(tmp_path / "atlas")
    card = atlas.card(0)
    assert (card.compression_norm, card.effect_amount, card.raised, card.lowered, card.nearest) == (*[None] * 4, ())
    with pytest.raises(CoCoMixError, match="mixes none in"):
        atlas.measure_effect(opened.model(), run.tokenizer(), 0)


def test_a_run_without_concepts_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(CoCoMixError, match="has no concepts"):
        build_atlas(Run.open(workshop.ntp_run), tmp_path / "atlas", device=CPU)
    assert list(tmp_path.iterdir()) == []


# --- names by an endpoint, scored -------------------------------------------------------------------------------------


class _Output:
    def __init__(self, activating: bool, prediction: bool | None) -> None:
        self.activating, self.prediction, self.correct = activating, prediction, prediction == activating


class _Record:
    def __init__(self, **values) -> None:
        self.__dict__.update(values)


@pytest.fixture
def delphi(monkeypatch: pytest.MonkeyPatch) -> None:
    """The data classes of Delphi that the adapter fills."""
    import sys
    import types

    package, latents = types.ModuleType("delphi"), types.ModuleType("delphi.latents")
    for name in ("ActivatingExample", "NonActivatingExample", "LatentRecord"):
        setattr(latents, name, type(name, (_Record,), {}))
    latents.Latent = lambda module, index: (module, index)
    monkeypatch.setitem(sys.modules, "delphi", package)
    monkeypatch.setitem(sys.modules, "delphi.latents", latents)


@pytest.mark.usefixtures("delphi")
def test_names_of_an_endpoint_are_scored_on_contexts_it_did_not_see(run: Run, tmp_path: Path) -> None:
    records = []

    def scorer(record):
        records.append(record)
        outputs = [_Output(True, True) for _ in record.test] + [_Output(False, None) for _ in record.not_active[1:]]
        return _Record(score=[*outputs, _Output(False, True), _Output(False, False)])

    with server(says("Lists of things")) as (url, asked):
        endpoint = NameEndpoint(url, limit=3)
        made = build_atlas(
            run,
            tmp_path / "atlas",
            ATLAS,
            device=CPU,
            endpoint=endpoint,
            scorers={"detection": scorer, "fuzzing": scorer},
        )
    assert (made.endpoint_names, made.scored_names, len(asked)) == (3, 3, 3)
    atlas = ConceptAtlas.open(tmp_path / "atlas")
    for concept in (hit.id for hit in atlas.top(3)):
        card = atlas.card(concept)
        assert (card.name, card.named_from, card.detection, card.fuzzing) == ("Lists of things", "endpoint", 0.75, 0.75)
    for record, (_, _, body) in zip(records[::2], asked, strict=True):
        question = body["messages"][1]["content"]
        for example in record.test:
            assert f"{example.str_tokens[0]}<<{example.str_tokens[1]}>>{example.str_tokens[2]}" not in question
            assert example.activations.tolist() == [0, 1, 0]
        assert len(record.not_active) == len(record.test)


def test_without_delphi_names_are_not_scored_and_that_is_said(run: Run, tmp_path: Path, caplog) -> None:
    with server(says("Lists")) as (url, _):
        made = build_atlas(run, tmp_path / "atlas", ATLAS, device=CPU, endpoint=NameEndpoint(url, limit=1))
    assert (made.endpoint_names, made.scored_names) == (1, 0)
    assert any("eai-delphi" in message for message in caplog.messages)
    card = ConceptAtlas.open(tmp_path / "atlas").top(1)[0]
    assert card.name == "Lists"


def test_an_endpoint_that_fails_is_left_alone(run: Run, tmp_path: Path, caplog) -> None:
    with server(lambda _: (500, b"no", {})) as (url, asked):
        made = build_atlas(run, tmp_path / "atlas", ATLAS, device=CPU, endpoint=NameEndpoint(url, limit=20))
    assert (made.endpoint_names, len(asked)) == (0, 3)
    assert "endpoint" not in ConceptAtlas.open(tmp_path / "atlas").cards.column("named_from").to_pylist()

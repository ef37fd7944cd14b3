import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cocomix.artifacts import AlreadyExists, partial_path
from cocomix.concepts import Dictionary, DictionaryConfig, FitSettings, TeacherConfig, TeacherSource, dictionary_layer
from cocomix.data import Tokens
from cocomix.labelling import ConceptLabelStore, LabelSettings, engines
from cocomix.labelling.fitting import fit_on_data
from cocomix.labelling.pipeline import label_data
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import train
from tests.command_line import Cli
from tests.workshop import BLOCK, CONCEPTS, Workshop, prepare_toy


def test_the_dictionary_describes_the_layer_it_was_fitted_on(workshop: Workshop) -> None:
    manifest = Dictionary.open(workshop.dictionary).manifest
    assert dictionary_layer(DictionaryConfig(path=str(workshop.dictionary))) == manifest.layer == 1
    assert manifest.report is not None
    assert manifest.report.fit.fvu < 0.5
    assert manifest.report.ce_recovered is not None
    assert manifest.report.ce_recovered > 0.5
    assert manifest.teacher == str(workshop.teacher)


def test_labels_cover_the_data(workshop: Workshop) -> None:
    data, labels = Tokens.open(workshop.data), ConceptLabelStore.open(workshop.labels)
    manifest = labels.manifest
    assert manifest.data_fingerprint == data.manifest.fingerprint
    assert (manifest.num_concepts, manifest.layer, manifest.teacher.name) == (CONCEPTS, 1, str(workshop.teacher))
    assert manifest.dictionary.name == str(workshop.dictionary)
    for name, meta in data.manifest.splits.items():
        split = labels.split(name)
        assert len(split) == meta.blocks
        rows = torch.stack([split[index]["concept_labels"] for index in range(len(split))])
        assert rows.shape == (meta.blocks, BLOCK, 4)
        assert (rows[:, -1] == -100).all()  # no next token, no label
        assert (rows[:, :-1, 0] >= 0).float().mean() > 0.8
        assert int(rows.max()) < CONCEPTS


def label(workshop: Workshop, output: Path, data: Path | None = None, **changes: Any) -> None:
    source = TeacherConfig(model=str(workshop.teacher), layer=1)
    dictionary = DictionaryConfig(path=str(workshop.dictionary))
    label_data(data or workshop.data, source, dictionary, output, **changes)


def test_interrupted_labels_go_on_and_end_the_same(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cocomix.labelling import shards

    original, done = shards.write_columns, []

    def stop_at_third(*args: Any) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(args[0].name)
        original(*args)

    with monkeypatch.context() as patched:
        patched.setattr(shards, "write_columns", stop_at_third)
        with pytest.raises(KeyboardInterrupt):
            label(workshop, tmp_path / "labels")
    with pytest.raises(CoCoMixError, match="not finished"):
        ConceptLabelStore.open(tmp_path / "labels")
    first = partial_path(tmp_path / "labels") / "train" / "00000.arrow"
    before = first.stat().st_mtime_ns
    label(workshop, tmp_path / "labels")
    assert (tmp_path / "labels" / "train" / "00000.arrow").stat().st_mtime_ns == before
    found = ConceptLabelStore.open(tmp_path / "labels").manifest
    assert found.fingerprint == ConceptLabelStore.open(workshop.labels).manifest.fingerprint


def test_the_batch_does_not_change_the_labels(workshop: Workshop, tmp_path: Path) -> None:
    label(workshop, tmp_path / "labels", batch_tokens=BLOCK)
    whole, one = (ConceptLabelStore.open(path).split("validation") for path in (workshop.labels, tmp_path / "labels"))
    same = [torch.equal(whole[i]["concept_labels"], one[i]["concept_labels"]) for i in range(len(one))]
    assert sum(same) >= 0.9 * len(same)  # rounding may swap concepts of nearly equal score


def test_a_narrow_dtype_is_measured_told_and_refused_below_the_limit(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ConceptLabelStore.open(workshop.labels).manifest.agreement_with_float32 is None
    narrow = LabelSettings(dtype="float16")
    label(workshop, tmp_path / "labels", settings=narrow, force=True)
    agreement = ConceptLabelStore.open(tmp_path / "labels").manifest.agreement_with_float32
    assert agreement is not None
    assert 0.9 < agreement <= 1
    monkeypatch.setattr("cocomix.concepts.labeller_check.measure_agreement", lambda *arguments: 0.98)
    with pytest.raises(CoCoMixError, match=r"in float16 the teacher gives 98\.0% .*asked: at least 99%"):
        label(workshop, tmp_path / "refused", settings=narrow)
    assert {path.name for path in tmp_path.iterdir()} == {"labels"}


def test_workers_are_asked_for_on_the_command_line(
    workshop: Workshop, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def here(source: TeacherSource, fingerprints: Any, shards: Any, plan: Any, workers: int, advance: Any) -> float:
        asked.append(workers)
        teacher = source.load()
        assert (teacher.fingerprint(), teacher.dictionary.fingerprint()) == fingerprints
        return engines._label_here(teacher, shards, plan, advance)

    monkeypatch.setattr(engines, "label_in_processes", here)
    sources = ("--teacher", workshop.teacher, "--dictionary", workshop.dictionary)
    cli("label", workshop.data, *sources, "--workers", 3, "-o", tmp_path / "labels")
    shards = ConceptLabelStore.open(tmp_path / "labels").manifest.splits
    assert asked == [min(3, sum(map(len, shards.values())))]
    found = [ConceptLabelStore.open(path).manifest.fingerprint for path in (tmp_path / "labels", workshop.labels)]
    assert found[0] == found[1]
    cli("label", workshop.data, *sources, "--workers", 0, "-o", tmp_path / "other", status=2)


def test_other_tokenizer_wrong_layer_and_width_are_refused(workshop: Workshop, tmp_path: Path) -> None:
    other = prepare_toy(workshop.corpus, tmp_path / "other", vocab_size=280).path
    with pytest.raises(CoCoMixError, match="tokenizer"):
        label(workshop, tmp_path / "labels", other)
    with pytest.raises(CoCoMixError, match="tokenizer"):
        fit_on_data(other, TeacherConfig(model=str(workshop.teacher), layer=1), tmp_path / "sae")
    wide = train(workshop.recipe("ntp", model={"backbone": {"n_embd": 32}}, tokens=128), tmp_path / "wide")
    dictionary = DictionaryConfig(path=str(workshop.dictionary))
    with pytest.raises(CoCoMixError, match="16"):
        label_data(workshop.data, TeacherConfig(model=str(wide), layer=1), dictionary, tmp_path / "labels")
    with pytest.raises(CoCoMixError, match="layer"):
        label_data(workshop.data, TeacherConfig(model=str(workshop.teacher), layer=3), dictionary, tmp_path / "labels")
    assert {path.name for path in tmp_path.iterdir()} == {"other", "wide"}


def test_a_teacher_without_a_tokenizer_is_checked_by_its_size(workshop: Workshop, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        shutil.copy(workshop.teacher / name, bare / name)
    settings = FitSettings(num_concepts=32, k=4, tokens=512, batch_size=256)
    fitted = fit_on_data(workshop.data, TeacherConfig(model=str(bare), layer=1), tmp_path / "sae", settings)
    assert fitted.manifest.report is not None
    assert fitted.manifest.report.tokens == 512


def test_a_teacher_whose_tokenizer_cannot_be_read_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    """It was taken for a teacher without one, and the check of the tokenizer was left out."""
    teacher = Path(shutil.copytree(workshop.teacher, tmp_path / "teacher"))
    (teacher / "tokenizer.json").write_text('{"model": {')
    with pytest.raises(CoCoMixError, match=r"cannot load the tokenizer .*teacher"):
        fit_on_data(workshop.data, TeacherConfig(model=str(teacher), layer=1), tmp_path / "sae")
    dictionary = DictionaryConfig(path=str(workshop.dictionary))
    with pytest.raises(CoCoMixError, match=r"cannot load the tokenizer .*teacher"):
        label_data(workshop.data, TeacherConfig(model=str(teacher), layer=1), dictionary, tmp_path / "labels")


def test_a_dictionary_of_another_block_is_refused_or_forced(workshop: Workshop, tmp_path: Path) -> None:
    """Neighbouring blocks are so alike that the measures of fit accepted it."""
    dictionary = DictionaryConfig(path=str(workshop.dictionary))
    for layer in (0, 2):
        other = TeacherConfig(model=str(workshop.teacher), layer=layer)
        with pytest.raises(CoCoMixError, match=f"block 1, not of block {layer}"):
            label_data(workshop.data, other, dictionary, tmp_path / "labels")
    forced = TeacherConfig(model=str(workshop.teacher), layer=0)
    manifest = label_data(workshop.data, forced, dictionary, tmp_path / "labels", force=True)
    assert manifest is not None
    assert manifest.layer == 0


def test_a_fitted_dictionary_asked_for_again_is_there_already(workshop: Workshop, tmp_path: Path) -> None:
    settings = FitSettings(num_concepts=32, k=4, tokens=512, batch_size=256)
    teacher = TeacherConfig(model=str(workshop.teacher), layer=1)
    first = fit_on_data(workshop.data, teacher, tmp_path / "sae", settings)
    written = (tmp_path / "sae" / "manifest.json").stat().st_mtime_ns
    again = fit_on_data(workshop.data, teacher, tmp_path / "sae", settings)
    assert again.manifest == first.manifest
    assert (tmp_path / "sae" / "manifest.json").stat().st_mtime_ns == written
    with pytest.raises(AlreadyExists, match=r"settings\.k"):
        fit_on_data(workshop.data, teacher, tmp_path / "sae", settings.model_copy(update={"k": 5}))

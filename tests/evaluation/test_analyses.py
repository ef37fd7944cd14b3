import json
import math
from pathlib import Path

import pytest
import torch

from cocomix.concepts import ActivationConfig, DictionaryConfig, TeacherConfig
from cocomix.evaluation import Run
from cocomix.evaluation.analyses import (
    compression_norms,
    label_counts,
    label_overlap,
    label_use,
    recall_by_frequency,
)
from cocomix.labelling import Labels, label_data
from cocomix.runtime.errors import CoCoMixError
from tests.command_line import Cli
from tests.evaluation.conftest import CONCEPTS, Rows, cocomix_model, token_blocks
from tests.workshop import Workshop

CPU = torch.device("cpu")


def test_compression_norms_by_hand() -> None:
    model = cocomix_model()
    with torch.no_grad():
        model.compression_weight[:6] = 0.0
        model.compression_weight[6] = 0.002
        model.compression_weight[7, :] = 0.0
        model.compression_weight[7, 0] = -3.0
    found = compression_norms(model)
    assert found.norms[7] == pytest.approx(3.0)
    assert found.norms[6] == pytest.approx(0.002 * math.sqrt(16))
    assert found.unused == pytest.approx(7 / CONCEPTS)


def test_recall_by_frequency_is_that_of_a_walk_over_all_labels() -> None:
    model, blocks = cocomix_model(), token_blocks(5)
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(CONCEPTS, (5, 10, 2), generator=generator)
    labels[:, -1] = -100
    counts = torch.tensor([0, 3, 9, 10, 99, 100] * (CONCEPTS // 6))
    found = recall_by_frequency(model, blocks, Rows("concept_labels", labels), counts, batch_size=2, device=CPU)
    assert [(group.lowest, group.highest, group.concepts) for group in found] == [
        (0, 0, CONCEPTS // 6), (1, 9, CONCEPTS // 3), (10, 99, CONCEPTS // 3), (100, 999, CONCEPTS // 6),
    ]  # fmt: skip
    with torch.no_grad():
        predicted = torch.cat([model(input_ids=row["input_ids"][None]).concept_ids for row in blocks])
    for group in found:
        hits = total = 0
        for block, position, rank in torch.nonzero(labels >= 0).tolist():
            concept = int(labels[block, position, rank])
            if group.lowest <= counts[concept] <= group.highest:
                total += 1
                hits += concept in predicted[block, position].tolist()
        assert group.labels == total
        assert group.recall == pytest.approx(hits / total)


def test_label_use_by_hand(workshop: Workshop) -> None:
    found = label_use(torch.tensor([4, 4, 0, 0]))
    assert (found.entropy, found.effective_concepts, found.never_used) == pytest.approx((math.log(2), 2.0, 0.5))
    with pytest.raises(CoCoMixError, match="no label"):
        label_use(torch.zeros(3, dtype=torch.int64))
    store = Labels.open(workshop.labels)
    counts = sum(label_counts(store.split(name), store.num_concepts) for name in ("train", "validation"))
    statistics = store.manifest.statistics
    assert int(counts.sum()) == statistics.labels
    assert int((counts > 0).sum()) == statistics.distinct_concepts


@pytest.fixture(scope="module")
def active_labels(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Labels:
    output = tmp_path_factory.mktemp("labels") / "active"
    source, dictionary = (
        TeacherConfig(model=str(workshop.teacher), layer=1),
        DictionaryConfig(path=str(workshop.dictionary)),
    )
    label_data(workshop.data, ActivationConfig(k=6, teacher=source, dictionary=dictionary), output)
    return Labels.open(output)


def test_label_overlap_is_that_of_sets(workshop: Workshop, active_labels: Labels) -> None:
    store = Labels.open(workshop.labels)
    assert label_overlap(store, store) == 1.0
    same = total = 0
    for first, second in zip(store.split("train"), active_labels.split("train"), strict=True):
        for ids, others in zip(first["concept_labels"].tolist(), second["concept_labels"].tolist(), strict=True):
            chosen = set(others) - {-100}
            if chosen:
                same += len((set(ids) - {-100}) & chosen)
                total += len(set(ids) - {-100})
    assert label_overlap(store, active_labels) == pytest.approx(same / total)
    assert 0 < same < total


def test_a_page_of_analyses(workshop: Workshop, tmp_path: Path, cli: Cli) -> None:
    output = tmp_path / "analyses"
    result = cli("analyse", workshop.cocomix_run, workshop.ntp_run, "--output", output, "--json")
    assert "plain, seed 0 is left out" in result.err
    values = json.loads(result.out)
    assert values == json.loads((output / "analyses.json").read_text())
    name = f"{Run.open(workshop.cocomix_run).manifest.name}, seed 0"
    assert values["reliance"][name]["kinds"].keys() == {"zero", "shuffle", "oracle"}
    assert values["recall_by_frequency"][name]
    assert 0 <= values["unused_compression_vectors"][name] <= 1
    assert (output / "compression_0.png").read_bytes().startswith(b"\x89PNG")
    html = (output / "analyses.html").read_text(encoding="utf-8")
    assert "Are rare concepts predicted too?" in html
    cli.refuses("analyse", workshop.ntp_run, "-o", tmp_path / "none", "-q", says="none of the runs mixes concepts in")
    cli.refuses("analyse", workshop.cocomix_run, "-o", output, "-q", says="already exists")

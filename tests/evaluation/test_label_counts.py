import numpy as np

from cocomix.evaluation.measure_run import count_labels
from cocomix.labelling import Concatenated
from tests.evaluation.conftest import CONCEPTS
from tests.evaluation.small_world import build_world


def test_the_table_holds_the_most_frequent_labels_of_each_token(tmp_path):
    world = build_world(tmp_path)
    made = count_labels(world.data, Concatenated([world.labels]))
    table = made.table(world.data.manifest.vocab_size, 4)
    counts = np.zeros((world.data.manifest.vocab_size, CONCEPTS), dtype=int)
    stored = world.labels.split("train")
    for index, row in enumerate(world.data.split("train")):
        for token, ids in zip(row["input_ids"].tolist(), stored[index]["concept_labels"].tolist(), strict=True):
            for concept in ids:
                if concept >= 0:
                    counts[token, concept] += 1
    np.testing.assert_array_equal(made.of_concepts, counts.sum(0))
    for token, concepts in enumerate(table.tolist()):
        assert len(set(concepts)) == 4
        own = sorted(counts[token][counts[token] > 0], reverse=True)[:4]
        assert counts[token][concepts][: len(own)].tolist() == own
    unseen = int(np.flatnonzero(counts.sum(1) == 0)[0])
    assert counts.sum(0)[table[unseen]].tolist() == sorted(counts.sum(0), reverse=True)[:4]

"""What labels hold, against counts made by hand and labels whose content is known."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cocomix.labelling.label_content import label_content

Blocks = list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]


def drawn(blocks: int, concepts: int, follow: float, seed: int = 0) -> Blocks:
    """Blocks of 50 tokens out of 20 with up to 3 labels, of which a share follows the token."""
    draw = np.random.default_rng(seed)
    of_token = draw.integers(0, concepts, (20, 3))

    def block() -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        tokens = draw.integers(0, 20, 50).astype("<u2")
        ids = np.where(draw.random((50, 3)) < follow, of_token[tokens], draw.integers(0, concepts, (50, 3)))
        return tokens, ids.astype("<u2"), draw.integers(0, 4, 50).astype("u1")

    return [block() for _ in range(blocks)]


def labels(blocks: Blocks) -> Iterator[tuple[int, int]]:
    for tokens, ids, counts in blocks:
        for token, row, count in zip(tokens.tolist(), ids.tolist(), counts.tolist(), strict=True):
            yield from ((token, concept) for concept in row[:count])


def entropy(counts: Counter[Any]) -> float:
    total = sum(counts.values())
    return -sum(count / total * math.log(count / total) for count in counts.values())


def test_equals_counting_by_hand() -> None:
    blocks = drawn(25, 300, 0.5)
    blocks[4][0][:2] = 19_999  # a token that the fitted part does not hold
    found = label_content(blocks, num_concepts=300)
    assert found is not None
    measured = [block for number, block in enumerate(blocks) if number % 5 == 4]
    fitted = [block for number, block in enumerate(blocks) if number % 5 != 4]
    static = sorted(range(300), key=lambda concept: (-Counter(c for _, c in labels(fitted))[concept], concept))
    lists: dict[int, list[int]] = defaultdict(list)
    for (token, concept), _ in sorted(Counter(labels(fitted)).items(), key=lambda item: (-item[1], item[0][1])):
        lists[token].append(concept)
    wanted = list(labels(measured))
    for k, by_static, by_token in (
        (3, found.static_recall_at_labels, found.token_recall_at_labels),
        (32, found.static_recall_at_32, found.token_recall_at_32),
    ):
        assert by_static == pytest.approx(np.mean([concept in static[:k] for _, concept in wanted]))
        assert by_token == pytest.approx(np.mean([c in lists.get(token, static)[:k] for token, c in wanted]))
    everything = list(labels(blocks))
    concepts, tokens = Counter(c for _, c in everything), Counter(token for token, _ in everything)
    assert found.entropy == pytest.approx(entropy(concepts))
    assert found.entropy_given_token == pytest.approx(entropy(Counter(everything)) - entropy(tokens))
    assert found.concepts_used == len(concepts)
    assert found.top_share == pytest.approx(max(concepts.values()) / len(everything))
    assert found.positions == sum(int((counts > 0).sum()) for _, _, counts in blocks)


def test_labels_that_are_the_token_in_another_coat_are_warned_of() -> None:
    same, random = (label_content(drawn(25, 4096, follow), num_concepts=4096) for follow in (1.0, 0.0))
    assert same is not None
    assert random is not None
    assert same.token_recall_at_labels == 1.0
    assert same.entropy_given_token < 1.2  # three labels of equal share each
    assert same.static_recall_at_32 < 1.0
    assert [warning for warning in same.warnings() if "100%" in warning]
    assert random.token_recall_at_32 < 0.1
    assert not [warning for warning in random.warnings() if "token" in warning and "current" in warning]


def test_dead_concepts_are_warned_of_with_a_remedy() -> None:
    found = label_content(drawn(25, 100, 0.0), num_concepts=10_000)
    assert found is not None
    assert found.concepts_used == 100
    assert [warning for warning in found.warnings() if "100 of 10,000" in warning and "--num-concepts" in warning]
    assert not found.warnings(of_dictionary=False)


@pytest.mark.parametrize(
    "blocks", [[], drawn(4, 30, 0.5), [(t, ids, 0 * counts) for t, ids, counts in drawn(9, 30, 0.5)]]
)
def test_too_few_labels_to_say(blocks: Blocks) -> None:
    assert label_content(blocks, num_concepts=30) is None

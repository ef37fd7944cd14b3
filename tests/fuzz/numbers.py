"""Random shapes, masks, dtypes and settings: the model's and the order's invariants."""

from itertools import pairwise

import numpy as np
import torch
from hypothesis import strategies as st
from torch.testing import assert_close

from cocomix.data import DocumentBlocks
from cocomix.training.order import MixtureOrder, StepBatches, WindowedOrder
from tests.fuzz.cases import Target, World
from tests.fuzz.mutations import Draw
from tests.model.factories import CONCEPTS, LAYERS, MAIN_BACKBONES, MIXINGS, VOCAB, student

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def model(world: World, draw: Draw) -> None:
    """Any shape, mask and setting: finite losses that add up, causality, and padding that changes nothing."""
    k, attention = draw(st.integers(1, CONCEPTS)), draw(st.sampled_from(["eager", "sdpa"]))
    network = student(
        draw(st.sampled_from(MAIN_BACKBONES)),
        draw(st.integers(0, LAYERS - 1)),
        draw(st.sampled_from(MIXINGS)),
        seed=draw(st.integers(0, 3)),
        attn=attention,
        concept_topk=k,
    )
    dtype = draw(st.sampled_from(DTYPES))
    network.to(dtype)
    batch, seq, k_attr = draw(st.integers(1, 3)), draw(st.integers(2, 9)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    ids = torch.randint(1, VOCAB, (batch, seq), generator=generator)
    labels = torch.randint(0, CONCEPTS, (batch, seq, k_attr), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < draw(st.sampled_from([0.0, 0.5, 1.0]))] = -100
    output = network(ids, labels=ids, concept_labels=labels, use_cache=False)
    assert output.logits.shape == (batch, seq, VOCAB)
    assert output.concept_ids.shape == (batch, seq, k)
    assert torch.isfinite(output.loss)
    weight = network.config.concept_loss_weight
    assert_close(output.loss, output.ntp_loss + weight * output.concept_loss)
    output.loss.backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in network.parameters())
    if dtype == torch.bfloat16:  # top-k of near-equal logits may differ between shapes
        return
    tolerance = {"rtol": 1e-3, "atol": 1e-4}
    with torch.no_grad():
        place = draw(st.integers(1, seq - 1))
        changed = ids.clone()
        changed[:, place:] = torch.randint(1, VOCAB, (batch, seq - place), generator=generator)
        assert_close(network(changed, use_cache=False).logits[:, :place], output.logits[:, :place], **tolerance)
        # In float64, the eager attention of transformers turns rows of padding into NaN, in any decoder.
        padding = draw(st.integers(0, 0 if (attention, dtype) == ("eager", torch.float64) else 3))
        padded = torch.cat((torch.zeros(batch, padding, dtype=torch.int64), ids), dim=1)
        mask = (torch.arange(padding + seq) >= padding).long().expand(batch, -1)
        assert_close(network(padded, attention_mask=mask).logits[:, padding:], output.logits, **tolerance)


def documents(world: World, draw: Draw) -> None:
    """With document masks, a token's logits depend on its document alone."""
    network = student(draw(st.sampled_from(MAIN_BACKBONES)), 1, draw(st.sampled_from(MIXINGS))).double()
    ids = torch.tensor(draw(st.lists(st.sampled_from([0, 0, 5, 6, 7, 8]), min_size=1, max_size=12)))
    row = DocumentBlocks([{"input_ids": ids}], 0)[0]
    starts = [*torch.nonzero(row["position_ids"] == 0).flatten().tolist(), len(ids)]
    with torch.no_grad():
        together = network(ids[None], position_ids=row["position_ids"][None], use_cache=False).logits[0]
        for start, stop in pairwise(starts):
            alone = network(ids[None, start:stop], use_cache=False).logits[0]
            assert_close(together[start:stop], alone, rtol=1e-6, atol=1e-8)


def mixture(world: World, draw: Draw) -> None:
    """Processes share the blocks of a mixture without loss, and its shares are kept."""
    sizes = tuple(draw(st.lists(st.integers(1, 80), min_size=1, max_size=4)))
    weights = tuple(draw(st.floats(1e-3, 1e3)) for _ in sizes)
    order = MixtureOrder(sizes, weights, draw(st.integers(0, 2**62)))
    if world.refusal_or_result(lambda: order.draws_per_period) is None:
        assert min(weights) < sum(weights) * 1e-3
        return
    epoch, processes, batch = draw(st.integers(0, 10**6)), draw(st.sampled_from([1, 2, 4])), draw(st.integers(1, 9))
    parts = [StepBatches(order, batch, processes=processes, process=process) for process in range(processes)]
    for part in parts:
        part.set_epoch(epoch)
    seen = [block for step in zip(*parts, strict=True) for part in step for block in part if block < order.size]
    expected = order.blocks(epoch, 0, order.size)
    assert sorted(seen) == sorted(expected.tolist())
    corpora = np.searchsorted(np.cumsum(sizes), expected, side="right")
    start = epoch * order.size
    assert order.taken(start, start + order.size) == tuple(np.bincount(corpora, minlength=len(sizes)).tolist())


def windows(world: World, draw: Draw) -> None:
    """Every epoch has each block once, any stretch of it is computed alone, and a window reads its files only."""
    files = tuple(draw(st.lists(st.integers(1, 30), min_size=1, max_size=9)))
    order = WindowedOrder(files, draw(st.integers(1, 10)), draw(st.integers(0, 2**62)), draw(st.integers(0, 3)))
    epoch, start = draw(st.integers(0, 10**6)), draw(st.integers(0, order.size - 1))
    whole = order.blocks(epoch, 0, order.size)
    assert sorted(whole.tolist()) == list(range(order.size))
    stop = draw(st.integers(start, order.size))
    assert order.blocks(epoch, start, stop).tolist() == whole[start:stop].tolist()
    now, coming = order.windows(epoch, start)
    assert np.searchsorted(np.cumsum(files), whole[start], side="right") in now
    assert len(now) <= order.window
    if start + 1 < order.size and order.windows(epoch, start + 1)[0] != now:
        assert order.windows(epoch, start + 1)[0] == coming


NUMBERS = (
    Target("models", model, 3),
    Target("document masks", documents, 2),
    Target("mixtures", mixture, 3),
    Target("windows", windows, 2),
)

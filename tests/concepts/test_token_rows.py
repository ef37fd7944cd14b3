import torch

from cocomix.concepts import first_blocks, pad_right, spread_blocks

from .conftest import TokenBlocks


def test_padding_is_on_the_right_and_masked():
    tokens, mask = pad_right([torch.tensor([5, 6, 7]), torch.tensor([8])])
    assert tokens.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert pad_right([torch.tensor([5, 6]), torch.tensor([8, 9])])[1] is None


def test_samples_hold_as_many_tokens_as_asked_for_or_all():
    blocks = TokenBlocks(10, 0, 12)
    assert torch.equal(first_blocks(blocks, 36), blocks.tokens[:3])
    assert torch.equal(first_blocks(blocks, 5), blocks.tokens[:1])
    assert torch.equal(first_blocks(blocks, 10**6), blocks.tokens)
    assert torch.equal(spread_blocks(blocks, 36), blocks.tokens[[0, 3, 6]])
    assert torch.equal(spread_blocks(blocks, 10**6), blocks.tokens)

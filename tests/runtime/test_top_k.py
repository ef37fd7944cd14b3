import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cocomix.runtime.top_k import top_k


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 3),
    k=st.integers(0, 4),
    width=st.integers(4, 5000),
    levels=st.sampled_from([2, 50, 10**6]),
    seed=st.integers(0, 99),
)
def test_it_is_topk(rows: int, k: int, width: int, levels: int, seed: int) -> None:
    """Also where many numbers are equal: the same values, at indices that hold them, none twice."""
    values = torch.randint(levels, (rows, width), generator=torch.Generator().manual_seed(seed)).float() / levels
    found, ids = top_k(values, k)
    assert torch.equal(found, values.topk(k).values)
    assert torch.equal(values.gather(1, ids), found)
    assert all(len(set(row)) == k for row in ids.tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_infinities_and_rows_with_a_stride(dtype: torch.dtype) -> None:
    values = torch.randn(5, 40_000).to(dtype)[:, 3:-4]
    values[0, 7] = float("inf")
    values[1] = float("-inf")
    assert torch.equal(top_k(values, 32)[0], values.topk(32).values)

"""W_comp and b_comp of Eq. 3: a prediction as one vector of the model's width."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConceptCompression(nn.Module):
    """Sparse concept values to one vector, one embedding row per concept."""

    def __init__(self, num_concepts: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_concepts, d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(
        self,
        ids: Tensor,  # [batch, seq, k] int64
        values: Tensor,  # [batch, seq, k]
    ) -> Tensor:  # [batch, seq, d_model]
        """Σ_j values_j · weight[ids_j] + bias: the dense product W_comp·s + b_comp without its zeros."""
        # Gradients of the values exist in float32 alone on GPUs, so training sums there; parameters usually are anyway.
        dtype = torch.float32 if torch.is_grad_enabled() else self.weight.dtype
        bags = F.embedding_bag(
            ids.flatten(0, 1), self.weight.to(dtype), per_sample_weights=values.flatten(0, 1).to(dtype), mode="sum"
        )
        return bags.view(*ids.shape[:2], -1) + self.bias


class HiddenCompression(nn.Linear):
    """A predicted hidden state [batch, seq, d_teacher] to [batch, seq, d_model]."""

    def forward(self, ids: None, values: Tensor) -> Tensor:  # type: ignore[override]
        """W_comp·values + b_comp."""
        return super().forward(values)

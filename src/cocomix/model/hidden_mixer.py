"""Direct prediction of the teacher's hidden state, in the place of concepts (paper Fig. 6b).

The paper says little of this ablation; what follows is our reading. A two-layer MLP reads the same normalised hidden
state as the concept predictor and predicts the teacher's layer-normed hidden state at the hooked block. The prediction,
never the target, is compressed to d_model and mixed in like a continuous concept, so that nothing of the teacher is
needed at inference.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cocomix.model.configuration import CoCoMixConfig, HiddenLoss
from cocomix.model.mixer import MixerOutput, mixed_in, normalise

__all__ = ["HiddenCompression", "HiddenMixer", "hidden_distance"]

_WIDENING = 4  # hidden width of the MLP in d_model, that of a decoder's feed-forward network (our choice)


class HiddenCompression(nn.Linear):
    """W_comp and b_comp: a predicted hidden state [.., d_teacher] to [.., d_model]."""


class HiddenMixer(nn.Module):
    """u = W_2·GELU(W_1 x + b_1) + b_2 with x the normalised hidden state; ĉ = (W_comp u + b_comp + b_pre)·σ + μ."""

    def __init__(self, config: CoCoMixConfig) -> None:
        super().__init__()
        assert config.teacher_hidden_size is not None
        d_model, d_teacher = config.hidden_size, config.teacher_hidden_size
        self.mixing = config.mixing
        self.add_mean = config.add_mean
        self.hidden_loss: HiddenLoss = config.hidden_loss
        self.pre_bias = nn.Parameter(torch.zeros(d_model))
        self.predictor = nn.Sequential(
            nn.Linear(d_model, _WIDENING * d_model), nn.GELU(), nn.Linear(_WIDENING * d_model, d_teacher)
        )
        if self.mixing != "none":
            self.compression = HiddenCompression(d_teacher, d_model)

    def forward(
        self,
        hidden: Tensor,  # [batch, seq, d_model]
        targets: Tensor | None = None,  # [batch, seq, d_teacher]
        counted: Tensor | None = None,  # [batch, seq] bool
    ) -> MixerOutput:
        """Predict the teacher's hidden states and mix the predictions into the sequence.

        Args:
            hidden: entering block `insert_layer`.
            targets: the teacher's layer-normed hidden states.
            counted: positions whose distance is summed; all by default.
        """
        normalised = normalise(hidden)
        predicted = self.predictor(normalised.hidden - self.pre_bias)  # [batch, seq, d_teacher]
        loss_sum = None
        if targets is not None:
            distance = hidden_distance(predicted, targets, self.hidden_loss)
            loss_sum = (distance if counted is None else distance.masked_fill(~counted, 0.0)).sum()
        if self.mixing == "none":
            return MixerOutput(hidden, loss_sum=loss_sum)
        compressed = self.compression(predicted)
        mixed = mixed_in(self.mixing, hidden, compressed, self.pre_bias, normalised, self.add_mean)
        return MixerOutput(mixed, loss_sum=loss_sum)


def hidden_distance(predicted: Tensor, target: Tensor, kind: HiddenLoss) -> Tensor:
    """Distance of hidden states [..., d] as [...], in float32.

    `l1`: mean over d of |u − v|; `l2`: mean over d of (u − v)²; `cosine`: 1 − cos(u, v).
    """
    predicted, target = predicted.float(), target.float()
    if kind == "cosine":
        return 1.0 - F.cosine_similarity(predicted, target, dim=-1)
    difference = predicted - target
    return difference.abs().mean(-1) if kind == "l1" else difference.square().mean(-1)

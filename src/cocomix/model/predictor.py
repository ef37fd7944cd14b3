"""What is predicted at block `insert_layer`: concepts (paper Eq. 2), or the teacher's hidden state (Fig. 6b)."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig

from cocomix.model.edits import PlacedEdit, apply_edits
from cocomix.model.fused_head import Head, head_output
from cocomix.model.mixing import Concepts
from cocomix.model.targets import SetCrossEntropy

HiddenLoss = Literal["l1", "l2", "cosine"]

_EPSILON = 1e-5
_WIDENING = 4  # hidden width of the MLP in d_model, that of a decoder's feed-forward network (our choice)


class Prediction(NamedTuple):
    """What a predictor yields.

    `loss_sum` [] is concept cross-entropy in nats, summed over labelled positions, or the distance of predicted hidden
    states, summed over positions; `None` without labels.
    """

    concepts: Concepts  # what a mixing reads
    loss_sum: Tensor | None = None
    logits: Tensor | None = None  # all concept logits after edits, if asked for. [batch, seq, n_concepts]


def normalise(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(h − μ)/(σ + 1e-5) [..., d_model], with μ and the unbiased σ [..., 1]: the released code's, not the paper's."""
    mean = hidden.mean(-1, keepdim=True)
    std = hidden.std(-1, keepdim=True)
    return (hidden - mean) / (std + _EPSILON), mean, std


class ConceptPredictor(nn.Module):
    """z = W_pred((h − μ)/(σ + 1e-5) − b_pre) + b_pred, its `concept_topk` largest entries, and their loss (Eq. 2).

    h is the hidden state entering block `insert_layer`, μ and σ its mean and unbiased standard deviation over d_model.
    The normalisation and b_pre are the released code's; the paper leaves them out. With `concept_rank` W_pred is U V,
    `head.weight` U [C, rank] and `reduction.weight` V [rank, d_model]; V keeps lengths at the start, so that z is as
    large as with one matrix (our choice).
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.concept_topk = config.concept_topk
        self.pre_bias = nn.Parameter(torch.zeros(config.hidden_size))
        width, rank = config.hidden_size, config.concept_rank
        self.reduction = None if rank is None else nn.Linear(width, rank, bias=False)
        self.head = Head(rank or width, config.num_concepts, bias=True, chunk_size=config.head_chunk_size)

    def forward(
        self,
        hidden: Tensor,  # [batch, seq, d_model]
        concept_labels: Tensor | None = None,  # [batch, seq, k_attr] int64
        *,
        edits: Sequence[PlacedEdit] = (),
        output_logits: bool = False,
    ) -> Prediction:
        """Predict the concepts of every position, after edits."""
        batch, seq, _ = hidden.shape
        scaled, mean, std = normalise(hidden)
        entering = scaled - self.pre_bias
        entering = entering if self.reduction is None else self.reduction(entering)
        loss = None if concept_labels is None else SetCrossEntropy(concept_labels.flatten(0, 1).long())
        output = head_output(self.head, entering.flatten(0, 1), loss, self.concept_topk)
        ids, values = output.ids.view(batch, seq, -1), output.values.view(batch, seq, -1)
        logits = self.head(entering) if output_logits else None
        if edits:
            touched = torch.stack([where for _, where in edits]).any(0)  # [batch, seq]; nothing changes elsewhere
            here = [PlacedEdit(edit, where[touched]) for edit, where in edits]
            edited = apply_edits(self.head(entering[touched]), here)  # [touched, n_concepts]
            best, chosen = edited.topk(self.concept_topk, dim=-1)
            best = best.masked_fill(best == float("-inf"), 0.0)  # banned, and nothing else left to take its place
            slots = touched.unsqueeze(-1)
            ids, values = ids.masked_scatter(slots, chosen), values.masked_scatter(slots, best.to(values.dtype))
            logits = None if logits is None else logits.masked_scatter(slots, edited)
        # A copy of b_pre: the parameter itself is gone after this module's forward pass where weights are sharded.
        concepts = Concepts(values, ids, mean, std, self.pre_bias.clone())
        return Prediction(concepts, None if loss is None else output.loss_sum, logits)


class HiddenPredictor(nn.Module):
    """u = W_2·GELU(W_1((h − μ)/(σ + 1e-5) − b_pre) + b_1) + b_2, a prediction of the teacher's hidden state.

    The paper says little of this ablation; this is our reading. The MLP reads what the concept predictor would read and
    predicts the teacher's layer-normed hidden state at the hooked block. The prediction, never the target, is
    compressed and mixed in like a concept vector, so that nothing of the teacher is needed at inference.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        d_model, d_teacher = config.hidden_size, config.teacher_hidden_size
        self.hidden_loss: HiddenLoss = config.hidden_loss
        self.pre_bias = nn.Parameter(torch.zeros(d_model))
        width = _WIDENING * d_model
        self.mlp = nn.Sequential(nn.Linear(d_model, width), nn.GELU(), nn.Linear(width, d_teacher))

    def forward(
        self,
        hidden: Tensor,  # [batch, seq, d_model]
        targets: Tensor | None = None,  # [batch, seq, d_teacher]
        counted: Tensor | None = None,  # [batch, seq] bool
    ) -> Prediction:
        """Predict the teacher's hidden states; the distance from `targets` is summed where `counted`, or everywhere."""
        scaled, mean, std = normalise(hidden)
        predicted = self.mlp(scaled - self.pre_bias)  # [batch, seq, d_teacher]
        loss_sum = None
        if targets is not None:
            distance = hidden_distance(predicted, targets, self.hidden_loss)
            loss_sum = (distance if counted is None else distance.masked_fill(~counted, 0.0)).sum()
        return Prediction(Concepts(predicted, None, mean, std, self.pre_bias.clone()), loss_sum)


def hidden_distance(predicted: Tensor, target: Tensor, kind: HiddenLoss) -> Tensor:
    """Distance of hidden states [..., d] as [...], in float32.

    `l1`: mean over d of |u − v|; `l2`: mean over d of (u − v)²; `cosine`: 1 − cos(u, v).
    """
    predicted, target = predicted.float(), target.float()
    if kind == "cosine":
        return 1.0 - F.cosine_similarity(predicted, target, dim=-1)
    difference = predicted - target
    return difference.abs().mean(-1) if kind == "l1" else difference.square().mean(-1)

"""The loss of an optimizer step: the terms of several objectives, counted, divided, weighted and added up."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cocomix.model.fused_head import fused_head
from cocomix.model.targets import HeadLoss
from cocomix.runtime.errors import CoCoMixError
from cocomix.training.objectives.ntp import NextToken
from cocomix.training.objectives.objective import Batch, LossTerm, Objective, SingleTerm

_HEADS = "objective_heads"  # submodule of the model


def add_heads(objectives: Sequence[Objective], model: PreTrainedModel, device: torch.device) -> dict[str, nn.Module]:
    """Show the model to the objectives, and make their own heads part of it; the heads, by the objective's name.

    They are trained, sharded and checkpointed with the model.

    Raises:
        CoCoMixError: two objectives have the same name, so that their terms could not be told apart.
    """
    for number, one in enumerate(objectives):
        if one.name in {other.name for other in objectives[:number]}:
            raise CoCoMixError(f"two objectives are called {one.name!r}; give one of them another name.")
        one.model = model
    built = {one.name: one.build_head(model.config) for one in objectives}
    heads = {name: head for name, head in built.items() if head is not None}
    if heads:
        together = nn.ModuleDict(heads).to(device)
        model.add_module(_HEADS, together)
        together.hook = model.register_forward_hook(_show_heads)
    return heads


def drop_heads(model: PreTrainedModel) -> None:
    """Take the objectives' heads out of a model that was trained: it is saved as it was given."""
    if _HEADS in dict(model.named_children()):
        getattr(model, _HEADS).hook.remove()
        delattr(model, _HEADS)


def _show_heads(model: nn.Module, inputs: Any, output: Any) -> None:
    """Add 0 times the heads that will be called after `forward` to its loss, where DDP looks for what a step uses."""
    called = [head for head in getattr(model, _HEADS).values() if head.called]
    if called and torch.is_grad_enabled() and torch.distributed.is_initialized():
        nothing = torch.stack([0.0 * weight.sum() for head in called for weight in head.parameters()]).sum()
        output["loss"] = nothing if output.loss is None else output.loss + nothing


def in_force(objectives: Iterable[Objective], step: int, total: int) -> list[Objective]:
    """The objectives of a step, counted from 0, of `total`: those whose weight is not 0 for good, or one `alone`."""
    weighed = [one for one in objectives if step < one.weight.steps(total)]
    return [one for one in weighed if one.alone] or weighed


def loss_terms(
    objectives: Sequence[Objective],
    model: nn.Module,
    batch: Batch,
    heads: Mapping[str, nn.Module] | None = None,
    progress: tuple[int, int] = (0, 1),
    counts: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, LossTerm], Any]:
    """The terms of several objectives by one forward pass, in their order, and the model's output.

    Args:
        objectives: each adds to what the model is called with, and sees its whole output.
        heads: the objectives' own, by the objective's name.
        progress: the step, counted from 0, and how many there are.
        counts: of the step, where the terms will be differentiated as `step_loss` adds them up: then all losses of the
            next-token logits take one pass over them.
    """
    batch = {**batch, "progress": progress}
    for name, head in (heads or {}).items():
        head.called = name in {one.name for one in objectives}  # type: ignore[assignment]
    inputs: dict[str, Any] = {}
    losses: dict[str, HeadLoss] = {}
    for objective in objectives:
        inputs |= objective.inputs(batch)
        losses |= objective.head_losses(batch)
    if not inputs.keys() & {"input_ids", "inputs_embeds"}:
        given = [type(one).__name__ for one in objectives]
        raise CoCoMixError(f"of the objectives {given} none gives the model its tokens; put NextToken(config) first.")
    if losses and not inputs.get("output_logits", True):  # a CoCoMix model, whose logits never leave it
        inputs["head_losses"] = losses
        weights = {}  # which `step_loss` multiplies the sums by, of the objectives that add losses up as they are
        for one in objectives:
            name, as_it_is = f"{one.name}_loss", getattr(type(one), "summed", None) is SingleTerm.summed
            if counts and name in counts and (as_it_is or isinstance(one, NextToken)):
                weights[name] = one.weight.weight(*progress) / counts[name]
        if losses.keys() | {"ntp_loss"} <= weights.keys():
            inputs["head_weights"] = weights
    output = model(**inputs)
    if losses and "head_losses" not in inputs:
        logits = output.logits.flatten(0, 1)
        output["head_losses"] = {name: fused_head(logits, None, None, one).loss_sum for name, one in losses.items()}
    terms: dict[str, LossTerm] = {}
    for objective in objectives:
        terms |= objective(output, batch, (heads or {}).get(objective.name))
    return terms, output


def count_terms(objectives: Sequence[Objective], batches: Iterable[Batch], device: torch.device) -> dict[str, Tensor]:
    """What each trained term sums over, in all micro-batches of a step of this process.

    A batch that lacks a column that an objective needs is refused.
    """
    counts: dict[str, Tensor] = {}
    for batch in batches:
        for one in objectives:
            if missing := one.needs - batch.keys():
                raise CoCoMixError(
                    f"a batch has no {' and no '.join(sorted(missing))}, which {type(one).__name__} reads while its "
                    f"weight ({one.weight}) is not 0; give the data set these columns, or set the weight to 0."
                )
            for name, count in one.counts(batch).items():
                counts[name] = counts.get(name, 0) + count.to(device)
    return counts


def step_loss(
    terms: Mapping[str, LossTerm], counts: Mapping[str, Tensor] | None, step: int, total: int
) -> tuple[Tensor, dict[str, Tensor], dict[str, float]]:
    """A micro-batch's part of the loss of a step: Σ weight · sum ÷ count, the counts of the step or else the batch.

    Returns:
        The loss []; sum ÷ count of the terms by name; and weights that change during the run, as `NAME_weight`.
    """
    means: dict[str, Tensor] = {}
    weighted, weights = [], {}
    for name, term in terms.items():
        if term.weight is None:
            continue
        weight = term.weight.weight(step, total)
        means[name] = term.sum / (term.count.clamp_min(1) if counts is None else counts[name])
        weighted.append(weight * means[name])
        if term.weight.changes:
            weights[f"{name}_weight"] = weight
    return sum(weighted[1:], weighted[0]), means, weights

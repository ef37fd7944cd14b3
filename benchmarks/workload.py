"""Models, batches and pieces of work that several sections time."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from benchmarks.naive import NaiveStudent
from benchmarks.settings import Settings, Shape
from cocomix.concepts import ConceptDictionary
from cocomix.model import account
from cocomix.model.accounting import build_model

__all__ = [
    "LABELS_PER_POSITION",
    "Loss",
    "adamw",
    "flops_per_token",
    "forward_backward",
    "plain_loss",
    "random_batch",
    "random_dictionary",
    "random_model",
    "student_loss",
    "training_step",
    "twin_loss",
]

Loss = Callable[[], Tensor]

LABELS_PER_POSITION = 4


def random_model(config: PreTrainedConfig, device: str) -> PreTrainedModel:
    """A freshly initialised model in training mode."""
    torch.manual_seed(0)
    model: PreTrainedModel = build_model(config).to(device).train()
    return model


def random_batch(shape: Shape, device: str) -> tuple[Tensor, Tensor]:
    """Tokens [batch, context] and concept labels [batch, context, 4]; the last position has none."""
    generator = torch.Generator().manual_seed(1)
    size = (shape.batch, shape.context)
    tokens = torch.randint(shape.vocabulary, size, generator=generator)
    labels = torch.randint(shape.concepts, (*size, LABELS_PER_POSITION), generator=generator)
    labels[:, -1] = -100
    return tokens.to(device), labels.to(device)


def random_dictionary(shape: Shape, device: str) -> ConceptDictionary:
    """A layer-normed TopK dictionary of the teacher's width with `shape.concepts` concepts."""
    generator = torch.Generator().manual_seed(2)
    encoder = torch.randn(shape.teacher.width, shape.concepts, generator=generator) / shape.teacher.width**0.5
    zeros = torch.zeros(shape.concepts), torch.zeros(shape.teacher.width)
    dictionary = ConceptDictionary(
        encoder, zeros[0], encoder.T.contiguous(), zeros[1], k=shape.teacher.active, normalize="layer_norm"
    )
    return dictionary.to(device=device)


def student_loss(student: Callable[..., Any], shape: Shape, device: str) -> Loss:
    """Our training loss, as the Trainer computes it: without keeping the logits."""
    tokens, concept_labels = random_batch(shape, device)

    def loss() -> Tensor:
        output = student(tokens, labels=tokens, concept_labels=concept_labels, output_logits=False, use_cache=False)
        value: Tensor = output.loss
        return value

    return loss


def twin_loss(twin: NaiveStudent, shape: Shape, device: str) -> Loss:
    """The naive twin's training loss on the same batch."""
    tokens, concept_labels = random_batch(shape, device)
    return lambda: twin(tokens, concept_labels)


def plain_loss(model: Callable[..., Any], shape: Shape, device: str) -> Loss:
    """The next-token loss of a plain decoder."""
    tokens, _ = random_batch(shape, device)

    def loss() -> Tensor:
        value: Tensor = model(tokens, labels=tokens, use_cache=False).loss
        return value

    return loss


def forward_backward(model: nn.Module, loss: Loss, settings: Settings, dtype: str) -> Callable[[], None]:
    """A forward and a backward pass; gradients are dropped afterwards."""

    def work() -> None:
        with settings.autocast(dtype):
            value = loss()
        value.backward()
        model.zero_grad(set_to_none=True)

    return work


def training_step(
    model: nn.Module, loss: Loss, settings: Settings, dtype: str, optimizer: torch.optim.Optimizer, batches: int
) -> Callable[[], None]:
    """One optimizer step over `batches` forward and backward passes."""

    def work() -> None:
        for _ in range(batches):
            with settings.autocast(dtype):
                value = loss()
            (value / batches).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return work


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer the Trainer uses by default."""
    return torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)


def flops_per_token(config: PreTrainedConfig, context: int) -> float:
    """Forward FLOPs per token by formula; see `cocomix.model.accounting.account`."""
    with torch.device("meta"):
        return account(build_model(config), context).forward_flops_per_token

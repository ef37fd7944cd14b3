"""`optim: muon`: Muon for the matrices of the blocks, AdamW for everything else, as one optimizer.

Muon (Jordan et al. 2024; `torch.optim.Muon`) replaces a matrix's momentum by the nearest orthogonal matrix, which five
Newton–Schulz steps in bfloat16 approximate. It is meant for matrices between hidden states: embeddings, heads (the
predictor, the compression and the LM head), gains and biases stay with AdamW.

One learning rate serves both, so that a schedule, a sweep and a recipe have one: an update of Muon is scaled by
0.2·√max(rows, columns) (`adjust_lr_fn="match_rms_adamw"`, arXiv 2502.16982), whose root mean square is what AdamW's
usually is. The same weight decay holds for both.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import AdamW, Muon, Optimizer
from torch.optim._muon import muon as muon_step
from transformers import PreTrainedConfig, TrainingArguments

from cocomix.model.backbone import backbone_of
from cocomix.runtime.errors import CoCoMixError
from cocomix.training.objectives.ahead import decoder_config

MUON = "muon"
"""What `training.optim` of a recipe calls it."""
_FUSED = re.compile(r"qkv|query_key_value|c_attn")
_NUMBERS: dict[str, Callable[[str], Any]] = {"learning_rate": float, "momentum": float, "ns_steps": int}


class Layout(NamedTuple):
    """How several matrices lie in one weight."""

    dim: int  # along which they lie side by side
    repeats: int  # how often all of them come along it: 1, or the heads where each head has its own q, k and v
    sizes: tuple[int, ...]  # of each in one such turn

    def parts(self, weight: Tensor) -> list[Tensor]:
        """The matrices: views of the weight, or copies where they do not lie in one piece."""
        return [part.flatten(self.dim, self.dim + 1) for part in self._views(weight)]

    def put_back(self, parts: list[Tensor], weight: Tensor) -> None:
        """Write matrices that were copied into the weight."""
        for view, part in zip(self._views(weight), parts, strict=True):
            view.copy_(part.view_as(view))

    def _views(self, weight: Tensor) -> tuple[Tensor, ...]:
        turns = weight.unflatten(self.dim, (self.repeats, -1))  # type: ignore[no-untyped-call]
        return torch.split(turns, self.sizes, self.dim + 1)  # type: ignore[arg-type]


def _layout(name: str, weight: Tensor, config: PreTrainedConfig) -> Layout | None:
    """How the matrices lie in a block's weight; `None` for one matrix, refused where that is not known."""
    rows, columns = weight.shape
    heads = config.num_attention_heads
    if name.endswith("attn.c_attn.weight"):  # GPT-2's `Conv1D` has inputs as rows
        return Layout(1, 1, (columns // 3,) * 3)
    if name.endswith("attention.query_key_value.weight"):  # GPT-NeoX
        return Layout(0, heads, (rows // heads // 3,) * 3)
    if name.endswith("self_attn.qkv_proj.weight"):  # Phi-3
        head = rows // (heads + 2 * config.num_key_value_heads)
        return Layout(0, 1, (heads * head, *(config.num_key_value_heads * head,) * 2))
    if name.endswith("mlp.gate_up_proj.weight"):
        return Layout(0, 1, (rows // 2,) * 2)
    if _FUSED.search(name.rpartition(".layers.")[2]):
        raise CoCoMixError(
            f"optim: muon does not know how q, k and v lie in {name}, and must not orthogonalise them as one matrix; "
            "use optim: adamw_torch, or merge adapters first."
        )
    return None


class _MuonOfParts(Muon):
    """`torch.optim.Muon` that takes every matrix of a fused weight, and every sharded weight, by itself.

    A group may have a `layout`. A sharded weight is gathered for its step, which every process then computes; gathered
    are one weight, its gradient and its momentum at a time.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            settings = {name: group[name] for name in self.defaults}
            for weight in group["params"]:
                if weight.grad is not None:
                    state = self.state[weight]
                    if not state:
                        state["momentum_buffer"] = torch.zeros_like(weight)
                    _step(weight, weight.grad, state["momentum_buffer"], group["layout"], settings)


def _step(weight: Tensor, gradient: Tensor, momentum: Tensor, layout: Any, settings: dict[str, Any]) -> None:
    given = (weight, gradient, momentum)
    whole = [tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for tensor in given]
    split = Layout(*layout) if layout else None
    parts = [split.parts(tensor) if split else [tensor] for tensor in whole]
    muon_step(*parts, has_complex=False, **settings)
    for tensor, new, changed in zip(given, whole, parts, strict=True):
        if tensor is gradient:
            continue
        if split and split.repeats > 1:
            split.put_back(changed, new)
        if isinstance(tensor, DTensor):
            tensor.copy_(distribute_tensor(new, tensor.device_mesh, tensor.placements, src_data_rank=None))


class MuonAndAdamW(Optimizer):
    """Two optimizers as one, with one list of groups and one state: schedules, scalers and checkpoints see one.

    Muon takes the groups of `matrices`, each of which may have a `layout`, and AdamW the `rest`, with the settings
    `adam`; `lr` is the learning rate of every group that has none itself.
    """

    def __init__(
        self,
        matrices: list[dict[str, Any]],
        rest: list[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.95,
        ns_steps: int = 5,
        **adam: Any,
    ) -> None:
        matrices = [{"layout": None, **group} for group in matrices]
        self._muon = _MuonOfParts(matrices, lr, momentum=momentum, ns_steps=ns_steps, adjust_lr_fn="match_rms_adamw")
        self._adamw = AdamW(rest, lr, **adam)
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {})
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also called when a state is loaded, which makes new groups and a new state."""
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        count = len(self._muon.param_groups)
        self._muon.param_groups, self._adamw.param_groups = self.param_groups[:count], self.param_groups[count:]
        self._muon.state = self._adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self._muon.step()
        self._adamw.step()


def muon(arguments: TrainingArguments) -> tuple[Any, dict[str, Any]]:
    """Muon for a Trainer, ours or transformers' own: `Trainer(…, optimizer_cls_and_kwargs=muon(arguments))`.

    Args:
        arguments: `learning_rate`, `weight_decay` and AdamW's fields are read. `optim_args` may set `learning_rate` (of
            Muon alone), `momentum` and `ns_steps`: `"momentum=0.9,ns_steps=6"`.

    Raises:
        CoCoMixError: `optim_args` says something else.
    """
    settings = {
        "lr": arguments.learning_rate,
        "weight_decay": arguments.weight_decay,
        "betas": (arguments.adam_beta1, arguments.adam_beta2),
        "eps": arguments.adam_epsilon,
        **_optim_args(arguments.optim_args),
    }
    return lambda: _optimizer, settings


def _optim_args(text: str | None) -> dict[str, Any]:
    values = {}
    for pair in (text or "").replace(" ", "").split(","):
        name, _, value = pair.partition("=")
        if not pair:
            continue
        try:
            values[name] = _NUMBERS[name](value)
        except (KeyError, ValueError):
            raise CoCoMixError(
                f"training.optim_args: {pair!r} is not understood with optim: muon; it takes "
                f"{', '.join(f'{known}=NUMBER' for known in _NUMBERS)}."
            ) from None
    return values


def _optimizer(
    model: nn.Module, *, lr: float, weight_decay: float, learning_rate: float | None = None, **settings: Any
) -> MuonAndAdamW:
    matrices: dict[Layout | None, list[nn.Parameter]] = {}
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    config = decoder_config(model.config)
    blocks = re.compile(rf"(^|\.){backbone_of(config).blocks}\.\d+\.")
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        if weight.ndim == 2 and blocks.search(name):
            matrices.setdefault(_layout(name, weight, config), []).append(weight)
        else:
            (decayed if weight.ndim >= 2 else plain).append(weight)
    lr_of_matrices = lr if learning_rate is None else learning_rate
    return MuonAndAdamW(
        [
            {"params": weights, "layout": layout and tuple(layout), "lr": lr_of_matrices, "weight_decay": weight_decay}
            for layout, weights in matrices.items()  # plain tuples: `torch.load` of a checkpoint builds nothing else
        ],
        [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=lr,
        fused=True,
        **settings,
    )

"""How much memory training takes, without taking it."""

import itertools
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from transformers import PreTrainedConfig, PreTrainedModel

from cocomix.model.backbone import blocks_of, build_halves, part_config
from cocomix.model.configuration import CoCoMixConfig

STATE_BYTES = 16
"""Per parameter: weight, gradient and AdamW's two moments, in float32 (autocast keeps them so); Muon keeps one less."""

_FLOAT32_ON_CUDA = (
    *("__pow__", "__rpow__", "__rtruediv__", "cumsum", "exp", "layer_norm", "log", "log_softmax", "logsumexp", "norm"),
    *("pow", "prod", "reciprocal", "rms_norm", "rsqrt", "softmax", "softplus", "sum"),
)
"""What autocast computes in float32 on CUDA (PyTorch's documentation of autocast), as far as decoders use it."""

_SAMPLED_BLOCKS = 3  # one below, two above: with the last block counts what the final norm keeps


class CudaAutocast(TorchFunctionMode):
    """Autocast to bfloat16 by CUDA's rules on tensors of the CPU, whose own rules keep fewer copies in float32."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function; in float32, where CUDA would."""
        if getattr(function, "__name__", "") in _FLOAT32_ON_CUDA:
            args, kwargs = tree_map(_in_float32, (args, kwargs))
            with torch.autocast("cpu", enabled=False):
                return function(*args, **kwargs or {})
        return function(*args, **kwargs or {})


def _in_float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value


def activation_bytes(config: PreTrainedConfig, *, batch_size: int, block_size: int, bf16: bool) -> int:
    """Bytes that the decoder's blocks, and those of the form of mixing, keep for the backward pass of one micro-batch.

    Counted, not derived: blocks of either half run once on fake tensors, which have shapes and no memory, and every
    storage that autograd keeps counts once, parameters not at all; the other blocks keep the same. Attention is
    PyTorch's, which keeps no scores; with fewer key than query heads it comes out some percent too high, since on fake
    tensors keys and values are repeated. Left out: the heads' chunks of logits, and what a step needs in passing.

    A micro-batch is `batch_size` blocks of `block_size` tokens. `bf16`: products run under autocast by CUDA's rules.
    """
    mixes = isinstance(config, CoCoMixConfig)
    backbone = config.backbone if mixes else config
    total: int = backbone.num_hidden_layers
    passes: tuple[int, ...] = config.passes if mixes else (1,)
    below: int = config.insert_layer if mixes else total - 1
    autocast = CudaAutocast() if bf16 else nullcontext()
    with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16), autocast:
        sample = part_config(backbone, 0, min(total, _SAMPLED_BLOCKS))
        lower, upper = build_halves(sample, min(below, 1), passes[-1], None)
        tokens = torch.zeros(batch_size, block_size, dtype=torch.long)
        kept = below * sum(_kept_by_block(lower, input_ids=tokens))
        for width in passes:
            mixed = torch.zeros(batch_size, width * block_size, backbone.hidden_size, requires_grad=True)
            kept_above = _kept_by_block(upper, inputs_embeds=mixed)
            kept += (total - below - 1) * kept_above[0] + kept_above[-1]
        if mixes and (own := config.form.own_blocks(config)) is not None:
            blocks, tokens_each = own
            shared = torch.zeros(batch_size, block_size // tokens_each, backbone.hidden_size, requires_grad=True)
            kept += sum(_kept_by_block(blocks, inputs_embeds=shared))
    return kept


def _kept_by_block(decoder: PreTrainedModel, **inputs: Any) -> list[int]:
    """Bytes that autograd keeps of each block of a decoder."""
    parameters = {parameter.untyped_storage()._cdata for parameter in decoder.parameters()}
    kept: dict[int, Tensor] = {}  # holding the tensors keeps their storages' addresses apart
    marks: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    def mark(*_: Any) -> None:
        marks.append(sum(kept[key].untyped_storage().nbytes() for key in kept.keys() - parameters))

    for block in blocks_of(decoder):
        block.register_forward_pre_hook(mark)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        decoder.train()(**inputs, use_cache=False)
    mark()
    return [after - before for before, after in itertools.pairwise(marks)]

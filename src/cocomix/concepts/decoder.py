"""A frozen decoder read at one of its blocks: hidden states there, and the loss's gradient with respect to them.

Nothing below the hooked block takes part in a graph, no weight gets a gradient, and the vocabulary logits are never
held for more than a chunk of positions.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from cocomix.concepts.diagonal import DiagonalGradient
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.flops import block_flops

GradientScope = Literal["sequence", "next"]
NumberFormat = Literal["float32", "bfloat16", "float16"]  # what a teacher computes in; the narrow ones by autocast

_CHUNK_ELEMENTS = 2**25  # logits held at once: 128 MiB in float32
_CPU_COLUMNS = 8192  # vocabulary entries per product on the CPU


class HiddenGradient(NamedTuple):
    """What one forward and one backward pass say about a batch."""

    hidden: Tensor  # output of the hooked block [batch, seq, d_model]
    gradient: Tensor  # of the *summed* next-token loss (nats) with respect to `hidden` [batch, seq, d_model]
    loss: Tensor  # the summed next-token loss in nats, float32 scalar


class Predictions(NamedTuple):
    """Next-token predictions of a model: logits = head(states)."""

    states: Tensor  # output of the base model [batch, seq, d_model], or logits [batch, seq, vocab] where `head` is None
    head: nn.Linear | None  # the vocabulary projection, where logits are nothing but its output


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The list of decoder blocks of any Hugging Face causal LM.

    It is the outermost `ModuleList` inside the base model that has `num_hidden_layers` entries (GPT-2's `h`,
    GPT-NeoX's and Llama's `layers`, OPT's `decoder.layers`, …); lists inside the blocks, such as experts, do not count.
    A model in two parts, as a student with concepts is, has its blocks in two lists.
    """
    depth = model.config.get_text_config().num_hidden_layers
    lists = {name: module for name, module in model.base_model.named_modules() if isinstance(module, nn.ModuleList)}
    outermost = _outermost({name: module for name, module in lists.items() if len(module) == depth})
    if not outermost and sum(map(len, parts := _outermost(lists))) == depth:
        return nn.ModuleList(block for part in parts for block in part)
    if len(outermost) != 1:
        raise CoCoMixError(
            f"cannot tell the blocks of a {type(model).__name__}: {len(outermost)} lists of modules have {depth} "
            "entries; use a plain decoder as teacher."
        )
    return outermost[0]


def _outermost(lists: Mapping[str, nn.ModuleList]) -> list[nn.ModuleList]:
    return [
        module
        for name, module in lists.items()
        if not any(name.startswith(f"{other}.") for other in lists if other != name)
    ]


def target_mask(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Which positions [batch, seq] have a next token to predict: not the last one, not padding, not before padding."""
    present = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    return F.pad(present[:, :-1] & present[:, 1:], (0, 1))


class FrozenDecoder:
    """A causal LM, frozen and in evaluation mode, hooked at the output of block `layer` (0-based).

    Args:
        model: any Hugging Face causal LM. Its parameters are set to need no gradient, and it is put in evaluation mode.

    Raises:
        CoCoMixError: the blocks cannot be found or `layer` is out of range.
    """

    def __init__(self, model: PreTrainedModel, layer: int) -> None:
        blocks = decoder_blocks(model)
        if not 0 <= layer < len(blocks):
            raise CoCoMixError(f"layer {layer} is out of range: the teacher has blocks 0 to {len(blocks) - 1}.")
        self.model = model.eval().requires_grad_(False)
        self.layer = layer
        self.blocks_above = len(blocks) - 1 - layer
        self.d_model = int(model.config.get_text_config().hidden_size)
        self.vocab_size = int(model.get_input_embeddings().weight.shape[0])  # token ids must be below it
        self._block = blocks[layer]
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self._head = self._find_plain_head()
        self._context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**62
        self._read: Tensor | None = None
        two_tokens = torch.zeros(1, 2, dtype=torch.long, device=self.device)
        if self.model.base_model is self.model and self.hidden_states(two_tokens).shape[1] != 2:
            raise CoCoMixError(
                f"layer {layer} of this {type(model).__name__} has more than one position a token; choose a block "
                "below its concepts."
            )

    @property
    def hook_name(self) -> str:
        """Path of the hooked block inside the model, `transformer.h.5`; SAELens' `hook_name` for plain models."""
        names: dict[nn.Module, str] = {module: name for name, module in self.model.named_modules()}
        return names[self._block]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return torch.device(self.model.device)

    def flops_per_token(self, seq: int, *, up_to: Literal["layer", "head"]) -> float:
        """Forward FLOPs per token in contexts of `seq`, by formula, up to the hooked block or the vocabulary head."""
        blocks, config = decoder_blocks(self.model), self.model.config.get_text_config()
        if up_to == "layer":
            return block_flops(nn.ModuleList(list(blocks)[: self.layer + 1]), config, seq)
        return block_flops(blocks, config, seq) + 2.0 * int(self.model.get_output_embeddings().weight.numel())

    @torch.no_grad()
    def hidden_states(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, *, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Output of the hooked block [batch, seq, d_model]; the blocks above it are not run."""
        if self._read is not None:
            assert self._read.shape[:2] == input_ids.shape, "hidden states of other tokens"
            return self._read
        captured: list[Tensor] = []

        def stop(hidden: Tensor) -> Tensor:
            captured.append(hidden)
            raise _Stop

        with self._autocast(dtype), self.replaced(stop):
            try:
                self.model.base_model(**self._inputs(input_ids, attention_mask))
            except _Stop:
                return captured[0]
        raise AssertionError("the hooked block did not run")

    @contextmanager
    def captured(self) -> Iterator[list[Tensor]]:
        """Collect the hooked block's output [batch, seq, d_model] of every forward pass in the block of code.

        Also of passes that are made through another decoder around the same model.
        """
        found: list[Tensor] = []

        def keep(hidden: Tensor) -> Tensor:
            found.append(hidden.clone())  # a block above may change it in place
            return hidden

        with self.replaced(keep):
            yield found

    @contextmanager
    def having_read(self, hidden: Tensor | None) -> Iterator[None]:
        """Have `hidden_states` give these, `captured` in a pass over one batch in the same format; None: compute them.

        They are [batch, seq, d_model]. No other batch may be read in the block of code.
        """
        self._read = hidden
        try:
            yield
        finally:
            self._read = None

    @torch.no_grad()
    def loss(self, input_ids: Tensor, *, replace: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Summed next-token loss in nats (float32 scalar), optionally with the hooked block's output replaced."""
        with self.replaced(replace) if replace is not None else nullcontext():
            return self._summed_loss(input_ids, None)[1]

    @torch.no_grad()
    def predictions(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, *, dtype: torch.dtype | None = None
    ) -> Predictions:
        """What the model predicts at every position, before the vocabulary head where that is possible."""
        inputs = self._inputs(input_ids, attention_mask)
        with self._autocast(dtype):
            if self._head is None:
                return Predictions(self.model(**inputs).logits, None)
            return Predictions(self.model.base_model(**inputs)[0], self._head)

    def loss_gradient(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        scope: GradientScope = "sequence",
        dtype: torch.dtype | None = None,
    ) -> HiddenGradient:
        """One forward pass of tokens [batch, seq], and a backward pass that ends at the hooked block.

        Args:
            attention_mask: [batch, seq], 1 = token, 0 = padding (left or right); padding is neither read nor predicted.
            scope: `sequence` differentiates the loss of all targets; `next` gives position t the gradient of the loss
                of token t + 1 only (see `cocomix.concepts.diagonal`).

        Raises:
            CoCoMixError: `scope="next"` and a block above does not use PyTorch's scaled-dot-product attention.
        """
        captured: list[Tensor] = []

        def cut(hidden: Tensor) -> Tensor:
            captured.append(hidden.detach().requires_grad_(True))
            return captured[0]

        diagonal = DiagonalGradient()
        mode: AbstractContextManager[Any] = diagonal if scope == "next" else nullcontext()
        with torch.enable_grad(), self.replaced(cut):
            with self._autocast(dtype), mode:
                outputs, loss, cotangent = self._summed_loss(input_ids, attention_mask, with_gradient=True)
            if scope == "next" and diagonal.calls != self.blocks_above:
                raise CoCoMixError(
                    f'gradient "next" needs scaled-dot-product attention in all {self.blocks_above} blocks above layer '
                    f'{self.layer}, and {diagonal.calls} use it; load the teacher with attn_implementation="sdpa" or '
                    'use gradient "sequence".'
                )
            (gradient,) = torch.autograd.grad(outputs, captured[0], cotangent)
        return HiddenGradient(captured[0].detach(), gradient, loss)

    def _summed_loss(
        self, input_ids: Tensor, attention_mask: Tensor | None, *, with_gradient: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """(tensor to differentiate, summed loss, gradient of the loss with respect to that tensor or None)."""
        has_target = target_mask(input_ids, attention_mask)[:, :-1]
        targets = input_ids[:, 1:][has_target]  # [targets]
        inputs = self._inputs(input_ids, attention_mask)
        if self._head is None:
            logits = self.model(**inputs).logits[:, :-1][has_target]  # [targets, vocab]
            loss = F.cross_entropy(logits.float(), targets, reduction="sum")
            return loss, loss.detach(), torch.ones_like(loss)
        final = self.model.base_model(**inputs)[0]  # [batch, seq, d_model], after the final norm
        loss, row_gradient = _head_loss(self._head, final[:, :-1][has_target].detach(), targets, with_gradient)
        if row_gradient is None:
            return final, loss, None
        cotangent = torch.zeros_like(final)
        cotangent[:, :-1][has_target] = row_gradient.to(final.dtype)
        return final, loss, cotangent

    def _inputs(self, input_ids: Tensor, attention_mask: Tensor | None) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": input_ids, "use_cache": False}
        # Causal attention does not look at padding on the right: without a mask it is faster, and the hidden states are
        # bit for bit those of `predictions`, of which labels and probabilities are made in one pass. Padding beyond the
        # last learned position needs one, though.
        if attention_mask is not None and (
            input_ids.shape[1] > self._context or bool((attention_mask[:, 1:] > attention_mask[:, :-1]).any())
        ):
            inputs["attention_mask"] = attention_mask
            if self._takes_positions:  # a padded row counts its own tokens, wherever the padding is
                inputs["position_ids"] = (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)
        return inputs

    def _autocast(self, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
        if dtype is None or dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=dtype)

    @contextmanager
    def replaced(self, replace: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Replace the hooked block's output while the block of code runs."""

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if isinstance(output, tuple):
                return (replace(output[0]), *output[1:])
            return replace(output)

        with self._block.register_forward_hook(hook):  # removed at the end, also by an error
            yield

    @torch.no_grad()
    def _find_plain_head(self) -> nn.Linear | None:
        """The LM head, if logits are nothing but its product with the base model's output; else None.

        Tried rather than guessed from the architecture: the base model's output is replaced by hidden states whose
        logits reach 50, so that a model that caps, scales or shifts its logits shows it, and then goes through its own
        `forward`.
        """
        head = self.model.get_output_embeddings()
        if not isinstance(head, nn.Linear) or self.model.base_model is self.model:
            return None
        rows = head.weight[:4]
        probe = (50 * rows / rows.pow(2).sum(dim=-1, keepdim=True).clamp(min=1e-6)).unsqueeze(0)  # [1, 4, d_model]

        def substitute(module: nn.Module, args: tuple[Any, ...], output: ModelOutput) -> ModelOutput:
            output["last_hidden_state"] = probe
            return output

        inputs = torch.zeros(probe.shape[:2], dtype=torch.long, device=self.device)
        with self.model.base_model.register_forward_hook(substitute):
            logits = self.model(input_ids=inputs, use_cache=False).logits
        return head if torch.allclose(head(probe).to(logits.dtype), logits, rtol=1e-3, atol=1e-3) else None


class _Stop(Exception):
    pass


@torch.no_grad()
def _head_loss(head: nn.Linear, rows: Tensor, targets: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """Summed cross-entropy of `head(rows)` and its gradient with respect to the rows, over chunks of rows.

    The naive form is `F.cross_entropy(head(rows), targets, reduction="sum")` and its backward. Here the gradient
    (softmax − one-hot) W is formed in place of each chunk's log-probabilities. `rows` is [targets, d_model], `targets`
    int64 [targets].
    """
    size = max(1, _CHUNK_ELEMENTS // head.out_features)
    loss = torch.zeros((), device=rows.device)
    gradients = []
    for row_chunk, target_chunk in zip(torch.split(rows, size), torch.split(targets, size), strict=True):
        log_probs = _logits(head, row_chunk).log_softmax(dim=-1, dtype=torch.float32)  # [chunk, vocab]
        chosen = log_probs.gather(-1, target_chunk[:, None])
        loss -= chosen.sum()
        if with_gradient:
            error = log_probs.exp_().scatter_(-1, target_chunk[:, None], chosen.exp() - 1)
            gradients.append(error.to(head.weight.dtype) @ head.weight)
    if not with_gradient:
        return loss, None
    return loss, torch.cat(gradients) if gradients else torch.zeros_like(rows)


def _logits(head: nn.Linear, rows: Tensor) -> Tensor:
    """`head(rows)`, [rows, vocab]: on the CPU from products with parts of the vocabulary.

    The values are the same. One product with a result this wide takes 1.3 to 1.5 times as long (our measurement, MKL,
    510 rows, GPT-2's head, 1 and 2 threads), for it cannot keep its result in a cache.
    """
    if rows.device.type != "cpu":
        logits: Tensor = head(rows)
        return logits
    weights = torch.split(head.weight, _CPU_COLUMNS)
    biases = [None] * len(weights) if head.bias is None else torch.split(head.bias, _CPU_COLUMNS)
    parts = [F.linear(rows, weight, bias) for weight, bias in zip(weights, biases, strict=True)]
    return torch.cat(parts, dim=-1)

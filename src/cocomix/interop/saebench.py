"""A student's predictor and compression as a sparse autoencoder, with the interface of SAEBench's custom SAEs.

Latents are the concept logits of the top k, 0 elsewhere, scaled so that the decoder's rows have norm 1, as SAEBench
wants them; the decoded vector is the mixing's ĉ. Where to take hidden states from: `cfg.hook_name` of a student behind
TransformerLens' bridge (`interop.transformer_lens_adapter`). Which metrics mean something:

  sparse probing, absorption, automatic interpretation, density    as of any SAE: they read the latents
  SCR, TPP, RAVEL, unlearning    with `mixing: add`, where ĉ is added to the hidden state they edit; elsewhere ĉ stands
                                 beside it, and removing a concept from h says nothing of the model
  reconstruction, variance explained, loss recovered    not: ĉ is trained to help the next token, not to equal h

A latent of a concept with a logit below 0 is negative and counts as inactive there.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from cocomix.interpret import concept_model
from cocomix.model.mixing.form import ConceptCompression
from cocomix.model.predictor import ConceptPredictor, normalise
from cocomix.runtime.errors import CoCoMixError


@dataclass
class StudentSAEConfig:
    """The fields that SAEBench reads of a custom SAE; it adds others to the object, so it is not frozen."""

    model_name: str
    d_in: int
    d_sae: int
    hook_layer: int
    hook_name: str
    dtype: str
    device: str
    context_size: int
    architecture: str = "cocomix"
    activation_fn_str: str = "topk"
    finetuning_scaling_factor: bool = False
    hook_head_index: int | None = None
    prepend_bos: bool = False
    normalize_activations: str = "none"
    apply_b_dec_to_input: bool = False
    dataset_path: str = ""
    dataset_trust_remote_code: bool = False
    seqpos_slice: tuple[int | None, ...] = (None,)
    training_tokens: int = -1
    neuronpedia_id: str | None = None
    sae_lens_training_version: str | None = None
    model_from_pretrained_kwargs: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


class StudentSAE(nn.Module):
    """See the module's docstring. It copies the student's weights, and is on its device.

    `model_name` is what SAEBench calls it in its results.

    Raises:
        CoCoMixError: the model has no concepts, mixes none in, or not into its hidden states (`mixing: values`).
    """

    norms: Tensor

    def __init__(self, model: nn.Module, model_name: str = "student") -> None:
        super().__init__()
        student = concept_model(cast(Any, model), mixing=True)
        config, predictor = student.config, cast(ConceptPredictor, student.predictor)
        if not student.mixing.like_hidden:
            raise CoCoMixError(
                f"with mixing {config.mixing!r} concepts are decoded to an attention's values, not to hidden states as "
                "an autoencoder's latents are; take a student that adds or interleaves them."
            )
        compression = cast(ConceptCompression, student.mixing.compression)
        self.k, self.residual, self.softmax = config.concept_topk, config.mixing == "residual", student.mixing.softmax
        weight = student.compression_weight.detach()
        norms = weight.norm(dim=1).clamp_min(torch.finfo(weight.dtype).tiny)
        self.W_enc = nn.Parameter(predictor.head.weight.detach().T.clone())  # [d_model, n_concepts]
        self.b_enc = nn.Parameter(predictor.head.bias.detach().clone())
        self.pre_bias = nn.Parameter(predictor.pre_bias.detach().clone())
        self.W_dec = nn.Parameter(weight / norms.unsqueeze(1))  # [n_concepts, d_model]
        self.b_dec = nn.Parameter(compression.bias.detach().clone())
        self.register_buffer("norms", norms)
        self._last: tuple[Tensor, Tensor, Tensor] | None = None
        self.cfg = StudentSAEConfig(
            model_name,
            d_in=config.hidden_size,
            d_sae=config.num_concepts,
            hook_layer=config.insert_layer - 1,
            hook_name="mixing.hook_in",
            dtype=str(self.dtype).removeprefix("torch."),
            device=str(self.device),
            context_size=config.max_position_embeddings,
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.W_enc.dtype

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return self.W_enc.device

    def encode(self, x: Tensor) -> Tensor:
        """Latents [..., n_concepts] of hidden states [..., d_model]."""
        scaled, mean, std = normalise(x)
        logits = (scaled - self.pre_bias) @ self.W_enc + self.b_enc
        best = logits.topk(self.k, dim=-1)
        self._last = (x, mean, std)
        weights = best.values.softmax(-1) if self.softmax else best.values
        return torch.zeros_like(logits).scatter(-1, best.indices, weights * self.norms[best.indices])

    def decode(self, feature_acts: Tensor) -> Tensor:
        """The mixing's ĉ [..., d_model] of latents [..., n_concepts], with mean and deviation of the last `encode`."""
        if self._last is None or self._last[0].shape[:-1] != feature_acts.shape[:-1]:
            raise CoCoMixError(
                f"latents of shape {tuple(feature_acts.shape)} have no hidden states to take the scale from; encode "
                "the same positions first."
            )
        hidden, mean, std = self._last
        compressed = feature_acts @ self.W_dec + self.b_dec
        return hidden + compressed * std if self.residual else (compressed + self.pre_bias) * std + mean

    def forward(self, x: Tensor) -> Tensor:
        """`decode` of `encode`."""
        return self.decode(self.encode(x))

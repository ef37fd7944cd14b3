"""The frozen teacher: a pretrained causal LM and a dictionary of one of its layers, which together give the targets."""

import logging
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from cocomix.concepts.decoder import FrozenDecoder, GradientScope, NumberFormat, target_mask
from cocomix.concepts.dictionary import ConceptDictionary, SparseCodes
from cocomix.concepts.labeller import ConceptLabels
from cocomix.concepts.scoring import Activation, Sign, best_by_attribution, best_labels, criterion
from cocomix.concepts.sources import TeacherConfig
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.hub import NoTokenizer, load_causal_lm, load_tokenizer

logger = logging.getLogger(__name__)

Reduction = Literal["mean", "sum"]


def load_teacher(
    name_or_folder: str | Path, *, revision: str | None = None, device: torch.device | str | None = None
) -> PreTrainedModel:
    """Load a causal LM in float32, by which labels are defined, frozen and in evaluation mode.

    Args:
        name_or_folder: a hub name, a folder written by `save_pretrained`, or the path of a `.gguf` file.
        revision: branch, tag or commit on the hub.
        device: where to put it; the CPU if None.

    Raises:
        CoCoMixError: nothing that can be read as a causal LM is there, or its weights are no safetensors.
    """
    frozen: PreTrainedModel = load_causal_lm(name_or_folder, revision=revision).requires_grad_(False)
    return frozen if device is None else frozen.to(device)


def refuse(problem: str, remedy: str, force: bool) -> None:
    """Refuse what does not fit together, or with `force` warn of it."""
    if not force:
        raise CoCoMixError(f"{problem}; {remedy}.")
    logger.warning(f"{problem}; used all the same.")


class LoadedTeachers:
    """Loads each teacher when it is first asked for, and keeps it for as long as this object is kept.

    Nothing looks whether a folder or a file has changed meanwhile: make an object for one piece of work and let go of
    it, which releases the memory.
    """

    def __init__(self) -> None:
        self._models: dict[Any, PreTrainedModel] = {}
        self._tokenizers: dict[Any, PreTrainedTokenizerFast | None] = {}

    def model(self, source: TeacherConfig, device: torch.device | str | None = None) -> PreTrainedModel:
        """The language model in float32, frozen, on a device (the CPU if None); see `load_teacher`.

        What computes in a narrower format does so by autocast, so that all share these weights.
        """
        key = (source.model, source.revision, str(device or "cpu"))
        if key not in self._models:
            self._models[key] = load_teacher(source.model, revision=source.revision, device=device)
        return self._models[key]

    def tokenizer(self, source: TeacherConfig) -> PreTrainedTokenizerFast | None:
        """The tokenizer that comes with a teacher; None where none does."""
        key = (source.model, source.revision)
        if key not in self._tokenizers:
            try:
                self._tokenizers[key] = load_tokenizer(source.model, source.revision)
            except NoTokenizer:
                self._tokenizers[key] = None
        return self._tokenizers[key]


class ConceptTeacher:
    """A frozen causal LM with a dictionary of the output of one of its blocks.

    Args:
        model: any Hugging Face causal LM; it is frozen and put in evaluation mode.
        dictionary: concepts of that block's output; moved to the model's device, in float32.
        layer: 0-based index of the block whose output is hooked.
        name: where the model came from, for manifests; the configuration's own record by default.
        bos_token_id: what texts begin with, if they do. There a text is given no labels and the dictionary is not
            tried: the hidden state is the same in every text, says nothing of it, and is unlike all others.
        force: warn of a dictionary that was fitted on another layer.

    Raises:
        CoCoMixError: the dictionary has another width than the model or was fitted on another layer (unless `force`),
            or `layer` is out of range.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        dictionary: ConceptDictionary,
        layer: int,
        *,
        name: str | None = None,
        bos_token_id: int | None = None,
        force: bool = False,
    ) -> None:
        self.decoder = FrozenDecoder(model, layer)
        if dictionary.d_model != self.decoder.d_model:
            raise CoCoMixError(
                f"the dictionary {dictionary.name} reads hidden states of width {dictionary.d_model}, but the "
                f"teacher's are {self.decoder.d_model} wide; use an SAE that was fitted on this teacher."
            )
        if dictionary.layer not in (None, layer):
            # Neighbouring layers are so alike that measures of fit hardly tell them apart.
            problem = f"the dictionary {dictionary.name} was fitted on block {dictionary.layer}, not on block {layer}"
            refuse(problem, f"use layer {dictionary.layer}, another dictionary, or --force", force)
        self.dictionary = dictionary.to(device=self.decoder.device, dtype=torch.float32)
        self.layer, self.bos_token_id = layer, bos_token_id
        self.n_concepts = dictionary.n_concepts
        self.vocab_size = self.decoder.vocab_size  # rows of the input embedding
        self.name = name if name is not None else str(model.config.name_or_path)

    def label(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        k: int = 4,
        *,
        activation: Activation = "latent",
        gradient: GradientScope = "sequence",
        sign: Sign = "loss",
        dtype: NumberFormat = "float32",
        reduction: Reduction = "mean",
    ) -> ConceptLabels:
        """The k concepts that matter most at each position, by attribution.

        Args:
            input_ids: int64 [batch, seq].
            attention_mask: [batch, seq], 1 = token, 0 = padding (left or right).
            activation: `latent` or `pre`, see `cocomix.concepts.scoring`; the default is the released code's.
            gradient: of the loss of all targets (`sequence`, released code) or of the own next token's loss (`next`).
            sign: `loss`, `logprob` or `abs`, see `cocomix.concepts.scoring`.
            dtype: the teacher runs under autocast to it; scores and the dictionary stay in float32.
            reduction: scores are gradients of the mean loss over the targets of this call (`mean`, as `attribution`),
                or of the summed loss, which does not depend on what else is in the batch (`sum`). Labels are the same.

        Returns:
            ids and scores [batch, seq, k]; −100 at the last position, at padding, before padding, at the begin-of-text
            token, and where the criterion is not positive.

        Raises:
            CoCoMixError: the teacher's loss or gradient is not finite.
        """
        choice: dict[str, Any] = {"activation": activation, "gradient": gradient, "sign": sign, "reduction": reduction}
        found, labelled = self.attributed_concepts(input_ids, attention_mask, k, dtype=dtype, **choice)
        return best_labels(found, criterion(found.values, sign), labelled, k)

    @torch.no_grad()
    def active_concepts(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, *, dtype: NumberFormat = "float32"
    ) -> tuple[SparseCodes, Tensor]:
        """Active concepts of every position [batch, seq, width], and which positions get labels, bool [batch, seq].

        The blocks above the layer are not run. The positions are those to which `label`, too, gives labels.
        """
        input_ids, attention_mask = self._to_device(input_ids, attention_mask)
        hidden = self.decoder.hidden_states(input_ids, attention_mask, dtype=getattr(torch, dtype))
        return self.dictionary.encode(hidden), self.labelled_positions(input_ids, attention_mask)

    def attributed_concepts(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        k: int = 1,
        *,
        activation: Activation = "latent",
        gradient: GradientScope = "sequence",
        sign: Sign = "loss",
        dtype: NumberFormat = "float32",
        reduction: Reduction = "sum",
    ) -> tuple[SparseCodes, Tensor]:
        """Candidates for labels with their attribution, and which positions get labels, bool [batch, seq].

        Candidates are the active concepts, or with `activation="pre"` the k best. Values [batch, seq, width] are in
        nats, 0 in unused slots. Arguments and errors are those of `label`.
        """
        input_ids, attention_mask = self._to_device(input_ids, attention_mask)
        hidden, slopes, loss = self.decoder.loss_gradient(
            input_ids, attention_mask, scope=gradient, dtype=getattr(torch, dtype)
        )
        for what, value in (("loss", loss), ("gradient", slopes)):
            if not bool(value.isfinite().all()):
                raise CoCoMixError(
                    f"the {what} of the teacher {self.name} is not finite; try another dtype or another model."
                )
        slopes = slopes.float()
        if reduction == "mean":
            slopes = slopes / target_mask(input_ids, attention_mask).sum().clamp(min=1)
        with torch.no_grad():
            found = best_by_attribution(self.dictionary, hidden, slopes, k, activation=activation, sign=sign)
        return found, self.labelled_positions(input_ids, attention_mask)

    def attribution(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        activation: Activation = "latent",
        gradient: GradientScope = "sequence",
        dtype: NumberFormat = "float32",
        reduction: Reduction = "mean",
    ) -> Tensor:
        """Attribution of every concept, [batch, seq, n_concepts], in nats; for study and tests, not for the pipeline.

        By default the released definition: activations after TopK times the gradient of the mean loss over all
        next-token targets of the batch, without the factor std of the de-normalisation. Arguments as in `label`.
        """
        choice: dict[str, Any] = {"activation": activation, "gradient": gradient, "reduction": reduction}
        found, _ = self.attributed_concepts(input_ids, attention_mask, self.n_concepts, dtype=dtype, **choice)
        return self.dictionary.densify(found)

    def labelled_positions(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Where labels can be: at tokens with a next one, but not at the begin-of-text token. bool [batch, seq]"""
        return target_mask(input_ids, attention_mask) & self.described(input_ids, attention_mask)

    def described(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Which positions the dictionary is asked about: tokens, but not the begin-of-text token. bool [batch, seq]"""
        present = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        if self.bos_token_id is None:
            return present
        first = present & (present.cumsum(dim=-1) == 1)
        return present & ~(first & (input_ids == self.bos_token_id))

    def _to_device(self, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        device = self.decoder.device
        return input_ids.to(device), None if attention_mask is None else attention_mask.to(device)

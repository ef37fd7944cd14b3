"""Fitting a dictionary: a TopK sparse autoencoder on a teacher's hidden states, trained by SAELens' own trainer.

The hidden states are streamed from prepared token blocks through the blocks below the hooked one, so nothing is
stored. They are layer-normalised before training rather than inside the autoencoder: every position then weighs the
same in the loss (after de-normalisation a few positions with huge norms would decide it), and SAELens' auxiliary loss,
which revives dead concepts, works (it refuses its own input normalisation). The saved autoencoder carries
`normalize_activations="layer_norm"`, so that SAELens and `ConceptDictionary` apply to raw hidden states exactly what
it was trained on.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from cocomix.concepts.check import measure_fit
from cocomix.concepts.decoder import FrozenDecoder
from cocomix.concepts.dictionary import ConceptDictionary, layer_normalize
from cocomix.concepts.dictionary_folder import Dictionary, DictionaryManifest, FitReport, FitSettings, fit_identity
from cocomix.concepts.fingerprints import files_fingerprint, model_fingerprint
from cocomix.concepts.saelens import import_sae_lens
from cocomix.concepts.teacher import ConceptTeacher
from cocomix.runtime.console import progress
from cocomix.runtime.device import available_memory
from cocomix.runtime.errors import CoCoMixError

logger = logging.getLogger(__name__)

_CHECK_EVERY = 20  # steps between looks at the loss; each look waits for the device
# Copies held at once in float32: of the weights, with their gradients and Adam's two moments; and of a batch's dense
# activations, with their gradients and those of the loss for dead concepts (measured: 3 to 8, more with more dead).
_WEIGHT_COPIES, _BATCH_COPIES = 4, 8


class TokenBlocksLike(Protocol):
    """A data set of token blocks of one length: row i has `input_ids`, int64 [block_size]."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Tensor]: ...


def first_blocks(blocks: TokenBlocksLike, tokens: int) -> Tensor:
    """The first blocks, as many as hold `tokens` tokens and at least one. int64 [blocks, block_size]"""
    count = max(1, tokens // len(blocks[0]["input_ids"]))
    return torch.stack([blocks[index]["input_ids"] for index in range(min(count, len(blocks)))])


def spread_blocks(blocks: TokenBlocksLike, tokens: int) -> Tensor:
    """Evenly spaced blocks, as many as hold `tokens` tokens and at least one. int64 [blocks, block_size]"""
    count = min(len(blocks), max(1, tokens // len(blocks[0]["input_ids"])))
    return torch.stack([blocks[place * len(blocks) // count]["input_ids"] for place in range(count)])


def memory_needed(settings: FitSettings, d_model: int) -> int:
    """Bytes that training takes at least, beside the teacher."""
    weights = 2 * d_model * settings.num_concepts
    return 4 * (_WEIGHT_COPIES * weights + _BATCH_COPIES * settings.batch_size * settings.num_concepts)


def fit_dictionary(
    model: PreTrainedModel,
    layer: int,
    blocks: TokenBlocksLike,
    evaluation: Tensor,
    output: Path,
    settings: FitSettings | None = None,
    *,
    teacher_name: str | None = None,
    tokens: str | None = None,
    revision: str | None = None,
    bos_token_id: int | None = None,
) -> Dictionary:
    """Fit a TopK autoencoder to the output of block `layer` and save it as a SAELens folder with a manifest.

    Args:
        model: the teacher; frozen.
        evaluation: held-out token ids, int64 [blocks, seq]; a few thousand tokens.
        output: folder to write, see `cocomix.concepts.dictionary_folder`.
        teacher_name: for the manifest, as `tokens`, the data's fingerprint, and `revision`; the model's own by default.
        bos_token_id: what every block begins with, which is left out; `None` where that is text.

    Raises:
        CoCoMixError: SAELens is missing, `layer` or `k` is out of range, there are no tokens, the memory does not
            suffice, the loss is not finite, or `output` exists.
    """
    settings = (settings or FitSettings()).resolved()
    if settings.k > settings.num_concepts:
        raise CoCoMixError(
            f"k = {settings.k} active concepts must not be more than num_concepts = {settings.num_concepts}."
        )
    if len(blocks) == 0:
        raise CoCoMixError("there are no token blocks to fit a dictionary on; prepare a larger corpus.")
    name = teacher_name if teacher_name is not None else str(model.config.name_or_path)
    sae_lens = import_sae_lens()
    decoder = FrozenDecoder(model, layer)
    _require_memory(settings, decoder)
    identity = fit_identity(name, layer, settings, tokens=tokens, revision=revision, bos_token_id=bos_token_id)
    with Dictionary.create(output, identity=identity) as staging:
        started = time.perf_counter()
        trainer = _train(sae_lens, decoder, blocks, settings, name, bos_token_id is not None)
        seconds = time.perf_counter() - started
        trainer.sae.cfg.normalize_activations = "layer_norm"
        trainer.sae.save_inference_model(staging.path)
        dictionary = ConceptDictionary.from_sae_lens(staging.path)
        fit = measure_fit(ConceptTeacher(model, dictionary, layer, name=name, bos_token_id=bos_token_id), evaluation)
        # Matrix products alone, dense ones, as SAELens does them: 2dC each for encoder and decoder forward, for the
        # gradients of their weights, and for that of the decoder's input.
        flops_per_token = decoder.flops_per_token(evaluation.shape[1], up_to="layer")
        flops_per_token += 10.0 * decoder.d_model * settings.num_concepts
        report = FitReport(
            fit=fit,
            ce_recovered=fit.ce_recovered,
            dead_concepts=int(trainer.dead_neurons.sum()),
            tokens=trainer.n_training_samples,
            seconds=seconds,
            flops=trainer.n_training_samples * flops_per_token,
            tokens_per_second=trainer.n_training_samples / seconds,
            sae_lens_version=sae_lens.__version__,
        )
        manifest = DictionaryManifest(
            made_from={"teacher": model_fingerprint(model)} | ({} if tokens is None else {"tokens": tokens}),
            num_concepts=settings.num_concepts,
            dictionary_fingerprint=dictionary.fingerprint(),
            teacher=name,
            teacher_files=files_fingerprint(name),
            layer=layer,
            settings=settings,
            report=report,
        )
        staging.finish(manifest)
    logger.info(
        f"fitted {settings.num_concepts:,} concepts to block {layer} in {output}: {fit.describe()}, "
        f"{report.dead_concepts:,} dead, {report.tokens_per_second:,.0f} tokens/s"
    )
    if report.dead_concepts > settings.num_concepts / 4:
        logger.warning(
            f"{report.dead_concepts:,} of {settings.num_concepts:,} concepts were not active at any of the last "
            f"{settings.dead_after_tokens:,} tokens; fit fewer concepts (--num-concepts) or on more tokens (--tokens), "
            "so that the auxiliary loss revives them."
        )
    return Dictionary.open(output)


def _require_memory(settings: FitSettings, decoder: FrozenDecoder) -> None:
    """Refuse sizes for which the system would end the process without a word."""
    needed, there = memory_needed(settings, decoder.d_model), available_memory(decoder.device)
    if there is not None and needed > there:
        raise CoCoMixError(
            f"fitting num_concepts = {settings.num_concepts:,} to hidden states of width {decoder.d_model} in batches "
            f"of {settings.batch_size:,} takes about {needed / 2**30:,.1f} GiB of memory, and {there / 2**30:,.1f} GiB "
            f"are free on {decoder.device}; lower num_concepts or batch_size."
        )


def _train(
    sae_lens: Any, decoder: FrozenDecoder, blocks: TokenBlocksLike, settings: FitSettings, name: str, after_bos: bool
) -> Any:
    """Run SAELens' `SAETrainer` step by step, with our progress in place of its own; returns the trainer."""
    batches = _activations(decoder, blocks, settings, after_bos)
    first = next(batches)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        config = sae_lens.TopKTrainingSAEConfig(
            d_in=decoder.d_model, d_sae=settings.num_concepts, k=settings.k, device=str(decoder.device)
        )
        sae = sparse_decoding_sae(sae_lens)(config)
    metadata = sae.cfg.metadata
    metadata.model_name, metadata.hook_name = name, decoder.hook_name
    metadata.prepend_bos, metadata.context_size = after_bos, len(blocks[0]["input_ids"])
    with torch.no_grad():
        sae.b_dec.copy_(first.mean(dim=0))
    trainer = sae_lens.SAETrainer(
        sae_lens.config.SAETrainerConfig(
            total_training_samples=settings.steps * settings.batch_size,
            train_batch_size_samples=settings.batch_size,
            lr=settings.peak_learning_rate,
            lr_end=settings.peak_learning_rate,
            lr_warm_up_steps=settings.steps // 20,
            lr_decay_steps=settings.steps // 5,
            dead_feature_window=max(1, settings.dead_after_tokens // settings.batch_size),
            device=str(decoder.device),
            logger=sae_lens.LoggingConfig(log_to_wandb=False),
        ),
        sae=sae,
        data_provider=batches,
    )
    with progress("fit dictionary", settings.steps * settings.batch_size, "tokens") as advance:
        for step in range(settings.steps):
            trainer.maybe_reset_sparsity()
            result = trainer.step(first if step == 0 else next(batches))
            trainer.n_training_steps += 1
            advance(settings.batch_size)
            if ((step + 1) % _CHECK_EVERY == 0 or step + 1 == settings.steps) and not bool(result.loss.isfinite()):
                raise CoCoMixError(
                    f"the loss of the dictionary is not finite after {trainer.n_training_samples:,} tokens; lower the "
                    f"learning rate ({settings.peak_learning_rate:g})."
                )
    trainer.set_final_sae_metadata()
    return trainer


def sparse_decoding_sae(sae_lens: Any) -> Any:
    """SAELens' TopK training class with a decoder that reads only the k active rows.

    SAELens multiplies the dense [batch, num_concepts] activations with the decoder, and twice more in backward; a step
    is about a fifth shorter without. Values and gradients are the same.
    """

    class SparseDecodingSAE(sae_lens.TopKTrainingSAE):  # type: ignore[misc]
        def decode(self, feature_acts: Tensor) -> Tensor:
            values, ids = feature_acts.topk(self.cfg.k, dim=-1, sorted=False)
            values = values / self.W_dec.norm(dim=-1)[ids]
            decoded: Tensor = F.embedding_bag(ids, self.W_dec, per_sample_weights=values, mode="sum") + self.b_dec
            return decoded

    return SparseDecodingSAE


def _activations(
    decoder: FrozenDecoder, blocks: TokenBlocksLike, settings: FitSettings, after_bos: bool
) -> Iterator[Tensor]:
    """Endless batches [batch_size, d_model] of layer-normalised hidden states, blocks in a random order per pass.

    With `after_bos` those of every block's first position are left out.
    """
    generator, pending, waiting = np.random.default_rng(settings.seed), list[Tensor](), 0
    groups = max(1, len(blocks) * len(blocks[0]["input_ids"]) // settings.forward_tokens)
    while True:
        for group in np.array_split(generator.permutation(len(blocks)), groups):
            input_ids = torch.stack([blocks[int(index)]["input_ids"] for index in group])  # [blocks, seq]
            hidden = decoder.hidden_states(input_ids.to(decoder.device), dtype=getattr(torch, settings.dtype))
            states, _ = layer_normalize(hidden[:, int(after_bos) :].float().flatten(0, 1))  # [positions, d_model]
            pending.append(states)
            waiting += len(states)
            while waiting >= settings.batch_size:
                joined = torch.cat(pending)
                yield joined[: settings.batch_size]
                pending, waiting = [joined[settings.batch_size :]], waiting - settings.batch_size

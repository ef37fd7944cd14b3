"""Fitting a dictionary: a TopK sparse autoencoder on a teacher's hidden states, trained by SAELens' own trainer.

The hidden states are streamed from prepared token blocks through the blocks below the hooked one, so nothing is
stored. They are layer-normalised before training rather than inside the autoencoder: every position then weighs the
same in the loss (after de-normalisation a few positions with huge norms would decide it), and SAELens' auxiliary loss,
which revives dead concepts, works (it refuses its own input normalisation). The saved autoencoder carries
`normalize_activations="layer_norm"`, so that SAELens and `ConceptDictionary` apply to raw hidden states exactly what
it was trained on.
"""

import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from cocomix.artifacts.output import staged_directory, write_json
from cocomix.concepts.check import DictionaryFit, measure_fit
from cocomix.concepts.decoder import FrozenDecoder
from cocomix.concepts.dictionary import ConceptDictionary, layer_normalize
from cocomix.concepts.fingerprints import model_fingerprint
from cocomix.concepts.saelens import import_sae_lens
from cocomix.concepts.teacher import ConceptTeacher
from cocomix.concepts.tokens import TokenShardLike
from cocomix.runtime.console import Reporter, SilentReporter
from cocomix.runtime.errors import CoCoMixError

__all__ = ["FitReport", "FitSettings", "fit_dictionary"]

_CHECK_EVERY = 20  # steps between looks at the loss; each look waits for the device


class FitSettings(BaseModel):
    """How a dictionary is fitted.

    Attributes:
        num_concepts: latents of the autoencoder (C).
        k: active latents per position (K_SAE).
        tokens: positions to train on; read again from the start, in another order, if the data has fewer.
        batch_size: positions per step.
        learning_rate: of Adam, after a warm-up over the first 5% of the steps and until a linear decay over the last
            20%.
        dead_after_tokens: a latent that was active at none of the last so many training positions counts as dead.
        forward_tokens: tokens per forward pass of the teacher.
        seed: of the initial weights and the order of the blocks.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_concepts: int = Field(default=2048, ge=2)
    k: int = Field(default=16, ge=1)
    tokens: int = Field(default=500_000, ge=1)
    batch_size: int = Field(default=1024, ge=1)
    learning_rate: float | None = Field(default=None, gt=0)
    dead_after_tokens: int = Field(default=20_000, ge=1)
    forward_tokens: int = Field(default=4096, ge=1)
    seed: int = 0

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return max(1, self.tokens // self.batch_size)

    @property
    def peak_learning_rate(self) -> float:
        """The given learning rate, or the one that follows from `num_concepts`."""
        return self.learning_rate if self.learning_rate is not None else 8e-3 * (2048 / self.num_concepts) ** 0.5


class FitReport(BaseModel):
    """What was fitted on what, and how well; written as `fit.json` beside the autoencoder.

    Attributes:
        teacher: name and fingerprint.
        layer: 0-based index of the block whose output was fitted.
        settings: as given.
        fit: FVU and cross-entropy on held-out blocks.
        ce_recovered: as `DictionaryFit.ce_recovered`.
        dead_concepts: latents active at none of the last `dead_after_tokens` training positions.
        tokens: positions trained on.
        seconds: training alone.
        tokens_per_second: training alone.
        sae_lens_version: of the trainer.
        dictionary_fingerprint: `ConceptDictionary.fingerprint` of the result.
        data_fingerprint: of the prepared data; `None` where it came from elsewhere.
        format_version: of this file.
        cocomix_version: that fitted it; `None` in files from before this was recorded.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher: dict[str, str]
    layer: int
    settings: FitSettings
    fit: DictionaryFit
    ce_recovered: float | None
    dead_concepts: int
    tokens: int
    seconds: float
    tokens_per_second: float
    sae_lens_version: str
    dictionary_fingerprint: str
    data_fingerprint: str | None = None
    format_version: Literal[1] = 1
    cocomix_version: str | None = None


def fit_dictionary(
    model: PreTrainedModel,
    layer: int,
    shards: Sequence[TokenShardLike],
    evaluation: Tensor,
    output: Path,
    settings: FitSettings | None = None,
    *,
    teacher_name: str | None = None,
    data_fingerprint: str | None = None,
    bos_token_id: int | None = None,
    reporter: Reporter | None = None,
) -> FitReport:
    """Fit a TopK autoencoder to the output of block `layer` and save it as a SAELens folder.

    Args:
        model: the teacher; frozen.
        layer: 0-based index of the block.
        shards: training tokens.
        evaluation: held-out token ids, int64 [blocks, seq]; a few thousand tokens.
        output: folder to write: `cfg.json`, `sae_weights.safetensors` (SAELens' own files) and `fit.json`.
        settings: see `FitSettings`.
        teacher_name: for the report; the model's own record by default.
        data_fingerprint: likewise, of the prepared data.
        bos_token_id: what every block begins with, which is left out; `None` where that is text.
        reporter: gets the progress in tokens and the result.

    Raises:
        CoCoMixError: SAELens is missing, `layer` or `k` is out of range, there are no tokens, the loss is not finite,
            or `output` exists.
    """
    settings = settings or FitSettings()
    reporter = reporter or SilentReporter()
    if settings.k > settings.num_concepts:
        raise CoCoMixError(
            f"k = {settings.k} active concepts cannot be more than num_concepts = {settings.num_concepts}."
        )
    if not any(shard.num_blocks for shard in shards):
        raise CoCoMixError("there are no token blocks to fit a dictionary on; prepare a larger corpus.")
    name = teacher_name if teacher_name is not None else str(model.config.name_or_path)
    sae_lens = import_sae_lens()
    decoder = FrozenDecoder(model, layer)
    with staged_directory(output) as folder:
        started = time.perf_counter()
        trainer = _train(sae_lens, decoder, shards, settings, name, bos_token_id is not None, reporter)
        seconds = time.perf_counter() - started
        trainer.sae.cfg.normalize_activations = "layer_norm"
        trainer.sae.save_inference_model(folder)
        dictionary = ConceptDictionary.from_sae_lens(str(folder))
        teacher = ConceptTeacher(model, dictionary, layer, name=name, bos_token_id=bos_token_id)
        fit = measure_fit(teacher, evaluation)
        report = FitReport(
            teacher={"name": name, "fingerprint": model_fingerprint(model)},
            layer=layer,
            settings=settings,
            fit=fit,
            ce_recovered=fit.ce_recovered,
            dead_concepts=int(trainer.dead_neurons.sum()),
            tokens=trainer.n_training_samples,
            seconds=seconds,
            tokens_per_second=trainer.n_training_samples / seconds,
            sae_lens_version=sae_lens.__version__,
            dictionary_fingerprint=dictionary.fingerprint(),
            data_fingerprint=data_fingerprint,
            cocomix_version=version("cocomix"),
        )
        write_json(folder / "fit.json", report.model_dump(mode="json"))
    reporter.say(
        f"fitted {settings.num_concepts:,} concepts to block {layer} in {output}: {fit.describe()}, "
        f"{report.dead_concepts:,} dead, {report.tokens_per_second:,.0f} tokens/s"
    )
    return report


def _train(
    sae_lens: Any,
    decoder: FrozenDecoder,
    shards: Sequence[TokenShardLike],
    settings: FitSettings,
    name: str,
    after_bos: bool,
    reporter: Reporter,
) -> Any:
    """Run SAELens' `SAETrainer` step by step, with our progress in place of its own; returns the trainer."""
    batches = _activations(decoder, shards, settings, after_bos)
    first = next(batches)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        sae = sparse_decoding_sae(sae_lens)(
            sae_lens.TopKTrainingSAEConfig(
                d_in=decoder.d_model,
                d_sae=settings.num_concepts,
                k=settings.k,
                device=str(decoder.device),
            )
        )
    metadata = sae.cfg.metadata
    metadata.model_name, metadata.hook_name = name, decoder.hook_name
    metadata.prepend_bos, metadata.context_size = after_bos, int(shards[0].read().shape[1])
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
    with reporter.progress("fit dictionary", settings.steps * settings.batch_size, "tokens") as advance:
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
    decoder: FrozenDecoder, shards: Sequence[TokenShardLike], settings: FitSettings, after_bos: bool
) -> Iterator[Tensor]:
    """Endless batches [batch_size, d_model] of layer-normalised hidden states, blocks in a random order per pass.

    With `after_bos` those of every block's first position are left out.
    """
    pending: list[Tensor] = []
    waiting = 0
    for blocks in _block_batches(shards, settings):
        input_ids = torch.from_numpy(blocks.astype(np.int64)).to(decoder.device)
        hidden = decoder.hidden_states(input_ids)[:, int(after_bos) :].float()
        states, _ = layer_normalize(hidden.flatten(0, 1))  # [positions, d_model]
        pending.append(states)
        waiting += len(states)
        while waiting >= settings.batch_size:
            joined = torch.cat(pending)
            yield joined[: settings.batch_size]
            pending, waiting = [joined[settings.batch_size :]], waiting - settings.batch_size


def _block_batches(shards: Sequence[TokenShardLike], settings: FitSettings) -> Iterator[NDArray[Any]]:
    """Endless groups of token blocks [blocks, seq], about `forward_tokens` each."""
    generator = np.random.default_rng(settings.seed)
    ends = np.cumsum([shard.num_blocks for shard in shards])
    while True:
        order = generator.permutation(int(ends[-1]))
        block_size = shards[0].read().shape[1]
        for group in np.array_split(order, max(1, len(order) * block_size // settings.forward_tokens)):
            members = np.searchsorted(ends, group, side="right")
            starts = np.concatenate([[0], ends])[members]
            yield np.stack([shards[member].read()[row] for member, row in zip(members, group - starts, strict=True)])

"""The atlas' one pass over held-out text: what the student predicts at every position, and what the labels say."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cocomix.evaluation.inference import batches, count_blocks, inference
from cocomix.evaluation.run_inputs import RunBlocks
from cocomix.interpret.atlas_cards import AtlasSettings
from cocomix.model import CoCoMixForCausalLM
from cocomix.runtime.console import progress
from cocomix.runtime.ignore import IGNORE

Array = NDArray[Any]
_SAMPLED_ELEMENTS = 2**26  # logits of all concepts at sampled positions: 256 MiB in float32


@dataclass(frozen=True)
class Reading:
    """What was seen, position by position; positions are counted over all blocks.

    Attributes:
        tokens: int32 [blocks, seq].
        ids: concepts in the student's top k. int32 [positions, k]
        logits: the student's logits for them. float32 [positions, k]
        labels: `IGNORE` = none; k_attr is 0 where there are no labels. int32 [positions, k_attr]
        label_logits: the student's logits for the labels. float32 [positions, k_attr]
        sample: positions at which everything is kept, evenly spread. int64 [sampled]
        sample_logits: the student's logits for all concepts there. float32 [sampled, n_concepts]
        sample_hidden: hidden states at `insert_layer` there, which the predictor reads. float32 [sampled, d_model]
    """

    tokens: Array
    ids: Array
    logits: Array
    labels: Array
    label_logits: Array
    sample: Array
    sample_logits: Array
    sample_hidden: Array

    @property
    def labelled(self) -> Array:
        """Whether a position has a label at all. bool [positions]"""
        labelled: Array = (self.labels != IGNORE).any(-1)
        return labelled


def read_held_out(
    model: CoCoMixForCausalLM,
    blocks: RunBlocks,
    settings: AtlasSettings,
    *,
    device: torch.device,
) -> Reading:
    """Let the student read held-out blocks.

    Args:
        model: the student.
        blocks: from `run_blocks`, with their labels if there are any.
        settings: of the atlas.

    Raises:
        CoCoMixError: there is no block, or data, labels and model do not belong together.
    """
    seq, n_concepts = blocks.block_size, model.config.num_concepts
    size = max(1, settings.batch_tokens // seq)
    count = count_blocks(model, blocks.rows, blocks.labels, size, None)
    positions = count * seq
    sampled = min(positions, settings.sampled, max(512, _SAMPLED_ELEMENTS // n_concepts))
    sample = np.linspace(0, positions - 1, sampled).round().astype(np.int64)
    columns: dict[str, list[Array]] = {name: [] for name in Reading.__dataclass_fields__ if name != "sample"}
    hidden: list[Tensor] = []

    def keep_hidden(_module: nn.Module, _inputs: Any, output: Any) -> None:
        hidden[:] = [output.last_hidden_state]

    hook = model.lower.register_forward_hook(keep_hidden)
    try:
        with inference(model, device), progress("reading", positions, "tokens") as advance:
            start = 0
            for batch in batches(model, blocks.rows, blocks.labels, count=count, batch_size=size, device=device):
                output = model(
                    input_ids=batch.input_ids,
                    position_ids=batch.position_ids,
                    use_cache=False,
                    output_logits=False,
                    output_concept_logits=True,
                )
                logits = output.concept_logits.flatten(0, 1).float()  # [batch · seq, n_concepts]
                named = torch.empty(len(logits), 0, dtype=torch.int64, device=device)
                if batch.concept_labels is not None:
                    named = batch.concept_labels.flatten(0, 1)
                here = sample[(sample >= start) & (sample < start + len(logits))] - start
                columns["tokens"].append(batch.input_ids.cpu().numpy().astype(np.int32))
                columns["ids"].append(output.concept_ids.flatten(0, 1).cpu().numpy().astype(np.int32))
                columns["logits"].append(output.concept_values.flatten(0, 1).float().cpu().numpy())
                columns["labels"].append(named.cpu().numpy().astype(np.int32))
                columns["label_logits"].append(logits.gather(1, named.clamp_min(0)).cpu().numpy())
                columns["sample_logits"].append(logits[here].cpu().numpy())
                columns["sample_hidden"].append(hidden[0].flatten(0, 1)[here].float().cpu().numpy())
                start += len(logits)
                advance(len(logits))
    finally:
        hook.remove()
    return Reading(sample=sample, **{name: np.concatenate(parts) for name, parts in columns.items()})

"""Do the two losses pull the weights that both reach the same way, while a student trains?

    python results/scarce/gradients.py DATA LABELS

Three forms on the first 244 batches of DATA, in one order, as in labels.yaml (Muon at 1.6e-2, eight blocks a batch, one
seed); at each of STEPS the gradients of the next-token loss and of the concept loss on the same 64 held-out blocks.
Writes gradients.json beside this file: form → step → weights → cosine of the two over all those blocks, its mean over
batches with a 95% interval, and λ times the concept loss's gradient over the other's, in length.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import GPT2Config, TrainingArguments, get_cosine_schedule_with_warmup

from cocomix import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.data import Tokens
from cocomix.evaluation.analyses import compare_gradients
from cocomix.labelling import Labels
from cocomix.training import muon

FORMS = {
    "softmax, λ = 1": {"mixing": "add", "concept_weights": "softmax", "concept_loss_weight": 1.0},
    "logits, λ = 0.1": {"mixing": "add", "concept_loss_weight": 0.1},
    "interleaved by logits, λ = 0.1: the paper's form": {"mixing": "interleave", "concept_loss_weight": 0.1},
}
STEPS = (8, 30, 61, 122, 183, 244)
BLOCKS = 64


class LabelledBlocks(Dataset):
    """Row i has `input_ids` [seq] and `concept_labels` [seq, k]."""

    def __init__(self, tokens: Tokens, labels: Labels, split: str) -> None:
        self.tokens, self.labels = tokens.split(split), labels.split(split)

    def __len__(self) -> int:
        return min(len(self.tokens), len(self.labels))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {**self.tokens[index], **self.labels[index]}


def shared(model: CoCoMixForCausalLM) -> dict[str, list[nn.Parameter]]:
    """The weights that both losses reach."""
    groups: dict[str, list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        if name.startswith(("lower.", "predictor.")):
            group = "predictor" if name.startswith("predictor.") else "blocks" if ".h." in name else "embeddings"
            groups.setdefault(group, []).append(weight)
    return groups


def losses(model: CoCoMixForCausalLM, batches: list[dict[str, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """The next-token and the concept loss of every batch."""
    for batch in batches:
        yield (
            model(batch["input_ids"], labels=batch["input_ids"], use_cache=False).ntp_loss,
            model(batch["input_ids"], concept_labels=batch["concept_labels"], use_cache=False).concept_loss,
        )


def main(data: str, stored: str) -> None:
    """Train the three forms and write what was found."""
    tokens, labels = Tokens.open(data), Labels.open(stored)
    held_out = list(DataLoader(LabelledBlocks(tokens, labels, "validation"), batch_size=8))[: BLOCKS // 8]
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for form, settings in FORMS.items():
        torch.manual_seed(0)
        backbone = GPT2Config(vocab_size=tokens.manifest.vocab_size, n_positions=256, n_embd=96, n_layer=4, n_head=4,
                              resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)  # fmt: skip
        concepts = labels.manifest.num_concepts
        model = CoCoMixForCausalLM(CoCoMixConfig(backbone, insert_layer=2, num_concepts=concepts, **settings)).train()
        build, arguments = muon(TrainingArguments("unused", learning_rate=1.6e-2, weight_decay=0.1, use_cpu=True))
        optimizer = build()(model, **arguments)
        schedule = get_cosine_schedule_with_warmup(optimizer, 30, STEPS[-1])
        order = torch.Generator().manual_seed(0)
        for step, batch in enumerate(
            DataLoader(LabelledBlocks(tokens, labels, "train"), batch_size=8, shuffle=True, generator=order), 1
        ):
            output = model(batch["input_ids"], labels=batch["input_ids"], concept_labels=batch["concept_labels"])
            output.loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step(), schedule.step(), optimizer.zero_grad()
            if step in STEPS:
                weight = settings["concept_loss_weight"]
                measured = compare_gradients(losses(model, held_out), shared(model), weight=weight)
                found.setdefault(form, {})[str(step)] = {
                    one.group: {key: round(getattr(one, key), 4) for key in ("of_all", "cosine", "low", "high", "size")}
                    for one in measured
                }
            if step == STEPS[-1]:
                break
    Path(__file__).with_suffix(".json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A training loop without a Trainer: prepared data and labels in, a folder for `from_pretrained` out.

    python examples/plain_loop.py data/mine data/mine/labels out/plain --steps 500

Mixed precision, several processes, checkpoints, logs and resuming are what `cocomix train` adds to this.
"""

import argparse

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import LlamaConfig, TrainingArguments, get_cosine_schedule_with_warmup

from cocomix import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.data import Tokens
from cocomix.labelling import Labels
from cocomix.training import muon


class LabelledBlocks(Dataset):
    """Row i has `input_ids` [seq] and `concept_labels` [seq, k], −100 where there is no label."""

    def __init__(self, tokens: Tokens, labels: Labels, split: str) -> None:
        self.tokens, self.labels = tokens.split(split), labels.split(split)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {**self.tokens[index], **self.labels[index]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data"), parser.add_argument("labels"), parser.add_argument("output")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--width", type=int, default=192)
    asked = parser.parse_args()

    tokens, labels = Tokens.open(asked.data), Labels.open(asked.labels)
    backbone = LlamaConfig(
        vocab_size=tokens.manifest.vocab_size, max_position_embeddings=tokens.manifest.block_size,
        hidden_size=asked.width, intermediate_size=4 * asked.width, num_hidden_layers=4, num_attention_heads=4,
        bos_token_id=tokens.manifest.eos_token_id, eos_token_id=tokens.manifest.eos_token_id,
    )  # fmt: skip
    model = CoCoMixForCausalLM(CoCoMixConfig(backbone, insert_layer=2, num_concepts=labels.manifest.num_concepts))
    build, settings = muon(TrainingArguments("unused", learning_rate=2e-3, weight_decay=0.1, use_cpu=True))
    optimizer = build()(model.train(), **settings)  # Muon for the matrices of the blocks, AdamW for the rest
    schedule = get_cosine_schedule_with_warmup(optimizer, asked.steps // 20 + 1, asked.steps)

    batches = DataLoader(LabelledBlocks(tokens, labels, "train"), batch_size=16, shuffle=True)
    step = 0
    while step < asked.steps:
        for batch in batches:
            output = model(batch["input_ids"], labels=batch["input_ids"], concept_labels=batch["concept_labels"])
            output.loss.backward()  # next token + λ · concepts, both means over this batch
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step(), schedule.step(), optimizer.zero_grad()
            if step % 50 == 0:
                print(f"step {step}: {output.ntp_loss:.3f} nats per token, concepts {output.concept_loss:.3f}")
            if (step := step + 1) == asked.steps:
                break
    model.save_pretrained(asked.output)
    tokens.tokenizer().save_pretrained(asked.output)


if __name__ == "__main__":
    main()

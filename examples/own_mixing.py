"""A form of mixing from outside the package: a learned gate between the hidden state and the concept vector.

python examples/own_mixing.py
"""

import torch
from torch import nn
from transformers import GPT2Config

from cocomix import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.model import MIXINGS, Mixing


class Gated(Mixing):
    name = "gated"
    described = "ĉ = (1 − g)·h + g·concept vector, g learned per channel"
    arm = "gated"

    def __init__(self, config):
        super().__init__(config)
        self.gate = nn.Parameter(torch.full((config.hidden_size,), -2.0))

    def mix(self, hidden, compressed, concepts):  # [batch, seq, d_model] each
        gate = self.gate.sigmoid()
        return (1 - gate) * hidden + gate * (compressed * concepts.std + concepts.mean)


MIXINGS[Gated.name] = Gated

if __name__ == "__main__":
    backbone = GPT2Config(vocab_size=100, n_embd=32, n_layer=4, n_head=2, n_positions=32)
    model = CoCoMixForCausalLM(CoCoMixConfig(backbone, insert_layer=2, num_concepts=50, concept_topk=4, mixing="gated"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tokens, labels = torch.randint(100, (4, 16)), torch.randint(50, (4, 16, 2))
    for step in range(20):
        output = model(tokens, labels=tokens, concept_labels=labels)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 5 == 0:
            print(f"step {step}: loss {output.loss.item():.3f}")
    print(model.generate(tokens[:1, :4], max_new_tokens=4, do_sample=False).tolist())

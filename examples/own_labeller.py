"""A kind of labels from outside the package: was the next token there shortly before, and how shortly?

    python examples/own_labeller.py data/mine out/labels

To have `cocomix label --kind repetition` and recipes know it, give your package an entry point:

    [project.entry-points."cocomix.labellers"]
    repetition = "my_package.own_labeller:Repetition"
"""

import sys
from pathlib import Path
from typing import Literal

import torch

from cocomix.concepts import ConceptLabels, LabellerConfig, register_labeller
from cocomix.labelling import Labels, label_data

NAMES = ("within 4 tokens", "within 16 tokens", "within 64 tokens", "earlier in the block", "new")


class RepetitionConfig(LabellerConfig):
    kind: Literal["repetition"] = "repetition"


@register_labeller("repetition")
class Repetition:
    config_type = RepetitionConfig
    num_concepts = len(NAMES)

    @classmethod
    def build(cls, config, *, device, vocabulary):
        return cls()

    def label(self, input_ids, attention_mask=None, *, k):  # input_ids: [batch, seq]
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        distance = places[:, None] - places  # [seq, seq], positive for what comes before
        same = (input_ids[:, :, None] == input_ids[:, None, :]) & (distance > 0)
        nearest = torch.where(same, distance, 10**9).amin(-1)  # [batch, seq]
        concepts = torch.bucketize(nearest, torch.tensor([4, 16, 64, 10**8], device=input_ids.device))
        ids = torch.full((*input_ids.shape, k), -100, device=input_ids.device)
        ids[:, :-1, 0] = concepts[:, 1:]  # a label is of what comes next; the last position has none
        return ConceptLabels(ids)

    def fingerprint(self):
        return {"kind": "repetition", "algorithm": "1"}  # raise it when the labels change

    def flops_per_token(self, seq):
        return 0.0

    def describe(self, concept):
        return NAMES[concept]


if __name__ == "__main__":
    data, output = map(Path, sys.argv[1:])
    label_data(data, RepetitionConfig(k=1), output, scores="none")
    content = Labels.open(output).manifest.content
    print(f"of {content.entropy:.2f} nats of a label, the current token leaves {content.entropy_given_token:.2f}")

"""An objective from outside the package: a small penalty on the size of the last hidden states, for any arm.

    python examples/own_objective.py recipes/mine.yaml runs/penalised

To have recipes know it without this script, give your package an entry point:

    [project.entry-points."cocomix.objectives"]
    hidden_size = "my_package.own_objective:HiddenSize"
"""

import sys
from pathlib import Path

import torch

from cocomix.training import train
from cocomix.training.objectives import LossTerm, Objective, register_objective
from cocomix.training.recipe import load_recipe


@register_objective("hidden_size")
class HiddenSize(Objective):
    name = "hidden_size"

    def inputs(self, batch):
        return {"output_hidden_states": True}

    def counts(self, batch):  # of the whole step, over which the sum is averaged
        return {"hidden_size_loss": torch.tensor(batch["input_ids"].numel(), device=batch["input_ids"].device)}

    def __call__(self, output, batch, head):
        hidden = output.hidden_states[-1]  # [batch, mixed_seq, d_model]; mixed_seq = 2·seq where concepts interleave
        repeats = hidden.shape[1] // batch["input_ids"].shape[1]
        squares = hidden.float().square().mean(-1).sum() / repeats
        return {"hidden_size_loss": LossTerm(squares, self.counts(batch)["hidden_size_loss"], self.weight)}


if __name__ == "__main__":
    recipe, output, *settings = sys.argv[1:]
    train(load_recipe(Path(recipe), ["auxiliary.hidden_size=1.0e-3", *settings]), Path(output))

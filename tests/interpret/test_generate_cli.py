"""`cocomix generate --steer`: an edit that changes nothing is told, with what would act."""

import json

import torch

from cocomix.evaluation import Run
from tests.command_line import Cli
from tests.workshop import CONCEPTS, Workshop


def test_steering_without_effect_says_so_and_what_would_act(cli: Cli, workshop: Workshop) -> None:
    run = Run.open(workshop.cocomix_run)
    ids = torch.tensor([run.tokenizer().encode("the list of")])
    with torch.no_grad():
        predicted = run.model()(ids).concept_ids
    never = next(concept for concept in range(CONCEPTS) if concept not in predicted)
    options = ("generate", run.path, "the list of", "--max-new-tokens", 1, "--temperature", 0)
    banned = cli(*options, "--steer", f"{never}:ban")
    assert banned.out == cli(*options).out
    assert f"concept {never} is predicted at 0.00%" in banned.err
    effect = json.loads(cli(*options, "--steer", f"{never}:ban", "--json").out)["effects"][0]
    assert (effect["predicted"], effect["acts"]) == (0.0, False)
    added = cli(*options, "--steer", f"{never}+{effect['would_act']:.3g}", "--json")
    assert json.loads(added.out)["effects"][0]["acts"]
    assert "changes nothing" not in added.err

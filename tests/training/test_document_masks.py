"""`document_masks`: documents packed into one block train and are evaluated as if each stood alone."""

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from cocomix.artifacts import read_json
from cocomix.data import DocumentBlocks
from cocomix.evaluation import Run, compare, evaluate_run
from cocomix.evaluation.inference import batches
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE
from cocomix.training import train
from cocomix.training.loading import collate_blocks
from cocomix.training.objectives import default_objectives, loss_terms
from cocomix.training.online import OnlineLabels
from tests.model.factories import CONCEPTS, plain, student
from tests.workshop import Workshop

END = 0
# Two blocks; documents of one token, and one that began in an earlier block.
BLOCKS = [
    [[3, 4, 5, END], [6, 7, 8, 9, 10, END], [END], [11, 12, 13, 2]],
    [[2, END], [END], [11, 12, 13, 14, 15, 16, 17, END], [6, 7, 3, 9]],
]


def model_of(objective: str, family: str, attn: str) -> torch.nn.Module:
    if objective == "ntp":
        return plain(family, attn=attn).train()
    return student(family, mixing=objective, attn=attn).train()


def row_of(tokens: list[int]) -> dict[str, Any]:
    """Tokens and labels that follow from the token alone; none at the last, as a teacher gives them."""
    ids = torch.tensor(tokens)
    labels = torch.stack((ids % CONCEPTS, (ids + 7) % CONCEPTS), dim=-1)
    labels[-1] = IGNORE
    return {"input_ids": ids, "concept_labels": labels}


def labelled(row: dict[str, Any]) -> list[bool]:
    batch = collate_blocks([row])
    return batch["concept_labels"][0].ne(IGNORE).any(-1).tolist()


def test_a_label_where_a_document_ends_does_not_train() -> None:
    """The teacher read on into the next document, which is not what is predicted there."""
    row = row_of(list(chain(*BLOCKS[0])))
    ends = [token == END for token in row["input_ids"].tolist()]
    assert sum(ends) == 3
    last = len(ends) - 1
    assert labelled(DocumentBlocks([row], END)[0]) == [not end and place < last for place, end in enumerate(ends)]
    assert labelled(row) == [place < last for place in range(len(ends))]  # documents that see one another


def test_labels_made_while_training_and_in_evaluation_end_with_their_document() -> None:
    row = DocumentBlocks([row_of(list(chain(*BLOCKS[0])))], END)[0]
    expected = collate_blocks([row])["concept_labels"]
    made = OnlineLabels.__new__(OnlineLabels)
    made.label = lambda input_ids, mask: row["concept_labels"][None]  # type: ignore[method-assign]
    added = made._add({"input_ids": row["input_ids"][None], "labels": row["labels"][None]})
    assert torch.equal(added["concept_labels"], expected)
    options = {"count": 1, "batch_size": 1, "device": torch.device("cpu")}
    (batch,) = batches(student("gpt2").eval(), [row], [row], **options)
    assert batch.concept_labels is not None
    assert torch.equal(batch.concept_labels, expected)


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text"])
@pytest.mark.parametrize("objective", ["ntp", "interleave", "residual"])
def test_a_block_is_the_sum_of_its_documents(objective: str, family: str, attn: str) -> None:
    """Losses and gradients, in training mode, of a batch of two blocks."""
    model = model_of(objective, family, attn)

    def run(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        terms, _ = loss_terms(default_objectives(model.config), model, collate_blocks(rows))
        sum(term.sum * term.weight.peak for term in terms.values() if term.weight is not None).backward()
        return {name: term.sum.detach() for name, term in terms.items() if term.weight is not None}

    packed = DocumentBlocks([row_of(list(chain(*documents))) for documents in BLOCKS], END)
    together = run([packed[0], packed[1]])
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    alone: dict[str, torch.Tensor] = {}
    for document in chain(*BLOCKS):
        for name, value in run([row_of(document)]).items():
            alone[name] = alone.get(name, torch.zeros(())) + value
    for name, value in together.items():
        torch.testing.assert_close(value, alone[name], rtol=1e-4, atol=1e-5, msg=name)
    for name, weight in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(gradients[name], weight.grad, rtol=1e-3, atol=1e-4, msg=name)


@pytest.fixture(scope="module")
def runs(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("masked")
    settings = {"document_masks": True, "evaluation_blocks": None}
    return {
        name: train(workshop.recipe(name, name=f"{name} masked", **settings), folder / name)
        for name in ("ntp", "cocomix")
    }


@pytest.mark.parametrize("objective", ["ntp", "cocomix"])
def test_a_run_is_evaluated_as_it_was_trained(runs: dict[str, Path], objective: str) -> None:
    manifest = read_json(runs[objective] / "manifest.json")
    assert manifest["document_masks"] is True
    result = evaluate_run(Run.open(runs[objective]), device=torch.device("cpu"))
    assert result.loss == pytest.approx(manifest["final"]["eval_loss"], rel=1e-4)
    assert result.targets < result.blocks * 15
    table = result.token_losses()
    assert len(table) == result.targets
    assert table["loss"].mean() == pytest.approx(result.loss)
    assert not table.duplicated(["block", "position"]).any()
    if objective == "cocomix":
        assert result.reliance is not None


def test_a_comparison_refuses_runs_that_differ_in_it(workshop: Workshop, runs: dict[str, Path]) -> None:
    masked = train(workshop.recipe("ntp", name="seen", evaluation_blocks=None), runs["ntp"].parent / "seen")
    with pytest.raises(CoCoMixError, match="document_masks"):
        compare([Run.open(masked), Run.open(runs["cocomix"])])
    assert len(compare([Run.open(run) for run in runs.values()]).arms) == 2


def test_kernels_that_would_ignore_it_are_refused(workshop: Workshop) -> None:
    with pytest.raises(ValidationError, match="flex_attention"):
        workshop.recipe("ntp", document_masks=True, model={"attn_implementation": "flash_attention_2"})

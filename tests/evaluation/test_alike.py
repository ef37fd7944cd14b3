"""Which runs may be compared: every field of a recipe is either an arm's own or refused by its name."""

from typing import Any

import pytest

from cocomix.evaluation import Run
from cocomix.evaluation.alike import ARM_FIELDS, SEED_FIELDS, refuse_unlike
from cocomix.runtime.errors import CoCoMixError
from cocomix.training.recipe import RunConfig
from tests.evaluation.conftest import WriteRun

STOP = {"shape": "stop", "value": 0.2, "until": 0.5}
TEACHER = {"model": "gpt2", "layer": 5}
# A second value of every field; those that need others to be valid bring them along.
OTHER: dict[str, dict[str, Any]] = {
    "name": {"name": "theirs"},
    "objective": {"objective": "ntp"},
    "baseline": {"objective": "ntp", "baseline": "matched"},
    "labels": {"labels": {"path": "others", "kind": "activation"}},
    "distillation": {"distillation": {"weight": 0.2}, "teacher": TEACHER},
    "auxiliary": {"auxiliary": {"other": 0.5}},
    "first_blocks": {"first_blocks": 7},
    "teacher": {"teacher": TEACHER},
    "model.insert_layer": {"model.insert_layer": 2},
    "model.num_concepts": {"model.num_concepts": 12},
    "model.concept_topk": {"model.concept_topk": 3},
    "model.concept_loss_weight": {"model.concept_loss_weight": 0.3},
    "model.mixing": {"model.mixing": "add"},
    "model.prediction": {"model.prediction": "hidden", "teacher": TEACHER},
    "model.hidden_loss": {"model.hidden_loss": "cosine"},
    "model.teacher_hidden_size": {"model.teacher_hidden_size": 8},
    "model.compression_init": {"model.compression_init": "zero"},
    "model.concept_weights": {"model.concept_weights": "softmax"},
    "model.add_mean": {"model.add_mean": False},
    "model.repeats": {"model.repeats": 2},
    "model.bigram_rows": {"model.bigram_rows": 9},
    "model.chunk_tokens": {"model.chunk_tokens": 2},
    "model.chunk_codes": {"model.chunk_codes": 9},
    "model.chunk_blocks": {"model.chunk_blocks": 2},
    "model.concept_rank": {"model.concept_rank": 4},
    "model.upper_positions": {"model.upper_positions": "token"},
    "model.head_chunk_size": {"model.head_chunk_size": 8},
    "model.pretrained": {"model.pretrained": "gpt2"},
    "model.revision": {"model.revision": "main"},
    "model.attn_implementation": {"model.attn_implementation": "eager"},
    "document_masks": {"document_masks": True},
    "tokens": {"tokens": 2000},
    "batch_tokens": {"batch_tokens": 320},
    "evaluation_blocks": {"evaluation_blocks": 8},
    "non_finite": {"non_finite": "skip"},
    # Fields of sections that are open: a few of each.
    "model.backbone.n_embd": {"model.backbone.n_embd": 32},
    "model.backbone.n_layer": {"model.backbone.n_layer": 4},
    "model.backbone.resid_pdrop": {"model.backbone.resid_pdrop": 0.1},
    "model.backbone.activation_function": {"model.backbone.activation_function": "relu"},
    "training.learning_rate": {"training.learning_rate": 0.5},
    "training.seed": {"training.seed": 0},
    "training.optim": {"training.optim": "muon"},
    "training.weight_decay": {"training.weight_decay": 0.3},
    "training.lr_scheduler_type": {"training.lr_scheduler_type": "linear"},
    "training.lr_scheduler_kwargs.min_lr_rate": {"training.lr_scheduler_kwargs.min_lr_rate": 0.5},
    "training.bf16": {"training.bf16": True},
}
OPEN = ("model.backbone", "training.")  # sections of any fields, tried above by examples
WHOLE = ("version", "data", "training")  # of one value only; compared by content


def test_every_field_of_the_schema_is_tried() -> None:
    tried = (*OTHER, *OPEN, *WHOLE)
    assert not [name for name in RunConfig.field_names() if name != "model" and not name.startswith(tried)]
    assert not [name for name in OTHER if not any(known.startswith(name) for known in RunConfig.field_names())
                and not name.startswith(OPEN)]  # fmt: skip


@pytest.mark.parametrize("field", OTHER)
def test_a_field_is_an_arms_own_or_refused_by_its_name(field: str, write_run: WriteRun) -> None:
    own = any(field == name or field.startswith(f"{name}.") for name in ARM_FIELDS)
    settings = {"objective": "cocomix", "mixing": "residual"}
    one = Run.open(write_run("ours", [5.0], **settings))
    two = Run.open(write_run("theirs", [5.0], recipe=OTHER[field], **settings))
    if own:
        refuse_unlike([one, two])
        return
    with pytest.raises(CoCoMixError, match=field.replace(".", r"\.")):
        refuse_unlike([one, two])
    if field != "evaluation_blocks":
        refuse_unlike([one, two], vary=[field])


@pytest.mark.parametrize("field", [field for field in OTHER if field not in ("name", *SEED_FIELDS)])
def test_between_seeds_of_an_arm_only_the_seed_differs(field: str, write_run: WriteRun) -> None:
    settings = {"objective": "cocomix", "mixing": "residual"}
    one = Run.open(write_run("ours", [5.0], **settings))
    changed = Run.open(write_run("ours", [5.0], folder="b", seed=1, recipe=OTHER[field], **settings))
    same = Run.open(write_run("ours", [5.0], folder="c", seed=1, **settings))
    refuse_unlike([one, same])
    with pytest.raises(CoCoMixError, match="'ours'"):
        refuse_unlike([one, changed])


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"data": {"fingerprint": "x" * 64}}, "data.fingerprint"),
        ({"data": {"tokenizer_fingerprint": "y" * 64}}, "data.tokenizer_fingerprint"),
        ({"data": {"block_size": 256}}, "data.block_size"),
        ({"training_dtype": "bfloat16"}, "training_dtype"),
        ({"evaluation_dtype": "bfloat16"}, "evaluation_dtype"),
        ({"evaluation_blocks": 8}, "evaluation_blocks"),
    ],
)
def test_what_a_recipe_leaves_to_data_and_machine(changes: dict[str, Any], field: str, write_run: WriteRun) -> None:
    one = Run.open(write_run("ntp", [6.0]))
    if "data" in changes:
        changes = {"data": {**one.manifest.data.model_dump(), **changes["data"]}}
    two = Run.open(write_run("ours", [5.0], recipe={"evaluation_blocks": 64}, **changes))
    with pytest.raises(CoCoMixError, match=field.replace(".", r"\.")):
        refuse_unlike([one, two])


def test_data_is_compared_by_content(write_run: WriteRun) -> None:
    runs = [Run.open(write_run(name, [6.0], recipe={"data": name})) for name in ("here", "there")]
    refuse_unlike(runs)
    for field in ("data", "data.fingerprint", "evaluation_dtype"):
        with pytest.raises(CoCoMixError, match=field):
            refuse_unlike(runs, vary=[field])
    with pytest.raises(CoCoMixError, match="colour"):
        refuse_unlike(runs, vary=["colour"])


def test_a_default_that_is_written_out_is_no_difference(write_run: WriteRun) -> None:
    written = {"training.weight_decay": 0.1, "training.max_grad_norm": 1.0, "training.logging_steps": 10}
    refuse_unlike([Run.open(write_run("a", [6.0])), Run.open(write_run("b", [6.0], recipe=written))])


def test_labels_of_two_seeds_are_compared_by_content(write_run: WriteRun) -> None:
    def run(seed: int, place: str, fingerprint: str) -> Run:
        labels = {"path": place, "fingerprint": fingerprint}
        changes = {"objective": "cocomix", "mixing": "add", "labels": labels, "seed": seed}
        return Run.open(
            write_run("ours", [5.0], folder=f"{place}{fingerprint}", recipe={"labels.path": place}, **changes)
        )

    refuse_unlike([run(0, "a", "f"), run(1, "b", "f")])
    with pytest.raises(CoCoMixError, match=r"labels\.path.*f.*g"):
        refuse_unlike([run(0, "c", "f"), run(1, "d", "g")])


def test_a_run_is_named_once(write_run: WriteRun) -> None:
    runs = [Run.open(write_run("ours", [5.0], folder=folder)) for folder in ("one", "copy")]
    with pytest.raises(CoCoMixError, match=r"one.*copy.*'ours'.*seed 0"):
        refuse_unlike(runs)

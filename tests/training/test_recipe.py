import inspect
import re
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError, create_model

import cocomix
from cocomix.concepts import DictionaryConfig, RandomConfig, TeacherConfig
from cocomix.experiments.sweep_plan import load_plan
from cocomix.model.configuration import CoCoMixConfig, Count
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.section import Section, settings_of
from cocomix.training.arguments import training_arguments
from cocomix.training.objectives import Schedule
from cocomix.training.recipe import DistillationConfig, RunConfig, StudentConfig, load_recipe, save_recipe
from cocomix.training.recipe_data import LabelsConfig
from cocomix.training.recipe_file import MissingRecipe
from cocomix.training.student import plan_run

SOURCE = Path(cocomix.__file__).parent
MINIMAL = "data: data/x\nobjective: ntp\nmodel: {backbone: {model_type: gpt2}}\n"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def refused(path: Path, match: str, overrides: tuple[str, ...] = ()) -> None:
    with pytest.raises(CoCoMixError, match=match) as caught:
        load_recipe(path, overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("section", [RunConfig, StudentConfig, TeacherConfig, DictionaryConfig, DistillationConfig])
def test_every_field_is_read_somewhere(section: Any) -> None:
    text = "\n".join(path.read_text() for path in SOURCE.rglob("*.py"))
    for field in section.model_fields:
        assert re.search(rf"\.{field}\b", text), f"{section.__name__}.{field} is read by nothing"


def test_defaults() -> None:
    config = RunConfig.model_validate(yaml.safe_load(MINIMAL))
    assert (config.model.concept_topk, config.model.concept_loss_weight) == (32, Schedule(value=0.1))
    assert config.model.mixing == "interleave"
    assert config.labels is None


def test_a_recipe_is_frozen(tmp_path: Path) -> None:
    config = load_recipe(write(tmp_path / "r.yaml", MINIMAL))
    with pytest.raises(ValueError, match="frozen"):
        config.tokens = 3


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        ("tokenz: 3", "tokenz is not a known field"),
        ("teacher: {model: gpt2, layer: 5, colour: red}", r"teacher\.colour is not a known field"),
        ("teacher: {model: gpt2}", r"teacher\.layer is missing"),
        ("teacher: {model: gpt2, layer: -1}", r"teacher\.layer"),
        ("tokens: 0", "tokens"),
        ("tokens: many", "tokens"),
        ("objective: sleep", "objective"),
        ("evaluation_blocks: 0", "evaluation_blocks"),
        ("training: 3", "training"),
        ("labels: {kind: attribution, sign: sideways}", r"labels\.sign"),
        ("labels: {kind: random, k: 0}", r"labels\.k"),
        ("labels: {kind: randon}", "randon"),
        ("labels: {k: 3}", "kind"),
        ("labels: {}", "labels"),
        ("labels: {kind: random, sign: abs}", r"labels\.sign is not a known field"),
        ("tokens: 5\ntraining: {max_steps: 3}", "exclude each other"),
        ("tokens: 5\ntraining: {num_train_epochs: 3}", "exclude each other"),
        ("objective: cocomix", "needs labels"),
        ("objective: cocomix\nlabels: {kind: activation}", "labels: teacher and dictionary"),
        ("objective: cocomix\nlabels: online", "labels: teacher and dictionary"),
        ("objective: cocomix\nlabels: x\nbaseline: matched", "baseline: matched needs objective: ntp"),
        ("distillation: {}", r"distillation\.targets: online needs teacher:"),
        ("distillation: {weight: 0}", r"distillation\.weight"),
        ("distillation: {temperature: 2}", r"distillation\.temperature is not a known field"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, extra: str, match: str) -> None:
    text = MINIMAL.replace("objective: ntp\n", "") if extra.startswith("objective") else MINIMAL
    refused(write(tmp_path / "r.yaml", text + extra), match)


def test_a_plan_of_a_sweep_is_no_recipe(tmp_path: Path) -> None:
    plan = write(tmp_path / "plan.yaml", "baseline: ntp\nseeds: [0, 1]\narms: {ntp: r.yaml}\n")
    refused(plan, r"sweep's plan.*`cocomix sweep .*plan\.yaml`")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ("{stream: [x], heldout: y}", r"data: text is no longer tokenized .*`cocomix push`.*cache_gb"),
        ("{path: x, cache_gb: 0}", r"data\.corpus\.cache_gb"),
        ("{cache_gb: 3}", r"data\.corpus\.path is missing"),
        ("{path: 's3://a:b@bucket/data', cache_gb: 3}", "holds an access key"),
    ],
)
def test_what_is_wrong_with_the_data_is_named(tmp_path: Path, data: str, match: str) -> None:
    refused(write(tmp_path / "r.yaml", MINIMAL.replace("data: data/x", f"data: {data}")), match)


@pytest.mark.parametrize(
    ("model", "match"),
    [
        ("{backbone: {model_type: gpt2}, insert_layer: -1}", r"model\.insert_layer"),
        ("{backbone: {model_type: gpt2}, mixing: shake}", r"model\.mixing"),
        ("{backbone: {model_type: gpt2}, num_concepts: 0}", r"model\.num_concepts"),
        ("{backbone: {model_type: gpt2}, concept_topk: 0}", r"model\.concept_topk"),
        ("{backbone: {model_type: gpt2}, concept_loss_weight: -0.1}", r"model\.concept_loss_weight"),
        ("{backbone: {model_type: gpt2}, prediction: tokens}", r"model\.prediction"),
        ("{backbone: {model_type: gpt2}, hidden_loss: l3}", r"model\.hidden_loss"),
        ("{backbone: {model_type: gpt2}, compression_init: tiny}", r"model\.compression_init"),
        ("{insert_layer: 1}", r"model: backbone or pretrained is needed"),
        ("{backbone: 3}", r"model\.backbone"),
    ],
)
def test_what_is_wrong_with_the_model_is_named(tmp_path: Path, model: str, match: str) -> None:
    refused(write(tmp_path / "r.yaml", f"data: x\nobjective: ntp\nmodel: {model}\n"), match)


def test_cocomix_without_a_concept_loss_needs_no_labels(tmp_path: Path) -> None:
    text = MINIMAL.replace("ntp", "cocomix").replace("}}", "}, concept_loss_weight: 0}")
    assert load_recipe(write(tmp_path / "r.yaml", text)).labels is None


def test_models_without_concepts_need_no_labels_but_what_they_are_told(tmp_path: Path) -> None:
    text = MINIMAL.replace("ntp", "cocomix")
    pause = load_recipe(write(tmp_path / "p.yaml", text.replace("}}", "}, mixing: pause}")))
    assert (pause.labels, pause.has_concepts, pause.arm) == (None, False, "pause")
    hidden = text.replace("}}", "}, prediction: hidden}")
    refused(write(tmp_path / "h.yaml", hidden), "prediction: hidden needs teacher:")
    both = text.replace("}}", "}, prediction: hidden, mixing: pause}")
    refused(write(tmp_path / "b.yaml", both), "exclude each other")
    told = load_recipe(write(tmp_path / "t.yaml", hidden + "teacher: {model: t, layer: 1}\n"))
    assert (told.has_concepts, told.predicts_hidden, told.arm) == (False, True, "cocomix, hidden l2")
    ignored = load_recipe(
        write(tmp_path / "i.yaml", text.replace("cocomix", "ntp").replace("}}", "}, prediction: hidden}"))
    )
    assert (ignored.predicts_hidden, ignored.arm) == (False, "ntp")


@pytest.mark.parametrize(
    ("overrides", "arm"),
    [
        (("objective=ntp",), "ntp"),
        (("objective=ntp", "baseline=matched", "distillation={weight: 0.2}"), "ntp, matched, kd, λ_KD 0.2"),
        ((), "cocomix"),
        (("model.mixing=none",), "cocomix, prediction only"),
        (("model.mixing=residual", "model.concept_loss_weight=0"), "cocomix, residual, mixing only"),
        (("model.compression_init=zero", "model.mixing=add"), "cocomix, add, zero compression"),
        (("model.concept_rank=8", "model.mixing=add"), "cocomix, add, rank 8"),
        (("model.concept_weights=softmax", "model.mixing=add"), "cocomix, add, softmax"),
        (("model.mixing=pause", "model.compression_init=zero", "distillation={}"), "pause, kd"),
        (("model.prediction=hidden", "model.hidden_loss=cosine"), "cocomix, hidden cosine"),
        (("model.mixing=plain", "auxiliary={nitp: null}"), "plain, nitp"),
        (("model.mixing=add", "model.bigram_rows=1000"), "cocomix, add, bigram table, 1,000 rows"),
        (("objective=ntp", "baseline=flops", "model.bigram_rows=9"), "ntp, bigram table, 9 rows, same FLOPs"),
        (("model.mixing=loop", "model.repeats=3"), "loop"),
        (("objective=ntp", "baseline=flops", "model.mixing=loop", "model.repeats=2"), "ntp, same FLOPs"),
    ],
)
def test_arms_have_names(tmp_path: Path, overrides: tuple[str, ...], arm: str) -> None:
    path = write(tmp_path / "r.yaml", MINIMAL.replace("ntp", "cocomix") + "labels: x\nteacher: {model: t, layer: 1}\n")
    assert load_recipe(path, overrides).arm == arm


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("lambda=0.2", "model.concept_loss_weight"),
        ("model.lambda=0.2", "model.concept_loss_weight"),
        ("lr=1e-3", "training.learning_rate"),
        ("insert_layer=3", "model.insert_layer"),
        ("model.concept_los_weight=1", "model.concept_loss_weight"),
        ("modle.mixing=add", "model"),
        ("tokenz=5", "tokens"),
        ("teacher={modle: x, model: y, layer: 1}", "teacher.model"),
        ("labels={kind: attribution, sgin: abs}", "labels.sign"),
        ("labels={kind: random, tacher: {model: x, layer: 1}}", "labels.teacher"),
        ("labels={kind: random, teacher: {modle: x, model: y, layer: 1}}", "labels.teacher.model"),
        ("labels={path: x, pth: y, kind: random}", "labels.path"),
        ("sign=abs", "labels.sign"),
        ("selection=random", "labels.kind"),
        ("sae=x", "labels.dictionary"),
    ],
)
def test_a_misspelt_field_is_answered_with_the_right_one(tmp_path: Path, override: str, meant: str) -> None:
    with pytest.raises(CoCoMixError, match=rf"did you mean {re.escape(meant)}\?"):
        load_recipe(write(tmp_path / "r.yaml", MINIMAL), [override])


def test_a_misspelt_training_argument_is_answered_with_the_right_one(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path / "r.yaml", MINIMAL), ["training.learning_rat=3"])
    with pytest.raises(CoCoMixError, match=r"did you mean learning_rate\?"):
        training_arguments(recipe, tmp_path, 8)


def test_the_version_of_the_format_is_checked(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path / "r.yaml", f"version: 1\n{MINIMAL}")) == load_recipe(
        write(tmp_path / "old.yaml", MINIMAL)
    )
    with pytest.raises(CoCoMixError, match="version 1, not 2"):
        load_recipe(write(tmp_path / "new.yaml", f"version: 2\n{MINIMAL}"))


def test_a_shipped_recipe_that_was_not_copied_is_offered(tmp_path: Path) -> None:
    with pytest.raises(MissingRecipe, match="cocomix init demo`"):
        load_recipe(tmp_path / "recipes" / "demo.yaml")
    with pytest.raises(MissingRecipe, match="cocomix init arms/pause`"):
        load_recipe(tmp_path / "recipes" / "arms" / "pause.yaml")
    with pytest.raises(MissingRecipe, match="cocomix init paper_cpu`"):
        load_plan(tmp_path / "paper_cpu.yaml")
    with pytest.raises(MissingRecipe, match="cocomix init --list` lists"):
        load_recipe(tmp_path / "mine.yaml")


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    refused(tmp_path / "missing.yaml", "missing.yaml does not exist")
    refused(tmp_path, "cannot be read")
    refused(write(tmp_path / "bad.yaml", "a: [1, 2\nb: }"), r"bad\.yaml is not valid YAML")
    refused(write(tmp_path / "list.yaml", "- a\n- b"), r"list\.yaml is no recipe")
    refused(write(tmp_path / "empty.yaml", ""), r"empty\.yaml is no recipe")
    refused(write(tmp_path / "tag.yaml", "a: !!python/object/apply:os.system ['true']"), r"tag\.yaml is not valid YAML")
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    refused(tmp_path / "binary.yaml", "cannot be read|not valid YAML")


def test_base_is_merged_key_by_key(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", MINIMAL + "tokens: 10\ntraining: {learning_rate: 1.0e-3, seed: 4}\n")
    write(tmp_path / "sub" / "b.yaml", "base: ../a.yaml\ntraining: {seed: 5}\n")
    write(tmp_path / "c.yaml", "base: sub/b.yaml\nmodel: {backbone: {n_layer: 2}}\ntokens: 20\n")
    config = load_recipe(tmp_path / "c.yaml")
    assert config.training == {"learning_rate": 1e-3, "seed": 5}
    assert config.model.backbone == {"model_type": "gpt2", "n_layer": 2}
    assert config.tokens == 20


def test_settings_of_labels_are_laid_over_their_folder(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", MINIMAL + "labels: x\n")
    arm = write(tmp_path / "b.yaml", "base: a.yaml\nlabels: {kind: random}\n")
    for found in (
        load_recipe(arm, ["labels.k=3"]),
        load_recipe(tmp_path / "a.yaml", ["labels.kind=random", "labels.k=3"]),
    ):
        assert found.labels == LabelsConfig(path=Path("x"), labeller=RandomConfig(k=3))
        assert (found.label_folders, found.online_labels) == ((Path("x"),), None)
    folder = load_recipe(arm, ["labels=y"]).labels
    assert folder == LabelsConfig(path=Path("y"))
    assert load_recipe(arm, ["labels.path=null"]).online_labels == RandomConfig()


def test_circles_and_missing_bases_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "base: b.yaml\n")
    write(tmp_path / "b.yaml", "base: a.yaml\n")
    refused(tmp_path / "a.yaml", "its own base")
    refused(write(tmp_path / "self.yaml", "base: self.yaml\n"), "its own base")
    refused(write(tmp_path / "c.yaml", "base: nowhere.yaml\n"), r"nowhere\.yaml does not exist")


def test_overrides_are_typed_and_come_last(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", MINIMAL + "tokens: 10\n")
    overrides = (
        "tokens=200_000",
        "name=0815",
        "training.learning_rate=2e-3",
        "training.bf16=true",
        "training.lr_scheduler_kwargs.min_lr=1E-5",
        "model.backbone.n_layer=2",
        "model.backbone.activation_function=relu",
        "labels=null",
        "evaluation_blocks=3",
        "evaluation_blocks=4",
        "teacher={model: a=b, layer: 1}",
    )
    config = load_recipe(path, (*overrides[:1], "name='0815'", *overrides[2:]))
    assert config.tokens == 200_000
    assert config.name == "0815"
    assert config.training == {"learning_rate": 2e-3, "bf16": True, "lr_scheduler_kwargs": {"min_lr": 1e-5}}
    assert config.model.backbone == {"model_type": "gpt2", "n_layer": 2, "activation_function": "relu"}
    assert config.labels is None
    assert config.evaluation_blocks == 4
    assert config.teacher == TeacherConfig(model="a=b", layer=1)


@pytest.mark.parametrize("override", ["tokens", "=3", "tokens=[", "model=3", "nonsense.deep=1", "tokens.a=1"])
def test_overrides_that_make_no_sense(tmp_path: Path, override: str) -> None:
    refused(write(tmp_path / "r.yaml", MINIMAL), re.split("[.=]", override)[0] or "--set", (override,))


OLD = {
    "data": "d",
    "model": {"backbone": {"model_type": "gpt2"}},
    "teacher": {"model": "t", "layer": 2},
    "dictionary": {"path": "p"},
}
MADE = {"teacher": {"model": "t", "layer": 2}, "dictionary": {"path": "p"}}


@pytest.mark.parametrize(
    ("old", "labels"),
    [
        ({"labels": "online"}, {"kind": "attribution", **MADE}),
        ({"labels": "x"}, {"path": "x", "kind": "attribution", **MADE}),
        (
            {"labels": "x", "attribution": {"sign": "abs", "k": 3, "score_dtype": "float32"}},
            {"path": "x", "kind": "attribution", "sign": "abs", "k": 3, **MADE},
        ),
        (
            {"labels": "online", "attribution": {"selection": "random", "seed": 4, "sign": "abs", "dtype": "float16"}},
            {"kind": "random", "seed": 4, "dtype": "float16", **MADE},
        ),
        ({"labels": "x", "attribution": {"selection": "activation"}}, {"path": "x", "kind": "activation", **MADE}),
        ({"labels": {"path": "x", "kind": "attribution", "sign": "abs"}, "attribution": {"selection": "activation"}},
         {"path": "x", "kind": "activation", **MADE}),
        ({"labels": {"path": "x", "kind": "random", "dictionary": {"path": "q", "sae_id": "i"}}},
         {"path": "x", "kind": "random", "teacher": MADE["teacher"], "dictionary": {"path": "p", "sae_id": "i"}}),
        ({"labels": "x", "dictionary": None, "attribution": None}, "x"),
        ({"objective": "ntp", "labels": None}, None),
    ],
)  # fmt: skip
def test_the_old_spelling_of_labels_is_read_as_the_new(old: dict[str, Any], labels: Any) -> None:
    found = RunConfig.model_validate({**OLD, **old})
    new = {"data": OLD["data"], "model": OLD["model"], **old_rest(old), "labels": labels}
    assert found == RunConfig.model_validate(new)
    assert found.teacher is None or labels == "x"


def old_rest(old: dict[str, Any]) -> dict[str, Any]:
    """What a recipe keeps beside `labels`: without a dictionary the teacher cannot be meant for labels."""
    rest = {name: value for name, value in old.items() if name not in ("labels", "dictionary", "attribution")}
    return rest if old.get("dictionary", 1) is not None else {**rest, "teacher": OLD["teacher"]}


def test_the_old_teacher_stays_for_distillation_and_hidden_states() -> None:
    for change in ({"distillation": {}}, {"model": {**OLD["model"], "prediction": "hidden"}}):
        found = RunConfig.model_validate({**OLD, "labels": "online", **change})
        assert found.teacher == TeacherConfig(model="t", layer=2)
        assert found.labels is not None
        assert found.labels.teacher == found.teacher


def test_a_saved_recipe_holds_the_new_spelling(tmp_path: Path) -> None:
    save_recipe(RunConfig.model_validate({**OLD, "labels": "online", "attribution": {"k": 3}}), tmp_path / "r.yaml")
    values = yaml.safe_load((tmp_path / "r.yaml").read_text())
    assert not {"dictionary", "attribution"} & values.keys()
    assert (values["labels"]["kind"], values["labels"]["k"], values["labels"]["path"]) == ("attribution", 3, None)


def test_a_mixture_with_labels_of_its_own_says_once_how_they_are_made() -> None:
    corpora = [{"path": name, "weight": 1, "labels": f"{name}/labels"} for name in "ab"]
    found = RunConfig.model_validate({**OLD, "data": {"mixture": corpora}})
    assert found.label_folders == (Path("a/labels"), Path("b/labels"))
    assert found.online_labels is None
    assert found.labels is not None
    assert found.labels.dictionary == DictionaryConfig(path="p")


def test_settings_of_the_model_are_the_arguments_of_its_configuration() -> None:
    """Name by name, with type, default and description; a new argument is a setting without being written again."""

    class Wider(CoCoMixConfig):
        """One argument more.

        Args:
            width: of what
                is new.
            depth: likewise.
        """

        def __init__(self, width: Literal["narrow", "wide"] = "narrow", depth: Count = 3, **kwargs: Any) -> None:
            super().__init__(**kwargs)

    new: Any = create_model("New", __base__=Section, **settings_of(Wider))
    assert new(width="wide").model_dump() == {"width": "wide", "depth": 3}
    assert new.model_fields["width"].description == "of what is new."
    for wrong in ({"width": "huge"}, {"depth": 0}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            new(**wrong)
    defaults = inspect.signature(CoCoMixConfig).parameters
    changed = {"backbone", "num_concepts", "concept_loss_weight"}
    for name in defaults.keys() - {"kwargs"}:
        field = StudentConfig.model_fields[name]
        assert name in changed or field.default == defaults[name].default, name
        assert name in changed or field.description, name
    assert set(StudentConfig.model_fields) - defaults.keys() == {"pretrained", "revision", "attn_implementation"}


def test_every_setting_of_the_model_reaches_its_configuration() -> None:
    values = {"insert_layer": 1, "concept_topk": 3, "num_concepts": 40, "concept_loss_weight": 0.7, "add_mean": False}
    values |= {"mixing": "add", "compression_init": "zero", "upper_positions": "token", "head_chunk_size": 5}
    values |= {"concept_rank": 7, "concept_weights": "softmax", "repeats": 2, "bigram_rows": 9}
    values |= {"chunk_tokens": 3, "chunk_codes": 5, "chunk_blocks": 2}
    hidden = {"prediction": "hidden", "hidden_loss": "l1", "teacher_hidden_size": 8}
    known = inspect.signature(CoCoMixConfig).parameters.keys() - {"kwargs", "backbone"}
    assert known == values.keys() | hidden.keys()
    for settings_ in (values, {**values, **hidden, "concept_rank": None, "concept_weights": "logits"}):
        model = {"backbone": {"model_type": "gpt2", "n_layer": 2}, **settings_}
        recipe = {"data": "x", "labels": "y", "teacher": {"model": "z", "layer": 1}, "model": model}
        config = plan_run(RunConfig.model_validate(recipe)).config
        passed = settings_.keys() - ({"num_concepts", "concept_topk"} if settings_ is not values else set())
        assert {name: getattr(config, name) for name in passed} == {name: settings_[name] for name in passed}


@settings(max_examples=30, deadline=None)
@given(
    rate=st.floats(1e-12, 1.0),
    weight=st.floats(0.0, 10.0),
    tokens=st.none() | st.integers(1, 10**14),
    name=st.none() | st.text(max_size=20).filter(lambda text: text.isprintable()),
    kwargs=st.dictionaries(st.text("abc", min_size=1), st.booleans() | st.integers() | st.floats(allow_nan=False)),
)
def test_a_saved_recipe_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, rate: float, weight: float, tokens: Any, name: Any, kwargs: Any
) -> None:
    config = RunConfig.model_validate(
        {
            "name": name,
            "objective": "cocomix",
            "data": "data/é x",
            "labels": {
                "path": "labels",
                "kind": "attribution",
                "teacher": {"model": "m", "layer": 3, "revision": "1e5"},
                "dictionary": {"path": "p", "sae_id": "0"},
                "k": 3,
                "sign": "abs",
            },
            "model": {"backbone": {"model_type": "gpt2", "x": rate}, "concept_loss_weight": weight},
            "tokens": tokens,
            "training": {"learning_rate": rate, "lr_scheduler_kwargs": kwargs},
        }
    )
    path = tmp_path_factory.getbasetemp() / "recipe.yaml"
    save_recipe(config, path)
    assert load_recipe(path) == config

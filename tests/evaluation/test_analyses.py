"""`cocomix analyse`, and what `eval` and `train` print beside it."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from cocomix.evaluation import RunEvaluation
from cocomix.evaluation.analyses import Analyses
from cocomix.evaluation.pages import NOTHING
from cocomix.evaluation.run_evaluation import reliance_table
from cocomix.training import Run
from tests.command_line import Cli
from tests.workshop import Workshop

SCHEMAS = Path(__file__).parent / "schemas"


@pytest.mark.parametrize(("model", "name"), [(RunEvaluation, "evaluation"), (Analyses, "analyses")])
def test_the_json_of_a_verb_is_that_of_its_schema(model: type[BaseModel], name: str) -> None:
    """What others read: a field that changes its name or type is a new `format_version`, and a new schema here."""

    def without_words(schema: Any) -> Any:
        if isinstance(schema, dict):
            return {key: without_words(value) for key, value in schema.items() if key not in ("description", "title")}
        return [without_words(value) for value in schema] if isinstance(schema, list) else schema

    file = SCHEMAS / f"{name}.json"
    assert without_words(model.model_json_schema()) == without_words(json.loads(file.read_text()))


def test_a_page_of_analyses(workshop: Workshop, tmp_path: Path, cli: Cli) -> None:
    output = tmp_path / "analyses"
    result = cli("analyse", workshop.cocomix_run, workshop.ntp_run, "--output", output, "--json")
    values = Analyses.model_validate_json(result.out)
    assert values == Analyses.model_validate_json((output / "analyses.json").read_text())
    (one,) = values.runs
    assert values.controls == (Run.open(workshop.ntp_run).manifest.name,)
    assert set(one.reliance.kinds) == {"mean", "shuffle", "shuffle_same_token", "token_table", "zero"}
    assert one.concepts.recall_by_frequency
    assert [each.group for each in values.gradients[0]][-1] == "all"
    assert all(each.low <= each.cosine <= each.high for each in values.gradients[0])
    norms = one.concepts.compression
    assert 0 <= norms.unused <= 1
    assert norms.low <= norms.median <= norms.high
    html = (output / "analyses.html").read_text(encoding="utf-8")
    for heading in (
        "Is the model any good?",
        "Does it use its concepts?",
        "Do its two losses agree?",
        "On which tokens does the loss fall?",
    ):
        assert heading in html
    cli.refuses("analyse", workshop.ntp_run, "-o", tmp_path / "none", "-q", says="none of the runs mixes concepts in")
    cli.refuses("analyse", workshop.cocomix_run, "-o", output, "-q", says="already exists")
    cli.refuses("analyse", *[workshop.cocomix_run] * 2, "-o", tmp_path / "twice", "-q", says="two runs")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["analyses"]


def test_shares_of_the_gain_need_a_control_that_is_worse(workshop: Workshop, tmp_path: Path, cli: Cli) -> None:
    alone = Analyses.model_validate_json(cli("analyse", workshop.cocomix_run, "-o", tmp_path / "a", "--json").out)
    both = (workshop.cocomix_run, workshop.ntp_run)
    beside = Analyses.model_validate_json(cli("analyse", *both, "-o", tmp_path / "b", "--json").out)
    assert alone.controls == (None,)
    assert all(each.share_of_gain is None for each in alone.runs[0].reliance.kinds.values())
    shares = [each.share_of_gain is not None for each in beside.runs[0].reliance.kinds.values()]
    page = (tmp_path / "b" / "analyses.html").read_text(encoding="utf-8")
    assert ("no shares of a gain" in page) != all(shares)
    evaluated = json.loads(cli("eval", workshop.ntp_run, "--json").out)
    assert all(shares) == any(shares) == (evaluated["loss"] > beside.runs[0].loss)


def test_one_document_has_no_interval(workshop: Workshop, tmp_path: Path, cli: Cli) -> None:
    output, blocks = tmp_path / "a", ("--limit-blocks", 2)
    values = Analyses.model_validate_json(cli("analyse", workshop.cocomix_run, "-o", output, *blocks, "--json").out)
    reliance = values.runs[0].reliance
    alone = values.runs[0].model_copy(update={"reliance": reliance.model_copy(update={"documents": 1})})
    assert {row[2] for row in reliance_table(alone).rows} == {NOTHING}
    several = values.runs[0].model_copy(update={"reliance": reliance.model_copy(update={"documents": 2})})
    assert NOTHING not in {row[2] for row in reliance_table(several).rows}


def test_eval_prints_what_it_measured_and_warns(workshop: Workshop, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    values = RunEvaluation.model_validate_json(cli("eval", workshop.cocomix_run, "--json").out)
    printed = cli("eval", workshop.cocomix_run)
    for number in (values.loss, values.references.bigram, values.references.fourgram):
        assert f"{number:.4f}" in printed.out
    for name in ("static list", "current-token table", "the same token"):
        assert name in " ".join(printed.out.split())
    assert not any(len(word.rpartition(".")[2]) > 6 for word in printed.out.split() if "0." in word)
    assert "{" not in printed.out
    assert ("bigram" in printed.err) == (values.loss > values.references.bigram)
    predicted = values.concepts
    assert ("--num-concepts" in printed.err) == (2 * predicted.concepts_predicted < predicted.num_concepts)


def test_train_ends_with_the_references(workshop: Workshop, tmp_path: Path, cli: Cli) -> None:
    printed = cli("train", workshop.recipe_file(tmp_path / "r.yaml", "ntp", tokens=512), "-o", tmp_path / "run")
    run = Run.open(tmp_path / "run")
    assert f"{run.manifest.final.eval_loss:.4f}" in printed.out
    for order in ("unigram", "bigram", "trigram", "fourgram"):
        assert order in printed.out
    assert "worse than a bigram table" in printed.err

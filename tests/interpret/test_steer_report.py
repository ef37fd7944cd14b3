"""`cocomix steer-eval` on a toy run: what it writes, which statistics it quotes, and what it refuses."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import wilcoxon

from cocomix.concepts import AlignedTeacher, ContextualConfig, DictionaryConfig, TeacherConfig
from cocomix.data import Tokens
from cocomix.evaluation import Run
from cocomix.interpret import open_run_teacher
from cocomix.interpret.steer_arms import paired_difference
from cocomix.labelling import Labels, label_data
from cocomix.training import train
from tests.workshop import CONCEPTS, prepare_toy

SMALL = ("--factors", "0,1,4", "--prompts", 2, "--prompt-tokens", 4, "--new-tokens", 6, "--num-concepts", 7)


def lifts_by_hand(run, concepts):
    """log(share of a token among those that follow a concept's labels ÷ its share), 100 tokens added, one by one.

    What stands behind an end-of-document token begins another document and follows nothing.
    """
    tokens, labels = Tokens.open(run.manifest.data.path), Labels.open(run.manifest.labels.path)
    counts = np.zeros((len(concepts), tokens.manifest.vocab_size))
    every = np.ones(tokens.manifest.vocab_size)
    for block, named in zip(tokens.split("train"), labels.split("train"), strict=True):
        ids = block["input_ids"].tolist()
        for token in ids:
            every[token] += 1
        for found, here, after in zip(named["concept_labels"].tolist(), ids, ids[1:], strict=False):
            for place, concept in enumerate(concepts):
                counts[place, after] += concept in found and here != tokens.manifest.eos_token_id
    share = every / every.sum()
    return [np.log((row + 100 * share) / (row.sum() + 100) / share) for row in counts]


@pytest.mark.usefixtures("progress_at_once")
def test_a_run_is_measured_from_its_folder_alone(workshop, cli, tmp_path):
    output = tmp_path / "steering"
    result = cli("steer-eval", workshop.cocomix_run, "-o", output, *SMALL, "--json")
    for phase in ("reading concepts: 0 of", "steering: 0 of"):
        assert phase in result.err
    values = json.loads(result.out)
    assert values == json.loads((output / "steering.json").read_text())
    assert (values["format_version"], values["run"], values["teacher"]) == (3, "mixed", str(workshop.teacher))
    assert values["settings"]["factors"] == [0.0, 1.0, 4.0]
    assert values["settings"]["turn"] == "add"
    assert len(values["concepts"]) == 7
    assert all(concept["amount"] > 0 and 0 < concept["predicted"] <= 0.5 for concept in values["concepts"])
    texts = pq.read_table(output / "texts.parquet").to_pylist()
    assert len(texts) == 7 * (3 + 3 + 1) * 2
    concepts = values["settings"]["concepts"]
    for arm in ("student", "teacher", "prompt"):
        own = [
            text["activation"][concepts.index(text["turned"])]
            for text in texts
            if text["arm"] == arm and text["factor"] == (0.0 if arm == "prompt" else 4.0)
        ]
        assert values["curves"][arm]["own"][-1] == pytest.approx(np.mean(own))
    lifts = lifts_by_hand(Run.open(workshop.cocomix_run), concepts)
    for text in texts[::9]:
        found = [np.mean([of[token] for token in text["tokens"][4:]]) for of in lifts]
        assert text["following"] == pytest.approx(found)
    own = [text["following"][concepts.index(text["turned"])] for text in texts if text["arm"] == "prompt"]
    assert values["curves"]["prompt"]["own_follow"] == pytest.approx([np.mean(own)])
    page = (output / "steering.html").read_text()
    shown = cli("steer-eval", workshop.cocomix_run, "-o", tmp_path / "again", *SMALL).out
    assert json.loads((tmp_path / "again" / "steering.json").read_text()) == values
    for test in values["tests"].values():  # the p-values that are printed are those of the page and of the file
        assert f"{test['p_value']:.2g}" in page
        assert f"{test['p_value']:.2g}" in shown
    cli.refuses("steer-eval", workshop.cocomix_run, "-o", output, *SMALL, says="already exists")


def test_a_teacher_of_another_tokenizer_reads_and_writes_in_its_own(workshop, cli, tmp_path):
    data = prepare_toy(workshop.corpus, tmp_path / "data", vocab_size=280).path
    source = TeacherConfig(model=str(workshop.teacher), layer=1)
    config = ContextualConfig(teacher=source, dictionary=DictionaryConfig(path=str(workshop.dictionary)))
    label_data(data, config, tmp_path / "labels", force=True)
    run = train(
        workshop.recipe("cocomix", name="other", data=str(data), labels=str(tmp_path / "labels")), tmp_path / "run"
    )
    opened = open_run_teacher(Run.open(run), Tokens.open(data))
    assert isinstance(opened, AlignedTeacher)
    values = json.loads(cli("steer-eval", run, "-o", tmp_path / "out", *SMALL, "--json").out)
    assert len(values["concepts"]) == 7
    assert values["curves"]["teacher"]["own"] != values["curves"]["teacher"]["others"]
    tokenizers = {"teacher": Run.open(workshop.teacher).tokenizer()}
    for row in pq.read_table(tmp_path / "out" / "texts.parquet").to_pylist():
        written_by = tokenizers.get(row["arm"], Run.open(run).tokenizer())
        assert row["text"] == written_by.decode(row["tokens"])
        assert min(row["activation"]) >= 0
        assert (row["following"] is None) == (row["arm"] == "teacher")  # which writes other tokens
    assert "own_follow" not in values["curves"]["teacher"]
    (tmp_path / "labels").rename(tmp_path / "elsewhere")
    cli.refuses("steer-eval", run, "-o", tmp_path / "again", *SMALL, says="labels")


def test_tests_are_scipys():
    values = np.array([0.3, -0.1, 0.5, 0.2, 0.4, 0.1, 0.6, 0.2])
    found = paired_difference(values)
    assert found.p_value == wilcoxon(values).pvalue
    assert found.mean == pytest.approx(values.mean())
    assert found.low < found.mean < found.high
    assert (found.positive, found.concepts) == (7, 8)
    assert paired_difference(values[:5]).p_value is None
    assert paired_difference(np.zeros(8)).p_value == 1.0


def test_what_cannot_be_measured_is_said_and_leaves_nothing(workshop, cli, tmp_path):
    run, output = workshop.cocomix_run, tmp_path / "steering"
    for arguments, says in (
        ([workshop.ntp_run, *SMALL], "has no concepts"),
        ([run, *SMALL, "--concepts", f"1,{CONCEPTS}"], f"concept {CONCEPTS} does not exist"),
        ([run, *SMALL, "--concepts", "3,x"], "--concepts 3,x"),
        ([run, *SMALL, "--factors", "0,1"], "three different numbers"),
        ([run, *SMALL, "--prompts", 10_000], "lower --prompts"),
        ([run, *SMALL, "--prompt-tokens", 17], "lower --prompt-tokens"),
        ([run, *SMALL, "--new-tokens", 100], "do not fit the context"),
        ([run, *SMALL, "--teacher", tmp_path / "none"], "does not exist"),
        ([run, *SMALL, "--dictionary", tmp_path / "none"], "there is no dictionary at"),
    ):
        cli.refuses("steer-eval", "-o", output, *arguments, says=says)
        assert not output.exists()
        assert not list(tmp_path.iterdir())

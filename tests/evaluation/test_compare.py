"""Comparisons of synthetic runs whose every number is known."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pandas as pd
import pytest
import scipy.stats
from statsmodels.stats.multitest import multipletests

from cocomix.evaluation import Comparison, Run, RunEvaluation, compare, json_schema
from cocomix.evaluation.comparison import FRAMES, comparison_tables
from cocomix.runtime.errors import CoCoMixError
from tests.evaluation.conftest import WriteRun

COCOMIX: dict[str, Any] = {
    "objective": "cocomix",
    "mixing": "residual",
    "labels": {"path": "labels", "fingerprint": "l" * 64},
    "parameters": {"total": 2000, "active": 1010},
    "flops_per_token": {"forward": 20.0, "training": 60.0},
    "seconds": 100.0,
    "learning_rate": 1e-3,
    "concept_loss_weight": 0.1,
}
GRAMS = {"unigram": 7.0, "bigram": 6.0, "trigram": 5.5, "fourgram": 5.4}


def measured(
    path: Path,
    shift: float,
    *,
    seed: int = 0,
    own: float = 0.0,
    documents: int = 12,
    reliance: Any = None,
    **changes: Any,
) -> Run:
    """Give a run an evaluation: losses `shift` above those of any other (names: twice), with noise by seed.

    A document has 8 tokens, every second a name. `own` is the size of noise that other arms do not share.
    """
    run = Run.open(path)
    tokens = 8 * documents
    noise = np.random.default_rng(seed).normal(0, 0.05, tokens)
    base = np.random.default_rng(99).normal(5.0, 1.0, tokens)
    if own:
        noise = noise + np.random.default_rng([seed, abs(int(1000 * shift))]).normal(0, own, tokens)
    table = pd.DataFrame(
        {
            "block": np.arange(tokens) // 16,
            "position": 1 + np.arange(tokens) % 16,
            "document": np.arange(tokens) // 8,
            "token": np.arange(tokens),
            "loss": (base + shift * (1 + np.arange(tokens) % 2) + noise).astype(np.float32),
            "token_class": pd.Categorical(np.where(np.arange(tokens) % 2, "name", "function word")),
            "frequency": pd.Categorical(["10-99"] * tokens),
            "seen": np.arange(tokens) % 4 == 0,
            **{name: np.full(tokens, loss, dtype=np.float32) for name, loss in GRAMS.items()},
        }
    )
    loss = float(table["loss"].mean())
    references = {**GRAMS, "training_tokens": 1000, "seconds": 1.0, "peak_memory": 1}
    RunEvaluation.model_validate(
        {
            "run": run.manifest.name, "seed": run.manifest.seed, "data_fingerprint": "d" * 64, "split": "validation",
            "dtype": "float32", "blocks": documents // 2, "limited": False, "block_size": 128, "targets": tokens,
            "seconds": 1.0,
            "loss": loss, "perplexity": math.exp(loss), "bits_per_byte": None, "references": references, "slices": [],
            "concepts": None, "reliance": reliance, "reliance_note": None, **changes,
        }
    ).save(run, table)  # fmt: skip
    return run


def seeds(
    write_run: WriteRun, name: str, curves: list[list[float]], shift: float | None = None, own: float = 0.0, **more: Any
) -> list[Run]:
    paths = [write_run(name, losses, folder=f"{name[:5]}{n}", seed=n, **more) for n, losses in enumerate(curves)]
    return [Run.open(path) if shift is None else measured(path, shift, seed=n, own=own) for n, path in enumerate(paths)]


def arm(comparison: Comparison, name: str) -> Any:
    return next(row for row in comparison.arms.itertuples() if row.arm == name)


def test_numbers_by_hand(write_run: WriteRun) -> None:
    runs = [Run.open(write_run("ntp", [6.0, 5.0])), Run.open(write_run("ours", [5.5, 4.5], **COCOMIX))]
    comparison = compare(runs)
    ours = arm(comparison, "ours")
    assert comparison.baseline == "ntp"
    assert (ours.kind, ours.seeds, ours.loss, ours.difference) == ("cocomix", [0], 4.5, -0.5)
    assert (ours.flops, ours.flops_ratio, ours.seconds_ratio, ours.tokens_ratio) == (60_000.0, 2.0, 2.0, 1.0)
    assert ours.like_baseline == "iso-parameter"
    assert np.isnan([ours.difference_low, ours.p_seeds, ours.p_documents, ours.teacher_flops]).all()
    assert arm(comparison, "ntp").teacher_flops == arm(comparison, "ntp").dictionary_flops == 0
    assert "teacher's work are not known for ours" in " ".join(comparison.notes)
    assert comparison.references == {}
    assert "cocomix eval" in " ".join(comparison.notes)


def test_seeds_are_paired_and_p_values_are_those_of_scipy_and_statsmodels(write_run: WriteRun) -> None:
    base = seeds(write_run, "ntp", [[5.0]] * 3, shift=0.0)
    ours = seeds(write_run, "ours", [[5.0]] * 3, shift=-0.02, own=0.1, **COCOMIX)
    third = seeds(write_run, "third", [[5.0]] * 2, shift=0.01, own=0.1, recipe={"model.mixing": "add"}, **COCOMIX)
    comparison = compare([*base, *ours, *third])
    raw = []
    for name, runs in (("ours", ours), ("third", third)):
        row, partners = arm(comparison, name), base[: len(runs)]
        tables = [[run_losses(run) for run in some] for some in (runs, partners)]
        means = [[table["loss"].to_numpy(np.float64).mean() for table in some] for some in tables]
        assert row.difference == pytest.approx(np.mean(means[0]) - np.mean(means[1]), abs=1e-6)
        assert row.p_seeds == pytest.approx(scipy.stats.ttest_rel(*means).pvalue, rel=1e-3)
        by_document = [np.mean([table.groupby("document")["loss"].mean() for table in some], axis=0) for some in tables]
        raw.append(scipy.stats.wilcoxon(by_document[0] - by_document[1]).pvalue)
        assert row.p_documents == pytest.approx(raw[-1], rel=1e-6)
        assert row.documents_low < row.difference < row.documents_high
        assert row.documents == 12
    corrected = multipletests(raw, method="holm")[1]
    assert [arm(comparison, name).p_documents_holm for name in ("ours", "third")] == pytest.approx(corrected)
    assert np.isnan(arm(comparison, "ntp").p_documents_holm)


def run_losses(run: Run) -> pd.DataFrame:
    from cocomix.evaluation import evaluations_of

    return evaluations_of(run)[0].token_losses()


def test_one_document_has_no_interval(write_run: WriteRun) -> None:
    paths = {"ntp": write_run("ntp", [5.0]), "ours": write_run("ours", [5.0], **COCOMIX)}
    kinds = {"shuffle": {"nats": 0.2, "low": 0.2, "high": 0.2}}
    ours = measured(paths["ours"], -0.1, documents=1, reliance={"kinds": kinds, "documents": 1})
    found = compare([measured(paths["ntp"], 0.0, documents=1), ours])
    row = arm(found, "ours")
    assert (row.documents, row.shuffle) == (1, 0.2)
    assert np.isnan([row.documents_low, row.documents_high, row.shuffle_low, row.shuffle_high]).all()
    assert len(found.words)
    assert found.words[["low", "high"]].isna().all(axis=None)


def test_tokens_of_one_document_have_no_interval(write_run: WriteRun) -> None:
    paths = {"ntp": write_run("ntp", [5.0]), "ours": write_run("ours", [5.0], **COCOMIX)}
    runs = [measured(paths["ntp"], 0.0, documents=2), measured(paths["ours"], -0.1, own=0.1, documents=2)]
    low = compare(runs).words.set_index(["slice", "value"])["low"]
    assert np.isnan(low["position", "1"])  # the only block begins with the first document
    assert low["position", "8-15"] < 0


def test_the_document_test_heeds_seeds(write_run: WriteRun) -> None:
    """Noise that belongs to the seed cancels within pairs: an unpaired test sees ten times the difference in it."""
    base = seeds(write_run, "ntp", [[5.0]] * 2, shift=0.0)
    ours = seeds(write_run, "ours", [[5.0]] * 2, shift=-0.001, **COCOMIX)
    row = arm(compare([*ours[::-1], *base]), "ours")
    assert row.documents_low == pytest.approx(-0.0015, abs=2e-4)
    assert row.documents_high == pytest.approx(-0.0015, abs=2e-4)


def test_arms_without_a_common_seed_are_refused(write_run: WriteRun) -> None:
    base = Run.open(write_run("ntp", [5.0]))
    ours = Run.open(write_run("ours", [5.0], seed=1, **COCOMIX))
    with pytest.raises(CoCoMixError, match=r"ours and ntp.*training\.seed"):
        compare([base, ours])


def test_a_seed_without_a_partner_counts_in_no_difference(write_run: WriteRun) -> None:
    base = seeds(write_run, "ntp", [[5.0], [5.2]])
    ours = seeds(write_run, "ours", [[4.5], [4.2], [1.0]], **COCOMIX)
    row = arm(compare([*base, *ours]), "ours")
    assert row.difference == pytest.approx(-0.75)
    assert row.difference_high - row.difference == pytest.approx(12.7062 * 0.25, rel=1e-5)  # t(0.975, 1) · s / √2


def test_words_are_paired_too(write_run: WriteRun) -> None:
    comparison = compare([measured(write_run("ntp", [5.0]), 0.0), measured(write_run("ours", [5.0], **COCOMIX), -0.1)])
    words = comparison.words.set_index(["slice", "value"])
    assert words.loc[("token_class", "function word"), "difference"] == pytest.approx(-0.1, abs=1e-5)
    assert words.loc[("token_class", "name"), "difference"] == pytest.approx(-0.2, abs=1e-5)
    assert words.loc[("token_class", "name"), "high"] < 0
    assert set(words.index.get_level_values(0)) == {"token_class", "position", "frequency", "seen"}
    assert comparison.references == pytest.approx(GRAMS)


@pytest.mark.parametrize(
    ("evaluation_blocks", "changes", "known"),
    [
        (6, {}, True),
        (5, {}, True),
        (7, {"limited": True}, False),
        (6, {"data_fingerprint": "o" * 64}, False),
        (6, {"block_size": 64}, False),
    ],
)
def test_n_grams_beside_curves_are_of_the_tokens_of_curves(
    evaluation_blocks: int, changes: dict[str, Any], known: bool, write_run: WriteRun
) -> None:
    more = {"evaluation_blocks": evaluation_blocks}
    paths = {"ntp": write_run("ntp", [5.0], **more), "ours": write_run("ours", [5.0], **more, **COCOMIX)}
    found = compare([measured(path, 0.0, **changes) for path in paths.values()])
    assert found.references == pytest.approx(GRAMS)
    assert found.curve_references == (pytest.approx(GRAMS) if known else {})
    assert any("o" * 16 in note for note in found.notes) == ("data_fingerprint" in changes)


def test_n_grams_beside_curves_of_a_mixture_are_of_every_corpus(write_run: WriteRun) -> None:
    """Its curves are of the first blocks of each: not of as many of a whole evaluation, which begin the first."""
    corpora = [{"path": name, "labels": None, "share": 0.5, "blocks": 4} for name in "ab"]
    found = {}
    for blocks in (4, 6):
        data = {"path": "a + b", "fingerprint": "d" * 64, "tokenizer_fingerprint": "t" * 64, "block_size": 128}
        more = {"evaluation_blocks": blocks, "data": {**data, "mixture": corpora}}
        paths = [write_run(name, [5.0], folder=f"{name}{blocks}", **more) for name in ("ntp", "ours")]
        found[blocks] = compare([measured(path, 0.0) for path in paths]).curve_references
    assert found == {4: {}, 6: pytest.approx(GRAMS)}


def test_evaluations_of_other_blocks_are_not_mixed(write_run: WriteRun) -> None:
    whole = measured(write_run("ntp", [5.0]), 0.0)
    fewer = measured(write_run("ours", [4.0], **COCOMIX), 0.0, documents=6)
    comparison = compare([whole, fewer])
    assert comparison.words.empty
    assert comparison.references == {}
    assert arm(comparison, "ntp").loss == 5.0  # of the training's last evaluation, as the other's
    measured(whole.path, 0.0, documents=6)
    assert not compare([whole, fewer]).words.empty


# --- savings and costs ------------------------------------------------------------------------------------------------

CHEAP = {**COCOMIX, "flops_per_token": {"forward": 8.0, "training": 24.0}, "seconds": 40.0}


def test_a_saving_needs_a_loss_no_worse_between_ends_of_schedules(write_run: WriteRun) -> None:
    base = Run.open(write_run("ntp", [6.0, 5.0]))
    cheap = Run.open(write_run("cheap", [6.0, 5.0], **CHEAP))
    worse = Run.open(write_run("worse", [6.0, 5.1], **CHEAP))
    early = Run.open(write_run("early", [6.0, 4.0], annealed=False, **CHEAP))
    comparison = compare([base, cheap, worse, early])
    assert arm(comparison, "cheap").flops_saved == pytest.approx(0.2)
    assert arm(comparison, "cheap").seconds_saved == pytest.approx(0.2)
    assert np.isnan(arm(comparison, "cheap").tokens_saved)
    assert [row[:3] for row in comparison_tables(comparison)["savings"].rows] == [["cheap", "–", "20.0%"]]
    for name in ("worse", "early", "ntp"):
        assert np.isnan(arm(comparison, name).flops_saved), name
    assert not arm(comparison, "early").annealed
    assert "No saving is stated for or against early" in " ".join(comparison.notes)


def test_no_saving_against_a_baseline_in_mid_schedule(write_run: WriteRun) -> None:
    base = Run.open(write_run("ntp", [6.0, 5.0], annealed=False))
    comparison = compare([base, Run.open(write_run("cheap", [6.0, 4.0], **CHEAP))])
    assert np.isnan(arm(comparison, "cheap").flops_saved)


def test_a_shorter_run_saves_tokens_where_the_comparison_is_about_tokens(write_run: WriteRun) -> None:
    base = Run.open(write_run("ntp", [6.0, 5.0]))
    short = Run.open(write_run("short", [6.0, 4.9], tokens=600, seconds=30.0))
    with pytest.raises(CoCoMixError, match="tokens"):
        compare([base, short])
    row = arm(compare([base, short], "ntp", vary=["tokens"]), "short")
    assert (row.tokens_saved, row.flops_saved, row.seconds_saved) == pytest.approx((0.4, 0.4, 0.4))


def test_baselines_of_equal_cost_are_named(write_run: WriteRun) -> None:
    weights = Run.open(write_run("same weights", [5.0], parameters={"total": 1000, "active": 1000}))
    flops = Run.open(
        write_run(
            "same flops", [4.8], parameters={"total": 3000, "active": 3000},
            flops_per_token={"forward": 20.0, "training": 61.0},
        )
    )  # fmt: skip
    far = Run.open(write_run("far", [5.0], parameters={"total": 500, "active": 500}))
    ours = Run.open(write_run("ours", [4.5], **COCOMIX))
    found = compare([weights, flops, far, ours], "far").baselines
    rows = {(row.likeness, row.baseline): row.difference for row in found[found["arm"] == "ours"].itertuples()}
    assert rows == {
        ("iso-parameter", "same weights"): pytest.approx(-0.5),
        ("iso-FLOP", "same flops"): pytest.approx(-0.3),
    }
    assert compare([weights, flops, ours]).baseline == "same weights"


def test_what_a_loss_computes_beside_the_model_is_training(write_run: WriteRun) -> None:
    """And a run of another loss or of a teacher's distributions is no run of next tokens alone, but the second a plain
    decoder, beside which others of its FLOPs are shown.
    """
    runs = [Run.open(write_run("ntp", [5.0], weights={"ntp": 1.0}))]
    for name, weights, of_teacher in (("kd", {"ntp": 1.0, "kd": 1.0}, 30.0), ("mtp", {"ntp": 1.0, "mtp": 1.0}, 0.0)):
        extra = {name: {"per_token": 30.0, "of_teacher": of_teacher, "tokens": 500}}
        runs.append(Run.open(write_run(name, [4.9], weights=weights, extra_flops=extra)))
    found = compare([runs[1], runs[2], runs[0]])
    assert found.baseline == "ntp"
    assert [arm(found, name).flops for name in ("ntp", "kd", "mtp")] == [30_000.0, 30_000.0, 45_000.0]
    assert [arm(found, name).teacher_flops for name in ("ntp", "kd", "mtp")] == [0.0, 15_000.0, 0.0]
    assert [arm(found, name).like_baseline for name in ("kd", "mtp")] == ["iso-FLOP, iso-parameter", "iso-parameter"]
    assert set(found.baselines["baseline"]) == {"ntp", "kd"}
    assert compare(runs[1:]).baseline == "kd"  # of none of next tokens alone, the first


def test_scaling_needs_three_sizes(write_run: WriteRun) -> None:
    def size(n: int, kind: dict[str, Any]) -> Run:
        name = f"{kind.get('objective', 'ntp')}{n}"
        flops = {"forward": 1.0, "training": 30.0 * n}
        changes = {**kind, "parameters": {"total": 100 * n, "active": 100 * n}, "flops_per_token": flops}
        return Run.open(write_run(name, [5.0 * n**-0.1], **{**changes, "seconds": 10.0 * n}))

    runs = [size(n, {}) for n in (1, 4, 16)] + [size(n, COCOMIX) for n in (1, 4)]
    found = compare(runs).scaling
    assert list(zip(found["kind"], found["axis"], strict=True)) == [("ntp", "flops"), ("ntp", "seconds")]
    assert found["exponent"].tolist() == pytest.approx([0.1, 0.1], rel=1e-4)
    assert found["runs"].tolist() == [3, 3]


# --- refusals, forms --------------------------------------------------------------------------------------------------


def test_refusals(write_run: WriteRun) -> None:
    ntp, ours = Run.open(write_run("ntp", [6.0])), Run.open(write_run("ours", [5.0], **COCOMIX))
    third = Run.open(write_run("third", [5.0], **COCOMIX))
    with pytest.raises(CoCoMixError, match="'ntp'"):
        compare([ntp])
    with pytest.raises(CoCoMixError, match=r"'other'.*ntp, ours"):
        compare([ntp, ours], "other")
    with pytest.raises(CoCoMixError, match="--baseline: ours, third"):
        compare([ours, third])
    assert compare([ours, third], "third").baseline == "third"


def test_devices_are_stated(write_run: WriteRun) -> None:
    runs = [Run.open(write_run("ntp", [6.0])), Run.open(write_run("ours", [5.5], **{**COCOMIX, "device": "cuda"}))]
    assert "seconds do not compare: cpu, cuda" in " ".join(compare(runs).notes)


def test_json_follows_its_schema(write_run: WriteRun) -> None:
    """`cocomix compare --json`: a new column or another type is a new version of the format, and a new schema."""
    base = seeds(write_run, "ntp", [[5.0]] * 2, shift=0.0)
    ours = seeds(write_run, "ours", [[4.0]] * 2, shift=-0.02, **COCOMIX)
    values = json.loads(json.dumps(compare([*base, *ours]).to_json(), allow_nan=False))
    schema = json_schema()
    kept = json.loads((Path(__file__).parent / "schemas" / "comparison.json").read_text(encoding="utf-8"))
    assert schema == kept
    assert [list(schema["properties"][frame]["items"]["properties"]) for frame in FRAMES] == [
        list(kept["properties"][frame]["items"]["properties"]) for frame in FRAMES
    ]  # in this order, too
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(values, schema)
    assert values["format_version"] == 3
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**values, "arms": [{**values["arms"][0], "loss": "low"}]}, schema)


def test_table_explains_every_number(write_run: WriteRun) -> None:
    hostile = "a|b<script>*x*_y"
    runs = [measured(write_run("ntp", [6.0]), 0.0), measured(write_run(hostile, [5.5], folder="h", **COCOMIX), -0.1)]
    comparison = compare(runs)
    tables = comparison_tables(comparison)
    assert tables.keys() == {"result", "cost", "baselines", "words", "trained"}
    assert "nats per token, lower is better" in " ".join(tables["result"].headings)
    assert tables["result"].rows[1][0] == hostile
    assert r"a\|b\<script\>\*x\*\_y" in tables["result"].markdown()
    rows = list(csv.DictReader(io.StringIO(comparison.arms.to_csv(index=False))))
    assert rows[1]["arm"] == hostile

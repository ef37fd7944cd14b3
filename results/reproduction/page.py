"""The tables of README.md, docs/results.md and two pages of results: python results/reproduction/page.py

Everything between `<!-- table: NAME -->` and `<!-- end -->` is written anew; with `--check`, the exit status says
whether it would change.
"""

import json
import math
import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from cocomix.evaluation.downstream import PAPER_TASKS
from cocomix.evaluation.statistics import holm, t_test

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SCARCE = HERE.parent / "scarce"
SMOLLM2 = HERE.parent / "smollm2"
STEERING = HERE.parent / "steering"
OPTIMIZERS = HERE.parent / "optimizers"
PAGES = (
    ROOT / "README.md",
    ROOT / "docs" / "results.md",
    SCARCE / "README.md",
    HERE / "README.md",
    STEERING / "README.md",
    OPTIMIZERS / "README.md",
)
OPTIMIZER_ARMS = {
    "ntp_adamw": "NTP, AdamW",
    "ntp_muon": "NTP, Muon",
    "cocomix_adamw": "CoCoMix, AdamW",
    "cocomix_muon": "CoCoMix, Muon",
}
OPTIMIZER_PAIRS = (
    ("NTP, Muon − AdamW", "ntp_muon", "ntp_adamw"),
    ("CoCoMix, Muon − AdamW", "cocomix_muon", "cocomix_adamw"),
    ("CoCoMix − NTP, AdamW", "cocomix_adamw", "ntp_adamw"),
    ("CoCoMix − NTP, Muon", "cocomix_muon", "ntp_muon"),
)

SCARCE_ARMS = {
    "ntp_flops": "NTP",
    "ntp_distilled": "NTP, distilled",
    "softmax_contextual": "concepts (softmax)",
    "softmax_distilled": "concepts (softmax), distilled",
    "add_contextual": "concepts (logits)",
    "add_distilled": "concepts (logits), distilled",
}
PAIRED_ARMS = {  # those with a table of pairs of tokens
    "ntp_bigram": "NTP",
    "ntp_distilled_bigram": "NTP, distilled",
    "softmax_bigram": "concepts",
    "softmax_distilled_bigram": "concepts, distilled",
}
OWN = {
    "ntp_flops": "none: NTP",
    "own": "of an NTP student's middle block, after a quarter of the tokens",
    "own_weak": "the same, λ = 0.1, half the learning rate",
    "online": "of the student's own states, learned meanwhile",
    "future_words": "the rare words to come",
    "future_clusters": "clusters of the words to come",
}
WHICH = {  # of results/scarce/labels.yaml, with the NTP that has the same FLOPs
    "k1": ("one label a position", "ntp"),
    "k4": ("four", "ntp"),
    "k8": ("eight", "ntp"),
    "k16": ("sixteen", "ntp"),
    "activation": ("four by activation", "ntp"),
    "attribution": ("four by attribution", "ntp"),
    "random": ("four of the active ones, at random", "ntp"),
    "layer7": ("block 7 of 30", "ntp"),
    "layer12": ("block 12", "ntp"),
    "layer22": ("block 22", "ntp"),
    "c16k": ("block 12, 16,384 concepts", "ntp_c16k"),
}
VARIANTS = {
    "k4": "λ = 1 throughout",
    "temporary_50": "λ falls from 1 to 0 by 50% of the steps",
    "temporary_25": "by 25%",
    "temporary_10": "by 10%",
    "no_loss": "λ = 0: mixed in, never taught",
    "rank64": "W_pred of rank 64",
    "mtp": "headless multi-token prediction beside it",
}
FRESH = {
    "ntp": "NTP",
    "ntp_distilled_half": "NTP, distilled for the first half",
    "softmax_distilled_half": "concepts (softmax), distilled, both for the first half",
}
FRESH_SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)
PAIRED_PAIRS = (
    ("what distillation adds to NTP", "ntp_distilled_bigram", "ntp_bigram"),
    ("what concepts add to NTP", "softmax_bigram", "ntp_bigram"),
    ("what concepts and distillation add to NTP", "softmax_distilled_bigram", "ntp_bigram"),
    ("what concepts add to distilled NTP", "softmax_distilled_bigram", "ntp_distilled_bigram"),
    ("what distillation adds to concepts", "softmax_distilled_bigram", "softmax_bigram"),
)
MIXING_PAIRS = (
    ("what predicting concepts adds to NTP", "prediction_bigram", "ntp_bigram"),
    ("what mixing them in adds to that", "softmax_bigram", "prediction_bigram"),
    ("what predicting concepts adds to distilled NTP", "prediction_distilled_bigram", "ntp_distilled_bigram"),
    ("what mixing them in adds to that, distilled", "softmax_distilled_bigram", "prediction_distilled_bigram"),
)
BIGRAM_PAIRS = (
    ("what distillation adds to NTP", "ntp_distilled_bigram", "ntp_bigram"),
    ("what concepts (softmax) and distillation add to NTP", "softmax_distilled_bigram", "ntp_bigram"),
    ("what concepts (softmax) add to distilled NTP", "softmax_distilled_bigram", "ntp_distilled_bigram"),
)

SCARCE_PAIRS = (
    ("what distillation adds to NTP", "ntp_distilled", "ntp_flops"),
    ("what concepts (softmax) add to NTP of the same FLOPs", "softmax_contextual", "ntp_flops"),
    ("what concepts (softmax) add to distilled NTP of the same FLOPs", "softmax_distilled", "ntp_distilled"),
    ("what distillation adds to concepts (softmax)", "softmax_distilled", "softmax_contextual"),
    ("concepts (softmax) instead of distillation", "softmax_contextual", "ntp_distilled"),
    ("what concepts (logits) add to NTP", "add_contextual", "ntp_flops"),
    ("what concepts (logits) add to distilled NTP", "add_distilled", "ntp_distilled"),
)

FORMS = {
    "ntp": ("NTP of the same FLOPs", "–"),
    "ntp_narrow": ("NTP of the same width", "–"),
    "none_0": ("predicted, not mixed in", "0"),
    "none_01": ("predicted, not mixed in", "0.1"),
    "none_1": ("predicted, not mixed in", "1"),
    "logits_0": ("added by logits", "0"),
    "logits_01": ("added by logits", "0.1"),
    "logits_01_zero": ("added by logits, compression starting at 0", "0.1"),
    "logits_1": ("added by logits", "1"),
    "softmax_01": ("added by softmax", "0.1"),
    "softmax_03": ("added by softmax", "0.3"),
    "softmax_1": ("added by softmax", "1"),
}

PEERS = {
    "ntp": ("NTP of the FLOPs of `add`", ""),
    "softmax": ("concepts (softmax), added: ours", ""),
    "prediction": ("concepts predicted at λ = 1, not mixed in", ""),
    "paper": (
        "concepts (logits), interleaved: the paper's form",
        "NTP's loss with `21.5%` fewer tokens at 1.38B parameters",
    ),
    "paper_softmax": ("concepts (softmax), interleaved", ""),
    "values": ("concepts in the attention's values", ""),
    "mtp_headless": ("multi-token prediction, headless, annealed", "modded-nanogpt: `2.5%` less time"),
    "mtp_sequential": ("multi-token prediction, sequential", "DeepSeek-V3: better tasks, no lower loss"),
    "mtp_parallel": ("multi-token prediction, parallel heads", "better code at 13B; small models suffer"),
    "top": ("token-order prediction", "better tasks at three sizes"),
    "fsp": ("future summary, bag of words", "mixed tasks at 8B"),
    "nitp": ("NITP", "`1` to `1.8` points on tasks, no lower loss"),
    "nextlat": ("NextLat", "planning and drafting, no lower loss"),
    "prefix_token": ("prefix token", "modded-nanogpt: `1.1%` fewer steps"),
    "superposition": ("token superposition", "lower loss at equal FLOPs, higher at equal tokens, at 3B"),
    "conceptlm": ("ConceptLM", "up to `1.7` points on tasks"),
    "token_values": ("value embeddings of tokens", "faster in nanochat"),
    "bigram": ("a table of pairs of tokens", "modded-nanogpt: `9%` fewer steps"),
    "loop": ("a looped stack, four times", "a baseline"),
    "loop_flops": ("NTP of the looped stack's FLOPs", ""),
}
"""What results/scarce/peers.yaml compares, and what who proposed it reports (sources: docs/differences.md)."""

HEADLINE = {
    "ntp": "NTP, matched",
    "kd": "knowledge distillation",
    "cocomix": "CoCoMix, the paper's form",
    "residual": "CoCoMix, residual form",
    "residual_mixing_only": "the same without concept loss (control)",
    "residual_activation": "CoCoMix, residual form, labels by activation",
}

LASTING = {
    "labels by activation, 64 prompts, most factors up": "lasting/up",
    "the same, 32 prompts, nine factors": "lasting/activation",
    "labels by attribution (`sign: logprob`), 32 prompts, nine factors": "lasting/logprob",
    "labels by activation, 32 prompts, up to 30": "lasting/far",
}

SINGLE = {"labels of the paper's sign": "paper_form", "labels of `sign: logprob`": "logprob"}

PAIRS = (
    ("attribution − activation, paper's form", "cocomix", "labels_activation"),
    ("attribution − activation, residual form", "residual", "residual_activation"),
    ("attribution − random, paper's form", "cocomix", "labels_random"),
    ("attribution − random, residual form", "residual", "residual_random"),
    ("sign logprob − sign loss (the paper's), paper's form", "labels_logprob", "cocomix"),
    ("sign logprob − sign loss, residual form", "residual_logprob", "residual"),
    ("abs − sign loss, paper's form", "labels_abs", "cocomix"),
    ("gradient of the next token only − of the sequence", "labels_next", "cocomix"),
    ("pre-activations − activations", "labels_pre", "cocomix"),
    ("interleaving − adding", "cocomix", "add"),
    ("residual − adding", "residual", "add"),
    ("residual − paper's form", "residual", "cocomix"),
    ("residual − its control without concept loss", "residual", "residual_mixing_only"),
    ("paper's form − its control without concept loss", "cocomix", "mixing_only"),
    ("prediction only − NTP of the same width", "prediction_only", "ntp_same_width"),
    ("compression starting at zero − at the usual scale", "init_zero", "cocomix"),
    ("compression starting small − at the usual scale", "init_small", "cocomix"),
    ("concepts − hidden state, ℓ1", "cocomix", "hidden_l1"),
    ("concepts − hidden state, ℓ2", "cocomix", "hidden_l2"),
    ("concepts − hidden state, cosine", "cocomix", "hidden_cosine"),
    ("CoCoMix − pause tokens, same width", "cocomix", "pause"),
    ("CoCoMix − pause tokens, equal active parameters", "cocomix", "pause_matched"),
    ("residual − pause tokens, equal active parameters", "residual", "pause_matched"),
    ("CoCoMix with KD − CoCoMix", "cocomix_kd", "cocomix"),
    ("KD from stored top-64 − KD online", "kd_stored", "kd"),
)
PAIRS_SHORT = (
    ("residual", "cocomix"),
    ("residual", "residual_mixing_only"),
    ("cocomix", "labels_activation"),
    ("residual", "residual_activation"),
    ("cocomix", "labels_random"),
    ("cocomix", "add"),
)


def main() -> None:
    """Write the tables, or with `--check` exit with status 1 where they differ."""
    changed = {page: with_tables(page.read_text(encoding="utf-8")) for page in PAGES}
    if "--check" in sys.argv:
        sys.exit(any(page.read_text(encoding="utf-8") != text for page, text in changed.items()))
    for page, text in changed.items():
        page.write_text(text, encoding="utf-8")


def with_tables(text: str) -> str:
    """The page with every marked table from the files."""
    tables = {
        "headline": lambda: headline(report(HERE)),
        "scarce": lambda: scarce(report(SCARCE), scarce_losses(), SCARCE_ARMS),
        "scarce_pairs": lambda: arm_pairs(scarce_losses(), SCARCE_PAIRS),
        "scarce_costs": lambda: scarce_costs(report(SCARCE), SCARCE_ARMS),
        "scarce_concepts": lambda: scarce_concepts(report(SCARCE), SCARCE_ARMS),
        "paired": lambda: scarce(report(SCARCE / "targets"), losses_of(SCARCE / "targets"), PAIRED_ARMS),
        "paired_costs": lambda: scarce_costs(report(SCARCE / "targets"), PAIRED_ARMS),
        "paired_concepts": lambda: scarce_concepts(report(SCARCE / "targets"), PAIRED_ARMS),
        "scarce_words": lambda: scarce_words(report(SCARCE)),
        "scarce_form": scarce_form,
        "scarce_peers": scarce_peers,
        "scarce_bigram": scarce_bigram,
        "scarce_bigram_pairs": lambda: arm_pairs(losses_of(SCARCE / "bigram"), BIGRAM_PAIRS),
        "scarce_targets": scarce_targets,
        "paired_pairs": lambda: arm_pairs(losses_of(SCARCE / "targets"), PAIRED_PAIRS),
        "paired_mixing": lambda: arm_pairs(losses_of(SCARCE / "targets") | losses_of(SCARCE / "mixing"), MIXING_PAIRS),
        "paired_kinds": paired_kinds,
        "paired_where": lambda: paired_where(report(SCARCE / "targets")),
        "scarce_epochs": scarce_epochs,
        "scarce_sizes": scarce_sizes,
        "scarce_own": scarce_own,
        "scarce_fresh": scarce_fresh,
        "scarce_labels": scarce_labels,
        "scarce_variants": scarce_variants,
        "scarce_gradients": scarce_gradients,
        "scarce_minimal_pairs": lambda: minimal_pairs(SCARCE / "minimal_pairs.json", SCARCE_ARMS),
        "paired_minimal_pairs": lambda: minimal_pairs(SCARCE / "targets" / "minimal_pairs.json", PAIRED_ARMS),
        "arms": lambda: arms(report(HERE)),
        "pairs": lambda: pairs(report(HERE), PAIRS),
        "pairs_short": lambda: pairs(report(HERE), [pair for pair in PAIRS if pair[1:] in PAIRS_SHORT]),
        "reach": lambda: reach(report(HERE)),
        "reliance": reliance,
        "longer": lambda: arms(report(HERE / "longer")),
        "weak_to_strong": lambda: arms(report(HERE / "weak_to_strong")),
        "shift": lambda: arms(report(HERE / "shift")),
        "smollm2": lambda: arms(report(SMOLLM2)),
        "downstream": downstream,
        "lasting": lambda: steering(LASTING, ["activation"], activations=True),
        "lasting_following": lambda: steering(LASTING, ["following"]),
        "single": lambda: steering(SINGLE, ["activation", "following"]),
        "optimizers": optimizers,
        "optimizer_pairs": lambda: arm_pairs(losses_of(OPTIMIZERS), OPTIMIZER_PAIRS),
        "themes": themes,
        "scaled": scaled,
    }

    def table(mark: re.Match[str]) -> str:
        return f"<!-- table: {mark[1]} -->\n\n{tables[mark[1]]()}\n\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->.*?<!-- end -->", table, text, flags=re.DOTALL)


def steering(folders: dict[str, str], measures: Sequence[str], activations: bool = False) -> str:
    """What `cocomix steer-eval` found in each folder: how many concepts steer by a measure, and mean activations."""
    arms = {"student": "the concept", "control": "another concept", "teacher": "the latent, in the teacher"}
    rows = []
    for name, folder in folders.items():
        found = json.loads((STEERING / folder / "steering.json").read_text(encoding="utf-8"))
        factors = found["settings"]["factors"]
        places = [factors.index(factor) for factor in (min(factors), 0.0, max(factors))] if activations else []
        for arm, turned in arms.items():
            row = [name if arm == "student" else "", turned]
            row += [f"{found['curves'][arm]['activation']['mean'][place]:.2f}" for place in places]
            for measure in (found if name == "activation" else found[name] for name in measures):
                scores = [concept[arm]["correlation"] for concept in measure["concepts"]]
                steer = sum(concept[arm]["steers"] for concept in measure["concepts"])
                row += [f"{steer} of {len(scores)}", f"{sum(scores) / len(scores):+.2f}".replace("-", "−")]
                row += [f"{measure['control_p_value']:.2g}" if arm == "student" else ""]
            rows.append(row)
    head = ["run", "what is turned", *(["most down", "untouched", "most up"] if activations else [])]
    head += [f"{measure}: {column}" for measure in measures for column in ("steer", "score", "p")]
    lines = [head, ["---", "---", *["---:"] * (len(head) - 2)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def themes() -> str:
    """How often each of the paper's themes shows, from what `results/steering/themes.py` wrote."""
    lines = (STEERING / "lasting" / "themes.md").read_text(encoding="utf-8").splitlines()
    head, _, *rows = ([cell.strip() for cell in line[1:-1].split(" | ")] for line in lines[: lines.index("")])
    kept = [
        head.index(name)
        for name in (
            "theme",
            "concept",
            *(f"{who} +{factor}" for who in ("student", "teacher") for factor in (0, 5, 10)),
        )
    ]
    table = [[head[column] for column in kept], ["---", *["---:"] * (len(kept) - 1)]]
    table += [[row[column] for column in kept] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table)


def scaled() -> str:
    """What multiplying a logit does, for some factors."""
    found = json.loads((STEERING / "lasting" / "scaled" / "steering.json").read_text(encoding="utf-8"))
    curves = found["curves"]["student"]
    places = [found["settings"]["factors"].index(factor) for factor in (-10, -5, 0, 1, 5, 10)]
    following = [f"{curves['following']['mean'][place]:.2f}".replace("-", "−") for place in places]
    perplexity = [f"{curves['teacher_perplexity']['mean'][place]:.0f}" for place in places]
    table = [
        ["", "× −10", "× −5", "× 0", "× 1", "× 5", "× 10"],
        ["---", *["---:"] * len(places)],
        ["tokens that follow its labels, nats", *following],
        ["perplexity under the teacher", *perplexity],
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table)


def report(folder: Path) -> dict[str, Any]:
    """What `cocomix sweep` wrote."""
    result: dict[str, Any] = json.loads((folder / "report" / "table.json").read_text(encoding="utf-8"))
    return result


def scarce_losses() -> dict[str, dict[int, float]]:
    """Loss of every run by arm and seed: of the first three seeds, and of two more with labels made anew."""
    losses: dict[str, dict[int, float]] = {name: {} for name in SCARCE_ARMS}
    for folder in (SCARCE, SCARCE / "more"):
        for run in report(folder)["runs"]:
            losses[run["arm"]][run["seed"]] = run["loss"]
    return losses


def scarce(table: dict[str, Any], losses: dict[str, dict[int, float]], arms: dict[str, str]) -> str:
    """Loss of every arm, its difference from NTP of the same FLOPs, and the n-gram models' losses."""
    rows: list[tuple[Any, ...]] = []
    for name, arm in shown_arms(table, arms).items():
        base = name == table["baseline"]
        rows.append(
            (
                arms[name],
                len(losses[name]),
                with_interval(list(losses[name].values()), signed=False),
                "" if base else with_interval(gaps(losses, name, table["baseline"])),
                "" if base else span(arm["documents_low"], arm["documents_high"]),
                f"{arm['flops'] / arm['tokens'] / 1e6:.1f}",
            )
        )
    grams = ("bigram", "trigram", "fourgram")
    rows.append(
        ("bigram, trigram, 4-gram", "", ", ".join(f"{table['references'][name]:.3f}" for name in grams), "", "", "")
    )
    head = ("arm", "seeds", "loss, nats per token", "minus NTP", "over documents × seeds", "MFLOP a token")
    return markdown(head, rows)


def arm_pairs(losses: dict[str, dict[int, float]], pairs: Sequence[tuple[str, str, str]]) -> str:
    """Arm against arm, seed by seed: (question, arm, arm it is compared with)."""
    found = {question: gaps(losses, first, second) for question, first, second in pairs}
    corrected = holm([t_test(each).p for each in found.values()])
    rows = []
    for (question, each), p in zip(found.items(), corrected, strict=True):
        one_side = max(sum(value < 0 for value in each), sum(value > 0 for value in each))
        rows.append((question, with_interval(each), f"{one_side} of {len(each)}", f"{p:.2g}"))
    return markdown(("", "nats per token", "seeds on one side", "p, paired t-test, Holm over these rows"), rows)


def gaps(losses: dict[str, dict[int, float]], first: str, second: str) -> list[float]:
    """How far one arm is above another, seed by seed, over the seeds of both."""
    return [losses[first][seed] - losses[second][seed] for seed in sorted(losses[first].keys() & losses[second])]


def scarce_costs(table: dict[str, Any], arms: dict[str, str]) -> str:
    """What one student cost, alone and where ten share the teacher's work."""
    shown = shown_arms(table, arms)
    base, rows = shown[table["baseline"]], []
    for name, arm in shown.items():
        teacher = arm["stored_flops"]
        rows.append(
            (
                arms[name],
                f"{arm['flops'] / 1e12:.1f}",
                f"{teacher / 1e12:.0f}" if teacher else "",
                *(f"×{(arm['flops'] + teacher / students) / base['flops']:.2f}" for students in (1, 3, 10)),
                f"×{arm['seconds'] / base['seconds']:.2f}",
            )
        )
    head = ("arm", "student, TFLOP", "teacher, TFLOP", "both ÷ NTP", "of each of 3", "of each of 10", "time ÷ NTP")
    return markdown(head, rows)


def scarce_concepts(table: dict[str, Any], arms: dict[str, str]) -> str:
    """Recall between its references, and what other concepts in their place cost."""
    rows = [
        (
            arms[name],
            *(f"{arm[field]:.1%}" for field in ("static_recall", "token_recall", "recall")),
            *(
                f"{arm[field]:+.3f} ({span(arm[f'{field}_low'], arm[f'{field}_high'])})".replace("-", "−")
                for field in ("mean", "shuffle", "shuffle_same_token", "token_table")
            ),
        )
        for name, arm in shown_arms(table, arms).items()
        if arm["recall"] is not None
    ]
    head = (
        "arm",
        "recall of a static list",
        "of a token table",
        "of the model",
        "their mean",
        "of any position",
        "of the same token elsewhere",
        "of a token table",
    )
    return markdown(head, rows)


def scarce_words(table: dict[str, Any]) -> str:
    """Where the loss differs from NTP's, by class of token."""
    arms = [name for name in shown_arms(table, SCARCE_ARMS) if name != table["baseline"]]
    found = {(word["arm"], word["value"]): word for word in table["words"] if word["slice"] == "token_class"}
    rows = []
    for value in dict.fromkeys(value for _, value in found):
        cells = [found[arm, value] for arm in arms]
        if cells[0]["tokens"] < 100:
            continue
        shown = (f"{cell['difference']:+.3f} ({span(cell['low'], cell['high'])})" for cell in cells)
        rows.append((value, f"{cells[0]['tokens']:,}", *(cell.replace("-", "−") for cell in shown)))
    return markdown(("tokens", "n", *(SCARCE_ARMS[arm] for arm in arms)), rows)


def scarce_form() -> str:
    """The screening of forms: loss after 500,000 tokens, and how large what is mixed in has become."""
    found = json.loads((SCARCE / "form.json").read_text(encoding="utf-8"))
    rows = [
        (*FORMS[name], f"{list(found[name]['losses'].values())[-1]:.3f}", f"{found[name].get('size', math.nan):.2f}")
        for name in FORMS
    ]
    rows = [tuple(cell.replace("nan", "") for cell in row) for row in rows]
    return markdown(("concepts", "λ", "loss, nats per token", "size of the vector, × the hidden state's"), rows)


def scarce_peers() -> str:
    """The screening of neighbours: loss, difference from NTP, cost, and what their papers report."""
    table = report(SCARCE / "peers")
    arms = {arm["arm"]: arm for arm in table["arms"]}
    base, rows = arms[table["baseline"]], []
    for name in sorted(arms, key=lambda name: arms[name]["loss"]):
        arm, (what, reported) = arms[name], PEERS[name]
        # With what an auxiliary loss adds, without the labels.
        own = arm["flops"] + arm["teacher_flops"] - arm["stored_flops"]
        gap = "" if arm is base else f"{arm['loss'] - base['loss']:+.3f}".replace("-", "−")
        parameters = f"{arm['parameters'] / 1e6:.2f}"
        rows.append((what, f"{arm['loss']:.3f}", gap, f"{own / arm['tokens'] / 1e6:.1f}", parameters, reported))
    head = (
        "method",
        "loss, nats per token",
        "minus NTP",
        "MFLOP a token",
        "million parameters",
        "what its authors report",
    )
    return markdown(head, rows)


def losses_of(folder: Path) -> dict[str, dict[int, float]]:
    """Loss of every run of a sweep by arm and seed."""
    losses: dict[str, dict[int, float]] = {}
    for run in report(folder)["runs"]:
        losses.setdefault(run["arm"], {})[run["seed"]] = run["loss"]
    return losses


def scarce_bigram() -> str:
    """Three arms on top of a table of pairs of tokens, beside the same seeds without it."""
    without, found, rows = scarce_losses(), losses_of(SCARCE / "bigram"), []
    for name in ("ntp", "ntp_distilled", "softmax_distilled"):
        plain, ours = without["ntp_flops" if name == "ntp" else name], found[f"{name}_bigram"]
        shared = {seed: plain[seed] for seed in ours}
        differences = (gaps(found, f"{name}_bigram", f"{base}_bigram") for base in ("ntp", "ntp_distilled"))
        rows.append(
            (
                SCARCE_ARMS["ntp_flops" if name == "ntp" else name],
                len(ours),
                with_interval(list(shared.values()), signed=False),
                with_interval(list(ours.values()), signed=False),
                with_interval([ours[seed] - loss for seed, loss in shared.items()]),
                *(with_interval(each) if any(each) else "" for each in differences),
            )
        )
    head = (
        "arm",
        "seeds",
        "without the table",
        "with it",
        "what it gives",
        "minus NTP with it",
        "minus distilled with it",
    )
    return markdown(head, rows)


def scarce_targets() -> str:
    """Three arms whose teacher has targets within its tokens, too, beside the same seeds without these."""
    few, found, rows = losses_of(SCARCE / "bigram"), losses_of(SCARCE / "targets"), []
    for name in ("ntp", "ntp_distilled", "softmax_distilled"):
        arm = f"{name}_bigram"
        at_ends = {seed: few[arm][seed] for seed in found[arm]}
        gained = with_interval([loss - at_ends[seed] for seed, loss in found[arm].items()]) if name != "ntp" else ""
        differences = (gaps(found, arm, f"{base}_bigram") for base in ("ntp", "ntp_distilled"))
        rows.append(
            (
                SCARCE_ARMS["ntp_flops" if name == "ntp" else name],
                len(at_ends),
                with_interval(list(at_ends.values()), signed=False),
                with_interval(list(found[arm].values()), signed=False) if name != "ntp" else "",
                gained,
                *(with_interval(each) if any(each) else "" for each in differences),
            )
        )
    head = ("arm", "seeds", "targets at common ends", "and within", "what these give", "minus NTP", "minus distilled")
    return markdown(head, rows)


def paired_kinds() -> str:
    """Contextual labels beside labels by activation, after two epochs, seed by seed."""
    contextual, activation, rows = losses_of(SCARCE / "targets"), losses_of(SCARCE / "activation"), []
    for name in ("softmax_bigram", "softmax_distilled_bigram"):
        for seed, loss in sorted(activation[name.replace("softmax", "activation")].items()):
            ours, base = contextual[name][seed], contextual["ntp_bigram"][seed]
            numbers = (
                f"{ours:.3f}",
                f"{loss:.3f}",
                *(f"{gap:+.3f}" for gap in (ours - base, loss - base, loss - ours)),
            )
            rows.append((PAIRED_ARMS[name], seed, *(each.replace("-", "−") for each in numbers)))
    kinds = ("contextual labels", "by activation")
    return markdown(
        ("arm", "seed", *kinds, *(f"{kind}, minus NTP" for kind in kinds), "the second minus the first"), rows
    )


def paired_where(table: dict[str, Any]) -> str:
    """Where the loss differs from NTP's: by class of token, position, and whether the token stood in the context."""
    arms = [name for name in shown_arms(table, PAIRED_ARMS) if name != table["baseline"]]
    found = {(word["arm"], word["slice"], word["value"]): word for word in table["words"]}
    rows = []
    for slice_, named in (("token_class", "{}"), ("position", "position {}"), ("seen", "seen in the block: {}")):
        for _, of, value in [key for key in found if key[:2] == (arms[0], slice_)]:
            cells = [found[arm, of, value] for arm in arms]
            if cells[0]["tokens"] >= 400:
                shown = (f"{cell['difference']:+.3f} ({span(cell['low'], cell['high'])})" for cell in cells)
                added = f"{cells[-1]['difference'] - cells[0]['difference']:+.3f}"
                row = (cell.replace("-", "−") for cell in (*shown, added))
                rows.append((named.format(value.replace("-", "–")), f"{cells[0]['tokens']:,}", *row))
    head = ("tokens", "n", *(PAIRED_ARMS[arm] for arm in arms), "what concepts add to distillation")
    return markdown(head, rows)


def scarce_sizes() -> str:
    """Three arms at three widths; the seeds that each width has."""
    rows = []
    for width in (64, 96, 144):
        losses = scarce_losses() if width == 96 else losses_of(SCARCE / f"sizes{width}")
        arms = ("ntp_flops", "ntp_distilled", "softmax_distilled")
        size = next(
            arm for arm in report(SCARCE if width == 96 else SCARCE / f"sizes{width}")["arms"] if arm["arm"] == arms[0]
        )
        rows.append(
            (
                width,
                f"{size['parameters'] / 1e6:.2f}",
                len(losses[arms[0]]),
                *(with_interval(list(losses[arm].values()), signed=False) for arm in arms),
                *(with_interval(gaps(losses, arms[2], base)) for base in arms[:2]),
            )
        )
    names = [SCARCE_ARMS[arm] for arm in ("ntp_flops", "ntp_distilled", "softmax_distilled")]
    head = ("d of the student", "NTP, million parameters", "seeds", *names, "last minus NTP", "last minus distilled")
    return markdown(head, rows)


def scarce_own() -> str:
    """Concepts of the text alone beside NTP: loss, cost from nothing, what labels and student know."""
    table = report(SCARCE / "own")
    arms = {arm["arm"]: arm for arm in table["arms"]}
    base, rows = arms[table["baseline"]], []
    for name, what in OWN.items():
        arm = arms[name]
        gap = "" if arm is base else f"{arm['loss'] - base['loss']:+.3f}".replace("-", "−")
        shares = ("" if arm[share] is None else f"{arm[share]:.1%}" for share in ("token_recall", "recall"))
        elsewhere = "" if arm["shuffle_same_token"] is None else f"{arm['shuffle_same_token']:+.3f}".replace("-", "−")
        cost = f"×{arm['flops_from_nothing'] / base['flops']:.2f}"
        rows.append((what, f"{arm['loss']:.3f}", gap, cost, *shares, elsewhere))
    head = (
        "concepts are",
        "loss, nats per token",
        "minus NTP",
        "training FLOPs from nothing ÷ NTP",
        "recall of a token table",
        "of the model",
        "those of the same token elsewhere cost",
    )
    return markdown(head, rows)


def scarce_epochs() -> str:
    """Arms after two epochs, where they have them, and after four, and what each is at the better of both."""
    two, four = losses_of(SCARCE / "bigram"), losses_of(SCARCE / "epochs")
    better = {
        arm: {seed: min(two.get(arm, each).get(seed, loss), loss) for seed, loss in each.items()}
        for arm, each in four.items()
    }
    rows = []
    for name in ("ntp", "ntp_distilled", "softmax", "softmax_distilled"):
        arm = f"{name}_bigram"
        seeds = ([losses[arm][seed] for seed in four[arm]] if arm in losses else [] for losses in (two, four, better))
        cells = [with_interval(each, signed=False) if each else "" for each in seeds]
        for base in ("ntp_bigram", "ntp_distilled_bigram"):
            each = gaps(better, arm, base)
            cells.append(with_interval(each) if any(each) else "")
        rows.append((SCARCE_ARMS[{"ntp": "ntp_flops", "softmax": "softmax_contextual"}.get(name, name)], *cells))
    head = ("arm", "two epochs", "four epochs", "the better", "minus NTP's better", "minus distilled's better")
    return markdown(head, rows)


def scarce_labels() -> str:
    """The screening of labels: loss beside NTP of the same FLOPs, and recall between its references."""
    arms, rows = {arm["arm"]: arm for arm in report(SCARCE / "labels")["arms"]}, []
    for name, (what, base) in WHICH.items():
        gap = f"{arms[name]['loss'] - arms[base]['loss']:+.3f}".replace("-", "−")
        shares = (f"{arms[name][share]:.1%}" for share in ("static_recall", "token_recall", "recall"))
        rows.append((what, f"{arms[name]['loss']:.3f}", gap, *shares))
    head = (
        "labels",
        "loss, nats per token",
        "minus NTP",
        "recall of a static list",
        "of a token table",
        "of the model",
    )
    return markdown(head, rows)


def scarce_variants() -> str:
    """The screening of how concepts are taught: loss beside NTP's, and the student's FLOPs."""
    arms, rows = {arm["arm"]: arm for arm in report(SCARCE / "labels")["arms"]}, []
    for name, what in {"ntp": "NTP", **VARIANTS}.items():
        gap = f"{arms[name]['loss'] - arms['ntp']['loss']:+.3f}".replace("-", "−") if name != "ntp" else ""
        rows.append((what, f"{arms[name]['loss']:.3f}", gap, f"{arms[name]['flops'] / arms[name]['tokens'] / 1e6:.1f}"))
    return markdown(("concepts", "loss, nats per token", "minus NTP", "MFLOP a token"), rows)


def scarce_gradients() -> str:
    """The cosine of the two losses' gradients over the weights that both reach, as training goes on."""
    found = json.loads((SCARCE / "gradients.json").read_text(encoding="utf-8"))
    steps = list(next(iter(found.values())))
    rows = []
    for form, each in found.items():
        measured = (each[step]["all"] for step in steps)
        rows.append((form, *(f"{one['of_all']:+.2f} (×{one['size']:.2g})".replace("-", "−") for one in measured)))
    return markdown(("concepts", *(f"step {step}" for step in steps)), rows)


def scarce_fresh() -> str:
    """The fresh regime: differences from NTP at points of one schedule, and at its end."""
    table, rows = report(SCARCE / "fresh"), []
    curves: dict[str, dict[int, float]] = {}
    for point in table["curves"]:
        curves.setdefault(point["arm"], {})[point["tokens"]] = point["loss"]
    base = curves[table["baseline"]]
    steps = sorted(base)
    marks = [min(steps, key=lambda tokens, share=share: abs(tokens - share * steps[-1])) for share in FRESH_SHARES]
    arms = {arm["arm"]: arm for arm in table["arms"]}
    for name, what in FRESH.items():
        arm, curve = arms[name], curves[name]
        gap = [curve[tokens] - (0.0 if name == table["baseline"] else base[tokens]) for tokens in marks]
        cells = (f"{value:.3f}" if name == table["baseline"] else f"{value:+.3f}".replace("-", "−") for value in gap)
        ratios = (f"×{arm[cost] / arms[table['baseline']]['flops']:.2f}" for cost in ("total_flops", "flops_of_10"))
        rows.append((what, *cells, f"{arm['loss']:.3f}", *ratios))
    grams = table["references"]
    rows.append(
        (
            "bigram, trigram, 4-gram",
            *[""] * len(marks),
            ", ".join(f"{grams[name]:.3f}" for name in ("bigram", "trigram", "fourgram")),
            "",
            "",
        )
    )
    at = (f"at {tokens / 1e6:.1f}M tokens" for tokens in marks)
    return markdown(("arm", *at, "at the end, all held-out text", "all FLOPs ÷ NTP", "of each of 10"), rows)


def optimizers() -> str:
    """Muon and AdamW: mean losses at points of one schedule and at its end, and when AdamW's last is reached."""
    table, rows = report(OPTIMIZERS), []
    arms = shown_arms(table, OPTIMIZER_ARMS)
    curves: dict[str, dict[int, list[float]]] = {name: {} for name in arms}
    for point in table["curves"]:
        curves[point["arm"]].setdefault(point["tokens"], []).append(point["loss"])
    means = {arm: {tokens: sum(each) / len(each) for tokens, each in curve.items()} for arm, curve in curves.items()}
    marks = sorted(means["ntp_adamw"])[2:-1:3]
    losses, times = losses_of(OPTIMIZERS), json.loads((OPTIMIZERS / "step_times.json").read_text(encoding="utf-8"))
    for name, arm in arms.items():
        goal = list(means[name.replace("muon", "adamw")].values())[-1]
        when = "" if name.endswith("adamw") else f"{reached(means[name], goal) / 1e6:.2f}M"
        rows.append(
            (
                OPTIMIZER_ARMS[name],
                f"{arm['learning_rate']:g}",
                *(f"{means[name][tokens]:.3f}" for tokens in marks),
                with_interval(list(losses[name].values()), signed=False),
                when,
                f"{times[name]['step']:.3f} ({times[name]['optimizer']:.3f})",
            )
        )
    head = (
        "arm",
        "learning rate",
        *(f"{tokens / 1e6:.1f}M" for tokens in marks),
        "3.0M, all held-out text",
        "tokens to AdamW's last loss",
        "CPU seconds a step (optimizer)",
    )
    return markdown(head, rows)


def reached(curve: dict[int, float], goal: float) -> float:
    """Training tokens at which a curve first comes down to a loss, between two evaluations on a straight line."""
    points = sorted(curve.items())
    for (before, above), (after, loss) in pairwise(points):
        if loss <= goal:
            return before + (after - before) * (above - goal) / (above - loss)
    raise ValueError(f"no point at or below {goal}")


def minimal_pairs(file: Path, arms: dict[str, str]) -> str:
    """The share of minimal pairs that each arm gets right, means over seeds, and its difference from NTP's."""
    found = json.loads(file.read_text(encoding="utf-8"))
    base, rows = found[next(iter(arms))], []
    for name, what in arms.items():
        each = found[name]
        points = [100 * (each[seed]["all"] - base[seed]["all"]) for seed in sorted(each)]
        mean = {kind: sum(one[kind] for one in each.values()) / len(each) for kind in next(iter(each.values()))}
        shares = (f"{mean[kind]:.1%}" for kind in ("all", "agreement", "order", "preposition"))
        rows.append((what, len(each), *shares, "" if each is base else with_interval(points)))
    return markdown(("arm", "seeds", "right", "agreement", "order", "preposition", "all minus NTP's, points"), rows)


def shown_arms(table: dict[str, Any], arms: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Those of `arms` that the report has, by name, in their order."""
    there = {arm["arm"]: arm for arm in table["arms"]}
    return {name: there[name] for name in arms if name in there}


def bounded(value: float, low: float | None, high: float | None) -> str:
    """A difference ± half of its interval."""
    return interval(value, None if low is None else {"low": low, "high": high})


def span(low: float | None, high: float | None) -> str:
    """An interval by its ends."""
    return "" if low is None else f"{low:+.3f} … {high:+.3f}".replace("-", "−")


def headline(table: dict[str, Any]) -> str:
    """The arms that say most."""
    rows = {row["name"]: row for row in table["rows"]}
    lines = [
        (
            text,
            with_interval(rows[name]["losses"], signed=False),
            "" if name == table["baseline"] else interval(rows[name]["difference"], rows[name]["difference_interval"]),
        )
        for name, text in HEADLINE.items()
    ]
    return markdown(("", "validation nats/token", "minus NTP of the same seed"), lines)


def arms(table: dict[str, Any]) -> str:
    """Every arm: loss, difference, parameters and FLOPs, best first."""
    head = (
        "arm",
        "seeds",
        "loss",
        f"minus {table['baseline']}",
        "documents better",
        "active parameters",
        "TFLOP, with teacher",
    )
    rows = []
    for row in sorted(table["rows"], key=lambda row: row["validation_loss"]):
        base = row["name"] == table["baseline"]
        documents = row.get("documents")
        with_teacher = row["flops_with_teacher"]
        flops = f"{row['training_flops'] / 1e12:.2f}" + (f", {with_teacher / 1e12:.2f}" if with_teacher else "")
        rows.append(
            (
                f"**{row['name']}**" if base else row["name"],
                len(row["losses"]),
                with_interval(row["losses"], signed=False),
                "" if base else interval(row["difference"], row["difference_interval"]),
                f"{documents['better']:.0%}" if documents and not base else "",
                f"{row['active_parameters'] / 1e6:.3f} M",
                flops,
            )
        )
    return markdown(head, rows)


def pairs(table: dict[str, Any], questions: Sequence[tuple[str, str, str]]) -> str:
    """Differences between arms, seed by seed."""
    losses = {row["name"]: dict(zip(row["seeds"], row["losses"], strict=True)) for row in table["rows"]}
    rows = []
    for question, first, second in questions:
        seeds = sorted(losses[first].keys() & losses[second].keys())
        differences = [losses[first][seed] - losses[second][seed] for seed in seeds]
        rows.append((question, f"`{first}` − `{second}`", len(seeds), with_interval(differences)))
    return markdown(("first − second", "arms", "seeds", "nats per token"), rows)


def reach(table: dict[str, Any]) -> str:
    """What it took to come down to the baseline's final loss; arms of which every seed did."""
    rows = [
        (
            row["name"],
            len(row["losses"]),
            f"{row['saving']['tokens']:+.1%}".replace("-", "−"),
            f"{row['saving']['flops']:+.1%}".replace("-", "−"),
            f"{row['saving']['flops_with_teacher']:+.1%}".replace("-", "−"),
        )
        for row in sorted(table["rows"], key=lambda row: row["validation_loss"])
        if row["saving"] and row["name"] != table["baseline"]
    ]
    return markdown(("arm", "seeds", "tokens saved", "FLOPs saved", "FLOPs saved, the teacher's counted"), rows)


def reliance() -> str:
    """What changing the mixed-in concepts does to the loss, mean over the seeds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted((HERE / "raw").glob("main_*_seed?.evaluation.json")):
        evaluation = json.loads(file.read_text(encoding="utf-8"))
        if "concept_reliance" in evaluation:
            found.setdefault(file.name.removeprefix("main_").split("_seed")[0], []).append(evaluation)
    rows = []
    for arm, evaluations in found.items():
        changes = [evaluation["concept_reliance"]["deltas"] for evaluation in evaluations]
        recalls = [evaluation["concept_recall"] for evaluation in evaluations if "concept_recall" in evaluation]
        rows.append(
            (
                arm,
                len(changes),
                *(mean([change.get(name) for change in changes]) for name in ("zero", "shuffle", "oracle")),
                f"{sum(recalls) / len(recalls):.0%}" if recalls else "",
            )
        )
    return markdown(("arm", "seeds", "set to zero", "of another text", "the labels", "labels predicted"), rows)


def downstream() -> str:
    """Scores of the tasks, an arm per column; the averages are the paper's."""
    names = ("ntp", "kd", "cocomix", "residual")
    found = [json.loads((HERE / "tasks" / f"{name}.json").read_text(encoding="utf-8"))["tasks"] for name in names]
    rows: list[tuple[Any, ...]] = []
    accuracies: list[list[float]] = [[] for _ in names]
    for task, shown in PAPER_TASKS.items():
        metrics = [tasks[task]["metrics"] for tasks in found]
        if shown.kind == "accuracy":
            scores = [percent_with_error(each, shown.metric) for each in metrics]
            for values, each in zip(accuracies, metrics, strict=True):
                values.append(each[shown.metric])
        else:
            scores = [f"{each[shown.metric]:,.0f}" for each in metrics]
        rows.append((task, shown.metric, f"{found[0][task]['examples']:,}", *scores))
    averages = [f"{sum(values) / len(values):.1%}" for values in accuracies]
    rows.append(("mean of the five accuracies", "", "", *averages))
    return markdown(("task", "measure", "rows", *names), rows)


def percent_with_error(metrics: dict[str, float], name: str) -> str:
    """An accuracy ± the harness's standard error over the rows."""
    return f"{metrics[name]:.1%} ± {metrics[f'{name}_stderr']:.1%}"


def with_interval(values: list[float], signed: bool = True) -> str:
    """Mean ± half of the 95% t-interval where there are several values."""
    half = t_test(values).half_width
    sign = "+" if signed else ""
    text = f"{sum(values) / len(values):{sign}.3f}" + (f" ± {half:.3f}" if len(values) > 1 else "")
    return text.replace("-", "−")


def interval(value: float, bounds: dict[str, float] | None) -> str:
    """A difference with its interval as `compare` computed it."""
    half = f" ± {(bounds['high'] - bounds['low']) / 2:.3f}" if bounds else ""
    return f"{value:+.3f}{half}".replace("-", "−")


def mean(values: list[float | None]) -> str:
    """Signed mean of what is there."""
    there = [value for value in values if value is not None]
    return f"{sum(there) / len(there):+.3f}".replace("-", "−") if there else ""


def markdown(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """A table, numbers to the right."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


if __name__ == "__main__":
    main()

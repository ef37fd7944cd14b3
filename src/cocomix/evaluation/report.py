"""The report of a comparison: five sentences, one table, then what stands behind them; as one page and as files."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cocomix.artifacts import whole_folder, write_json, write_text
from cocomix.evaluation.comparison import Comparison, between, change, comparison_tables, known
from cocomix.evaluation.figures import AXES, draw_curves, drawn_names
from cocomix.evaluation.formatting import markdown_text, percent, signed
from cocomix.evaluation.pages import Figure, Section, Table, render_page
from cocomix.runtime.errors import require_extra

if TYPE_CHECKING:
    import rich.console

logger = logging.getLogger(__name__)

REPORT_FILE = "report.html"
"""Name of the page within the report's folder."""

_TOKEN_SHARE = 0.8
"""Above this share of labels that the current token gives, concepts say little else (method: section 12)."""

_COMMON = 0.01
"""Kinds of tokens that are rarer are not spoken of."""


def found(comparison: Comparison) -> list[str]:
    """Five sentences: is the model any good, do concepts carry more than the token, are they used, what pays, where.

    They speak of the arm with concepts whose loss is lowest, or without one of the arm with the lowest loss, against
    the baseline. What was not measured is said not to have been.
    """
    arms = comparison.arms
    others = arms[arms["arm"] != comparison.baseline]
    with_concepts = others[others["recall"].notna() | others["shuffle"].notna() | (others["objective"] != "ntp")]
    among = with_concepts if len(with_concepts) else others
    best = next(among.nsmallest(1, "loss").itertuples())
    return [
        _is_it_good(comparison),
        _beyond_the_token(best),
        _is_it_used(best),
        _does_it_pay(comparison, best),
        _on_which_words(comparison, best),
    ]


def _is_it_good(comparison: Comparison) -> str:
    best = next(comparison.arms.nsmallest(1, "loss").itertuples())
    start = f"The lowest validation loss is {best.arm}'s, {best.loss:.3f} nats per token"
    if not comparison.references:
        return f"{start}; without n-gram references (`cocomix eval`) nothing says whether that is any good."
    grams = comparison.references
    told = (
        f"n-gram models of the training text reach {grams['bigram']:.3f} (bigram) and {grams['fourgram']:.3f} (4-gram)"
    )
    if bad := comparison.arms.loc[comparison.arms["loss"] > grams["bigram"], "arm"].tolist():
        who = "all runs" if len(bad) == len(comparison.arms) else ", ".join(bad)
        verb = "is" if len(bad) == 1 and who != "all runs" else "are"
        return (
            f"{start}, but {told}: {who} {verb} worse than a bigram table, and differences to such models say little."
        )
    verdict = "it is better than both" if best.loss < min(grams.values()) else "it is no better than the 4-gram"
    return f"{start}; {told}: {verdict}."


def _beyond_the_token(best: Any) -> str:
    if best.objective == "ntp":
        return "None of the other runs predicts concepts, so there is nothing to say of what concepts carry."
    parts = []
    if known(best.token_recall):
        mostly = "more than the token's identity"
        if max(best.token_recall, best.static_recall) > _TOKEN_SHARE:
            same = best.static_recall > _TOKEN_SHARE
            mostly = "mostly the same few concepts everywhere" if same else "mostly the token's identity"
        parts.append(
            f"The labels are {mostly}: at 32, a static list recalls {percent(best.static_recall)} of them, a table of "
            f"the current token {percent(best.token_recall)}, and {best.arm} {percent(best.recall)}"
        )
    if known(best.shuffle_same_token):
        parts.append(
            f"concepts of another position of the same token cost it {change(best, 'shuffle_same_token')} nats, which "
            "is what the context adds"
        )
    return (
        f"{'; '.join(parts)}." if parts else f"How much {best.arm}'s concepts carry beyond the token was not measured."
    )


def _is_it_used(best: Any) -> str:
    if best.objective == "ntp" or not known(best.shuffle):
        return "Whether a model uses its concepts was not measured (`cocomix eval`)."
    uses = "uses" if known(best.shuffle_low) and best.shuffle_low > 0 else "does not measurably use"
    average = f", their average {change(best, 'mean')}" if known(best.mean) else ""
    return (
        f"{best.arm} {uses} its concepts: those of any other position cost it {change(best, 'shuffle')} nats{average}."
    )


def _does_it_pay(comparison: Comparison, best: Any) -> str:
    """Per token, FLOP, second: a lower loss for no more pays, a higher one for no less does not, the rest is open."""
    base = comparison.baseline
    over = "documents" if known(best.documents_low) else "difference"
    low, high = (getattr(best, f"{over}_{end}") for end in ("low", "high"))
    told = f"{signed(best.difference)} nats against {base}" + (f" ({between(best, over)})" if known(low) else "")
    if not known(low) or low <= 0 <= high:
        return f"Whether {best.arm} pays is not decided: {told}, and chance is not ruled out."
    better = best.difference < 0
    words = []
    for unit, axis in (("token", "tokens"), ("FLOP", "flops"), ("second", "seconds")):
        ratio = getattr(best, f"{axis}_ratio")
        equal = abs(ratio - 1) <= 0.03
        if equal or (ratio < 1) == better:
            words.append(f"{'pays' if better else 'does not pay'} per {unit}{'' if equal else f' (×{ratio:.2f})'}")
        else:
            words.append(f"is open per {unit}, at ×{ratio:.2f} the cost")
    for row in comparison.baselines.itertuples():
        if (row.arm, row.likeness) == (best.arm, "iso-FLOP"):
            told += f"; against the iso-FLOP baseline {row.baseline} {signed(row.difference)}"
    return f"{best.arm} {', '.join(words)}: {told}."


def _on_which_words(comparison: Comparison, best: Any) -> str:
    mine = comparison.words[(comparison.words["arm"] == best.arm) & (comparison.words["slice"] == "token_class")]
    if mine.empty:
        return "On which words the runs differ was not measured (`cocomix eval` of every run)."
    common = mine[mine["tokens"] >= _COMMON * mine["tokens"].sum()]
    ranked = list(common.sort_values("difference").itertuples())
    least, most = (f"{row.value} ({signed(row.difference)}, {between(row)})" for row in (ranked[0], ranked[-1]))
    return f"Against {comparison.baseline}, {best.arm} does best on {least} and worst on {most}, in nats per token."


def write_report(
    comparison: Comparison, output: Path, *, title: str = "Runs compared", sections: Sequence[Section] = ()
) -> Path:
    """Write a comparison as a folder: report.html, loss_vs_{tokens,flops,seconds}.png, table.{md,csv,json}.

    Args:
        output: the folder to create; it appears when it is whole.
        sections: shown before the protocol, e.g. an inspected text, generations, commands.

    Returns:
        The page, `output`/report.html.

    Raises:
        CoCoMixError: `output` exists or cannot be written to.
    """
    require_extra("report", "matplotlib", purpose="a report")
    tables, sentences = comparison_tables(comparison), found(comparison)
    with whole_folder(output) as folder:
        figures, names = [], ", ".join(drawn_names(comparison))
        for axis in AXES:
            light, dark = (draw_curves(comparison, axis, dark=dark) for dark in (False, True))
            (folder / f"loss_vs_{axis.field}.png").write_bytes(light)
            figures.append(Figure(light, dark, alt=f"Validation loss of {names} against training {axis.field}"))
        write_text(folder / "table.md", markdown(comparison))
        write_text(folder / "table.csv", comparison.arms.to_csv(index=False, lineterminator="\n"))
        write_json(folder / "table.json", comparison.to_json())
        page = [*_result_sections(comparison, tables, figures), *sections, _protocol(comparison, tables)]
        write_text(folder / REPORT_FILE, render_page(title, sentences, page))
    logger.info(f"report: {output / REPORT_FILE}")
    return output / REPORT_FILE


def shown(comparison: Comparison) -> "rich.console.Group":
    """Sentences, tables and notes for a terminal, the same numbers as on the page."""
    from rich.console import Group
    from rich.text import Text

    sentences = [Text(sentence.replace("`", "") + "\n") for sentence in found(comparison)]
    notes = [Text("- " + note.replace("`", ""), style="dim") for note in comparison.notes if note]
    tables = (replace(table, meanings={}).rich() for table in comparison_tables(comparison).values())  # page has them
    return Group(*sentences, *tables, *notes)


def markdown(comparison: Comparison) -> str:
    """Sentences, tables and notes as Markdown."""
    parts = [markdown_text(sentence) for sentence in found(comparison)]
    parts += [table.markdown() for table in comparison_tables(comparison).values()]
    parts.append("\n".join(f"- {markdown_text(note)}" for note in comparison.notes if note))
    return "\n\n".join(parts) + "\n"


def _result_sections(comparison: Comparison, tables: dict[str, Table], figures: Sequence[Figure]) -> list[Section]:
    left_out = len(comparison.arms) - len(drawn_names(comparison))
    drawn = f" {left_out} more arms, which end higher, are in the tables." if left_out else ""
    curves = (
        "Lower is better, further left is cheaper. Dashed: the baseline. Thin lines: n-gram models of the same "
        "training text on the same tokens, which may be fewer than those of the tables. Bands span the seeds. Before a "
        "run ends its learning rate has not come down, so curves that cross on the way say nothing of what is saved."
        f"{drawn}"
    )
    sections: list[Section] = [
        {"heading": "Result", "tables": [tables["result"]]},
        {"heading": "Loss during training", "text": [curves], "figures": figures},
    ]
    for heading, names in (
        ("What it cost", ("cost", "savings", "baselines", "scaling")),
        ("What the concepts are worth", ("concepts",)),
        ("On which words", ("words",)),
        ("Downstream tasks", ("downstream",)),
    ):
        if shown := [tables[name] for name in names if name in tables]:
            sections.append({"heading": heading, "tables": shown})
    return sections


def _protocol(comparison: Comparison, tables: dict[str, Table]) -> Section:
    losses = [(f"{name} loss, nats", f"{loss:.3f}") for name, loss in comparison.references.items()]
    shared = Table(("what", "value"), [*comparison.shared.items(), *losses], "Shared by all runs", text_columns=2)
    notes = [note for note in comparison.notes if note]
    return {"heading": "Protocol", "tables": [shared, tables["trained"]], "notes": notes}

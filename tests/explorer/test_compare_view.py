from types import SimpleNamespace

import gradio as gr
import pandas as pd
import pytest

from cocomix.evaluation import References
from cocomix.explorer.compare_view import compare_view
from cocomix.runtime.errors import CoCoMixError


def drawn(subject, axis, runs):
    """The plot's title of x, and its points."""
    with gr.Blocks():
        view = compare_view(subject, gr.Textbox())
    ((_, plot),) = view.show(axis, runs)
    return plot.x_title, pd.DataFrame(plot.value["data"], columns=plot.value["columns"])


@pytest.mark.parametrize(
    ("axis", "title", "scale"),
    [("tokens", "training tokens / 10^3", 1e3), ("flops", "training FLOPs / 10^9", 1e9), ("seconds", "training s", 1)],
)
def test_curves_of_the_chosen_runs(subject, axis, title, scale):
    shown, points = drawn(subject, axis, ["mixed", "plain"])
    assert shown.startswith(title)
    for name in ("mixed", "plain"):
        curve, line = subject.comparison.mean_curves()[name].iloc[-1], points[points["run"] == name]
        assert line.iloc[-1].tolist()[1:] == pytest.approx([curve[axis] / scale, curve["loss"]])
    assert set(drawn(subject, axis, ["plain"])[1]["run"]) == {"plain"}
    with pytest.raises(CoCoMixError, match="choose at least one"):
        drawn(subject, axis, [])


def test_ngram_references_are_lines_across(subject, monkeypatch):
    data = subject.run.manifest.data.fingerprint
    losses = References(unigram=6.0, bigram=3.1, trigram=2.5, fourgram=2.4, training_tokens=9, seconds=1, peak_memory=1)
    found = [SimpleNamespace(data_fingerprint="other data", references=losses)]
    monkeypatch.setattr("cocomix.explorer.compare_view.evaluations_of", lambda run: found)
    assert "bigram" not in set(drawn(subject, "tokens", ["mixed"])[1]["run"])
    found.append(SimpleNamespace(data_fingerprint=data, references=losses))
    _, points = drawn(subject, "tokens", ["mixed"])
    assert "unigram" not in set(points["run"])
    for name, loss in {"bigram": 3.1, "trigram": 2.5, "fourgram": 2.4}.items():
        line = points[points["run"] == name]
        assert set(line.iloc[:, 2]) == {loss}
        assert len(line) == 2


def test_a_damaged_evaluation_leaves_the_curves(subject, monkeypatch):
    def damaged(run):
        raise CoCoMixError("evaluation.json is damaged; evaluate the run again.")

    monkeypatch.setattr("cocomix.explorer.compare_view.evaluations_of", damaged)
    assert set(drawn(subject, "tokens", ["mixed"])[1]["run"]) == {"mixed"}

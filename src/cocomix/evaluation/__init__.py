"""Measuring runs and comparing them: perplexity, concept reliance, tables, curves and the report page."""

from cocomix.evaluation.compare_runs import compare
from cocomix.evaluation.comparison import Comparison, json_schema
from cocomix.evaluation.downstream import PAPER_TASKS, Downstream, evaluate_tasks
from cocomix.evaluation.inference import inference
from cocomix.evaluation.measure_run import evaluate_run, final_references
from cocomix.evaluation.pages import Figure, Section, Table, render_page
from cocomix.evaluation.references import References
from cocomix.evaluation.reliance import Reliance, RunReliance, concept_reliance, no_reliance_reason
from cocomix.evaluation.report import shown, write_report
from cocomix.evaluation.run_evaluation import RunEvaluation, evaluations_of
from cocomix.evaluation.run_inputs import open_run_data, open_run_labels, run_labels
from cocomix.evaluation.statistics import document_interval
from cocomix.training import Run

__all__ = [
    "PAPER_TASKS",
    "Comparison",
    "Downstream",
    "Figure",
    "References",
    "Reliance",
    "Run",
    "RunEvaluation",
    "RunReliance",
    "Section",
    "Table",
    "compare",
    "concept_reliance",
    "document_interval",
    "evaluate_run",
    "evaluate_tasks",
    "evaluations_of",
    "final_references",
    "inference",
    "json_schema",
    "no_reliance_reason",
    "open_run_data",
    "open_run_labels",
    "render_page",
    "run_labels",
    "shown",
    "write_report",
]

"""Measuring runs and comparing them: perplexity, concept reliance, tables, curves and the report page."""

from cocomix.evaluation.compare_runs import compare
from cocomix.evaluation.comparison import Comparison, ComparisonRow
from cocomix.evaluation.downstream import PAPER_TASKS, Downstream, evaluate_tasks
from cocomix.evaluation.inference import inference
from cocomix.evaluation.loss_slices import document_interval, slice_differences
from cocomix.evaluation.measure_run import evaluate_run, final_references
from cocomix.evaluation.page import (
    Block,
    Code,
    Image,
    Page,
    Paragraph,
    Points,
    Section,
    SideBySide,
    Table,
    Tokens,
)
from cocomix.evaluation.pages import Figure, render_page
from cocomix.evaluation.reach import Reach, reach
from cocomix.evaluation.references import References
from cocomix.evaluation.reliance import Reliance, RunReliance, concept_reliance, no_reliance_reason
from cocomix.evaluation.report import REPORT_FILE, recorded_sections, reliance_section, summary, write_report
from cocomix.evaluation.run_evaluation import RunEvaluation, evaluations_of
from cocomix.evaluation.run_inputs import open_run_data, open_run_labels, run_labels
from cocomix.training import CurvePoint, Run, RunManifest

__all__ = [
    "PAPER_TASKS",
    "REPORT_FILE",
    "Block",
    "Code",
    "Comparison",
    "ComparisonRow",
    "CurvePoint",
    "Downstream",
    "Figure",
    "Image",
    "Page",
    "Paragraph",
    "Points",
    "Reach",
    "References",
    "Reliance",
    "Run",
    "RunEvaluation",
    "RunManifest",
    "RunReliance",
    "Section",
    "SideBySide",
    "Table",
    "Tokens",
    "compare",
    "concept_reliance",
    "document_interval",
    "evaluate_run",
    "evaluate_tasks",
    "evaluations_of",
    "final_references",
    "inference",
    "no_reliance_reason",
    "open_run_data",
    "open_run_labels",
    "reach",
    "recorded_sections",
    "reliance_section",
    "render_page",
    "run_labels",
    "slice_differences",
    "summary",
    "write_report",
]

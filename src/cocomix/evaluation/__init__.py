"""Measuring runs and comparing them: perplexity, concept reliance, tables, curves and the report page."""

from cocomix.evaluation.compare_runs import compare
from cocomix.evaluation.comparison import Comparison, ComparisonRow
from cocomix.evaluation.document_losses import DOCUMENTS_FILE
from cocomix.evaluation.downstream import PAPER_TASKS, Downstream, evaluate_tasks
from cocomix.evaluation.inference import inference
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
from cocomix.evaluation.perplexity import Evaluation, bits_per_byte, evaluate
from cocomix.evaluation.reach import Reach, reach
from cocomix.evaluation.reliance import Reliance, concept_reliance, no_reliance_reason
from cocomix.evaluation.report import REPORT_FILE, recorded_sections, reliance_section, summary, write_report
from cocomix.evaluation.run_evaluation import EVALUATION_FILE, RunEvaluation, evaluate_run
from cocomix.evaluation.teacher_flops import run_labels
from cocomix.training import CurvePoint, Run, RunManifest

__all__ = [
    "DOCUMENTS_FILE",
    "EVALUATION_FILE",
    "PAPER_TASKS",
    "REPORT_FILE",
    "Block",
    "Code",
    "Comparison",
    "ComparisonRow",
    "CurvePoint",
    "Downstream",
    "Evaluation",
    "Figure",
    "Image",
    "Page",
    "Paragraph",
    "Points",
    "Reach",
    "Reliance",
    "Run",
    "RunEvaluation",
    "RunManifest",
    "Section",
    "SideBySide",
    "Table",
    "Tokens",
    "bits_per_byte",
    "compare",
    "concept_reliance",
    "evaluate",
    "evaluate_run",
    "evaluate_tasks",
    "inference",
    "no_reliance_reason",
    "reach",
    "recorded_sections",
    "reliance_section",
    "render_page",
    "run_labels",
    "summary",
    "write_report",
]

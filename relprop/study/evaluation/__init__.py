"""The study's table: how well each architecture's explanations find what makes the label.

`relprop evaluate` prints it beside the reported values.
"""

from relprop.study.evaluation.cells import SAMPLES, Cell, Setting
from relprop.study.evaluation.explained import LABELS, METHODS, Explained
from relprop.study.evaluation.measure import Job, measure, network
from relprop.study.evaluation.report import report
from relprop.study.evaluation.schedule import evaluate

__all__ = [
    "LABELS",
    "METHODS",
    "SAMPLES",
    "Cell",
    "Explained",
    "Job",
    "Setting",
    "evaluate",
    "measure",
    "network",
    "report",
]

"""The study's table: how well each architecture's explanations find what makes the label.

`relprop evaluate` prints it beside the reported values.
"""

from relprop.evaluation.cells import SAMPLES, Cell, Setting
from relprop.evaluation.explained import LABELS, METHODS, Explained
from relprop.evaluation.measure import Job, measure, network
from relprop.evaluation.report import report
from relprop.evaluation.schedule import evaluate

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

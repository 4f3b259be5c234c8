"""relprop: relevance propagation (LRP) through captured PyTorch models, at high throughput."""

from relprop import backends, composites, errors, functional, methods, rules
from relprop._version import __version__
from relprop.composites import Composite
from relprop.errors import CaptureError, FileFormatError, InputError, PlanningError, RelpropError
from relprop.explainer import Explainer, explain
from relprop.explanation import Explanation
from relprop.inspection import check, info

__all__ = [
    "CaptureError",
    "Composite",
    "Explainer",
    "Explanation",
    "FileFormatError",
    "InputError",
    "PlanningError",
    "RelpropError",
    "__version__",
    "backends",
    "check",
    "composites",
    "errors",
    "explain",
    "functional",
    "info",
    "methods",
    "rules",
]

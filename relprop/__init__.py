"""relprop: relevance propagation (LRP) through captured PyTorch models, at high throughput."""

from typing import TYPE_CHECKING, Any

from relprop import backends, composites, errors, functional, methods, rules
from relprop._version import __version__
from relprop.comparison import Comparison
from relprop.composites import Composite
from relprop.errors import CaptureError, FileFormatError, InputError, PlanningError, RelpropError
from relprop.explainer import Explainer, explain
from relprop.explanation import Explanation
from relprop.inspection import check, info

if TYPE_CHECKING:
    from relprop.batch.reader import open_job
    from relprop.integrations.innvestigate import create_analyzer

__all__ = [
    "CaptureError",
    "Comparison",
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
    "create_analyzer",
    "errors",
    "explain",
    "functional",
    "info",
    "methods",
    "open_job",
    "rules",
]


def __getattr__(name: str) -> Any:
    if name == "open_job":  # jobs are imported by those who use them
        from relprop.batch.reader import open_job

        return open_job
    if name == "create_analyzer":  # and so are other libraries' interfaces
        from relprop.integrations.innvestigate import create_analyzer

        return create_analyzer
    raise AttributeError(f"module 'relprop' has no attribute {name!r}")

"""Jobs: whole data sets explained in shards, resumable, on one CPU or on a cluster.

`relprop explain MODEL DATA --job FOLDER` runs one, `relprop.open_job(FOLDER)` reads it.  From
Python: `run_job(JobSpec(model, data, folder))`, `verify_job`, `export_job`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relprop.batch.engines import run_job
    from relprop.batch.export import export_job
    from relprop.batch.reader import Job, open_job
    from relprop.batch.spec import JobSpec
    from relprop.batch.verify import verify_job

__all__ = ["Job", "JobSpec", "export_job", "open_job", "run_job", "verify_job"]

HOMES = {
    "Job": "reader",
    "JobSpec": "spec",
    "export_job": "export",
    "open_job": "reader",
    "run_job": "engines",
    "verify_job": "verify",
}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'relprop.batch' has no attribute {name!r}")
    # late, since the modules use the command line's readers, whose parser names a job's options
    return getattr(importlib.import_module(f"relprop.batch.{HOMES[name]}"), name)

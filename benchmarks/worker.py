"""One version of this library at work for `benchmarks.against`: requests in, answers out.

A line of JSON each: {"cell": name} sets a cell up and answers with this library's variants, gated;
{"run": number} calls a variant once and answers with its seconds; {"peak": number} with its bytes.
The relprop that is imported is the one that the environment's path puts first.

python -m benchmarks.worker MODULE           MODULE.find(name) gives the cells
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.older import alias

alias()  # before whatever imports a room

from benchmarks.cells import Cell, Variant, gated  # noqa: E402
from benchmarks.timing import once, peak_bytes  # noqa: E402

__all__ = ["Worker", "main"]


class Worker:
    """Answers requests about one cell after the other, this library's own part of it."""

    def __init__(self, find: Callable[[str], Cell]) -> None:
        self.find = find
        self.variants: list[Variant] = []

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request; what goes wrong is an answer too."""
        try:
            if "cell" in request:
                every = self.find(request["cell"]).make().variants
                self.variants = [v for v in every if v.library.startswith("relprop")]
                answer = {"variants": [gated(variant) for variant in self.variants]}
                gc.unfreeze()
                gc.collect()
                gc.freeze()  # for the collections before every call, as in `interleaved`
                return answer
            if "peak" in request:
                return {"bytes": peak_bytes(self.variants[request["peak"]].call)}
            return {"seconds": once(self.variants[request["run"]].call)}
        except Exception as error:
            return {"failed": f"{type(error).__name__}: {error}"}


def main() -> int:
    """Answer until the input ends."""
    # what libraries print must not come between the answers
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker(importlib.import_module(sys.argv[1]).find)
    for line in sys.stdin:
        print(json.dumps(worker.answer(json.loads(line))), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""A pytest plugin for a peer's own tests: relprop's classes in its modules before collection.

Told by the environment: PEERS_REPORT, the file for the results; PEERS_PART "i/n", the i-th of n
equal parts; PEERS_SAMPLE "count/seed", so many cases drawn at random; PEERS_ONE_BY_ONE, one
iteration a call in SmoothGrad and IntegratedGradients.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _torchvision_beside_a_cpu_torch() -> Any:
    spec = importlib.util.spec_from_file_location("relprop_conftest", ROOT / "tests/conftest.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.append(str(ROOT / "tests"))  # what it imports beside itself
    spec.loader.exec_module(module)
    return module


CONFTEST = _torchvision_beside_a_cpu_torch()  # holds the operators: they vanish with it

import zennit.attribution  # noqa: E402
import zennit.composites  # noqa: E402
import zennit.rules  # noqa: E402

from relprop.integrations import zennit as relprop_zennit  # noqa: E402
from relprop.integrations.zennit.hook import RuleHook  # noqa: E402

ATTRIBUTORS = ("Gradient", "SmoothGrad", "IntegratedGradients")


def _substitute() -> None:
    """Every rule in `zennit.rules` and `zennit.composites`, and the attributors."""
    for name, value in vars(zennit.rules).copy().items():
        if not (isinstance(value, type) and value.__module__ == "zennit.rules"):
            continue
        if not issubclass(value, zennit.core.Hook):
            continue  # a helper that modifies parameters
        ours = getattr(relprop_zennit.rules, name)
        assert issubclass(ours, RuleHook)
        setattr(zennit.rules, name, ours)
        if hasattr(zennit.composites, name):
            setattr(zennit.composites, name, ours)
    for name in ATTRIBUTORS:
        ours = getattr(relprop_zennit, name)
        if os.environ.get("PEERS_ONE_BY_ONE") and name != "Gradient":
            ours = functools.partial(ours, iterations_per_call=1)
        setattr(zennit.attribution, name, ours)


_substitute()

_fixture = pytest.fixture


def _without_extended(*args: Any, **options: Any) -> Any:
    """`pytest.fixture` without the seeds marked "extended", before they are multiplied out.

    The run deselects them; collecting three times as many cases first takes longer than the cases.
    """

    def extended(param: Any) -> bool:
        return any(mark.name == "extended" for mark in getattr(param, "marks", ()))

    if options.get("params") is not None:
        options["params"] = [param for param in options["params"] if not extended(param)]
    return _fixture(*args, **options)


pytest.fixture = _without_extended

RESULTS: dict[str, list[Any]] = {"passed": [], "failed": [], "skipped": []}


def _model(item: pytest.Item) -> list[int]:
    """Which model a case is about, as the numbers of the parameters that it is made from."""
    numbers = getattr(getattr(item, "callspec", None), "indices", {})
    return [numbers.get(name, -1) for name in ("rng", "module_linear", "model_vision")]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep a part of the cases, or a sample; those of one model one after another.

    In pytest's order the composites change less often than the models, so that each model would be
    built, and captured, once for every composite.
    """
    items.sort(key=_model)
    part, sample = os.environ.get("PEERS_PART"), os.environ.get("PEERS_SAMPLE")
    chosen = list(items)
    if part:
        number, count = map(int, part.split("/"))
        chosen = items[number * len(items) // count : (number + 1) * len(items) // count]
    if sample:
        count, seed = map(int, sample.split("/"))
        places = random.Random(seed).sample(range(len(items)), min(count, len(items)))
        chosen = [items[place] for place in sorted(places)]
    kept = set(map(id, chosen))
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
    items[:] = chosen


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note each case's end."""
    if report.when == "call" or report.outcome != "passed":
        RESULTS[report.outcome].append([report.nodeid, str(report.longreprtext)[-4000:]])


def pytest_sessionfinish() -> None:
    """Write the results."""
    Path(os.environ["PEERS_REPORT"]).write_text(json.dumps(RESULTS), encoding="utf-8")

"""`pytest --ptx 90`: kernels are compiled for sm_90 and executed here, whatever the machine has."""

from __future__ import annotations

import os
from typing import Any

import pytest

__all__ = [
    "DRIVER",
    "pytest_addoption",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_terminal_summary",
]

DRIVER = pytest.StashKey[Any]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--ptx", type=int, choices=(80, 90), metavar="ARCH",
        help="compile Triton kernels for sm_80 or sm_90 and execute their PTX on the CPU",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Make the executor Triton's active driver.

    Raises:
        pytest.UsageError: Triton's interpreter was chosen too.
    """
    arch = config.getoption("--ptx")
    if arch is None:
        return
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise pytest.UsageError("--ptx executes compiled kernels: unset TRITON_INTERPRET")
    from ptx.driver import install  # with Triton, which the other tests do not need

    config.stash[DRIVER] = install(arch)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the tests marked `ptx(*archs)` keep those for the architecture that was asked for."""
    arch = config.getoption("--ptx")
    markers = ((item, item.get_closest_marker("ptx")) for item in items)
    left = [item for item, marker in markers if marker is not None and arch not in marker.args]
    if left:
        gone = set(left)
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in gone]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:  # fmt: skip
    """What was executed; of a run in several processes, each process knows its own."""
    driver = config.stash.get(DRIVER, None)
    if driver is None or not driver.statistics.launches:
        return
    terminalreporter.section(f"PTX for sm_{driver.arch}")
    for name, (launches, programs, steps) in sorted(driver.statistics.launches.items()):
        counted = f"{launches} launches, {programs} programs, {steps} instructions"
        terminalreporter.write_line(f"{name}: {counted}")

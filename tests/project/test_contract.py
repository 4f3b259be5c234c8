"""The import contract holds, and notices what breaks it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "setup.py").exists())
LINT = "from importlinter.cli import lint_imports_command as command; command()"


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The packages as they lie when installed."""
    for source, target in (("relprop", "relprop"), ("kernels", "relprop/kernels")):
        shutil.copytree(
            ROOT / source,
            tmp_path / target,
            ignore=lambda folder, names: [
                name for name in names if not name.endswith(".py") and "." in name
            ],
        )
    return tmp_path


def check(copied: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", LINT, str(ROOT / "pyproject.toml"), "--no-cache"],
        cwd=copied,
        env={**os.environ, "PYTHONPATH": str(copied)},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def test_contract_is_kept(copied: Path) -> None:
    status, text = check(copied)
    assert status == 0, text


@pytest.mark.parametrize(
    ("file", "line", "said"),
    [
        ("rules/linear.py", "import relprop.cli", "relprop.rules is not allowed to import"),
        ("engine/run.py", "import relprop.backends.reference.linear", "oracle"),
        ("graph/nodes.py", "import relprop.graph.maps, relprop.graph.canonical", "acyclic"),
    ],
)
def test_what_breaks_it_is_noticed(copied: Path, file: str, line: str, said: str) -> None:
    """A lazy import is one too."""
    path = copied / "relprop" / file
    path.write_text(path.read_text(encoding="utf-8") + f"\n\ndef planted():\n    {line}\n")
    status, text = check(copied)
    assert status != 0
    assert said in text, text

"""Types and imports of an installed copy: checkers do not see `kernels/` as `relprop.kernels`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIG = str(ROOT / "pyproject.toml")


def main() -> int:
    """Build an sdist, install it into an empty folder, run mypy and the import contract on that.

    Returns:
        The first status that is not 0.
    """
    with tempfile.TemporaryDirectory() as folder:
        dist, site = Path(folder, "dist"), Path(folder, "site")
        build = ["build", "--quiet", "--sdist", "--no-isolation", "--outdir", str(dist), str(ROOT)]
        made = subprocess.run([sys.executable, "-m", *build], capture_output=True, text=True)
        if made.returncode:
            print(made.stdout + made.stderr)
            return made.returncode
        install = ["pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
        archive = str(next(dist.glob("*.tar.gz")))
        subprocess.run([sys.executable, "-m", *install, "--target", str(site), archive], check=True)
        cache = ["--cache-dir", str(ROOT / ".mypy_cache")]
        checks = [
            ["-m", "mypy", "--config-file", CONFIG, "-p", "relprop", *cache],
            ["-c", "from importlinter.cli import lint_imports_command as c; c()", CONFIG],
        ]
        environment = {**os.environ, "MYPYPATH": str(site), "PYTHONPATH": str(site)}
        found = [
            subprocess.run([sys.executable, *check], cwd=site, env=environment).returncode
            for check in checks
        ]
        return next((status for status in found if status), 0)


if __name__ == "__main__":
    sys.exit(main())

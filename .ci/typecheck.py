"""Type-check an installed copy: checkers do not see that `kernels/` is `relprop.kernels`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Build an sdist, install it into an empty folder, run mypy on that; returns mypy's status."""
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
        check = ["mypy", "--config-file", str(ROOT / "pyproject.toml"), "-p", "relprop"]
        cache = ["--cache-dir", str(ROOT / ".mypy_cache")]
        environment = {**os.environ, "MYPYPATH": str(site)}
        return subprocess.run(
            [sys.executable, "-m", *check, *cache], cwd=site, env=environment
        ).returncode


if __name__ == "__main__":
    sys.exit(main())

"""Build wheel and sdist, install each into a fresh environment, use it, run the README."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = "[figures,triton]"

IMPORTS = """
import sys
import relprop, relprop.cli, relprop.data, relprop.models
assert "site-packages" in relprop.__file__, relprop.__file__
loaded = {"triton", "matplotlib", "torchvision", "zennit", "captum"} & set(sys.modules)
assert not loaded, f"import relprop loaded {loaded}"
import relprop.kernels
assert "site-packages" in relprop.kernels.__file__, relprop.kernels.__file__
relprop.info()
"""


def run(*command: object, cwd: Path, quiet: bool = False) -> str:
    """Run a command in `cwd` without this environment's PYTHONPATH; returns what it printed."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    print("$", " ".join(str(part).strip().splitlines()[0] for part in command), flush=True)
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
    )
    if done.returncode:
        print(done.stdout)
        raise SystemExit(f"exit status {done.returncode}")
    if not quiet:
        print(done.stdout, end="", flush=True)
    return done.stdout


def check_files(python: Path, cwd: Path) -> None:
    """No installed file lies in a top-level package `kernels`; the type marker is there."""
    listing = run(python, "-m", "pip", "show", "-f", "relprop", cwd=cwd, quiet=True)
    files = [line.strip() for line in listing.partition("Files:")[2].splitlines()]
    stray = [name for name in files if name.startswith(("kernels/", "tests/", "benchmarks/"))]
    if stray:
        raise SystemExit(f"installed outside relprop/: {stray}")
    for name in ("relprop/py.typed", "relprop/kernels/__init__.py"):
        if name not in files:
            raise SystemExit(f"not installed: {name}")


def check(archive: Path, python: Path, folder: Path) -> None:
    """Install one archive, use it, take it away again; what it requires stays."""
    install = (python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt")
    run(*install, f"{archive}{EXTRAS}", cwd=folder)
    check_files(python, folder)
    run(python, "-c", IMPORTS, cwd=folder)
    words = ("explain", "mnist_cnn", "mnist:sample", "--limit", "3", "--out", folder / "out")
    run(python.parent / "relprop", *words, cwd=folder)
    run(python, ROOT / ".ci" / "readme.py", ROOT / "README.md", cwd=folder)
    run(python, "-m", "pip", "uninstall", "--quiet", "--yes", "relprop", cwd=folder)


def main() -> None:
    """Build both archives, the wheel from the sdist, and check each in a fresh environment."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dist, home = folder / "dist", folder / "environment"
        run(sys.executable, "-m", "build", "--outdir", dist, ROOT, cwd=folder, quiet=True)
        venv.create(home, with_pip=True)
        for archive in sorted(dist.iterdir()):
            check(archive, home / "bin" / "python", folder)


if __name__ == "__main__":
    main()

"""Packaging.  The folder `kernels/` is installed as `relprop.kernels`, never under its own name."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def version() -> str:
    """The version that relprop/_version.py states."""
    text = (ROOT / "relprop" / "_version.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    if found is None:
        raise RuntimeError('relprop/_version.py: no line __version__ = "..."')
    return found.group(1)


FIGURES = ["matplotlib", "pillow"]
TEST = [
    *FIGURES,
    "build",
    "hypothesis",
    "import-linter",
    "mypy",
    "pytest>=8",
    "pytest-benchmark",
    "pytest-xdist",
    "ruff",
    "setuptools>=77",
    "transformers",
]

setup(
    name="relprop",
    version=version(),
    description="Layer-wise relevance propagation for PyTorch, from a captured plan",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["relprop", "relprop.*"]),
        "relprop.kernels",
        *(f"relprop.kernels.{name}" for name in find_packages("kernels")),
    ],
    package_dir={"relprop.kernels": "kernels"},
    package_data={
        "relprop": ["py.typed"],
        "relprop.data": ["samples/*"],
        "relprop.models": ["weights/*"],
        "relprop.kernels": ["*.md"],
    },
    install_requires=["torch>=2.11", "numpy", "safetensors"],
    extras_require={
        "triton": ["triton>=3.6; platform_system == 'Linux'"],
        "figures": FIGURES,
        "captum": ["captum>=0.9"],
        "zennit": ["zennit>=0.5.1,<0.6"],
        "quantus": ["quantus>=0.6"],
        "ray": ["ray[data]"],
        "parquet": ["pyarrow"],
        "test": TEST,
    },
    entry_points={"console_scripts": ["relprop = relprop.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)

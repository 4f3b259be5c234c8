"""What an installed relprop holds, and what importing it loads."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from relprop._version import __version__

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


def run(*command: object, cwd: Path, **environment: str) -> str:
    """Run this Python with these arguments; returns standard output."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run("-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


def test_version_is_stated_once() -> None:
    import relprop

    assert relprop.__version__ == __version__ == importlib.metadata.version("relprop")


def test_nothing_but_torch_numpy_safetensors_is_required() -> None:
    required = importlib.metadata.requires("relprop") or []
    plain = [line for line in required if "extra ==" not in line]
    assert sorted(plain) == ["numpy", "safetensors", "torch>=2.11"]


def test_extras() -> None:
    extras = importlib.metadata.metadata("relprop").get_all("Provides-Extra")
    expected = {"captum", "figures", "parquet", "quantus", "ray", "test", "triton", "zennit"}
    assert extras is not None and set(extras) == expected


def test_editable_install_has_the_kernels(tmp_path: Path) -> None:
    code = (
        "import importlib.util, relprop.kernels;"
        "print(relprop.kernels.__file__, importlib.util.find_spec('kernels'), sep='\\n')"
    )
    found, top_level = run("-c", code, cwd=tmp_path).splitlines()
    assert Path(found) == ROOT / "kernels" / "__init__.py"
    assert top_level == "None"


def test_wheel_holds_all_of_relprop_and_nothing_else(archives: dict[str, Path]) -> None:
    with zipfile.ZipFile(archives["wheel"]) as wheel:
        names = set(wheel.namelist())
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"relprop", f"relprop-{__version__}.dist-info"}
    for folder, prefix in ((ROOT / "relprop", "relprop"), (ROOT / "kernels", "relprop/kernels")):
        for path in folder.rglob("*"):
            if path.suffix in (".py", ".typed", ".safetensors", ".md"):
                assert f"{prefix}/{path.relative_to(folder).as_posix()}" in names


def test_sdist_holds_the_kernels_and_the_tests(archives: dict[str, Path]) -> None:
    with tarfile.open(archives["sdist"]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    for name in (
        "kernels/__init__.py",
        "tests/project/test_packaging.py",
        "LICENSE",
        "constraints.txt",
    ):
        assert name in names


def test_wheel_works(archives: dict[str, Path], tmp_path: Path) -> None:
    site = tmp_path / "site"
    quiet = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    run(*quiet, "--target", site, archives["wheel"], cwd=tmp_path)
    code = "import relprop, relprop.kernels as k; print(relprop.__file__, k.__file__, sep='\\n')"
    found = run("-c", code, cwd=tmp_path, PYTHONPATH=str(site)).splitlines()
    assert found == [str(site / f"relprop/{name}__init__.py") for name in ("", "kernels/")]
    words = ("explain", "mnist_cnn", "mnist:sample", "--limit", "2")
    printed = run("-m", "relprop", *words, cwd=tmp_path, PYTHONPATH=str(site))
    assert "2 explained by epsilon_plus, 0 failed" in printed


@pytest.mark.parametrize(
    "module", ["relprop", "relprop.cli.arguments", "relprop.cli.commands", "relprop.kernels"]
)
def test_import_loads_no_extra(module: str, tmp_path: Path) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = {name.partition(".")[0] for name in run("-c", code, cwd=tmp_path).split()}
    extras = {"PIL", "captum", "matplotlib", "quantus", "ray", "torchvision", "triton", "zennit"}
    assert not loaded & extras


def test_readme_blocks_run(tmp_path: Path) -> None:
    printed = run(ROOT / ".ci" / "readme.py", ROOT / "README.md", cwd=tmp_path)
    assert "Python blocks ran" in printed

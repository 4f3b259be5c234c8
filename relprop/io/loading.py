"""The models of the command line: a shipped name, a callable of the user's, an exported program.

Weights are read from safetensors files only; nothing is unpickled without `--trust`.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from relprop import models
from relprop.errors import FileFormatError, InputError
from relprop.io.files import PICKLED_SUFFIXES, check_zip, listed, printable, require_file

__all__ = ["imported", "load_model", "require_trust"]


def load_model(spec: str, weights: str | None, trust: bool) -> nn.Module:
    """The model that a word of the command line names, in evaluation mode.

    Args:
        spec: a shipped name, `package.module:callable` returning a module, or a `.pt2` file.
        weights: a safetensors file with the model's state, or None.
        trust: whether the user lets the last two run code.

    Raises:
        InputError: an unknown name, code that is not trusted, or that fails.
        FileFormatError: a file that is missing, damaged, pickled, or of another model.
    """
    if weights is not None and Path(weights).suffix.lower() != ".safetensors":
        raise FileFormatError(
            f"--weights {printable(weights)}: only .safetensors files are read, since pickled "
            "weights run code; convert them with safetensors.torch.save_file"
        )
    if spec in models.names():
        return models.load(spec, weights)
    suffix = Path(spec).suffix.lower()
    if suffix == ".pt2":
        return _exported(Path(spec), weights, trust)
    if suffix in PICKLED_SUFFIXES:
        raise FileFormatError(
            f"{printable(spec)}: pickled models run code when they are read, so they are not; "
            "name package.module:callable with --weights file.safetensors, or a .pt2 file of "
            "torch.export.save"
        )
    if ":" in spec:
        return _from_callable(spec, weights, trust)
    raise InputError(
        f"model {printable(spec)!r}: expected {', '.join(models.names())}, "
        "package.module:callable, or a .pt2 file"
    )


def _exported(path: Path, weights: str | None, trust: bool) -> nn.Module:
    require_file(path)
    require_trust(str(path), trust, "model", "loading an exported program")
    if weights is not None:
        raise InputError("--weights: an exported program holds its own weights")
    check_zip(path)
    try:
        return torch.export.load(path).module()
    except Exception as error:
        raise FileFormatError(
            f"{printable(path)}: not a program of torch.export.save that this torch can read "
            f"({printable(error)})"
        ) from None


def _from_callable(spec: str, weights: str | None, trust: bool) -> nn.Module:
    found = imported(spec, trust, "model")
    try:
        made = found if isinstance(found, nn.Module) else found()
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {printable(error)}"
        raise InputError(f"model {printable(spec)!r}: {reason}") from error
    if not isinstance(made, nn.Module):
        what = "a function" if inspect.isroutine(made) else f"a {type(made).__name__}"
        raise InputError(
            f"model {printable(spec)!r}: gave {what}; expected a torch.nn.Module, or a callable "
            "without arguments that returns one"
        )
    if weights is not None:
        _load_weights(made, Path(weights))
    return made.eval()


def _load_weights(model: nn.Module, path: Path) -> None:
    require_file(path)
    try:
        state = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise FileFormatError(
            f"{printable(path)}: not a readable safetensors file ({printable(error)})"
        ) from None
    _check_state(path, state, model.state_dict())
    # Tied parameters may be stored once, so what is missing is judged after loading.
    missing, _ = model.load_state_dict(state, strict=False)
    shared = {id(model.state_dict(keep_vars=True)[key]) for key in state}
    absent = [k for k in missing if id(model.state_dict(keep_vars=True)[k]) not in shared]
    if absent:
        raise FileFormatError(f"{printable(path)}: lacks {listed(absent, 3)} of the model")


def _check_state(path: Path, state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    unknown = [key for key in state if key not in expected]
    if unknown:
        raise FileFormatError(f"{printable(path)}: holds {listed(unknown, 3)}, not of this model")
    for key, tensor in state.items():
        if tensor.shape != expected[key].shape:
            raise FileFormatError(
                f"{printable(path)}: {printable(key)} has shape {list(tensor.shape)}; "
                f"the model's has {list(expected[key].shape)}"
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise FileFormatError(f"{printable(path)}: {printable(key)} holds NaN or Inf")


def require_trust(spec: str, trust: bool, option: str, what: str) -> None:
    """Refuse what runs code, unless the user said that it may.

    Raises:
        InputError: not trusted.
    """
    if not trust:
        raise InputError(
            f"{option} {printable(spec)!r}: {what} runs code of its author; add --trust if you "
            "trust it as much as a program that you run"
        )


def imported(spec: str, trust: bool, option: str) -> Any:
    """The object that `package.module:name` names.

    Args:
        spec: the words.
        trust: whether code may run.
        option: what the user gave them for.

    Raises:
        InputError: not trusted, not of that form, or importing it fails.
    """
    require_trust(spec, trust, option, "importing a module")
    module, _, attribute = spec.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` has it
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {printable(error)}"
        raise InputError(f"{option} {printable(spec)!r}: {reason}") from error
    return found

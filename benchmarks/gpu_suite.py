"""What is run on a CUDA device: the stages of `benchmarks.gpu`, in their order."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["STAGES", "Stage"]

MODELS = ("vgg16", "resnet50")
METHODS = ("epsilon_plus", "epsilon_alpha2_beta1", "lrp_epsilon", "epsilon_gamma_box")


@dataclass(frozen=True)
class Stage:
    """One process.

    Attributes:
        name: of the stage, its log and its record.
        seconds: its time limit.
        what: in words.
        arguments: of the Python interpreter; `{record}` stands for the record's path without
            its suffix.
        tool: a program that it needs beside Python.
        tunes: whether kernels are chosen by measuring; else the shipped tiles run.
    """

    name: str
    seconds: int
    what: str
    arguments: tuple[str, ...]
    tool: str = ""
    tunes: bool = False


_PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
_KERNELS = "tests/kernels/"


def _cnn(model: str, precision: str, tunes: bool = False) -> Stage:
    arguments = ("-m", "benchmarks.cnn", "--device", "cuda", "--models", model, "--batch", "64")
    options = ("--methods", *METHODS, "--precision", precision, "--triton")
    what = f"explanations per second of {model}, batch 64, 224 x 224, precision {precision!r}"
    name = f"{model}-{precision}" + "-tuned" * tunes
    what += ", kernels chosen by measuring" * tunes
    return Stage(name, 510, what, (*arguments, *options, "--record", "{record}.csv"), tunes=tunes)


def _layers(tunes: bool) -> Stage:
    what = "each layer of both networks: share of the device's bound, against the library"
    arguments = ("-m", "benchmarks.gpu_layers", "--record", "{record}.csv")
    name = "layers" + "-tuned" * tunes
    return Stage(name, 530, what + ", tuned" * tunes, arguments, tunes=tunes)


STAGES = (
    Stage(
        "environment",
        120,
        "device, versions, measured copy bandwidth and matrix rates",
        ("-m", "benchmarks.gpu_stages", "environment", "--record", "{record}.csv"),
    ),
    Stage(
        "accuracy",
        480,
        "production sizes: error against float64 beside PyTorch's own, the same bits every run",
        ("-m", "benchmarks.gpu_stages", "accuracy", "--record", "{record}.csv"),
    ),
    Stage(
        "smoke",
        480,
        "every kernel and rule, small, against the float64 reference",
        (
            *_PYTEST,
            _KERNELS + "test_layers.py::test_every_rule",
            _KERNELS + "test_pool.py",
            _KERNELS + "test_plan.py",
            "-m",
            "not slow",
        ),
    ),
    _cnn("vgg16", "medium"),
    _cnn("resnet50", "medium"),
    _layers(tunes=False),
    Stage(
        "engine",
        480,
        "whole networks on CUDA: equal to the CPU, Triton equal to ATen, run to run",
        (*_PYTEST, "tests/engine/test_cuda.py"),
    ),
    _cnn("vgg16", "high"),
    _layers(tunes=True),
    _cnn("vgg16", "medium", tunes=True),
    _cnn("resnet50", "medium", tunes=True),
    _cnn("resnet50", "high"),
    Stage(
        "kernels",
        530,
        "the kernels' whole test matrix, shared among processes",
        ("-m", "benchmarks.gpu_stages", "kernels"),
    ),
    Stage(
        "memcheck",
        530,
        "compute-sanitizer on the small tests",
        ("-m", "benchmarks.gpu_stages", "memcheck"),
        tool="compute-sanitizer",
    ),
    *(_cnn(model, "highest") for model in MODELS),
)
"""Most valuable first: right at production sizes, the tables, then what tuning gives."""

"""The arguments of the command line, and their `--help`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

from relprop import models
from relprop._version import __version__
from relprop.cli.evaluate import add_evaluate
from relprop.cli.jobs import JOB_NOTES, add_job_commands, add_job_options
from relprop.cli.training import add_train
from relprop.io.files import MAX_BYTES, MAX_PIXELS
from relprop.io.inputs import DATA_HELP

__all__ = ["parser"]

DESCRIPTION = "Explain a network's outputs by layer-wise relevance propagation and its kin."

MODEL_HELP = f"""\
{", ".join(models.names())} (shipped with relprop);
package.module:callable, which returns a torch.nn.Module (runs code: needs --trust);
a .pt2 file of torch.export.save (runs code: needs --trust)"""

EXPLAIN = f"""\
model is one of
  {MODEL_HELP.replace(chr(10), chr(10) + "  ")}

data is one of
  {DATA_HELP.replace(chr(10), chr(10) + "  ")}
  Bytes are scaled to [0, 1]; floating numbers are taken as they are; then --mean and --std apply.
  For a shipped model images become 28 x 28, grey, and bytes lie in [-1, 1], unless you say else.

method is one of
  LRP:        epsilon_plus, epsilon_plus_flat, epsilon_gamma_box, epsilon_alpha2_beta1,
              epsilon_alpha2_beta1_flat, excitation_backprop, deep_taylor, lrp_zero, lrp_epsilon,
              lrp_gamma, lrp_zplus, lrp_w_square, lrp_flat,
              alpha_beta, lrp_alpha<a>_beta<b> such as lrp_alpha1.5_beta0.5 (difference 1)
  gradients:  gradient, sensitivity, gradient_x_input (simple_taylor), guided_backprop, deconvnet,
              smoothgrad, integrated_gradients
"""

EXAMPLES = """\
examples
  relprop explain mnist_cnn mnist:sample --limit 8 --out out/digits
  relprop explain fashion_mnist_cnn fashion_mnist:sample --method deep_taylor \\
      --method-option low=-1 --method-option high=1 --target label
  relprop explain networks:resnet18 photos/ --trust --weights resnet18.safetensors \\
      --resize 256 --crop 224 --mean .485,.456,.406 --std .229,.224,.225 \\
      --labels folders --batch-size 8
  relprop explain exported.pt2 inputs.npz --trust --array x --layers features.4,classifier.0

written to --out
  relevance.safetensors  read it with relprop.Explanation.load: relevance, the --layers, output,
                         convergence_delta; beside them prediction and label (-1: none); with
                         inputs of several shapes one tensor an input, for safetensors alone;
                         after --top K with an axis of K targets after the inputs'
  summary.csv            a line for each input, also for those that failed
  heatmaps/              the input beside its heatmap, for inputs that are images

exit status  0 all explained   1 some inputs failed, each a line on standard error
             2 nothing could be done
"""


def _list_of(convert: Callable[[str], Any], what: str) -> Callable[[str], tuple[Any, ...]]:
    def parse(text: str) -> tuple[Any, ...]:
        try:
            return tuple(convert(part.strip()) for part in text.split(","))
        except (ValueError, OverflowError):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None

    return parse


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _spread(text: str) -> tuple[float, ...]:
    numbers: tuple[float, ...] = _list_of(_finite, "numbers separated by commas")(text)
    if min(numbers) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r}: a standard deviation must be above 0")
    return numbers


def _count(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _count_or_zero(text: str) -> int:
    return 0 if text.strip() == "0" else _count(text)


def _size(text: str) -> tuple[int, ...]:
    sides = tuple(_count(side) for side in text.lower().split("x"))
    if len(sides) > 2 or max(sides) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a side, or height x width, like 224x320")
    return sides


def _target(text: str) -> str | int | tuple[int, ...]:
    if text in ("predicted", "label"):
        return text
    numbers = _list_of(int, "'predicted', 'label', a class, or the indices of one output")(text)
    return numbers[0] if len(numbers) == 1 else numbers


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not name=value, like low=-1")
    words: dict[str, Any] = {"true": True, "false": False, "none": None}
    if value.lower() in words:
        return name, words[value.lower()]
    try:
        numbers = [
            int(v) if v.strip().lstrip("+-").isdecimal() else float(v) for v in value.split(",")
        ]
    except ValueError:
        return name, value
    return name, numbers[0] if len(numbers) == 1 else numbers


def parser() -> argparse.ArgumentParser:
    """The parser of `relprop`, with its sub-commands."""
    top = argparse.ArgumentParser(
        prog="relprop",
        description=DESCRIPTION,
        epilog="'relprop COMMAND --help' says more.",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"relprop {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    style: dict[str, Any] = {
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,
    }
    explain = commands.add_parser(
        "explain",
        help="explain a model on data",
        description=f"{DESCRIPTION}\n\n{EXPLAIN}",
        epilog=EXAMPLES.replace("exit status", f"{JOB_NOTES}\nexit status"),
        **style,
    )
    _add_sources(explain)
    _add_method(explain)
    _add_output(explain)
    add_job_options(explain, _count, _count_or_zero)
    check = commands.add_parser(
        "check",
        help="say which operations a model has, and which have no rule",
        description="Capture a model and list its operations; nothing is explained.\n\n"
        + EXPLAIN.partition("\nmethod")[0],
        **style,
    )
    _add_sources(check)
    check.add_argument("--debug", action="store_true", help="show a stack trace on an error")
    add_train(commands)
    add_evaluate(commands)
    add_job_commands(commands, style, _count)
    commands.add_parser("info", help="say what is installed and which backends there are")
    return top


def _add_sources(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", help="see above")
    command.add_argument("data", help="see above")
    group = command.add_argument_group("model")
    group.add_argument("--weights", metavar="FILE", help="its weights, a .safetensors file")
    group.add_argument("--trust", action="store_true", help="let the model's own code run")
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, …; cuda where it is")
    group = command.add_argument_group("data")
    group.add_argument("--resize", type=_size, metavar="N|HxW", help="shorter side, or both sides")
    group.add_argument("--crop", type=_size, metavar="N|HxW", help="cut from the centre")
    numbers = _list_of(_finite, "numbers separated by commas")
    group.add_argument("--mean", type=numbers, metavar="M[,M,M]", help="subtracted, each channel's")
    group.add_argument("--std", type=_spread, metavar="S[,S,S]", help="divided by, each channel's")
    group.add_argument("--channels", type=int, choices=(1, 3), help="of image files: grey or RGB")
    group.add_argument(
        "--labels",
        metavar="FILE|folders",
        help="for images a CSV file of lines name,label, or 'folders': the sub-folder they lie in; "
        "for arrays a .npy, IDX or text file in their order",
    )
    group.add_argument("--array", metavar="NAME", help="the array or column to explain")
    group.add_argument("--limit", type=_count, metavar="N", help="explain the first N inputs")
    group.add_argument(
        "--max-pixels",
        type=_count,
        default=MAX_PIXELS,
        metavar="N",
        help="refuse larger images (%(default)s)",
    )
    group.add_argument(
        "--max-bytes",
        type=_count,
        default=MAX_BYTES,
        metavar="N",
        help="refuse files that unpack to more (%(default)s)",
    )


def _add_method(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("method")
    group.add_argument("--method", default="epsilon_plus", help="see above (%(default)s)")
    group.add_argument(
        "--method-option",
        type=_option,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument of the method, such as low=-1; v,v,v is one value a channel; repeatable",
    )
    group.add_argument(
        "--target",
        type=_target,
        default="predicted",
        metavar="T",
        help="the class to explain, 'predicted' (the default) or 'label'; i,j indexes an output "
        "of several dimensions",
    )
    group.add_argument(
        "--top", type=_count, metavar="K", help="explain the K largest outputs of each input"
    )
    group.add_argument("--output", metavar="KEY", help="which of several outputs, by name or index")
    group.add_argument(
        "--layers",
        type=_list_of(str, "names"),
        default=(),
        metavar="PATH[,PATH]",
        help="modules whose relevance is written too",
    )
    group.add_argument("--backend", default="auto", choices=("auto", "triton", "aten", "reference"))
    group.add_argument("--precision", default="highest", choices=("highest", "high", "medium"))
    group.add_argument(
        "--batch-size", type=_count, metavar="N", help="(32; a job finds the fastest itself)"
    )


def _add_output(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("output")
    group.add_argument("--out", default="out/explain", metavar="FOLDER", help="(%(default)s)")
    group.add_argument(
        "--heatmaps",
        type=_count_or_zero,
        default=100,
        metavar="N",
        help="draw at most N, 0 for none (%(default)s)",
    )
    group.add_argument("--quiet", action="store_true", help="no progress bar, no table")
    group.add_argument("--debug", action="store_true", help="show a stack trace on an error")

"""The arguments of the command line, and their `--help`."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from relprop import models
from relprop._version import __version__
from relprop.batch.export import WRITERS
from relprop.batch.spec import JobSpec
from relprop.cli.evaluate import add_evaluate
from relprop.cli.jobs import JOB_NOTES
from relprop.cli.training import add_train
from relprop.io.inputs import DATA_HELP
from relprop.io.words import count, count_or_zero, list_of

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
  summary.csv            a line for each input; those that failed last, with the reason
  heatmaps/              the input beside its heatmap, for inputs that are images
  sheet.png              the first 20 of them with class, score and a colour bar (needs Matplotlib)

exit status  0 all explained   1 some inputs failed, each a line on standard error
             2 nothing could be done
"""


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
    _add_explain(explain)
    check = commands.add_parser(
        "check",
        help="say which operations a model has, and which have no rule",
        description="Capture a model and list its operations; nothing is explained.\n\n"
        + EXPLAIN.partition("\nmethod")[0],
        **style,
    )
    _add_sources(check)
    _add_debug(check)
    add_train(commands)
    add_evaluate(commands)
    _add_job_commands(commands, style)
    commands.add_parser("info", help="say what is installed and which backends there are")
    return top


def _add(command: argparse.ArgumentParser, title: str) -> argparse._ArgumentGroup:
    """A group of options, of which `JobSpec` says all."""
    group = command.add_argument_group(title)
    if title == "job":
        help = "explain into shards in this folder, resumable"
        group.add_argument("--job", metavar="FOLDER", help=help)
    for field in fields(JobSpec):
        word = dict(field.metadata)
        if word.pop("group", None) != title:
            continue
        name = field.name.replace("_", "-")
        default: Any = field.default
        if isinstance(default, bool):
            option = f"--no-{name}" if default else f"--{name}"
            word.update(dest=field.name, action=f"store_{str(not default).lower()}")
        else:
            option = f"--{name}"
            word["default"] = list(default) if "action" in word else default  # it appends
        group.add_argument(option, **word)
    return group


def _add_debug(command: Any) -> None:
    command.add_argument("--debug", action="store_true", help="show a stack trace on an error")


def _add_sources(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", help="see above")
    command.add_argument("data", help="see above")
    _add(command, "model")
    _add(command, "data")


def _add_explain(command: argparse.ArgumentParser) -> None:
    _add_sources(command)
    _add(command, "method").add_argument(
        "--layers",
        type=list_of(str, "names"),
        default=(),
        metavar="PATH[,PATH]",
        help="modules whose relevance is written too",
    )
    group = _add(command, "output")
    group.add_argument("--out", default="out/explain", metavar="FOLDER", help="(%(default)s)")
    group.add_argument(
        "--heatmaps",
        type=count_or_zero,
        default=100,
        metavar="N",
        help="draw at most N, 0 for none (%(default)s)",
    )
    group.add_argument(
        "--classes",
        metavar="FILE",
        help="names of the classes, for titles: one a line, or JSON such as ImageNet's "
        "(shipped models: their own)",
    )
    _add_debug(group)
    _add(command, "job")


def _add_job_commands(commands: Any, style: dict[str, Any]) -> None:
    """`relprop verify` and `relprop export`."""
    command = commands.add_parser(
        "verify",
        help="check a job's files: every sample once, every checksum right",
        description="Read all of a job and check counts, duplicates and checksums.",
        epilog="exit status  0 whole   1 something is missing, damaged or failed   2 no job there",
        **style,
    )
    command.add_argument("job", metavar="FOLDER")
    _add_debug(command)
    command = commands.add_parser(
        "export",
        help="write a job's explanations as .npz, Parquet or PNG heatmaps",
        description="Write a job's explanations into one .npz or Parquet file, or PNG heatmaps.",
        **style,
    )
    command.add_argument("job", metavar="FOLDER")
    command.add_argument("--to", required=True, choices=tuple(WRITERS))
    command.add_argument("--out", required=True, metavar="PATH", help="a file; a folder for png")
    command.add_argument("--first", type=int, default=0, metavar="N", help="(%(default)s)")
    command.add_argument("--limit", type=count, metavar="N", help="at most N explanations")
    _add_debug(command)

"""The command line: `relprop explain`, `relprop check`, `relprop evaluate`, …"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence

from relprop.errors import RelpropError

__all__ = ["main"]

FATAL = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the words after the program's name; `sys.argv`'s by default.

    Returns:
        0 if all went well, 1 if some inputs failed, 2 if nothing could be done, 130 if interrupted.
    """
    # late: the processes of a job import this package too, and need no command
    from relprop.cli.arguments import parser
    from relprop.cli.commands import COMMANDS

    try:
        parsed = parser().parse_args(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    debug = getattr(parsed, "debug", False)
    try:
        with contextlib.nullcontext() if debug else _silence():
            status = COMMANDS[parsed.command](parsed)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("relprop: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has left; nothing more can be said there, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FATAL
    except Exception as error:
        if debug:
            traceback.print_exc()
        print(f"relprop: {_sentence(error)}", file=sys.stderr)
        return FATAL


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """No warnings of libraries between the lines that concern the user's data."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _sentence(error: Exception) -> str:
    from relprop.io.files import printable

    if isinstance(error, RelpropError | ValueError | OSError):
        return printable(error, 2000)
    if isinstance(error, MemoryError):
        return "out of memory; try --batch-size 1 or --limit"
    return f"{type(error).__name__}: {printable(error, 2000)} (--debug shows where)"

"""The command `cora`."""

import os
import sys
import warnings
from collections.abc import Sequence

from cora.cli.parser import parser
from cora.data.problems import clipped
from cora.runs.distributed import is_main, one_speaks, process_index

_LONGEST_ERROR = 300  # characters
_BROKEN_PIPE = 141  # what a shell says of a command that SIGPIPE has ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns 0, or 2 after one line on stderr for what the user can put right.

    Where nobody reads its output any more, as behind `| head`, it ends without a word and returns 141.
    """
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # What is flushed at exit goes nowhere: Python would complain of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE


def _run(arguments: Sequence[str] | None) -> int:
    options = parser().parse_args(arguments)
    warnings.formatwarning = lambda message, *_, **__: f"cora: note: {message}\n"
    try:
        with one_speaks():
            options.command(options)
    except BrokenPipeError:
        raise
    except (ValueError, TypeError, OSError) as error:
        if sys.flags.dev_mode:  # python -X dev
            raise
        who = "" if is_main() else f" (process {process_index()})"
        print(clipped(f"cora: error{who}: {' '.join(str(error).split())}", _LONGEST_ERROR), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ncora: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0

# SPDX-License-Identifier: Apache-2.0
"""The console command `ascend-dsv4`, also `python -m ascend_dsv4`. One module per subcommand.

Nothing here loads a framework before a command runs, so `--help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ascend_dsv4 import __version__
from ascend_dsv4.cli import bench, chat, check, compare, convert, demo, generate, serve
from ascend_dsv4.errors import AscendDsv4Error

FAILED, BROKEN_PIPE, INTERRUPTED = 2, 141, 130
"""Exit codes: an error of ours (argparse uses the same), a reader that went away, Ctrl-C."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands; the chosen one is `run` in the namespace."""
    parser = argparse.ArgumentParser(
        prog="ascend-dsv4",
        description="Serve, run and inspect models of the DeepSeek V4 family.",
        epilog="`ascend-dsv4 COMMAND --help` lists the options of a command. `ascend-dsv4 demo` needs no files.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ascend-dsv4 {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for module in (serve, generate, chat, bench, check, compare, convert, demo):
        module.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Errors meant for users are printed as a message, without a traceback."""
    if sys.stdout is None or sys.stderr is None:  # closed by whoever started us
        nowhere = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
        sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere
    args = build_parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that lacks a character must not end a generation
            stream.reconfigure(errors="backslashreplace")
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except AscendDsv4Error as error:
        from ascend_dsv4.cli.terminal import print_error

        print_error(str(error))
        return FAILED
    except BrokenPipeError:
        # The interpreter flushes stdout once more when it ends, which must not fail a second time.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        from ascend_dsv4.cli.terminal import print_error

        print_error(f"{error.filename or 'input or output'}: {error.strerror}")
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED

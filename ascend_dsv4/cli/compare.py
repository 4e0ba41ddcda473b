# SPDX-License-Identifier: Apache-2.0
"""`ascend-dsv4 compare`: find the operator that is wrong. Exit 0: nothing is, 1: something is, 2: it could not be found out."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ascend_dsv4.cli.options import add_engine_options, engine_config
from ascend_dsv4.ops import OP_NAMES

if TYPE_CHECKING:
    from ascend_dsv4.accuracy.results import Report

DTYPES: Final = ("float32", "bfloat16", "float16")
EPILOG: Final = "Exit code: 0 nothing is wrong, 1 something is, 2 it could not be found out."


def add_parser(commands: Any) -> None:
    """Register the command and its five subcommands."""
    parser = commands.add_parser(
        "compare",
        allow_abbrev=False,
        help="find the operator that is wrong",
        description="Compare implementations of operators, or whole models, with the reference; replay captured calls; read "
        "dumps of msprobe.",
        epilog=EPILOG,
    )
    kinds = parser.add_subparsers(title="what to compare", dest="kind", metavar="WHAT", required=True)
    for add in (_add_ops, _add_model, _add_replay, _add_msprobe, _add_selftest):
        add(kinds)


def _subcommand(kinds: Any, name: str, text: str, description: str, run: Callable[[argparse.Namespace], Report]) -> Any:
    """A subcommand with the options that all of them have."""
    parser = kinds.add_parser(name, allow_abbrev=False, help=text, description=description, epilog=EPILOG)
    group = parser.add_argument_group("reports")
    group.add_argument("--json", action="store_true", help="print the whole comparison as one JSON document")
    group.add_argument("--receipt", metavar="FILE", type=Path, help="write the same document to a file")
    group.add_argument("--junit", metavar="FILE", type=Path, help="write JUnit XML")
    group.add_argument("--html", metavar="FILE", type=Path, help="write one page that needs nothing else")
    group.add_argument("--verbose", action="store_true", help="list every output, and more of everything")
    parser.set_defaults(run=_reported(run))
    return parser


def _add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threads", type=at_least(1), default=1, metavar="N", help="threads of torch (default: 1, best for small cases)"
    )


def at_least(low: int) -> Callable[[str], int]:
    """A type of arguments: integers from `low` on."""

    def integer(text: str) -> int:
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"{value}, expected at least {low}")
        return value

    return integer


def _reported(compare: Callable[[argparse.Namespace], Report]) -> Callable[[argparse.Namespace], int]:
    """Run a comparison, print and write what it found, and return its exit code."""

    def run(args: argparse.Namespace) -> int:
        from rich.console import Console

        from ascend_dsv4.accuracy.environment import use_threads
        from ascend_dsv4.accuracy.report import check_writable, print_report, write_junit, write_page, write_receipt
        from ascend_dsv4.cli.terminal import note, print_json

        targets = ((args.receipt, write_receipt), (args.junit, write_junit), (args.html, write_page))
        for path, _ in targets:
            if path is not None:
                check_writable(path)  # before minutes of work
        if hasattr(args, "threads"):
            use_threads(args.threads)
        report = compare(args)
        if args.json:
            print_json(report.to_json())
        else:
            print_report(report, Console(), verbose=args.verbose)
        for path, write in targets:
            if path is not None:
                write(report, path)
                note(f"wrote {path}")
        return report.exit_code

    return run


def typed_command() -> str:
    """The command line as it was typed."""
    return shlex.join(["ascend-dsv4", *sys.argv[1:]])


def _add_ops(kinds: Any) -> None:
    parser = _subcommand(
        kinds, "ops", "operators, case by case",
        "Run implementations of operators on every case, ordinary and adversarial, and compare with the reference in float64 "
        "and with an independent computation that rounds where the contract rounds.",
        _ops,
    )  # fmt: skip
    _add_threads(parser)
    parser.add_argument("--op", nargs="+", action="extend", metavar="OP", help="operators (default: all)")
    parser.add_argument(
        "--impl", nargs="+", action="extend", metavar="NAME",
        help="implementations: a name, module:function or FILE.py:function of one operator (default: reference)",
    )  # fmt: skip
    parser.add_argument("--dtype", nargs="+", action="extend", choices=DTYPES, help="compute dtypes (default: all)")
    parser.add_argument("--case", nargs="+", action="extend", metavar="PATTERN", help="cases by name, as edge-* (default: all)")
    parser.add_argument("--seed", type=at_least(0), default=0, metavar="N", help="of the inputs (default: 0)")
    parser.add_argument("--seeds", type=at_least(1), default=1, metavar="N", help="how many seeds from --seed on (default: 1)")
    parser.add_argument(
        "--standard", default="tolerance", metavar="NAME",
        help="tolerance (the operator's own, default), opbase-single, opbase-double, mixed, msprobe",
    )  # fmt: skip
    parser.add_argument("--level", default="L0", metavar="L", help="of opbase-double: L0, L1 or L2 (default: L0)")
    parser.add_argument(
        "--baseline", metavar="NAME",
        help="of opbase-double: the implementation to measure by; naive composes torch calls in the compute dtype",
    )  # fmt: skip
    parser.add_argument(
        "--recheck",
        type=at_least(0),
        default=0,
        metavar="N",
        help="of opbase-double: 200 to 1000 seeds to try failing cases with again",
    )


def _ops(args: argparse.Namespace) -> Report:
    from ascend_dsv4.accuracy.matrix import Selection, compare_ops
    from ascend_dsv4.cli.terminal import progress

    selection = Selection(
        ops=args.op or OP_NAMES,
        implementations=args.impl or ("reference",),
        dtypes=args.dtype or DTYPES,
        cases=args.case or ("*",),
        seeds=range(args.seed, args.seed + args.seeds),
        standard=args.standard,
        level=args.level,
        baseline=args.baseline,
        recheck=args.recheck,
    )
    selection.check_cases()
    with progress(len(selection.ops)) as advance:
        return compare_ops(selection, typed_command(), advance)


def _add_selftest(kinds: Any) -> None:
    parser = _subcommand(
        kinds, "selftest", "whether this tool would notice",
        "Try operators with a bug in each, and comparisons that must be refused, as compare ops would. Every mutant has to be "
        "caught beyond twice the limit, and no unchanged operator may come near half of it.",
        _selftest,
    )  # fmt: skip
    parser.add_argument("--mutants", type=Path, metavar="FILE.py", help='mutants of your own: MUTANTS = {"op/name": function}')
    parser.add_argument(
        "--only", nargs="+", action="extend", metavar="PATTERN", help="mutants by name, as 'rope/*' (default: all)"
    )
    parser.add_argument(
        "--without",
        nargs="+",
        default=[],
        metavar="CHECK",
        help="leave out checks of the comparison, to see that it then fails",
    )


def _selftest(args: argparse.Namespace) -> Report:
    from ascend_dsv4.accuracy.selftest import selftest
    from ascend_dsv4.cli.terminal import progress

    with progress() as advance:
        return selftest(
            args.mutants, names=args.only or ("*",), without=args.without or (), command=typed_command(), progress=advance
        )


def _add_replay(kinds: Any) -> None:
    parser = _subcommand(
        kinds, "replay", "calls captured by generate or serve --capture",
        "Make recorded calls again. The implementation of the recording must give the same bits; another one is judged by the "
        "operator's tolerance, against the recording and against float64.",
        _replay,
    )  # fmt: skip
    parser.add_argument("capsule", metavar="DIR", help="folder that --capture wrote")
    parser.add_argument("--impl", metavar="NAME", help="another implementation: a name, module:function or FILE.py:function")
    parser.add_argument("--call", type=at_least(0), metavar="N", help="the only call to make")
    parser.add_argument("--op", nargs="+", action="extend", metavar="OP", help="the only operators to call")
    parser.add_argument(
        "--tolerance", action="store_true", help="judge by the tolerance: on a machine that adds in another order"
    )


def _replay(args: argparse.Namespace) -> Report:
    from ascend_dsv4.accuracy.replay import replay
    from ascend_dsv4.cli.terminal import progress

    with progress() as advance:
        return replay(
            args.capsule,
            args.impl,
            args.call,
            ops=args.op or (),
            tolerance=args.tolerance,
            command=typed_command(),
            progress=advance,
        )


def _add_msprobe(kinds: Any) -> None:
    parser = _subcommand(
        kinds, "import-msprobe", "dumps of msprobe",
        "Read a dump. Alone it is examined, and known operators are computed again from their stored inputs; with --bench it "
        "is compared with a second dump.",
        _msprobe,
    )  # fmt: skip
    _add_threads(parser)
    parser.add_argument("dump", metavar="DIR", help="a dump.json, or a folder of one rank, step or run")
    parser.add_argument("--bench", metavar="DIR", help="the dump to compare with")
    parser.add_argument(
        "--name", nargs="+", action="extend", metavar="PATTERN", help="records by name, as 'Functional.linear.*'"
    )
    parser.add_argument("--standard", default="tolerance", metavar="NAME", help="for stored tensors (default: tolerance)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write msprobe's own table; with --bench")
    parser.add_argument(
        "--identical", action="store_true", help="the dumps may be equal byte for byte: two runs that should repeat exactly"
    )


def _msprobe(args: argparse.Namespace) -> Report:
    from ascend_dsv4.accuracy.msprobe.importing import import_msprobe

    return import_msprobe(
        args.dump, args.bench, standard=args.standard, names=args.name or (), csv=args.csv, identical=args.identical
    )


def _add_model(kinds: Any) -> None:
    parser = _subcommand(
        kinds, "model", "two runs of one model, node by node",
        "Run a checkpoint twice over the same tokens, as the engine options say and with what the candidate does otherwise, "
        "and find the first operator that adds an error of its own. What a node only inherits from its inputs is told apart.",
        _model,
    )  # fmt: skip
    _add_threads(parser)
    parser.add_argument("--model", required=True, metavar="DIR", help="checkpoint folder as published")
    parser.add_argument(
        "--candidate", nargs="+", action="extend", metavar="OPTION=VALUE",
        help="engine options in which the candidate differs: ops=…, dtype=bfloat16, weights=bf16, kv_cache=bf16, backend=…",
    )  # fmt: skip
    parser.add_argument(
        "--impl", nargs="+", action="extend", metavar="OP[@LAYERS]=NAME",
        help="operators of the candidate, such as hc_pre@3=my_kernels.py:hc_pre",
    )  # fmt: skip
    prompts = parser.add_argument_group("prompts")
    prompts.add_argument("--prompt", nargs="+", action="extend", metavar="TEXT", help="one or several texts")
    prompts.add_argument("--token-ids", nargs="+", action="extend", metavar="1,2,3", help="one or several prompts as token ids")
    prompts.add_argument(
        "--random",
        type=at_least(1),
        metavar="N",
        help="a prompt of N random tokens (default: 130, unless there is another prompt)",
    )
    prompts.add_argument("--bar", action="store_true", help="the prompts that the bf16 bar of this model was measured on")
    walk = parser.add_argument_group("what is compared")
    walk.add_argument(
        "--node", nargs="+", action="extend", metavar="NODE", help="list the worst elements of nodes, as layer3/hc_pre.0"
    )
    walk.add_argument("--elements", type=at_least(1), default=20, metavar="N", help="how many (default: 20)")
    walk.add_argument(
        "--walk", choices=("first", "all", "none"), default="first", help="prompts whose nodes are compared (default: first)"
    )
    walk.add_argument("--chunk-size", type=at_least(1), metavar="N", help="prompt tokens of a step at most")
    walk.add_argument(
        "--greedy", type=at_least(0), default=32, metavar="N", help="tokens that the reference goes on by (default: 32)"
    )
    walk.add_argument(
        "--sweep",
        nargs="+",
        default=[],
        metavar="NAME",
        help="repeats, 'batch size', 'chunk size', padding, 'block order', all",
    )
    walk.add_argument("--standard", default="tolerance", metavar="NAME", help="for nodes (default: tolerance)")
    add_engine_options(parser, max_num_seqs=8)


def _model(args: argparse.Namespace) -> Report:
    from ascend_dsv4.cli.compare_model import run_model

    return run_model(args, engine_config(args), typed_command())

# SPDX-License-Identifier: Apache-2.0
"""The stub server, and the command line inside the test process."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from ascend_dsv4.cli import bench
from tests.bench.stub import Stub, running_stub


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str


Serve = Callable[..., Result]


@pytest.fixture(scope="session")
def _stub() -> Iterator[Stub]:
    with running_stub() as stub:
        yield stub


@pytest.fixture
def stub(_stub: Stub) -> Stub:
    """A server without memories."""
    _stub.calls.clear()
    _stub.num_connections = 0
    _stub.models = Stub.models
    return _stub


@pytest.fixture
def serve(stub: Stub, capsys: pytest.CaptureFixture[str]) -> Serve:
    """`ascend-dsv4 bench serve` against the stub; small prompts and no warm-up unless told otherwise."""

    def call(*args: object, url: str = stub.url) -> Result:
        parser = argparse.ArgumentParser()
        bench.add_parser(parser.add_subparsers())
        small = ["--input-len", "20", "--output-len", "4", "--num-prompts", "3", "--warmup", "0"]
        parsed = parser.parse_args(["bench", "serve", "--url", url, *small, *(str(arg) for arg in args)])
        capsys.readouterr()
        code: int = parsed.run(parsed)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call

# SPDX-License-Identifier: Apache-2.0
"""The server as clients meet it: a process of its own on the demo model."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ascend_dsv4.demo import demo_model

if TYPE_CHECKING:
    from tests.server.clients import Offline, Traffic

STARTUP_SECONDS = 120


class LiveServer:
    """`ascend-dsv4 serve` on a free port. `log` grows while it runs."""

    def __init__(self, model: Path, *options: str) -> None:
        command = [sys.executable, "-m", "ascend_dsv4", "serve", "--model", str(model), "--port", "0", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.log: list[str] = []
        self.url = ""
        self._listens = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._listens.wait(STARTUP_SECONDS) or not self.url:
            self.process.kill()
            raise AssertionError(f"the server did not start:\n{''.join(self.log)}")

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(r"serving \S+ on (http://\S+);", line):
                self.url = found[1]
                self._listens.set()
        self._listens.set()

    def stop(self, sig: int = signal.SIGTERM, timeout: float = 60) -> int:
        """Send a signal and wait for the end; returns the exit code."""
        self.process.send_signal(sig)
        try:
            return self.process.wait(timeout)
        finally:
            self.process.kill()
            self._reader.join(10)
            assert self.process.stderr is not None
            self.process.stderr.close()


@pytest.fixture(scope="session")
def demo_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model's folder, called `demo`."""
    return demo_model(tmp_path_factory.mktemp("served") / "demo")


@pytest.fixture(scope="session")
def start_server(demo_checkpoint: Path) -> Iterator[Callable[..., LiveServer]]:
    """Starts servers with options of one's own; those that still run at the end are killed."""
    servers: list[LiveServer] = []

    def start(*options: str) -> LiveServer:
        servers.append(LiveServer(demo_checkpoint, "--weights", "fp32", *options))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.stop(signal.SIGKILL)


@pytest.fixture(scope="session")
def live(start_server: Callable[..., LiveServer]) -> LiveServer:
    """A server that many tests share; it serves the model `demo`."""
    return start_server("--max-num-seqs", "32", "--max-model-len", "4096", "--max-total-tokens", "32768")


@pytest.fixture
def traffic() -> Iterator[Traffic]:
    """Makes clients, and at the end of the test checks every byte they received."""
    from tests.server.clients import Traffic  # the libraries of clients take seconds to load, and few tests need them

    with Traffic() as traffic:
        yield traffic


@pytest.fixture(scope="session")
def offline(demo_checkpoint: Path) -> Offline:
    """The model that is served, without the server."""
    from tests.server.clients import offline_model

    return offline_model(demo_checkpoint)

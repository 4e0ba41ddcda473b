# SPDX-License-Identifier: Apache-2.0
"""Build kernels with the host's compiler against the twin, load them, and call their launchers."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ascend_dsv4.errors import UnsupportedError

KERNELS = Path(__file__).parents[2] / "cann_kernels"
FLAGS = ("-std=c++17", "-O2", "-g1", "-ffp-contract=off", "-fPIC", "-shared", "-pthread", "-Wall", "-Wextra")


class KernelError(UnsupportedError):
    """A kernel broke a rule of the device: message of the twin."""


def compiler() -> str:
    """The C++ compiler to build with. Raises UnsupportedError where there is none."""
    for name in filter(None, (os.environ.get("CXX"), "g++", "clang++")):
        if path := shutil.which(name):
            return path
    raise UnsupportedError(
        "twin: no C++ compiler; expected g++ or clang++ with C++17 on PATH or in CXX, because the kernels are compiled for "
        "this machine; install g++, or choose another implementation"
    )


def build(sources: Sequence[Path], includes: Sequence[Path] = (), cache: Path | None = None) -> Path:
    """Compile sources together with the twin into one shared library, once per content. Raises UnsupportedError."""
    twin = KERNELS / "twin"
    everything = sorted(
        [*twin.rglob("*.h"), *(twin / "src").glob("*.cpp"), *sources, *(h for i in includes for h in i.glob("*.h"))]
    )
    digest = hashlib.sha256(repr((compiler(), FLAGS)).encode())
    for path in everything:
        digest.update(path.read_bytes())
    folder = cache or Path(tempfile.gettempdir()) / f"ascend-dsv4-twin-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    library = folder / f"twin-{digest.hexdigest()[:16]}.so"
    if library.exists():
        return library
    partial = folder / f"{library.name}.{os.getpid()}"
    paths = [f"-I{path}" for path in (twin / "include", *includes)]
    command = [compiler(), *FLAGS, *paths, *map(str, (twin / "src").glob("*.cpp")), *map(str, sources), "-o", str(partial)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UnsupportedError(f"twin: the kernels do not compile with {command[0]}:\n{done.stderr}")
    partial.replace(library)
    return library


class KernelLibrary:
    """A loaded library. `seed` draws the order in which cores run; one runs `yield_one_in` instructions on average."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.twin_last_error.restype = ctypes.c_char_p

    def configure(self, seed: int, yield_one_in: int = 16) -> None:
        self._library.twin_configure(ctypes.c_uint64(seed), ctypes.c_uint32(yield_one_in))

    def launch(self, op: str, params: ctypes.Structure, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """Call `<op>_launch` with addresses of contiguous arrays. Raises KernelError with what the twin says."""
        ins, outs = (ctypes.c_void_p * len(inputs))(*inputs), (ctypes.c_void_p * len(outputs))(*outputs)
        if self._library[f"{op}_launch"](None, ctypes.byref(params), ins, outs, None, ctypes.c_size_t(0)) != 0:
            raise KernelError(self._library.twin_last_error().decode())


@functools.cache
def kernel_library() -> KernelLibrary:
    """All kernels there are, in one library, built at first use."""
    sources = sorted(KERNELS.glob("*/*_launch_twin.cpp"))
    return KernelLibrary(build(sources, [source.parent for source in sources]))

# SPDX-License-Identifier: Apache-2.0
"""Build kernels with the host's compiler against the twin, load them, and call their launchers."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ascend_dsv4.errors import UnsupportedError
from ascend_dsv4.user_cache import user_cache_folder

_PACKAGE = Path(__file__).parents[1]
_FOLDERS = (_PACKAGE / "cann_kernels", _PACKAGE.parent / "cann_kernels")  # installed; in a checkout
KERNELS = next((folder for folder in _FOLDERS if folder.is_dir()), _FOLDERS[0])
"""The sources of the kernels."""
FLAGS = ("-std=c++17", "-O2", "-g1", "-ffp-contract=off", "-fPIC", "-pthread", "-Wall", "-Wextra")


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


def build(sources: Sequence[Path], cache: Path | None = None) -> Path:
    """Compile sources and the twin's own into one shared library; a source whose text and headers are unchanged is not compiled
    again. A source may include headers of its own folder, of `cann_kernels/common` and of the twin.

    cache   where results are kept; None: `twin` in the user's cache
    raises  UnsupportedError without a compiler, for what it refuses, or if the cache cannot be written
    """
    folder = cache or user_cache_folder() / "twin"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnsupportedError(
            f"{folder}: the built kernels cannot be kept there ({error.strerror}); expected a folder with 100 MB of room. Set "
            "XDG_CACHE_HOME to a folder that can be written."
        ) from error
    everything = [*sorted((KERNELS / "twin" / "src").glob("*.cpp")), *sources]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda source: _compile(source, folder), everything))
    library = folder / f"twin-{_digest([path.name for path in objects])}.so"
    return _made(library, [compiler(), "-shared", "-pthread", *map(str, objects)])


def _compile(source: Path, folder: Path) -> Path:
    includes = (KERNELS / "twin" / "include", KERNELS / "common", source.parent)
    headers = sorted({header for path in includes for header in path.rglob("*.h")})
    command = [compiler(), *FLAGS, *(f"-I{path}" for path in includes), "-c", str(source)]
    digest = _digest([FLAGS, compiler(), str(source), *(path.read_bytes() for path in (source, *headers))])
    return _made(folder / f"{source.stem}-{digest}.o", command)


def _digest(parts: Sequence[object]) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _made(target: Path, command: Sequence[str]) -> Path:
    """Run a compiler command unless its result is there. Of several processes one does, and the others wait for it."""
    if target.exists():
        return target
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            return target
        partial = target.with_suffix(".partial")
        done = subprocess.run([*command, "-o", str(partial)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise UnsupportedError(f"twin: the kernels do not compile with {command[0]}:\n{done.stderr}")
        partial.replace(target)
    return target


@dataclass(frozen=True)
class Settings:
    """How kernels are launched."""

    seed: int = 1
    """Draws the order in which cores run, and whatever the device leaves open."""
    yield_one_in: int = 16
    """Instructions on average between two changes of core; 0: only where a core waits."""
    vector_cores: int = 4
    """Cores of the launch; kernels that need the cube get half as many AI cores, at least one."""


_settings = Settings()


def current_settings() -> Settings:
    return _settings


@contextmanager
def settings(**changes: int) -> Iterator[Settings]:
    """Other settings for the launches of a block."""
    global _settings
    before, _settings = _settings, replace(_settings, **changes)
    try:
        yield _settings
    finally:
        _settings = before


class KernelLibrary:
    """A loaded library of launchers."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.twin_last_error.restype = ctypes.c_char_p
        self._library.twin_profile_json.restype = ctypes.c_char_p

    def launch(self, op: str, params: ctypes.Structure, inputs: Sequence[int | None], outputs: Sequence[int | None]) -> None:
        """Call `<op>_launch` with addresses of contiguous arrays, None for one that is not given.

        Raises KernelError with what the twin says.
        """
        self._library.twin_configure(ctypes.c_uint64(_settings.seed), ctypes.c_uint32(_settings.yield_one_in))
        ins, outs = (ctypes.c_void_p * len(inputs))(*inputs), (ctypes.c_void_p * len(outputs))(*outputs)
        if self._library[f"{op}_launch"](None, ctypes.byref(params), ins, outs, None, ctypes.c_size_t(0)) != 0:
            raise KernelError(self._library.twin_last_error().decode())

    def count(self, on: bool) -> None:
        """Start or end counting what launches do. Drops what was counted."""
        self._library.twin_profile(int(on))

    def counted(self) -> bytes:
        """JSON of the launches since counting began: `ascend_dsv4.twin.profile` reads it."""
        return bytes(self._library.twin_profile_json())


@functools.cache
def kernel_library() -> KernelLibrary:
    """All kernels there are, in one library, built at first use."""
    return KernelLibrary(build(sorted(KERNELS.glob("*/*_launch_twin.cpp"))))

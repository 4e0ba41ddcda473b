# SPDX-License-Identifier: Apache-2.0
"""Global memory in place, however large; local memory with and without a TPipe; event ids that queues hold."""

from __future__ import annotations

import ctypes
import resource
import time
from pathlib import Path

import pytest
import torch

from ascend_dsv4.accuracy.far import untouched
from ascend_dsv4.twin.kernel_library import build

RIGHT = ("in_place", "static_tensor", "laid_out_anew", "second_pipe")
WRONG = {
    "past_the_cache": "bytes 32516..32772 of 'cache', which has 32768",
    "static_overflow": "UB overflow: 40000 bytes wanted, 160000 of 188160 are taken",
    "no_state": "begin with InitSocState or a TPipe",
    "dead_tensor": "is used after FreeTensor",
    "nine_buffers": "the 8 event ids of V_MTE2 are all held by buffers of queues",
    "missing_software_barrier": "no cross-core synchronisation orders them",
    "small_barrier_buffer": "ubWorkspace has 32 bytes, must have 64",
}


@pytest.fixture(scope="module")
def library():
    loaded = ctypes.CDLL(str(build([Path(__file__).with_name("memory.cpp")])))
    loaded.twin_last_error.restype = ctypes.c_char_p
    loaded.twin_configure(ctypes.c_uint64(1), ctypes.c_uint32(4))
    return loaded


def run(library, name: str, cache: torch.Tensor, place: int, blocks: int = 1, counter: int = 0) -> str:
    counters = (ctypes.c_int32 * 16)(counter)
    failed = library.memory_run(
        name.encode(),
        ctypes.c_uint32(blocks),
        ctypes.c_void_p(cache.data_ptr()),
        ctypes.c_uint64(cache.numel()),
        ctypes.c_uint64(place),
        counters,
    )
    return library.twin_last_error().decode() if failed else ""


@pytest.mark.parametrize("name", RIGHT)
def test_right_kernel(library, name):
    cache = torch.arange(8192, dtype=torch.float32)
    wanted = cache.clone()
    wanted[8128:] *= 2
    assert run(library, name, cache, 8128) == ""
    assert torch.equal(cache, wanted)


def test_eight_buffers_of_one_queue(library):
    assert run(library, "eight_buffers", torch.zeros(64), 0) == ""


@pytest.mark.parametrize("name", WRONG)
def test_wrong_kernel(library, name):
    cores = 2 if "barrier" in name else 1
    assert WRONG[name] in run(library, name, torch.zeros(8192), 8128 if cores == 1 else 0, cores)


def test_barrier_in_software(library):
    cache = torch.arange(128, dtype=torch.float32)
    assert run(library, "software_barrier", cache, 0, blocks=2) == ""
    assert torch.equal(cache[:64], torch.arange(64) * 4.0 + 128)
    assert "must be zero before the first call" in run(library, "software_barrier", cache, 0, blocks=2, counter=1)


def test_cache_of_sixteen_gigabytes_is_not_copied(library):
    """64 floats at its end are doubled; no other page comes into being."""
    cache = untouched((1 << 32,), torch.float32)
    cache[-64:] = 3
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    assert run(library, "in_place", cache, (1 << 32) - 64) == ""
    assert cache[-64:].tolist() == [6.0] * 64
    assert cache[-128:-64].tolist() == [0.0] * 64
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024
    assert time.perf_counter() - start < 5

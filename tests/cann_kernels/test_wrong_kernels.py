# SPDX-License-Identifier: Apache-2.0
"""Kernels that break one rule each: the twin names the instruction and the rule, at run time or when they are compiled."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

import pytest

from ascend_dsv4.twin.kernel_library import KERNELS, build, compiler

SOURCE = Path(__file__).with_name("wrong_kernels.cpp")
CAUGHT = {
    "v_before_enque": ("Muls", "no event MTE2_V"),
    "missing_free": ("AllocTensor", "all 1 buffers of the queue are in use"),
    "copy_out_before_enque": ("DataCopy", "no event V_MTE3"),
    "missing_v_barrier": ("Adds", "no PipeBarrier<PIPE_V>"),
    "freed_twice": ("FreeTensor", "was freed before"),
    "used_after_free": ("Muls", "src is used after FreeTensor"),
    "get_value_after_copy": ("GetValue", "no event MTE2_S"),
    "set_value_then_vector": ("Muls", "no event S_V"),
    "overwritten_while_read": ("DataCopy", "no event V_MTE2"),
    "ub_overflow": ("InitBuffer", "UB overflow: 92160 bytes wanted, 102400 of 188160 are taken"),
    "copy_of_20_bytes": ("DataCopy", "must be a multiple of 32 bytes, got 20"),
    "misaligned_view": ("Muls", "src starts at UB byte 16, must be a multiple of 32"),
    "poison": ("Muls", "src reads poison: UB byte 256"),
    "padding_is_garbage": ("Muls", "src reads poison: UB byte 20"),
    "past_the_tensor": ("Duplicate", "dst: bytes 0..1028 of a tensor of 1024 bytes"),
    "partial_overlap": ("Muls", "overlap in part"),
    "gm_out_of_bounds": ("DataCopy", "bytes 16256..16512 of 'out', which has 16384"),
    "input_written": ("DataCopy", "'in' is an input and is written"),
    "workspace_assumed_zero": ("DataCopy", "reads poison: byte 0 of 'workspace'"),
    "own_gm_read_back": ("DataCopy", "no event MTE3_MTE2"),
    "wait_without_set": ("WaitFlag", "nobody has set flag PIPE_MTE2 -> PIPE_V 0"),
    "set_without_wait": ("SetFlag", "still set when the kernel ends"),
    "set_twice": ("SetFlag", "set twice without a wait"),
    "event_id_not_from_pipe": ("SetFlag", "id 0 was not handed out by the TPipe"),
    "two_pipes": ("TPipe", "another TPipe is alive"),
    "return_before_sync_all": ("deadlock", "waits for SyncAll"),
    "unpaired_cross_core_flag": ("CrossCoreSetFlag 3", "waited 0 times"),
    "two_cores_one_block": ("DataCopy", "no cross-core synchronisation"),
    "missing_sync_all": ("DataCopy", "workspace"),
    "atomic_left_on": ("DisableDmaAtomic", "accumulation on"),
    "stale_cache_line": ("GetValue", "DataCacheCleanAndInvalid"),
    "scalar_line_not_written_back": ("SetValue", "left a line in the data cache"),
}
REFUSED = {
    "bf16 vector addition": ("LocalTensor<bfloat16_t> x; Add(x, x, x, 8);", "Add has no such element type"),
    "bf16 scalar arithmetic": ("bfloat16_t x{}; auto y = x + x; (void)y;", "no match for .operator+"),
    "uint32 addition": ("LocalTensor<uint32_t> x; Add(x, x, x, 8);", "Add has no such element type"),
    "integer literal for a float": ("LocalTensor<float> x; Adds(x, x, 1, 8);", "no matching function"),
    "two element types": ("LocalTensor<float> x; LocalTensor<half> y; Add(x, x, y, 8);", "no matching function"),
    "int8 to float": (
        "LocalTensor<float> x; LocalTensor<int8_t> y; Cast(x, y, RoundMode::CAST_NONE, 8);",
        "has no such pair",
    ),
    "cast without rounding mode": ("LocalTensor<float> x; LocalTensor<half> y; Cast(x, y, 8);", "no matching function"),
    "8-bit duplicate": ("LocalTensor<int8_t> x; Duplicate(x, (int8_t)0, 8);", "Duplicate has no such element type"),
    "set on the scalar pipe": ("CrossCoreSetFlag<0, PIPE_S>(0);", "a set needs a pipe that works"),
    "mode of another chip": ("CrossCoreSetFlag<4, PIPE_V>(0);", "modes 0, 1 and 2 exist"),
}


@pytest.fixture(scope="module")
def library():
    loaded = ctypes.CDLL(str(build([SOURCE])))
    loaded.twin_last_error.restype = ctypes.c_char_p
    return loaded


def run(library, name: str, seed: int = 1) -> str:
    library.twin_configure(ctypes.c_uint64(seed), ctypes.c_uint32(4))
    return library.twin_last_error().decode() if library.wrong_run(name.encode()) else ""


@pytest.mark.parametrize("name", CAUGHT)
def test_caught(library, name):
    """In every schedule, with kernel and core named, and the line where an instruction broke the rule."""
    for seed in range(5):
        message = run(library, name, seed)
        for part in (f"kernel {name}", *CAUGHT[name]):
            assert part in message


def test_line_is_named(library):
    lines = SOURCE.read_text().splitlines()
    line = next(i for i, text in enumerate(lines, 1) if "Adds(y, y, 1.0f, 64)" in text)
    assert f"wrong_kernels.cpp:{line}:" in run(library, "missing_v_barrier")


def test_right_kernel_passes(library):
    assert run(library, "right") == ""


def compiled(body: str) -> str:
    source = f'#include "kernel_operator.h"\nusing namespace AscendC;\nvoid kernel() {{ {body} }}\n'
    command = [compiler(), "-std=c++17", "-fsyntax-only", f"-I{KERNELS / 'twin' / 'include'}", "-xc++", "-"]
    return subprocess.run(command, input=source, capture_output=True, text=True, check=False).stderr


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_the_compiler(name):
    body, message = REFUSED[name]
    assert re.search(message, compiled(body))


def test_right_call_compiles():
    assert compiled("LocalTensor<float> x; Add(x, x, x, 8); Adds(x, x, 1.0f, 8);") == ""

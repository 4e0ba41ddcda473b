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
    "two_cores_one_cache_line": ("SetValue", "no cross-core synchronisation"),
    "scalar_line_not_written_back": ("SetValue", "left a line in the data cache"),
    "event_id_8": ("SetFlag", "event ids are 0..7, got 8"),
    "mask_of_no_lane": ("Add", "mask must be 1..64 for this type, got 0"),
    "mask_of_65_floats": ("Muls", "mask must be 1..64 for this type, got 65"),
    "bitmap_beyond_lanes": ("Exp", "mask[1] must be 0 for 4- and 8-byte types"),
    "mask_not_reset": ("the kernel ends with its own vector mask in force", "ResetMask"),
    "counter_mode_left_on": ("the kernel ends with its own vector mask in force", "SetMaskNorm"),
    "own_mask_destroyed": ("Muls", "the kernel's own mask is in force"),
    "counter_without_count": ("Add", "counter mode needs SetVectorMask"),
    "mask_left_by_another": ("Muls", "the mask holds what the last instruction has left in it"),
    "brcb_under_own_mask": ("Brcb", "the kernel's own mask is in force"),
    "counter_mask_in_normal_mode": ("SetVectorMask", "the mask's mode is normal; call SetMaskCount first"),
    "masked_read_of_poison": ("Muls", "src reads poison"),
    "repeat_reads_the_one_before": ("Muls", "repeat 1 reads as src what repeat 0 writes"),
    "repeat_overlaps_in_part": ("Muls", "dst and src overlap in part in repeat 0"),
    "accumulates_in_the_first_source": ("Add", "repeat 1 reads as src0 what repeat 0 writes"),
    "256_repeats": ("WholeReduceSum", "repeatTime must be 0..255, got 256"),
    "negative_count": ("Sqrt", "count must not be negative, got -64"),
    "compare_of_400_bytes": ("Compare", "must be a multiple of 256 bytes, got 400"),
    "int32_less_than": ("Compare", "int32 compares for EQ only"),
    "compare_under_a_mask": ("Compare", "mask must cover all 64 lanes"),
    "compare_onto_its_source": ("CompareScalar", "overlap"),
    "select_by_missing_bits": ("Select", "selMask reads poison"),
    "select_in_the_wrong_mode": ("Select", "a scalar needs VSEL_TENSOR_SCALAR_MODE"),
    "gather_outside": ("Gather", "src: bytes 8192..8196 of a tensor of 8192 bytes"),
    "gather_between_elements": ("Gather", "offset 6 of element 0 is no multiple of sizeof(T)"),
    "gather_onto_its_source": ("Gather", "dst and src must not overlap"),
    "broadcast_onto_its_source": ("Brcb", "overlap"),
    "bf16_without_rounding": ("Cast", "no such rounding mode (0)"),
    "narrowed_in_place": ("Cast", "overlap in part"),
    "int32_to_half_without_scale": ("Cast", "call SetDeqScale first"),
    "half_overflows": ("Cast", "call SetCtrlSpr<48, 48>(1) first"),
    "control_bit_not_put_back": ("the kernel ends with another bit 48", "GetCtrlSpr"),
    "shift_by_33": ("ShiftLeft", "shifts are 0..32 for this type, got 33"),
    "no_working_space": ("ReduceMax", "sharedTmpBuffer: bytes 0..64 of a tensor of 32 bytes"),
    "working_space_of_a_sum": ("Muls", "src reads poison"),
    "index_at_an_odd_place": ("WholeReduceMax", "must be a multiple of 8"),
    "ramp_over_a_vector_operand": ("CreateVecIndex", "no event V_S"),
    "merge_of_unsorted_lists": ("MrgSort", "src1 is not sorted: record 0 has 0, record 1 has 2"),
    "sort_at_64_bytes": ("Sort32", "must be a multiple of 128"),
    "local_copy_of_20_bytes": ("DataCopy", "must be a multiple of 32 bytes in the UB, got 20"),
    "row_of_half_an_element": ("DataCopyPad", "blockLen must be a multiple of sizeof(T) = 4, got 6 bytes"),
    "4096_rows": ("DataCopyPad", "blockCount must be at most 4095, got 4096"),
    "accumulation_of_another_type": ("DataCopy", "was set for another element type"),
    "accumulation_onto_poison": ("DataCopy", "reads poison: byte 0 of 'workspace'"),
    "dequeue_of_nothing": ("DeQue", "nothing was enqueued"),
    "65_buffers": ("InitBuffer", "more than 64 buffers"),
    "event_ids_run_out": ("AllocEventID", "all event ids of this pair of pipes are held"),
    "cube_instruction_on_a_vector_core": ("Mmad", "do nothing on a vector core; guard with ASCEND_IS_AIC"),
    "cross_core_flag_11": ("CrossCoreSetFlag", "flag ids are 0..10 (SyncAll uses 11..14), got 11"),
    "16_sets_of_a_flag": ("CrossCoreSetFlag", "flag 3 has 16 sets that nobody waited for"),
    "one_sync_all_too_many": ("deadlock", "waits for SyncAll"),
    "blocks_beyond_the_cores_sync_all": ("SyncAll", "51 blocks were launched, no chip has more than 50 cores"),
    "vector_instruction_on_a_cube_core": ("Muls", "do nothing on the cube core; guard with ASCEND_IS_AIV"),
    "product_of_what_is_loaded": ("Mmad", "no event MTE1_M"),
    "product_from_l1": ("Mmad", "fm lies in L1, must lie in L0A"),
    "k_beyond_what_is_loaded": ("Mmad", "fm reads poison: row 0, k 16 was never written"),
    "accumulator_at_512_bytes": ("Mmad", "dst starts at L0C byte 512, must be a multiple of 1024"),
    "accumulation_onto_nothing": ("Mmad", "dst, which is accumulated to, reads poison"),
    "product_of_4096_rows": ("Mmad", "m, n and k must be at most 4095, got 4096, 16, 16"),
    "result_stored_at_once": ("Fixpipe", "no event M_FIX"),
    "result_rounded_to_another_type": ("Fixpipe", "quantPre must be 0 for these element types, got 2"),
    "fractals_beyond_l1": ("LoadData", "bytes 512..1024 of a tensor of 512 bytes"),
}
REFUSED = {
    "bf16 vector addition": ("LocalTensor<bfloat16_t> x; Add(x, x, x, 8);", "Add has no such element type"),
    "bf16 scalar arithmetic": ("bfloat16_t x{}; auto y = x + x; (void)y;", "no match for .operator+"),
    "half scalar arithmetic": ("half x{}; float y = x * 2.0f; (void)y;", "no match for .operator"),
    "uint32 maximum": ("LocalTensor<uint32_t> x; Max(x, x, x, 8);", "Max has no such element type"),
    "int8 scalar addition": ("LocalTensor<int8_t> x; Adds(x, x, (int8_t)1, 8);", "Adds has no such element type"),
    "int32 division": ("LocalTensor<int32_t> x; Div(x, x, x, 8);", "Div has no such element type"),
    "int32 and, which would treat halves of them": ("LocalTensor<int32_t> x; And(x, x, x, 8);", "And has no such element type"),
    "integer literal for a float": ("LocalTensor<float> x; Adds(x, x, 1, 8);", "no matching function"),
    "double literal for a float": ("LocalTensor<float> x; Duplicate(x, 0.0, 8);", "no matching function"),
    "unsigned shift of int32": ("LocalTensor<int32_t> x; ShiftLeft(x, x, 2u, 8);", "no matching function"),
    "integer literal to compare with": (
        "LocalTensor<float> x; LocalTensor<uint8_t> b; CompareScalar(b, x, 0, CMPMODE::LT, 64);",
        "no matching function",
    ),
    "constant bitmap": (
        "LocalTensor<float> x; const uint64_t m[2] = {1, 0}; Add(x, x, x, m, 1, BinaryRepeatParams());",
        "no matching function",
    ),
    "two element types": ("LocalTensor<float> x; LocalTensor<half> y; Sub(x, x, y, 8);", "no matching function"),
    "int8 to float": (
        "LocalTensor<float> x; LocalTensor<int8_t> y; Cast(x, y, RoundMode::CAST_NONE, 8);",
        "Cast has no such pair",
    ),
    "bf16 to half": (
        "LocalTensor<half> x; LocalTensor<bfloat16_t> y; Cast(x, y, RoundMode::CAST_RINT, 8);",
        "Cast has no such pair",
    ),
    "float to uint32": (
        "LocalTensor<uint32_t> x; LocalTensor<float> y; Cast(x, y, RoundMode::CAST_RINT, 8);",
        "Cast has no such pair",
    ),
    "int16 to int32": (
        "LocalTensor<int32_t> x; LocalTensor<int16_t> y; Cast(x, y, RoundMode::CAST_NONE, 8);",
        "Cast has no such pair",
    ),
    "cast without rounding mode": ("LocalTensor<float> x; LocalTensor<half> y; Cast(x, y, 8);", "no matching function"),
    "8-bit duplicate": ("LocalTensor<int8_t> x; Duplicate(x, (int8_t)0, 8);", "no such element type"),
    "copy by count": ("LocalTensor<float> x; Copy(x, x, 8u);", "no matching function"),
    "bits as int8": (
        "LocalTensor<float> x; LocalTensor<int8_t> b; Compare(b, x, x, CMPMODE::LT, 64);",
        "the result of Compare is LocalTensor<uint8_t>",
    ),
    "selection of int32": (
        "LocalTensor<int32_t> x; LocalTensor<uint8_t> b; Select(x, b, x, x, SELMODE::VSEL_TENSOR_TENSOR_MODE, 8);",
        "Select has no such types",
    ),
    "signed offsets": ("LocalTensor<float> x; LocalTensor<int32_t> i; Gather(x, x, i, 0u, 8u);", "no matching function"),
    "scatter": ("LocalTensor<float> x; LocalTensor<uint32_t> i; Scatter(x, x, i, 0u, 8u);", "was not declared"),
    "sum of int32": ("LocalTensor<int32_t> x; ReduceSum(x, x, x, 64);", "reductions take half and float"),
    "transpose of float": ("LocalTensor<float> x; Transpose(x, x);", "Transpose has no such element type"),
    "accumulation of uint32": ("SetAtomicAdd<uint32_t>();", "no DMA accumulation in this type"),
    "int8 product into float": (
        "LocalTensor<float> c; LocalTensor<int8_t> a; Mmad(c, a, a, MmadParams());",
        "Mmad has no such element types",
    ),
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


def compiled(bodies: dict[str, str]) -> dict[str, str]:
    """By kernel: what the compiler says to it. All of them are one source, and a name stands where a file name would."""
    kernels = [f'#line 1 "<{name}>"\nvoid kernel{i}() {{ {body} }}' for i, (name, body) in enumerate(bodies.items())]
    source = "\n".join(['#include "kernel_operator.h"', "using namespace AscendC;", *kernels])
    command = [compiler(), "-std=c++17", "-fsyntax-only", f"-I{KERNELS / 'twin' / 'include'}", "-xc++", "-"]
    log = subprocess.run(command, input=source, capture_output=True, text=True, check=False).stderr
    said, name = dict.fromkeys(bodies, ""), None
    for line in log.splitlines():
        if found := re.search("<(.+?)>:1", line):
            name = found[1]
        if name is not None and ": error:" in line:
            said[name] += line + "\n"
    return said


RIGHT_CALL = "LocalTensor<float> x; Add(x, x, x, 8); Adds(x, x, 1.0f, 8);"


@pytest.fixture(scope="module")
def refusals() -> dict[str, str]:
    return compiled({name: body for name, (body, _) in REFUSED.items()} | {"right": RIGHT_CALL})


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_the_compiler(refusals, name):
    assert re.search(REFUSED[name][1], refusals[name])


def test_right_call_compiles(refusals):
    assert refusals["right"] == ""

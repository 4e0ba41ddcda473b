# SPDX-License-Identifier: Apache-2.0
"""What the twin counts, against sums that follow from the kernels' sizes; what the estimate makes of the counts."""

from __future__ import annotations

import ctypes
import dataclasses
import json
from pathlib import Path

import pytest
import torch

from ascend_dsv4.ops.hc_post.ascendc import hc_post
from ascend_dsv4.twin.kernel_library import KernelLibrary, build, settings
from ascend_dsv4.twin.profile import Core, Launch, Moved, Range, Rates, Vector, device, estimate, profile

NO_MOVE = dict.fromkeys(
    ("gm_to_ub", "ub_to_gm", "gm_to_l1", "l1_to_gm", "l1_to_l0a", "l1_to_l0b", "l0c_to_gm"), Moved(0, 0, 0)
)
NO_EVENT = dict.fromkeys(
    ("set_flag", "wait_flag", "pipe_barrier", "cross_core_set", "cross_core_wait", "sync_all")
    + ("scalar_local", "scalar_global"),
    0,
)
NO_MACS = {"int8": 0, "16-bit float": 0, "float32": 0}


def hc_post_launch(tokens: int, hidden: int, dtype: torch.dtype, cores: int = 4) -> Launch:
    tensors = (torch.rand(tokens, hidden).to(dtype), torch.rand(tokens, 4, hidden).to(dtype))
    with settings(vector_cores=cores), profile() as counted:
        hc_post(*tensors, torch.rand(tokens, 4), torch.rand(tokens, 4, 4))
    (launch,) = counted.launches
    return launch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_of_hc_post(dtype):
    """Tiles of x and of each stream are read once and written once. A core reads the weights of all tokens from its
    first one on, 64 at most: with two tokens a core that is 8 + 6 + 4 + 2 tokens.
    """
    tokens, hidden = 8, 4096
    launch, row = hc_post_launch(tokens, hidden, dtype), hidden * dtype.itemsize
    ranges = {one.name: one for one in launch.ranges}
    assert len(launch.cores) == 4
    assert ranges["x"] == Range("x", "in", tokens * row, tokens * row, 0, tokens * row)
    assert ranges["streams"] == Range("streams", "in", 4 * tokens * row, 4 * tokens * row, 0, 4 * tokens * row)
    assert ranges["y"] == Range("y", "out", 4 * tokens * row, 0, 4 * tokens * row, 4 * tokens * row)
    staged = 8 + 6 + 4 + 2
    assert ranges["post"].read == staged * 4 * 4
    assert ranges["comb"].read == staged * 16 * 4
    assert launch.moved("gm_to_ub") == 5 * tokens * row + staged * 20 * 4
    assert launch.moved("ub_to_gm") == 4 * tokens * row
    assert launch.event("sync_all") == 0
    assert launch.macs() == NO_MACS


def test_vector_work_of_hc_post():
    """Per tile of 2048 columns 4 outputs of 1 Muls and 4 Axpy, 32 repeats each; bfloat16 casts 5 tiles in and 4 out."""
    tokens, hidden = 8, 4096
    tiles = tokens * hidden // 2048
    for dtype, casts in ((torch.float32, 0), (torch.bfloat16, 9)):
        vector = {count.name: count for count in hc_post_launch(tokens, hidden, dtype).vector()}
        assert (vector["Muls"].instructions, vector["Muls"].repeats) == (4 * tiles, 4 * tiles * 32)
        assert (vector["Axpy"].instructions, vector["Axpy"].repeats) == (16 * tiles, 16 * tiles * 32)
        if casts:
            assert (vector["Cast"].instructions, vector["Cast"].repeats) == (casts * tiles, casts * tiles * 32)
        else:
            assert "Cast" not in vector


def test_counts_do_not_depend_on_the_schedule():
    first = hc_post_launch(6, 2048, torch.bfloat16)
    with settings(seed=7, yield_one_in=2):
        assert hc_post_launch(6, 2048, torch.bfloat16) == first


@pytest.fixture(scope="module")
def cube():
    return KernelLibrary(build([Path(__file__).with_name("cube.cpp")]))


def test_product_on_the_cube(cube):
    """[37, 70] x [70, 41] bfloat16 in one piece: 48 x 48 x 80 once padded."""
    a, b, out = torch.zeros(37, 70).bfloat16(), torch.zeros(41, 70).bfloat16(), torch.zeros(37, 41)
    fields = (ctypes.c_uint32 * 9)(37, 41, 70, 0, 1, 1, 0, 0, 1)
    with profile(cube) as counted:
        pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (a, b, out)]
        assert cube._library.product_run(b"bfloat16 float32", fields, *pointers, b"") == 0
    (launch,) = counted.launches
    (core,) = launch.cores
    assert not core.vector_core
    assert core.macs == {**NO_MACS, "16-bit float": 48 * 48 * 80}
    assert core.products == 1
    assert core.moved["gm_to_l1"].bytes == (37 + 41) * 70 * 2
    assert core.moved["gm_to_l1"].rows == 2  # both matrices lie end to end
    assert core.moved["l1_to_l0a"] == Moved(3, 3, 48 * 80 * 2)
    assert core.moved["l1_to_l0b"] == Moved(1, 1, 48 * 80 * 2)
    assert core.moved["l0c_to_gm"] == Moved(1, 1, 37 * 41 * 4)
    assert core.vector == ()


def test_flags_between_cores(cube):
    """Two blocks: each cube core sets once and waits once, and so does each of its two vector cores."""
    q, kv, out = torch.zeros(64, 64).bfloat16(), torch.zeros(32, 64).bfloat16(), torch.zeros(64, 64)
    with profile(cube) as counted:
        pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (q, kv, out)]
        assert cube._library.attention_run(ctypes.c_uint32(2), ctypes.c_uint32(32), *pointers, b"") == 0
    (launch,) = counted.launches
    assert [core.vector_core for core in launch.cores] == [False, True, True] * 2
    assert launch.event("cross_core_set") == launch.event("cross_core_wait") == 6
    assert launch.macs()["16-bit float"] == 2 * (32 * 32 * 64 + 32 * 64 * 32)


def test_nothing_is_counted_outside(cube):
    with profile() as counted:
        pass
    assert counted.launches == ()
    hc_post(torch.rand(1, 16), torch.rand(1, 4, 16), torch.rand(1, 4), torch.rand(1, 4, 4))
    with profile() as counted:
        pass
    assert counted.launches == ()


def core(**changes) -> Core:
    return dataclasses.replace(Core(True, NO_MOVE, NO_EVENT, NO_MACS, 0, ()), **changes)


def test_memory_bound_estimate():
    """16 MB once at 1.6 TB/s take 10 µs, when 40 cores move 0.4 MB each at 64 B a cycle: 6250 cycles of 1.8 GHz."""
    moved = {**NO_MOVE, "gm_to_ub": Moved(1, 1, 400_000)}
    launch = Launch("copy", (Range("x", "in", 16_000_000, 16_000_000, 0, 16_000_000),), (core(moved=moved),) * 40)
    told = estimate(launch, device("910b3"), Rates(dma_start=0, latency=0))
    assert told.bound == "HBM"
    assert told.seconds == pytest.approx(10e-6)
    assert told.share == pytest.approx(1.0)
    assert told.cycles["MTE2"] == pytest.approx(6250)


def test_cube_bound_estimate():
    """One of 24 cores works: a 24th of the peak, less what the Mmad instructions take to start."""
    launch = Launch("mm", (), (core(vector_core=False, macs={**NO_MACS, "16-bit float": 4096 * 3200}, products=100),))
    told = estimate(launch, device("910c"), Rates(product_start=32, latency=0))
    assert told.bound == "M"
    assert told.cycles["M"] == pytest.approx(6400)
    assert told.share == pytest.approx(0.5 / 24)


def test_vector_and_scalar_estimate():
    vector = (Vector("Add", 4, 10, 100), Vector("Exp", 4, 10, 100))
    events = {**NO_EVENT, "scalar_local": 7, "set_flag": 3, "sync_all": 2}
    told = estimate(Launch("v", (), (core(vector=vector, events=events), core())), device("910b"), Rates())
    assert told.cycles["V"] == pytest.approx(20 * 12 + 100 + 400)
    assert told.cycles["S"] == pytest.approx(7 * 10 + 3 * 10)
    assert told.seconds == pytest.approx((740 + 2 * 2000 + 1000) / 1.8e9)


def test_workspace_is_no_ideal_traffic():
    ranges = (Range("x", "in", 640, 6400, 0, 640), Range("ws", "workspace", 640, 640, 640, 640))
    told = estimate(Launch("k", ranges, (core(),)), device("910b"), Rates())
    assert told.ideal_seconds == pytest.approx(640 / 1.6e12)


def test_tool_prints_json(capsys):
    from tools.profile_kernel import main

    arguments = ["--op", "hc_post", "--shape", "tokens=2,hidden=2048", "--device", "910b", "--json"]
    assert main(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["launches"][0]["moved"]["ub_to_gm"] == 2 * 4 * 2048 * 2
    assert told["device"]["name"] == "910b3"
    assert "estimate" in told["note"]

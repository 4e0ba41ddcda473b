# SPDX-License-Identifier: Apache-2.0
"""Products on the twin's cube core, against numpy; attention over a mix of cube and vector cores; mistakes that are named."""

from __future__ import annotations

import ctypes
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from ascend_dsv4.twin.kernel_library import build

DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "int8": torch.int8,
    "int32": torch.int32,
}


@dataclass(frozen=True)
class Product:
    """Fields of the struct in cube.cpp, in its order."""

    m: int
    n: int
    k: int
    left_transposed: int = 0
    right_transposed: int = 0
    pieces: int = 1
    relu: int = 0
    nz: int = 0
    repeats: int = 1


PRODUCTS = {
    "one fractal": ("bfloat16 float32", Product(16, 16, 16, right_transposed=1)),
    "k given last": ("bfloat16 float32", Product(48, 80, 64, right_transposed=1)),
    "n given last": ("bfloat16 float32", Product(48, 80, 64)),
    "m given last": ("bfloat16 float32", Product(48, 80, 64, left_transposed=1)),
    "odd sizes": ("bfloat16 float32", Product(37, 41, 39, right_transposed=1)),
    "odd sizes, n given last": ("bfloat16 float32", Product(37, 41, 39)),
    "three pieces of k": ("bfloat16 float32", Product(33, 50, 96, pieces=3)),
    "a large tile in pieces": ("bfloat16 float32", Product(64, 80, 64, pieces=2)),
    "to bfloat16": ("bfloat16 bfloat16", Product(32, 48, 32)),
    "to float16 with ReLU": ("float16 float16", Product(32, 48, 32, relu=1)),
    "float32": ("float32 float32", Product(19, 33, 20, right_transposed=1)),
    "int8": ("int8 int32", Product(37, 41, 70, right_transposed=1)),
    "int8, n given last": ("int8 int32", Product(37, 64, 70)),
    "int8 dequantised": ("int8 float16", Product(16, 16, 64, right_transposed=1)),
    "fractals out": ("bfloat16 float32", Product(37, 48, 16, nz=1)),
    "stored three times, added up": ("bfloat16 float32", Product(16, 33, 16, repeats=3)),
}
SMALL = Product(32, 32, 64, right_transposed=1, pieces=2)
WRONG_PRODUCTS = {
    "unfilled_padding": (Product(16, 16, 39), "filter reads poison: column 0, k 39 was never written; it is padding of k"),
    "product_before_enque": (SMALL, "filter (L0B block 0) reads what is written of PIPE_MTE1"),
    "missing_m_barrier": (SMALL, "no PipeBarrier<PIPE_M>"),
    "never_cleared": (SMALL, "dst, which is accumulated to, reads poison"),
    "left_in_l0b": (SMALL, "fm lies in L0B, must lie in L0A"),
    "misaligned_accumulator": (SMALL, "dst starts at L0C byte 256, must be a multiple of 1024"),
    "stored_before_enque": (SMALL, "no event M_FIX"),
    "wrong_quantisation": (SMALL, "quantPre must be 0"),
    "vector of rows": (Product(1, 16, 16), "m = 1 multiplies a vector"),
}
WRONG_ATTENTION = {
    "cube_does_not_wait": "p",
    "vector_does_not_wait": "s",
    "one_half_does_not_signal": "waits for CrossCoreWaitFlag<2>(1)",
}


@pytest.fixture(scope="module")
def library():
    loaded = ctypes.CDLL(str(build([Path(__file__).with_name("cube.cpp")])))
    loaded.twin_last_error.restype = ctypes.c_char_p
    return loaded


def multiply(library, types: str, p: Product, mistake: str = "") -> tuple[str, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the twin complains of, A [m, k], B [k, n] and the result. Elements are small integers: every sum is exact."""
    source, target = (DTYPES[name] for name in types.split())
    generator = torch.Generator().manual_seed(p.m * p.n + p.k)
    a = torch.randint(-4, 5, (p.m, p.k), generator=generator).to(source)
    b = torch.randint(-4, 5, (p.k, p.n), generator=generator).to(source)
    given = [(a.T if p.left_transposed else a).contiguous(), (b.T if p.right_transposed else b).contiguous()]
    out = torch.zeros(p.n if p.nz else p.m, p.m if p.nz else p.n, dtype=target)
    fields = (ctypes.c_uint32 * 9)(*astuple(p))
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (*given, out)]
    failed = library.product_run(types.encode(), fields, *pointers, mistake.encode())
    return library.twin_last_error().decode() if failed else "", a, b, out


@pytest.mark.parametrize("name", PRODUCTS)
def test_product(library, name):
    types, p = PRODUCTS[name]
    message, a, b, out = multiply(library, types, p)
    assert message == ""
    wanted = a.double() @ b.double() * p.repeats * (0.5 if name == "int8 dequantised" else 1)
    if p.relu:
        wanted = wanted.clamp(min=0)
    if p.nz:
        out = out.reshape(-1, p.m, 16).permute(1, 0, 2).reshape(p.m, -1)
    torch.testing.assert_close(out, wanted.to(out.dtype), rtol=0, atol=0)


@pytest.mark.parametrize("mistake", WRONG_PRODUCTS)
def test_wrong_product(library, mistake):
    p, message = WRONG_PRODUCTS[mistake]
    assert message in multiply(library, "bfloat16 float32", p, mistake)[0]


def attend(library, blocks: int, keys: int, seed: int, mistake: str = "") -> tuple:
    """What the twin complains of, q [32 * blocks, 64], kv [keys, 64] and the result."""
    library.twin_configure(ctypes.c_uint64(seed), ctypes.c_uint32(4))
    generator = torch.Generator().manual_seed(keys)
    kv, q = (torch.randn(rows, 64, generator=generator).bfloat16() for rows in (keys, blocks * 32))
    out = torch.zeros(blocks * 32, 64)
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (q, kv, out)]
    failed = library.attention_run(ctypes.c_uint32(blocks), ctypes.c_uint32(keys), *pointers, mistake.encode())
    return library.twin_last_error().decode() if failed else "", q, kv, out


@pytest.mark.parametrize("keys", [16, 72, 128])
def test_attention(library, keys):
    """Scores and values from one tile in L1; what comes out is the same in every schedule and with any number of blocks."""
    message, q, kv, out = attend(library, 3, keys, 0)
    assert message == ""
    p = (q.float() @ kv.float().T / 8).bfloat16()
    wanted = p.double() @ kv.double()
    error = (out.double() - wanted).abs().numpy()
    # A score beside the middle of two bfloat16 may be rounded to the other one.
    assert np.all(error <= 2.0**-8 * p.double().abs().numpy().max() * kv.double().abs().numpy().max() + 1e-4)
    assert np.median(error) < 1e-5
    for seed in range(1, 6):
        assert torch.equal(attend(library, 3, keys, seed)[3], out)
    assert torch.equal(attend(library, 1, keys, 1)[3], out[:32])


@pytest.mark.parametrize("mistake", WRONG_ATTENTION)
def test_wrong_attention(library, mistake):
    for seed in range(5):
        assert WRONG_ATTENTION[mistake] in attend(library, 2, 72, seed, mistake)[0]

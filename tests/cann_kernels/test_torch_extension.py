# SPDX-License-Identifier: Apache-2.0
"""The torch extension: schemas of the contracts; and, built over the twin for the CPU, the kernels' own results."""

from __future__ import annotations

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.cpp_extension import include_paths, library_paths

from ascend_dsv4.accuracy.calls import CaseCall, load_cases, make_inputs, same_bits
from ascend_dsv4.ops import OP_NAMES
from ascend_dsv4.ops.library import schema
from ascend_dsv4.ops.registry import dtypes_of, get_spec, has_implementation
from ascend_dsv4.twin.kernel_library import KERNELS, build, compiler

OPS = [op for op in OP_NAMES if has_implementation(op, "ascendc-twin")]
SOURCES = KERNELS / "torch_extension"


@pytest.mark.parametrize("op", OPS)
def test_schema_is_that_of_the_contract(op: str) -> None:
    text = (SOURCES / f"{op}.cpp").read_text(encoding="utf-8")
    declared = text[text.index("ASCEND_DSV4_OP(") :]
    assert "".join(re.findall(r'"([^"]*)"', declared)) == schema(get_spec(op))


@pytest.fixture(scope="module")
def extension(tmp_path_factory: pytest.TempPathFactory) -> None:
    """`torch.ops.ascend_dsv4_kernels` over the twin."""
    folder = tmp_path_factory.mktemp("torch_extension")
    kernels = build(sorted(KERNELS.glob("*/*_launch_twin.cpp")))
    flags = ["-std=c++20", "-O0", "-fPIC", "-DASCEND_DSV4_TWIN", *(f"-I{path}" for path in include_paths())]
    headers = folder / "headers.h"  # those of torch are compiled once for all operators
    headers.write_text("#include <ATen/ATen.h>\n#include <torch/library.h>\n", encoding="utf-8")

    def run(*arguments: object) -> None:
        done = subprocess.run([compiler(), *flags, *map(str, arguments)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def compiled(op: str) -> str:
        target = folder / f"{op}.o"
        folders = (f"-I{KERNELS / name}" for name in ("twin/include", "common", op, "torch_extension"))
        run("-include", headers, *folders, "-c", SOURCES / f"{op}.cpp", "-o", target)
        return str(target)

    run("-x", "c++-header", headers, "-o", f"{headers}.gch")

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, OPS))
    library = folder / "libascend_dsv4_torch.so"
    linked = [*objects, str(kernels), f"-Wl,-rpath,{kernels.parent}", *(f"-L{path}" for path in library_paths())]
    linked += ["-ltorch", "-ltorch_cpu", "-lc10"]
    subprocess.run([compiler(), "-shared", *linked, "-o", str(library)], check=True)
    torch.ops.load_library(str(library))


@pytest.mark.slow
@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("op", OPS)
def test_results_are_the_kernels(op: str) -> None:
    """Every case without a grid, which the extension leaves to other operators."""
    function = getattr(torch.ops.ascend_dsv4_kernels, op)
    ran = 0
    for case in load_cases(op):
        dtypes = [dtype for dtype in case.dtypes if dtype in dtypes_of(op, "ascendc-twin")]
        inputs = make_inputs(op, case)
        if not dtypes or inputs.attrs.get("rounding", "none") != "none":
            continue
        dtype = "bfloat16" if "bfloat16" in dtypes else dtypes[0]
        expected = CaseCall(op, inputs, dtype).run("ascendc-twin")
        actual = CaseCall(op, inputs, dtype).run(lambda *tensors, **attrs: function(*tensors, **attrs))
        for out, tensor in expected.items():
            keep = inputs.defined.get(out)
            left, right = (tensor, actual[out]) if keep is None else (tensor[keep], actual[out][keep])
            assert same_bits(left, right), f"{case.name} {out}"
        ran += 1
    assert ran >= 3


@pytest.mark.slow
@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("op", OPS)
def test_meta_has_the_shapes_of_the_contract(op: str) -> None:
    spec, function = get_spec(op), getattr(torch.ops.ascend_dsv4_kernels, op)
    for case in load_cases(op)[:3]:
        call = CaseCall(op, make_inputs(op, case), "float32")
        meta = [None if tensor is None else tensor.to("meta") for tensor in call.tensors.values()]
        outs = function(*meta, **call.attrs)
        outs = () if outs is None else outs if isinstance(outs, tuple) else (outs,)
        expected = CaseCall(op, make_inputs(op, case), "float32").run("reference")
        assert [(out.shape, out.dtype) for out in outs] == [(expected[name].shape, expected[name].dtype) for name in spec.outs]

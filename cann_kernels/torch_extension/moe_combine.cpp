// SPDX-License-Identifier: Apache-2.0
#include "launch.h"

#include "moe_combine.h"

ASCEND_DSV4_LAUNCHER(moe_combine, MoeCombineParams)

namespace {

using namespace ascend_dsv4_kernels;

at::Tensor MoeCombine(const at::Tensor& rows, const at::Tensor& row_of) {
    at::Tensor y = rows.new_zeros_symint({row_of.sym_size(0), rows.sym_size(1)});
    if (y.is_meta() || y.numel() == 0 || row_of.size(1) == 0) return y;
    RequireDtype("moe_combine", "row_of", row_of, at::kInt);
    MoeCombineParams params = {};
    params.numTokens = Size(row_of, 0), params.hiddenSize = Size(rows, 1), params.topk = Size(row_of, 1), params.numRows = Size(rows, 0);
    params.dtype = DtypeCode("moe_combine", rows), params.numCores = VectorCores();
    Run(k_moe_combine, params, {rows.contiguous(), row_of.contiguous()}, {y});
    return y;
}

}  // namespace

ASCEND_DSV4_OP(moe_combine, MoeCombine, "moe_combine(Tensor rows, Tensor row_of) -> Tensor")

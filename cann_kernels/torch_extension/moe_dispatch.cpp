// SPDX-License-Identifier: Apache-2.0
#include "launch.h"

#include "moe_dispatch.h"

ASCEND_DSV4_LAUNCHER(moe_dispatch, MoeDispatchParams)

namespace {

using namespace ascend_dsv4_kernels;
using Four = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

Four MoeDispatch(const at::Tensor& x, const at::Tensor& ids, const at::Tensor& weights, int64_t num_experts) {
    const c10::SymInt num_rows = ids.sym_numel();
    at::Tensor rows = x.new_empty_symint({num_rows, x.sym_size(1)}), row_weights = weights.new_empty_symint({num_rows});
    at::Tensor counts = at::zeros({num_experts}, ids.options()), row_of = at::empty_like(ids, at::MemoryFormat::Contiguous);
    if (x.is_meta() || ids.numel() == 0) return {rows, row_weights, counts, row_of};
    RequireDtype("moe_dispatch", "ids", ids, at::kInt);
    RequireDtype("moe_dispatch", "weights", weights, at::kFloat);
    MoeDispatchParams params = {};
    params.numTokens = Size(ids, 0), params.hiddenSize = Size(x, 1), params.topk = Size(ids, 1);
    params.numExperts = params.endExpert = static_cast<uint32_t>(num_experts);
    params.dtype = DtypeCode("moe_dispatch", x), params.numCores = VectorCores();
    Run(k_moe_dispatch, params, {x.contiguous(), ids.contiguous(), weights.contiguous(), at::Tensor()},
        {rows, row_weights, counts, row_of, at::Tensor(), at::Tensor()});
    return {rows, row_weights, counts, row_of};
}

}  // namespace

ASCEND_DSV4_OP(moe_dispatch, MoeDispatch,
               "moe_dispatch(Tensor x, Tensor ids, Tensor weights, *, int num_experts) -> (Tensor, Tensor, Tensor, Tensor)")

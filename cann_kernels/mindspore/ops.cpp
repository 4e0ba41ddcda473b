// SPDX-License-Identifier: Apache-2.0
// Operators of a layer that MindSpore has no kernel for, as functions of a module; the others follow the same pattern.
#include "runner.h"

#include "hc_post.h"
#include "moe_combine.h"
#include "moe_dispatch.h"

ASCEND_DSV4_LAUNCHER(hc_post, HcPostParams)
ASCEND_DSV4_LAUNCHER(moe_combine, MoeCombineParams)
ASCEND_DSV4_LAUNCHER(moe_dispatch, MoeDispatchParams)

namespace ascend_dsv4_kernels {

ms::Tensor HcPost(const ms::Tensor& x, const ms::Tensor& streams, const ms::Tensor& post, const ms::Tensor& comb) {
    ms::Tensor y(streams.data_type(), streams.shape());
    if (streams.numel() == 0) return y;
    HcPostParams params = {};
    params.numTokens = Size(streams, 0), params.hcMult = Size(streams, 1), params.hiddenSize = Size(streams, 2);
    params.dtype = DtypeCode("hc_post", streams), params.numCores = VectorCores();
    Runner<HcPostParams>::Start("hc_post", hc_post_workspace, hc_post_launch, params, {x, streams, post, comb}, {y});
    return y;
}

/// topk is not 0: every token has a choice, if only an empty one.
ms::Tensor MoeCombine(const ms::Tensor& rows, const ms::Tensor& row_of) {
    ms::Tensor y(rows.data_type(), {row_of.shape().at(0), rows.shape().at(1)});
    if (y.numel() == 0) return y;
    MoeCombineParams params = {};
    params.numTokens = Size(row_of, 0), params.topk = Size(row_of, 1), params.hiddenSize = Size(rows, 1), params.numRows = Size(rows, 0);
    params.dtype = DtypeCode("moe_combine", rows), params.numCores = VectorCores();
    Runner<MoeCombineParams>::Start("moe_combine", moe_combine_workspace, moe_combine_launch, params, {rows, row_of}, {y});
    return y;
}

/// At least one token: without any, nobody would write the counts.
std::vector<ms::Tensor> MoeDispatch(const ms::Tensor& x, const ms::Tensor& ids, const ms::Tensor& weights, int64_t num_experts) {
    const int64_t num_rows = ids.shape().at(0) * ids.shape().at(1);
    if (num_rows == 0) throw std::invalid_argument("moe_dispatch: got no token, expected at least one");
    ms::Tensor rows(x.data_type(), {num_rows, x.shape().at(1)}), row_weights(weights.data_type(), {num_rows});
    ms::Tensor counts(ids.data_type(), {num_experts}), row_of(ids.data_type(), ids.shape());
    MoeDispatchParams params = {};
    params.numTokens = Size(ids, 0), params.topk = Size(ids, 1), params.hiddenSize = Size(x, 1);
    params.numExperts = params.endExpert = static_cast<uint32_t>(num_experts);
    params.dtype = DtypeCode("moe_dispatch", x), params.numCores = VectorCores();
    Runner<MoeDispatchParams>::Start("moe_dispatch", moe_dispatch_workspace, moe_dispatch_launch, params,
                                     {x, ids, weights, ms::Tensor()}, {rows, row_weights, counts, row_of, ms::Tensor(), ms::Tensor()});
    return {rows, row_weights, counts, row_of};
}

}  // namespace ascend_dsv4_kernels

namespace {

/// What Python calls: MindSpore runs the function on a thread of its own and returns `count` tensors that are yet to come.
template <int count, typename Result, typename... Arguments>
auto Entry(Result (*function)(Arguments...)) {
    return [function](Arguments... arguments) { return ms::pynative::PyboostRunner::Call<count>(function, arguments...); };
}

}  // namespace

PYBIND11_MODULE(MS_EXTENSION_NAME, m) {
    namespace ours = ascend_dsv4_kernels;
    m.def("hc_post", Entry<1>(ours::HcPost));
    m.def("moe_combine", Entry<1>(ours::MoeCombine));
    m.def("moe_dispatch", Entry<4>(ours::MoeDispatch));
}

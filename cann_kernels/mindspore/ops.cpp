// SPDX-License-Identifier: Apache-2.0
// The operators as functions of a module. Inputs are contiguous; what the contract calls a grid is another operator's.
#include "runner.h"

#include <optional>

#include "compress_kv.h"
#include "hc_post.h"
#include "hc_pre.h"
#include "index_topk.h"
#include "moe_combine.h"
#include "moe_dispatch.h"
#include "route.h"
#include "sparse_attention.h"

ASCEND_DSV4_LAUNCHER(compress_kv, CompressKvParams)
ASCEND_DSV4_LAUNCHER(hc_post, HcPostParams)
ASCEND_DSV4_LAUNCHER(hc_pre, HcPreParams)
ASCEND_DSV4_LAUNCHER(index_topk, IndexTopkParams)
ASCEND_DSV4_LAUNCHER(moe_combine, MoeCombineParams)
ASCEND_DSV4_LAUNCHER(moe_dispatch, MoeDispatchParams)
ASCEND_DSV4_LAUNCHER(route, RouteParams)
ASCEND_DSV4_LAUNCHER(sparse_attention, SparseAttentionParams)

namespace ascend_dsv4_kernels {

using Optional = std::optional<ms::Tensor>;

/// One that is not given is a null address.
ms::Tensor Given(const Optional& tensor) { return tensor.has_value() ? *tensor : ms::Tensor(); }

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

/// x, post, comb, pre.
std::vector<ms::Tensor> HcPre(const ms::Tensor& streams, const ms::Tensor& fn, const ms::Tensor& base, const ms::Tensor& scale,
                              const Optional& mix, int64_t sinkhorn_iters, double hc_eps, double norm_eps) {
    const int64_t tokens = streams.shape().at(0), n = streams.shape().at(1);
    ms::Tensor x(streams.data_type(), {tokens, streams.shape().at(2)}), post(fn.data_type(), {tokens, n});
    ms::Tensor comb(fn.data_type(), {tokens, n, n}), pre(fn.data_type(), {tokens, n});
    if (streams.numel() == 0) return {x, post, comb, pre};
    HcPreParams params = {};
    params.numTokens = Size(streams, 0), params.hcMult = Size(streams, 1), params.hiddenSize = Size(streams, 2);
    params.dtype = DtypeCode("hc_pre", streams), params.hasMix = mix.has_value();
    params.sinkhornIters = static_cast<uint32_t>(sinkhorn_iters);
    params.hcEps = static_cast<float>(hc_eps), params.normEps = static_cast<float>(norm_eps), params.numCores = VectorCores();
    Runner<HcPreParams>::Start("hc_pre", hc_pre_workspace, hc_pre_launch, params, {streams, fn, base, scale, Given(mix)},
                               {x, post, comb, pre});
    return {x, post, comb, pre};
}

/// ids, weights.
std::vector<ms::Tensor> Route(const ms::Tensor& logits, const Optional& bias, const Optional& tid2eid, const ms::Tensor& input_ids,
                              const Optional& bias_vl, const Optional& is_image, int64_t topk, const std::string& scoring,
                              bool norm_topk_prob, double scaling, double norm_eps, int64_t n_group, int64_t topk_group) {
    if (scoring != "sqrtsoftplus" && scoring != "sigmoid") {
        throw std::invalid_argument("route: scoring is " + scoring + "; expected sqrtsoftplus or sigmoid");
    }
    const std::vector<int64_t> shape = {logits.shape().at(0), topk};
    ms::Tensor ids(input_ids.data_type(), shape), weights(logits.data_type(), shape);
    if (ids.numel() == 0) return {ids, weights};
    RouteParams params = {};
    params.numTokens = Size(logits, 0), params.numExperts = Size(logits, 1), params.topk = static_cast<uint32_t>(topk);
    params.vocabSize = tid2eid.has_value() ? Size(*tid2eid, 0) : 0, params.isHashed = tid2eid.has_value();
    params.scoring = scoring == "sigmoid" ? ROUTE_SIGMOID : ROUTE_SQRTSOFTPLUS, params.hasBias = bias.has_value(), params.hasImages = is_image.has_value();
    params.normalize = norm_topk_prob, params.numGroups = static_cast<uint32_t>(n_group);
    params.topkGroup = static_cast<uint32_t>(topk_group), params.numCores = VectorCores();
    params.scaling = static_cast<float>(scaling), params.normEps = static_cast<float>(norm_eps);
    Runner<RouteParams>::Start("route", route_workspace, route_launch, params,
                               {logits, Given(bias), Given(tid2eid), input_ids, Given(bias_vl), Given(is_image)}, {ids, weights});
    return {ids, weights};
}

/// entries, blocks. q is rounded already, weights are float32.
std::vector<ms::Tensor> IndexTopk(const ms::Tensor& q, const ms::Tensor& weights, const ms::Tensor& idx_kv, const ms::Tensor& positions,
                                  const ms::Tensor& req_idx, const ms::Tensor& block_table, const Optional& candidates, int64_t ratio,
                                  int64_t topk, int64_t candidate_block, int64_t num_candidates) {
    const int64_t tokens = q.shape().at(0);
    ms::Tensor entries(positions.data_type(), {tokens, topk}), blocks(positions.data_type(), {tokens, num_candidates});
    if (tokens == 0) return {entries, blocks};
    IndexTopkParams params = {};
    params.numTokens = Size(q, 0), params.numHeads = Size(q, 1), params.headDim = Size(q, 2);
    params.numKeyBlocks = Size(idx_kv, 0), params.blockRows = Size(idx_kv, 1);
    params.numRequests = Size(block_table, 0), params.maxBlocks = Size(block_table, 1);
    params.hasCandidates = candidates.has_value(), params.numGiven = candidates.has_value() ? Size(*candidates, 1) : 0;
    params.ratio = static_cast<uint32_t>(ratio), params.topk = static_cast<uint32_t>(topk);
    params.candidateBlock = static_cast<uint32_t>(candidate_block), params.numCandidates = static_cast<uint32_t>(num_candidates);
    params.dtype = DtypeCode("index_topk", q), params.numCores = AiCores();
    Runner<IndexTopkParams>::Start(
        "index_topk", index_topk_workspace, index_topk_launch, params,
        {q, weights, idx_kv, positions, req_idx, block_table, Given(candidates), ms::Tensor(), ms::Tensor()}, {entries, blocks});
    return {entries, blocks};
}

/// Caches of the dtype of q, or bfloat16 ones under float32 queries.
ms::Tensor SparseAttention(const ms::Tensor& q, const ms::Tensor& win_kv, const Optional& cmp_kv, const Optional& entries,
                           const ms::Tensor& sink, const ms::Tensor& positions, const ms::Tensor& req_idx, const ms::Tensor& window_table,
                           const Optional& block_table, int64_t window, int64_t ratio, double scale) {
    ms::Tensor o(q.data_type(), q.shape());
    if (q.numel() == 0) return o;
    const bool compressed = cmp_kv.has_value() && block_table.has_value();
    SparseAttentionParams params = {};
    params.numTokens = Size(q, 0), params.numHeads = Size(q, 1), params.headDim = Size(q, 2);
    params.dtype = DtypeCode("sparse_attention", q), params.cacheDtype = DtypeCode("sparse_attention", win_kv);
    params.window = static_cast<uint32_t>(window);
    params.numWindowBlocks = Size(win_kv, 0), params.windowBlockRows = Size(win_kv, 1);
    params.numRequests = Size(window_table, 0), params.windowColumns = Size(window_table, 1);
    params.ratio = static_cast<uint32_t>(ratio), params.scale = static_cast<float>(scale), params.numCores = AiCores();
    if (compressed) {
        params.hasCompressed = 1, params.numBlocks = Size(*cmp_kv, 0), params.blockRows = Size(*cmp_kv, 1);
        params.maxBlocks = Size(*block_table, 1);
    }
    const bool chosen = compressed && entries.has_value();
    if (chosen) params.hasEntries = 1, params.topk = Size(*entries, 1);
    Runner<SparseAttentionParams>::Start(
        "sparse_attention", sparse_attention_workspace, sparse_attention_launch, params,
        {q, win_kv, compressed ? Given(cmp_kv) : ms::Tensor(), chosen ? Given(entries) : ms::Tensor(), sink, positions, req_idx, window_table,
         compressed ? Given(block_table) : ms::Tensor()},
        {o});
    return o;
}

/// Writes cache and state in place, and returns the cache; norm is float32.
ms::Tensor CompressKv(const ms::Tensor& cache, const ms::Tensor& state, const ms::Tensor& kv, const ms::Tensor& gate, const ms::Tensor& ape,
                      const ms::Tensor& norm, const ms::Tensor& cos, const ms::Tensor& sin, const ms::Tensor& positions,
                      const ms::Tensor& req_idx, const ms::Tensor& cu_query_lens, const ms::Tensor& state_slots, const ms::Tensor& slots,
                      int64_t ratio, double eps, const std::string& entry_dtype) {
    if (entry_dtype != "float32" && entry_dtype != "bfloat16" && entry_dtype != "float16") {
        throw std::invalid_argument("compress_kv: entry_dtype is " + entry_dtype + "; expected float32, bfloat16 or float16");
    }
    if (kv.numel() == 0) return cache;
    CompressKvParams params = {};
    params.numTokens = Size(kv, 0), params.numRequests = Size(state_slots, 0), params.headDim = Size(cache, 2);
    params.overlap = kv.shape().at(1) > cache.shape().at(2), params.ratio = static_cast<uint32_t>(ratio), params.half = Size(cos, 1);
    params.stateRows = Size(state, 1), params.numStateSlots = Size(state, 0);
    params.outDtype = DtypeCode("compress_kv", cache);
    params.entryDtype = entry_dtype == "float32" ? 0 : entry_dtype == "bfloat16" ? 1 : 2;
    params.outRows = static_cast<uint64_t>(cache.shape().at(0)) * static_cast<uint64_t>(cache.shape().at(1));
    params.eps = static_cast<float>(eps), params.numCores = VectorCores();
    Runner<CompressKvParams>::Start(
        "compress_kv", compress_kv_workspace, compress_kv_launch, params,
        {kv, gate, ape, norm, cos, sin, positions, req_idx, cu_query_lens, state_slots, slots}, {cache, state});
    return cache;
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
    m.def("compress_kv", Entry<1>(ours::CompressKv));
    m.def("hc_post", Entry<1>(ours::HcPost));
    m.def("hc_pre", Entry<4>(ours::HcPre));
    m.def("index_topk", Entry<2>(ours::IndexTopk));
    m.def("moe_combine", Entry<1>(ours::MoeCombine));
    m.def("moe_dispatch", Entry<4>(ours::MoeDispatch));
    m.def("route", Entry<2>(ours::Route));
    m.def("sparse_attention", Entry<1>(ours::SparseAttention));
}

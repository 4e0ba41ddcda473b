// SPDX-License-Identifier: Apache-2.0
#include "launch.h"

#include "sparse_attention.h"

ASCEND_DSV4_LAUNCHER(sparse_attention, SparseAttentionParams)

namespace {

using namespace ascend_dsv4_kernels;
using Optional = std::optional<at::Tensor>;

at::Tensor SparseAttention(const at::Tensor& q, const at::Tensor& win_kv, const Optional& cmp_kv, const Optional& entries,
                           const at::Tensor& sink, const at::Tensor& positions, const at::Tensor& req_idx,
                           const at::Tensor& window_table, const Optional& block_table, int64_t window, int64_t ratio, double scale) {
    at::Tensor o = at::empty_like(q, at::MemoryFormat::Contiguous);
    if (q.is_meta() || q.numel() == 0) return o;
    at::Tensor cache = Contiguous(cmp_kv), chosen = Contiguous(entries), table = Contiguous(block_table);
    if (!cache.defined() || !table.defined()) cache = chosen = table = at::Tensor();
    if (win_kv.scalar_type() == at::kFloat && q.scalar_type() != at::kFloat) {  // they meet in float32
        return SparseAttention(q.to(at::kFloat), win_kv, cmp_kv, entries, sink, positions, req_idx, window_table, block_table, window, ratio,
                               scale).to(q.scalar_type());
    }
    RequireDtype("sparse_attention", "cmp_kv", cache, win_kv.scalar_type());
    for (const at::Tensor& tensor : {chosen, positions, req_idx, window_table, table}) {
        RequireDtype("sparse_attention", "an index", tensor, at::kInt);
    }
    RequireDtype("sparse_attention", "sink", sink, at::kFloat);
    SparseAttentionParams params = {};
    params.numTokens = Size(q, 0), params.numHeads = Size(q, 1), params.headDim = Size(q, 2);
    params.dtype = DtypeCode("sparse_attention", q), params.cacheDtype = DtypeCode("sparse_attention", win_kv);
    params.window = static_cast<uint32_t>(window);
    params.numWindowBlocks = Size(win_kv, 0), params.windowBlockRows = Size(win_kv, 1);
    params.numRequests = Size(window_table, 0), params.windowColumns = Size(window_table, 1);
    params.ratio = static_cast<uint32_t>(ratio), params.scale = static_cast<float>(scale), params.numCores = AiCores();
    if (cache.defined()) {
        params.hasCompressed = 1, params.numBlocks = Size(cache, 0), params.blockRows = Size(cache, 1), params.maxBlocks = Size(table, 1);
    }
    if (chosen.defined()) params.hasEntries = 1, params.topk = Size(chosen, 1);
    Run(k_sparse_attention, params,
        {q.contiguous(), win_kv.contiguous(), cache, chosen, sink.contiguous(), positions.contiguous(), req_idx.contiguous(),
         window_table.contiguous(), table},
        {o});
    return o;
}

}  // namespace

ASCEND_DSV4_OP(sparse_attention, SparseAttention,
               "sparse_attention(Tensor q, Tensor win_kv, Tensor? cmp_kv, Tensor? entries, Tensor sink, Tensor positions, "
               "Tensor req_idx, Tensor window_table, Tensor? block_table, *, int window, int ratio, float scale) -> Tensor")

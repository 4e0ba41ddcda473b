// SPDX-License-Identifier: Apache-2.0
#include "launch.h"

#include "index_topk.h"

ASCEND_DSV4_LAUNCHER(index_topk, IndexTopkParams)

namespace {

using namespace ascend_dsv4_kernels;

/// q is rounded already: the kernel applies no grid.
std::tuple<at::Tensor, at::Tensor> IndexTopk(const at::Tensor& q, const at::Tensor& weights, const at::Tensor& idx_kv,
                                             const at::Tensor& positions, const at::Tensor& req_idx, const at::Tensor& block_table,
                                             const std::optional<at::Tensor>& candidates, int64_t ratio, int64_t topk,
                                             c10::string_view rounding, int64_t candidate_block, int64_t num_candidates) {
    at::Tensor entries = positions.new_empty_symint({q.sym_size(0), topk});
    at::Tensor blocks = positions.new_empty_symint({q.sym_size(0), num_candidates});
    if (q.is_meta() || q.size(0) == 0) return {entries, blocks};
    TORCH_CHECK(rounding == "none", "index_topk: rounding is ", rounding, "; expected none, because the kernel takes queries on the grid");
    RequireDtype("index_topk", "idx_kv", idx_kv, q.scalar_type());
    const at::Tensor given = Contiguous(candidates);
    for (const at::Tensor& tensor : {positions, req_idx, block_table, given}) RequireDtype("index_topk", "an index", tensor, at::kInt);
    IndexTopkParams params = {};
    params.numTokens = Size(q, 0), params.numHeads = Size(q, 1), params.headDim = Size(q, 2);
    params.numKeyBlocks = Size(idx_kv, 0), params.blockRows = Size(idx_kv, 1);
    params.numRequests = Size(block_table, 0), params.maxBlocks = Size(block_table, 1);
    params.hasCandidates = given.defined(), params.numGiven = given.defined() ? Size(given, 1) : 0;
    params.ratio = static_cast<uint32_t>(ratio), params.topk = static_cast<uint32_t>(topk);
    params.candidateBlock = static_cast<uint32_t>(candidate_block), params.numCandidates = static_cast<uint32_t>(num_candidates);
    params.dtype = DtypeCode("index_topk", q), params.numCores = AiCores();
    Run(k_index_topk, params,
        {q.contiguous(), weights.to(at::kFloat).contiguous(), idx_kv.contiguous(), positions.contiguous(), req_idx.contiguous(),
         block_table.contiguous(), given, at::Tensor(), at::Tensor()},
        {entries, blocks});
    return {entries, blocks};
}

}  // namespace

ASCEND_DSV4_OP(index_topk, IndexTopk,
               "index_topk(Tensor q, Tensor weights, Tensor idx_kv, Tensor positions, Tensor req_idx, Tensor block_table, "
               "Tensor? candidates, *, int ratio, int topk, str rounding, int candidate_block, int num_candidates) -> (Tensor, Tensor)")

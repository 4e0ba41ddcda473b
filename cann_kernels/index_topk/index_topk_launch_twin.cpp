// SPDX-License-Identifier: Apache-2.0
// The launcher's C ABI over the twin.
#include "index_topk_kernel.h"

#include "twin/abi.h"

extern "C" size_t index_topk_workspace(const IndexTopkParams* params) {
    return IndexTopkRefusal(*params) != nullptr ? 0 : IndexTopkRingBytes(*params) + IndexTopkListBytes(IndexTopkTile(*params));
}

/// in: q, weights, idx_kv, positions, req_idx, block_table, candidates or null, and for int8 the scales of q and of idx_kv;
/// out: entries, blocks. Contiguous; weights and scales are float. Returns 0, or 1 with the reason in twin_last_error.
extern "C" int index_topk_launch(void*, const IndexTopkParams* params, void** in, void** out, void*, size_t) {
    return twin::Guarded([&] {
        const IndexTopkParams& p = *params;
        if (const char* reason = IndexTopkRefusal(p)) throw twin::TwinError(twin::Format("index_topk: %s", reason));
        if (p.numTokens == 0) return;
        const IndexTopkTiling tiling = IndexTopkTile(p);
        const size_t tokens = p.numTokens, rows = size_t{p.numKeyBlocks} * p.blockRows;
        const size_t size = p.dtype == INDEX_TOPK_FLOAT32 ? 4 : p.dtype == INDEX_TOPK_INT8 ? 1 : 2, heads = tokens * p.numHeads;
        const bool scaled = p.dtype == INDEX_TOPK_INT8;
        twin::Launch launch("index_topk", p.numCores, twin::Ratio::kOneToTwo, twin::CurrentSettings());
        GM_ADDR q = launch.In("q", in[0], heads * p.headDim * size);
        GM_ADDR weights = launch.In("weights", in[1], heads * sizeof(float));
        GM_ADDR keys = launch.In("idx_kv", in[2], rows * p.headDim * size);
        GM_ADDR positions = launch.In("positions", in[3], tokens * 4);
        GM_ADDR requests = launch.In("req_idx", in[4], tokens * 4);
        GM_ADDR table = launch.In("block_table", in[5], size_t{p.numRequests} * p.maxBlocks * 4);
        GM_ADDR candidates = p.hasCandidates != 0 ? launch.In("candidates", in[6], tokens * p.numGiven * 4) : nullptr;
        GM_ADDR qScale = scaled ? launch.In("q_scale", in[7], heads * sizeof(float)) : nullptr;
        GM_ADDR keyScale = scaled ? launch.In("idx_scale", in[8], rows * sizeof(float)) : nullptr;
        GM_ADDR entries = launch.Out("entries", out[0], tokens * p.topk * 4);
        GM_ADDR blocks = p.numCandidates > 0 ? launch.Out("blocks", out[1], tokens * p.numCandidates * 4) : nullptr;
        GM_ADDR ring = launch.Workspace("ring", IndexTopkRingBytes(p));
        GM_ADDR lists = launch.Workspace("lists", IndexTopkListBytes(tiling) + 32);
        launch.Run([=] {
            index_topk(q, weights, keys, positions, requests, table, candidates, qScale, keyScale, entries, blocks, ring, lists, tiling);
        });
    });
}

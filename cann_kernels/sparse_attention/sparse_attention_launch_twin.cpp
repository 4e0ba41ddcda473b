// SPDX-License-Identifier: Apache-2.0
// The launcher's C ABI over the twin.
#include "sparse_attention_kernel.h"

#include "twin/abi.h"

namespace {

void Check(const SparseAttentionParams& params) {
    const auto require = [](bool condition, const char* name, unsigned long long got, const char* expected) {
        if (!condition) throw twin::TwinError(twin::Format("sparse_attention: %s must be %s, got %llu", name, expected, got));
    };
    require(params.numHeads >= 1 && params.numHeads <= SPARSE_ATTENTION_MAX_HEADS, "numHeads", params.numHeads, "1..128");
    require(params.headDim >= 1 && params.headDim <= SPARSE_ATTENTION_MAX_HEAD_DIM, "headDim", params.headDim, "1..512");
    require(params.dtype <= SPARSE_ATTENTION_FLOAT16, "dtype", params.dtype, "0, 1 or 2");
    require(params.cacheDtype == params.dtype || (params.dtype == SPARSE_ATTENTION_FLOAT32 && params.cacheDtype == SPARSE_ATTENTION_BFLOAT16),
            "cacheDtype", params.cacheDtype, "dtype, or 1 where that is 0");
    require(params.window >= 1, "window", params.window, "at least 1");
    require(params.windowBlockRows >= 1 && params.windowColumns >= 1, "the window's block and table", params.windowBlockRows, "not empty");
    require(params.hasCompressed == 0 || (params.blockRows >= 1 && params.ratio >= 1), "blockRows and ratio", params.ratio, "at least 1");
    require(params.numCores >= 1, "numCores", params.numCores, "at least 1");
}

}  // namespace

/// Bytes of the workspace, for a launcher that is given one; the twin makes its own, poisoned.
extern "C" size_t sparse_attention_workspace(const SparseAttentionParams* params) {
    return params->numTokens == 0 ? 0 : SparseAttentionTile(*params).workspaceBytes;
}

/// in: q, win_kv, cmp_kv, entries, sink, positions, req_idx, window_table, block_table; out: o. Contiguous; cmp_kv, entries and
/// block_table may be null. Returns 0, or 1 with the reason in twin_last_error.
extern "C" int sparse_attention_launch(void*, const SparseAttentionParams* params, void** in, void** out, void*, size_t) {
    return twin::Guarded([&] {
        Check(*params);
        const SparseAttentionTiling tiling = SparseAttentionTile(*params);
        if (tiling.blocks == 0) return;
        const size_t tokens = params->numTokens, width = params->dtype == SPARSE_ATTENTION_FLOAT32 ? 4 : 2;
        const size_t row = params->headDim * width, heads = params->numHeads;
        const size_t cacheRow = params->headDim * (params->cacheDtype == SPARSE_ATTENTION_FLOAT32 ? 4 : 2);
        twin::Launch launch("sparse_attention", tiling.blocks, twin::Ratio::kOneToTwo, twin::CurrentSettings());
        const auto optional = [&](const char* name, size_t index, size_t bytes) -> GM_ADDR {
            return in[index] == nullptr ? nullptr : launch.In(name, in[index], bytes);
        };
        GM_ADDR q = launch.In("q", in[0], tokens * heads * row);
        GM_ADDR winKv = launch.In("win_kv", in[1], params->numWindowBlocks * params->windowBlockRows * cacheRow);
        GM_ADDR cmpKv = optional("cmp_kv", 2, params->numBlocks * params->blockRows * cacheRow);
        GM_ADDR entries = optional("entries", 3, tokens * params->topk * sizeof(int32_t));
        GM_ADDR sink = launch.In("sink", in[4], heads * sizeof(float));
        GM_ADDR positions = launch.In("positions", in[5], tokens * sizeof(int32_t));
        GM_ADDR requests = launch.In("req_idx", in[6], tokens * sizeof(int32_t));
        GM_ADDR windowTable = launch.In("window_table", in[7], params->numRequests * params->windowColumns * sizeof(int32_t));
        GM_ADDR blockTable = optional("block_table", 8, params->numRequests * params->maxBlocks * sizeof(int32_t));
        GM_ADDR o = launch.Out("o", out[0], tokens * heads * row);
        GM_ADDR workspace = launch.Workspace("workspace", tiling.workspaceBytes);
        launch.Run([=] {
            sparse_attention(q, winKv, cmpKv, entries, sink, positions, requests, windowTable, blockTable, o, workspace, tiling);
        });
    });
}

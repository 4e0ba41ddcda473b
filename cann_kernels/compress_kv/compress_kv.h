// SPDX-License-Identifier: Apache-2.0
// What the host tells the kernel. Shared by both: fixed-width fields, no padding.
#pragma once

#include <cstdint>

enum CompressKvDtype : uint32_t { COMPRESS_KV_FLOAT32 = 0, COMPRESS_KV_BFLOAT16 = 1, COMPRESS_KV_FLOAT16 = 2 };

constexpr uint32_t COMPRESS_KV_MAX_HEAD_DIM = 1024;
constexpr uint32_t COMPRESS_KV_MAX_HALF = 128;      // pairs of channels that are rotated
constexpr uint32_t COMPRESS_KV_BATCH_FLOATS = 4096;  // of the rows that are pooled at once
constexpr uint32_t COMPRESS_KV_TABLE_TOKENS = 64;    // tokens or requests whose table entries are staged at once

struct CompressKvParams {
    uint32_t numTokens;
    uint32_t numRequests;
    uint32_t headDim;
    uint32_t overlap;  // 1 where windows overlap: width is 2 * headDim
    uint32_t ratio;
    uint32_t half;
    uint32_t stateRows;
    uint32_t numStateSlots;
    uint32_t outDtype;
    uint32_t entryDtype;
    uint64_t outRows;  // rows of the output
    uint32_t dense;    // 1: the entry of token t goes to row t of the output, not to its slot
    float eps;
    uint32_t numCores;
    uint32_t reserved;
};

struct CompressKvTiling {
    uint32_t numTokens;
    uint32_t numRequests;
    uint32_t headDim;
    uint32_t width;
    uint32_t ratio;
    uint32_t count;  // positions of an entry
    uint32_t half;
    uint32_t stateRows;
    uint32_t outDtype;
    uint32_t entryDtype;
    uint32_t dense;
    float eps;
    float inverseDim;      // 1 / headDim
    uint32_t pitch;        // headDim rounded up to 8
    uint32_t batchRows;    // rows that are pooled at once
    uint32_t rotaryStart;  // first channel of the blocks that hold rotated channels
    uint32_t rotaryLanes;  // from there to the end of the row, padding included
    uint32_t tokensPerBlock;
};

/// A result depends on no figure that is derived from the number of cores or of tokens.
inline CompressKvTiling CompressKvTile(const CompressKvParams& p) {
    CompressKvTiling t = {};
    const uint32_t roles = p.overlap != 0 ? 2 : 1;
    t.numTokens = p.numTokens, t.numRequests = p.numRequests, t.headDim = p.headDim, t.width = roles * p.headDim;
    t.ratio = p.ratio, t.count = roles * p.ratio, t.half = p.half, t.stateRows = p.stateRows;
    t.outDtype = p.outDtype, t.entryDtype = p.entryDtype, t.dense = p.dense, t.eps = p.eps;
    t.inverseDim = 1.0f / static_cast<float>(p.headDim);
    t.pitch = (p.headDim + 7) / 8 * 8;
    const uint32_t most = COMPRESS_KV_BATCH_FLOATS / t.pitch;
    t.batchRows = t.count < most ? t.count : most;
    t.rotaryStart = (p.headDim - 2 * p.half) / 8 * 8;
    t.rotaryLanes = t.pitch - t.rotaryStart;
    t.tokensPerBlock = (p.numTokens + p.numCores - 1) / p.numCores;
    return t;
}

/// No more blocks than tokens: each has a run of them to close entries for, and a share of the state to write.
inline uint32_t CompressKvBlocks(const CompressKvParams& p) {
    const uint32_t perBlock = CompressKvTile(p).tokensPerBlock;
    return perBlock == 0 ? 0 : (p.numTokens + perBlock - 1) / perBlock;
}

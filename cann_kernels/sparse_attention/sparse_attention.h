// SPDX-License-Identifier: Apache-2.0
// What the host tells the kernel. Shared by both: fixed-width fields, no padding.
#pragma once

#include <cstddef>
#include <cstdint>

enum SparseAttentionDtype : uint32_t { SPARSE_ATTENTION_FLOAT32 = 0, SPARSE_ATTENTION_BFLOAT16 = 1, SPARSE_ATTENTION_FLOAT16 = 2 };

constexpr uint32_t SPARSE_ATTENTION_MAX_HEADS = 128;
constexpr uint32_t SPARSE_ATTENTION_MAX_HEAD_DIM = 512;
constexpr uint32_t SPARSE_ATTENTION_RANGE = 1024;      // keys of one softmax; longer rows of keys are merged range by range
constexpr uint32_t SPARSE_ATTENTION_GROUP = 128;       // keys that the cube core is told of at once
constexpr uint32_t SPARSE_ATTENTION_STRIP = 8;         // heads that a vector core takes through the softmax at once
constexpr uint32_t SPARSE_ATTENTION_KEY_SLOTS = 3;     // ranges of gathered keys: gathered, scored, summed
constexpr uint32_t SPARSE_ATTENTION_STAT_PITCH = 128;  // floats of the maxima, and of the sums, of one range

struct SparseAttentionParams {
    uint32_t numTokens;
    uint32_t numHeads;
    uint32_t headDim;
    uint32_t dtype;
    uint32_t windowBlockRows;
    uint32_t windowColumns;
    uint32_t window;
    uint32_t hasCompressed;
    uint32_t blockRows;   // 0 without compressed entries, like the two below
    uint32_t maxBlocks;
    uint32_t ratio;
    uint32_t hasEntries;
    uint32_t topk;
    float scale;
    uint32_t numCores;    // AI cores, each a cube core and two vector cores
    uint32_t cacheDtype;  // dtype, or bfloat16 under float32 queries
    uint64_t numWindowBlocks;  // sizes of the caches, for the launcher
    uint64_t numBlocks;
    uint64_t numRequests;
};

struct SparseAttentionTiling {
    SparseAttentionParams params;
    uint32_t blocks;       // AI cores of the launch
    uint32_t ranges;       // most ranges of a token
    uint32_t split;        // 1: the ranges of a token go to different cores
    uint32_t scorePitch;   // scores of a head in one range, a multiple of 64
    uint32_t paddedHeads;  // a multiple of 16
    uint32_t paddedDim;    // a multiple of 16
    uint32_t keyPitch;     // elements of a gathered key: the head dimension up to 32 bytes
    uint32_t parts;        // that a weight is stored in: 2 for 16-bit types, whose sum is the weight, else 1
    uint64_t keyOffset;    // bytes in the workspace
    uint64_t scoreOffset;
    uint64_t weightOffset;
    uint64_t sumOffset;
    uint64_t statOffset;
    uint64_t workspaceBytes;
};

inline uint32_t SparseAttentionRoundUp(uint32_t value, uint32_t unit) { return (value + unit - 1) / unit * unit; }

/// Most compressed entries a token may be given.
inline uint64_t SparseAttentionMostEntries(const SparseAttentionParams& params) {
    if (params.hasCompressed == 0) return 0;
    const uint64_t capacity = static_cast<uint64_t>(params.maxBlocks) * params.blockRows;
    return params.hasEntries != 0 && params.topk < capacity ? params.topk : capacity;
}

/// Ranges are fixed stretches of a token's keys and are merged in one way, whichever core holds them, so that a result depends on
/// no figure in here but the length of a range. Ranges go to different cores only when there are fewer tokens than cores.
inline SparseAttentionTiling SparseAttentionTile(const SparseAttentionParams& params) {
    SparseAttentionTiling tiling = {};
    tiling.params = params;
    const uint64_t width = params.dtype == SPARSE_ATTENTION_FLOAT32 ? 4 : 2;
    const uint64_t most = SparseAttentionMostEntries(params) + params.window;
    tiling.ranges = static_cast<uint32_t>((most + SPARSE_ATTENTION_RANGE - 1) / SPARSE_ATTENTION_RANGE);
    tiling.split = tiling.ranges > 1 && params.numTokens < params.numCores ? 1 : 0;
    const uint64_t units = static_cast<uint64_t>(params.numTokens) * (tiling.split != 0 ? tiling.ranges : 1);
    tiling.blocks = static_cast<uint32_t>(units < params.numCores ? units : params.numCores);
    const uint32_t longest = most < SPARSE_ATTENTION_RANGE ? static_cast<uint32_t>(most) : SPARSE_ATTENTION_RANGE;
    tiling.scorePitch = SparseAttentionRoundUp(longest, 64);
    tiling.paddedHeads = SparseAttentionRoundUp(params.numHeads, 16);
    tiling.paddedDim = SparseAttentionRoundUp(params.headDim, 16);
    tiling.keyPitch = SparseAttentionRoundUp(params.headDim, static_cast<uint32_t>(32 / width));
    tiling.parts = width == 4 ? 1 : 2;
    const uint64_t scores = static_cast<uint64_t>(params.numHeads) * tiling.scorePitch;
    const uint64_t sets = tiling.split != 0 ? params.numTokens : static_cast<uint64_t>(tiling.blocks) * 2;
    uint64_t at = 0;
    const auto take = [&at](uint64_t bytes) {
        const uint64_t offset = at;
        at += (bytes + 511) / 512 * 512;
        return offset;
    };
    tiling.keyOffset = take(tiling.blocks * SPARSE_ATTENTION_KEY_SLOTS * tiling.scorePitch * tiling.keyPitch * width);
    tiling.scoreOffset = take(tiling.blocks * 2 * scores * 4);
    tiling.weightOffset = take(tiling.blocks * 2 * tiling.parts * scores * width);
    tiling.sumOffset = take(sets * tiling.ranges * params.numHeads * tiling.paddedDim * 4);
    tiling.statOffset = take(sets * tiling.ranges * 2 * SPARSE_ATTENTION_STAT_PITCH * 4);
    tiling.workspaceBytes = at;
    return tiling;
}

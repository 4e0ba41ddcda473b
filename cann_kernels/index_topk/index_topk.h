// SPDX-License-Identifier: Apache-2.0
// What the host tells the kernel. Shared by both: fixed-width fields, no padding.
#pragma once

#include <cstdint>

enum IndexTopkDtype : uint32_t { INDEX_TOPK_FLOAT32 = 0, INDEX_TOPK_BFLOAT16 = 1, INDEX_TOPK_FLOAT16 = 2, INDEX_TOPK_INT8 = 3 };

constexpr uint32_t INDEX_TOPK_TILE = 128;        // entries of one product
constexpr uint32_t INDEX_TOPK_HEADS = 64;        // heads of one product
constexpr uint32_t INDEX_TOPK_MAX_HEADS = 128;
constexpr uint32_t INDEX_TOPK_CHUNK = 1024;      // most entries that are sorted at once
constexpr uint32_t INDEX_TOPK_SEGMENT_CHUNKS = 2;  // short, so that one sequence keeps many cores busy
constexpr uint32_t INDEX_TOPK_MAX_TOPK = 1024;
constexpr uint32_t INDEX_TOPK_MAX_CANDIDATES = 2048;
constexpr uint32_t INDEX_TOPK_STAGES = 2;        // of the ring between the cube core and its vector cores
constexpr uint32_t INDEX_TOPK_SIDES = 2;         // vector cores of an AI Core
constexpr uint32_t INDEX_TOPK_LIST_BYTES = 32u << 20;  // of the lists that await merging, as far as one token's do not need more
constexpr uint32_t INDEX_TOPK_L1_BYTES = 512 * 1024 - 256;
constexpr uint32_t INDEX_TOPK_MAX_ENTRIES = 1u << 24;  // numbers are sorted as floats, exact up to here
constexpr float INDEX_TOPK_INFINITY = __builtin_inff();

struct IndexTopkParams {
    uint32_t numTokens;
    uint32_t numHeads;
    uint32_t headDim;
    uint32_t blockRows;
    uint32_t numRequests;
    uint32_t maxBlocks;
    uint32_t numKeyBlocks;
    uint32_t hasCandidates;
    uint32_t numGiven;
    uint32_t ratio;
    uint32_t topk;
    uint32_t candidateBlock;
    uint32_t numCandidates;
    uint32_t dtype;
    uint32_t numCores;  // AI Cores
    uint32_t reserved;
};

struct IndexTopkTiling {
    IndexTopkParams params;
    uint32_t numRanked;       // blocks that are chosen by score: all but the newest
    uint32_t chunk;           // entries that are sorted at once: whole candidate blocks
    uint32_t segment;         // entries of an item: whole chunks
    uint32_t fullItems;       // items of one token at most: of all its entries, and of those it may choose from
    uint32_t restrictedItems;
    uint32_t entryRecords;    // room for the lists of an item
    uint32_t blockRecords;
    uint32_t groupTokens;     // tokens whose lists are kept until they are merged
};

/// How work is cut does not depend on the number of cores, and no result on how work is cut.
inline IndexTopkTiling IndexTopkTile(const IndexTopkParams& params) {
    const auto up = [](uint64_t value, uint64_t unit) { return (value + unit - 1) / unit * unit; };
    const auto least = [](uint64_t a, uint64_t b) { return a < b ? a : b; };
    IndexTopkTiling tiling = {};
    tiling.params = params;
    tiling.numRanked = params.numCandidates == 0 ? 0 : params.numCandidates - 1;
    tiling.chunk = INDEX_TOPK_CHUNK / params.candidateBlock * params.candidateBlock;
    tiling.segment = tiling.chunk * INDEX_TOPK_SEGMENT_CHUNKS;
    const uint64_t entries = static_cast<uint64_t>(params.maxBlocks) * params.blockRows;
    const uint64_t given = params.hasCandidates != 0 ? static_cast<uint64_t>(params.numGiven) * params.candidateBlock : 0;
    tiling.fullItems = static_cast<uint32_t>(up(entries, tiling.segment) / tiling.segment);
    tiling.restrictedItems = static_cast<uint32_t>(up(least(entries, given), tiling.segment) / tiling.segment);
    tiling.entryRecords = static_cast<uint32_t>(up(least(params.topk, tiling.segment), 4));
    tiling.blockRecords = static_cast<uint32_t>(up(least(tiling.numRanked, tiling.segment / params.candidateBlock), 4));
    const uint64_t tokenBytes = static_cast<uint64_t>(tiling.fullItems + tiling.restrictedItems) * (tiling.entryRecords + tiling.blockRecords) * 8;
    const uint64_t fitting = tokenBytes == 0 ? params.numTokens : INDEX_TOPK_LIST_BYTES / tokenBytes;
    tiling.groupTokens = static_cast<uint32_t>(fitting < 1 ? 1 : least(fitting, params.numTokens));
    return tiling;
}

inline uint64_t IndexTopkRingBytes(const IndexTopkParams& params) {
    return static_cast<uint64_t>(params.numCores) * INDEX_TOPK_STAGES * INDEX_TOPK_SIDES * INDEX_TOPK_HEADS * INDEX_TOPK_TILE * sizeof(float);
}

/// Lists of two groups: one is merged while the next is made.
inline uint64_t IndexTopkListBytes(const IndexTopkTiling& tiling) {
    return static_cast<uint64_t>(2) * tiling.groupTokens * (tiling.fullItems + tiling.restrictedItems) *
           (tiling.entryRecords + tiling.blockRecords) * 8;
}

/// Why the kernel cannot do this; null if it can.
inline const char* IndexTopkRefusal(const IndexTopkParams& params) {
    const uint32_t size = params.dtype == INDEX_TOPK_FLOAT32 ? 4 : params.dtype == INDEX_TOPK_INT8 ? 1 : 2, unit = 32 / size;
    const uint64_t rows = (params.numHeads + 15) / 16 * 16, line = static_cast<uint64_t>((params.headDim + unit - 1) / unit) * 32;
    if (params.numHeads == 0 || params.numHeads > INDEX_TOPK_MAX_HEADS) return "numHeads must be 1..128";
    if (params.headDim == 0) return "headDim must be at least 1";
    if ((rows + 2 * INDEX_TOPK_TILE) * INDEX_TOPK_SIDES * line > INDEX_TOPK_L1_BYTES) return "queries and keys of numHeads and headDim do not fit into L1";
    if (params.blockRows == 0 || params.ratio == 0 || params.numCores == 0) return "blockRows, ratio and numCores must be at least 1";
    if (params.topk == 0 || params.topk > INDEX_TOPK_MAX_TOPK) return "topk must be 1..1024";
    if (params.candidateBlock == 0 || params.candidateBlock > INDEX_TOPK_CHUNK) return "candidateBlock must be 1..1024";
    if (params.numCandidates > INDEX_TOPK_MAX_CANDIDATES) return "numCandidates must be at most 2048";
    if (static_cast<uint64_t>(params.maxBlocks) * params.blockRows >= INDEX_TOPK_MAX_ENTRIES) return "a request may have fewer than 2^24 entries";
    if (params.dtype == INDEX_TOPK_INT8 && params.blockRows % 8 != 0) return "scales of int8 keys need blockRows that is a multiple of 8";
    if (params.dtype == INDEX_TOPK_INT8 && 8 % params.candidateBlock != 0 && params.candidateBlock % 8 != 0) {
        return "scales of int8 keys need a candidateBlock that divides 8 or is a multiple of it";
    }
    if (params.dtype == INDEX_TOPK_INT8 && params.hasCandidates != 0 && params.candidateBlock % 8 != 0) {
        return "int8 keys and candidates need a candidateBlock that is a multiple of 8";
    }
    return nullptr;
}

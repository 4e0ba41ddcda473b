// SPDX-License-Identifier: Apache-2.0
// What the host tells the kernel. Shared by both: fixed-width fields, no padding.
#pragma once

#include <cstddef>
#include <cstdint>

enum MoeDispatchDtype : uint32_t { MOE_DISPATCH_FLOAT32 = 0, MOE_DISPATCH_BFLOAT16 = 1, MOE_DISPATCH_FLOAT16 = 2 };

constexpr uint32_t MOE_DISPATCH_MAX_EXPERTS = 1024;
constexpr uint32_t MOE_DISPATCH_MAX_TOPK = 64;
constexpr uint32_t MOE_DISPATCH_MAX_QUANTIZED_WIDTH = 8192;  // columns of a row that is quantised, which stays in the unified buffer
constexpr uint32_t MOE_DISPATCH_CHUNK = 256;                 // choices whose experts or rows are staged at once
constexpr uint32_t MOE_DISPATCH_TILE_BYTES = 16384;          // of a row, when it is only copied
constexpr uint32_t MOE_DISPATCH_MIN_TILE_BYTES = 1024;
constexpr uint32_t MOE_DISPATCH_HISTOGRAM_LANES = 2048;      // counters that are summed up at once

struct MoeDispatchParams {
    uint32_t numTokens;
    uint32_t hiddenSize;
    uint32_t topk;
    uint32_t numExperts;
    uint32_t firstExpert;  // choices outside [firstExpert, endExpert) send nothing
    uint32_t endExpert;
    uint32_t numRanks;     // holders of equal runs of experts; 0: nobody asks for their counts
    uint32_t dtype;
    uint32_t quantize;
    uint32_t hasSmooth;
    uint32_t numCores;
    uint32_t reserved;
};

struct MoeDispatchTiling {
    uint32_t numTokens;
    uint32_t hiddenSize;
    uint32_t topk;
    uint32_t numExperts;
    uint32_t firstExpert;
    uint32_t endExpert;
    uint32_t expertsPerRank;  // 0: no counts of ranks
    uint32_t dtype;
    uint32_t quantize;
    uint32_t hasSmooth;
    uint32_t numBlocks;
    uint32_t expertLanes;     // numExperts, padded to whole repeats
    uint32_t tokensPerBlock;  // of the counting and of the placing
    uint32_t tokensPerChunk;
    uint32_t tileCols;        // an item of the copying is one tile of one token
    uint32_t tilesPerRow;
    uint32_t isSplit;         // a core may copy tiles of tokens that another core has placed
    uint32_t reserved;
    uint64_t itemsPerBlock;
};

/// Whole rows when they are quantised; else tiles, cut narrower when there are fewer of them than cores.
/// A result depends on no figure in here.
inline MoeDispatchTiling MoeDispatchTile(const MoeDispatchParams& params) {
    const uint32_t width = params.dtype == MOE_DISPATCH_FLOAT32 ? 4 : 2;
    uint32_t tile = params.quantize != 0 ? params.hiddenSize : MOE_DISPATCH_TILE_BYTES / width;
    const auto items = [&] { return static_cast<uint64_t>(params.numTokens) * ((params.hiddenSize + tile - 1) / tile); };
    while (params.quantize == 0 && tile * width > MOE_DISPATCH_MIN_TILE_BYTES && items() < params.numCores) tile /= 2;
    const auto blocks = static_cast<uint32_t>(items() < params.numCores ? items() : params.numCores);
    MoeDispatchTiling tiling = {};
    tiling.numTokens = params.numTokens, tiling.hiddenSize = params.hiddenSize, tiling.topk = params.topk;
    tiling.numExperts = params.numExperts, tiling.firstExpert = params.firstExpert, tiling.endExpert = params.endExpert;
    tiling.expertsPerRank = params.numRanks == 0 ? 0 : params.numExperts / params.numRanks;
    tiling.dtype = params.dtype, tiling.quantize = params.quantize, tiling.hasSmooth = params.hasSmooth;
    tiling.numBlocks = blocks;
    tiling.expertLanes = (params.numExperts + 63) / 64 * 64;
    tiling.tokensPerBlock = blocks == 0 ? 0 : (params.numTokens + blocks - 1) / blocks;
    tiling.tokensPerChunk = MOE_DISPATCH_CHUNK / params.topk;
    tiling.tileCols = tile, tiling.tilesPerRow = (params.hiddenSize + tile - 1) / tile;
    tiling.itemsPerBlock = blocks == 0 ? 0 : (items() + blocks - 1) / blocks;
    tiling.isSplit = tiling.itemsPerBlock != static_cast<uint64_t>(tiling.tokensPerBlock) * tiling.tilesPerRow ? 1 : 0;
    return tiling;
}

/// A histogram of each core.
inline size_t MoeDispatchWorkspace(const MoeDispatchParams& params) {
    const MoeDispatchTiling tiling = MoeDispatchTile(params);
    return static_cast<size_t>(tiling.numBlocks) * tiling.expertLanes * sizeof(int32_t);
}

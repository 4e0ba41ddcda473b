// SPDX-License-Identifier: Apache-2.0
// What the host tells the kernel. Shared by both: fixed-width fields, no padding.
#pragma once

#include <cstdint>

enum MoeCombineDtype : uint32_t { MOE_COMBINE_FLOAT32 = 0, MOE_COMBINE_BFLOAT16 = 1, MOE_COMBINE_FLOAT16 = 2 };

constexpr uint32_t MOE_COMBINE_MAX_TOPK = 64;
constexpr uint32_t MOE_COMBINE_CHUNK = 256;      // choices whose rows are staged at once
constexpr uint32_t MOE_COMBINE_TILE = 4096;      // columns of a tile: a multiple of 16
constexpr uint32_t MOE_COMBINE_MIN_TILE = 512;

struct MoeCombineParams {
    uint32_t numTokens;
    uint32_t hiddenSize;
    uint32_t topk;
    uint32_t numRows;
    uint32_t dtype;
    uint32_t numCores;
};

struct MoeCombineTiling {
    uint32_t numTokens;
    uint32_t hiddenSize;
    uint32_t topk;
    uint32_t dtype;
    uint32_t tokensPerChunk;
    uint32_t tileCols;
    uint32_t tilesPerRow;
    uint32_t numBlocks;
    uint64_t itemsPerBlock;  // an item is one tile of one token
};

/// Tiles are cut narrower when there are fewer of them than cores. A result depends on no figure in here.
inline MoeCombineTiling MoeCombineTile(const MoeCombineParams& params) {
    uint32_t tile = MOE_COMBINE_TILE;
    const auto items = [&] { return static_cast<uint64_t>(params.numTokens) * ((params.hiddenSize + tile - 1) / tile); };
    while (tile > MOE_COMBINE_MIN_TILE && items() < params.numCores) tile /= 2;
    const auto blocks = static_cast<uint32_t>(items() < params.numCores ? items() : params.numCores);
    MoeCombineTiling tiling = {};
    tiling.numTokens = params.numTokens, tiling.hiddenSize = params.hiddenSize, tiling.topk = params.topk;
    tiling.dtype = params.dtype, tiling.tokensPerChunk = MOE_COMBINE_CHUNK / params.topk;
    tiling.tileCols = tile, tiling.tilesPerRow = (params.hiddenSize + tile - 1) / tile;
    tiling.numBlocks = blocks, tiling.itemsPerBlock = blocks == 0 ? 0 : (items() + blocks - 1) / blocks;
    return tiling;
}

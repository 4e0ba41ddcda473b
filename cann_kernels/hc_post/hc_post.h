// SPDX-License-Identifier: Apache-2.0
// What the host tells the kernel. Shared by both: fixed-width fields, no padding.
#pragma once

#include <cstdint>

enum HcPostDtype : uint32_t { HC_POST_FLOAT32 = 0, HC_POST_BFLOAT16 = 1, HC_POST_FLOAT16 = 2 };

constexpr uint32_t HC_POST_MAX_STREAMS = 4;
constexpr uint32_t HC_POST_TILE = 2048;       // columns of a tile: a multiple of 16
constexpr uint32_t HC_POST_TOKEN_GROUP = 64;  // tokens whose weights are staged at once

struct HcPostTiling {
    uint32_t numTokens;
    uint32_t hiddenSize;
    uint32_t hcMult;
    uint32_t dtype;
    uint32_t tileCols;
    uint32_t tilesPerRow;
    uint32_t itemsPerBlock;  // an item is one tile of one token
    uint32_t reserved;
};

struct HcPostParams {
    uint32_t numTokens;
    uint32_t hiddenSize;
    uint32_t hcMult;
    uint32_t dtype;
    uint32_t numCores;
    uint32_t reserved;
};

/// Tiles are cut narrower when there are fewer of them than cores. A result depends on no figure in here.
inline HcPostTiling HcPostTile(const HcPostParams& params) {
    uint32_t tile = HC_POST_TILE;
    const auto tiles = [&] { return (params.hiddenSize + tile - 1) / tile; };
    while (tile > 512 && static_cast<uint64_t>(params.numTokens) * tiles() < params.numCores) tile /= 2;
    HcPostTiling tiling = {params.numTokens, params.hiddenSize, params.hcMult, params.dtype, tile, tiles(), 0, 0};
    const uint64_t items = static_cast<uint64_t>(params.numTokens) * tiling.tilesPerRow;
    tiling.itemsPerBlock = static_cast<uint32_t>((items + params.numCores - 1) / params.numCores);
    return tiling;
}

inline uint32_t HcPostBlocks(const HcPostParams& params) {
    const HcPostTiling tiling = HcPostTile(params);
    if (tiling.itemsPerBlock == 0) return 0;
    const uint64_t items = static_cast<uint64_t>(params.numTokens) * tiling.tilesPerRow;
    return static_cast<uint32_t>((items + tiling.itemsPerBlock - 1) / tiling.itemsPerBlock);
}

// SPDX-License-Identifier: Apache-2.0
// What the host tells moe_regroup. Shared by both: fixed-width fields, no padding.
#pragma once

#include <cstdint>

constexpr uint32_t MOE_REGROUP_MAX_SEGMENTS = 4096;  // ranks · local experts
constexpr uint32_t MOE_REGROUP_TILE_BYTES = 16384;
constexpr uint32_t MOE_REGROUP_CHUNK = 2048;         // rows whose weights and places are copied at once

struct MoeRegroupParams {
    uint32_t numRows;
    uint32_t rowBytes;
    uint32_t numRanks;
    uint32_t expertsPerRank;
    uint32_t numCores;
    uint32_t reserved;
};

struct MoeRegroupTiling {
    uint32_t numRows;
    uint32_t rowBytes;
    uint32_t numRanks;
    uint32_t expertsPerRank;
    uint32_t rowsPerBlock;
    uint32_t numBlocks;
};

/// A result depends on no figure in here.
inline MoeRegroupTiling MoeRegroupTile(const MoeRegroupParams& params) {
    const uint32_t blocks = params.numRows < params.numCores ? params.numRows : params.numCores;
    const uint32_t rows = blocks == 0 ? 0 : (params.numRows + blocks - 1) / blocks;
    return {params.numRows, params.rowBytes, params.numRanks, params.expertsPerRank, rows, blocks};
}

// SPDX-License-Identifier: Apache-2.0
// What the host tells the kernel. Shared by both: fixed-width fields, no padding.
#pragma once

#include <cstddef>
#include <cstdint>

enum HcPreDtype : uint32_t { HC_PRE_FLOAT32 = 0, HC_PRE_BFLOAT16 = 1, HC_PRE_FLOAT16 = 2 };

constexpr uint32_t HC_PRE_MAX_STREAMS = 4;
constexpr uint32_t HC_PRE_MAX_COEFS = (2 + HC_PRE_MAX_STREAMS) * HC_PRE_MAX_STREAMS;
constexpr uint32_t HC_PRE_MAX_PITCH = 32;      // coefficients and the sum of squares, rounded up to 8
constexpr uint32_t HC_PRE_CHUNK = 512;         // flattened columns of a partial dot product: a multiple of 64, at most 2040
constexpr uint32_t HC_PRE_PROJECT_TOKENS = 4;  // tokens whose partial products are one item
constexpr uint32_t HC_PRE_MIX_TOKENS = 64;     // most tokens side by side in the Sinkhorn iterations: lanes of a repeat
constexpr uint32_t HC_PRE_LOAD_FLOATS = HC_PRE_MIX_TOKENS * HC_PRE_MAX_PITCH;
constexpr uint32_t HC_PRE_TILE = 1024;         // columns of a tile of x: a multiple of 16
constexpr uint32_t HC_PRE_WEIGHT_TOKENS = 64;  // tokens whose weights of x are staged at once

struct HcPreParams {
    uint32_t numTokens;
    uint32_t hiddenSize;
    uint32_t hcMult;
    uint32_t dtype;
    uint32_t hasMix;
    uint32_t sinkhornIters;
    float hcEps;
    float normEps;
    uint32_t numCores;
    uint32_t reserved;
};

struct HcPreTiling {
    uint32_t numTokens;
    uint32_t hiddenSize;
    uint32_t hcMult;
    uint32_t dtype;
    uint32_t hasMix;
    uint32_t sinkhornIters;
    float hcEps;
    float normEps;
    float inverseFlat;  // 1 / (hcMult * hiddenSize)
    uint32_t flatSize;
    uint32_t numCoefs;
    uint32_t pitch;  // floats of a token in the workspace
    uint32_t numChunks;
    uint32_t projectGroups;    // groups of HC_PRE_PROJECT_TOKENS tokens
    uint64_t projectPerBlock;  // an item is one chunk of one group, chunk by chunk
    uint32_t mixTokens;        // tokens of a Sinkhorn tile
    uint32_t mixTiles;
    uint32_t tileCols;
    uint32_t tilesPerRow;
    uint64_t collapsePerBlock;  // an item is one tile of columns of one token
};

inline uint64_t HcPreCeil(uint64_t a, uint64_t b) { return (a + b - 1) / b; }

/// A result depends on nothing that is derived from the number of cores or of tokens; the chunk is the same for all of them.
inline HcPreTiling HcPreTile(const HcPreParams& p) {
    HcPreTiling t = {};
    t.numTokens = p.numTokens, t.hiddenSize = p.hiddenSize, t.hcMult = p.hcMult, t.dtype = p.dtype, t.hasMix = p.hasMix;
    t.sinkhornIters = p.sinkhornIters, t.hcEps = p.hcEps, t.normEps = p.normEps;
    t.flatSize = p.hcMult * p.hiddenSize;
    t.inverseFlat = t.flatSize == 0 ? 0.0f : 1.0f / static_cast<float>(t.flatSize);
    t.numCoefs = (2 + p.hcMult) * p.hcMult;
    t.pitch = static_cast<uint32_t>(HcPreCeil(t.numCoefs + 1, 8)) * 8;
    t.numChunks = static_cast<uint32_t>(HcPreCeil(t.flatSize, HC_PRE_CHUNK));
    t.projectGroups = static_cast<uint32_t>(HcPreCeil(p.numTokens, HC_PRE_PROJECT_TOKENS));
    t.projectPerBlock = HcPreCeil(static_cast<uint64_t>(t.numChunks) * t.projectGroups, p.numCores);
    const uint64_t share = HcPreCeil(HcPreCeil(p.numTokens, p.numCores), 8) * 8;
    t.mixTokens = static_cast<uint32_t>(share < HC_PRE_MIX_TOKENS ? share : HC_PRE_MIX_TOKENS);
    t.mixTiles = t.mixTokens == 0 ? 0 : static_cast<uint32_t>(HcPreCeil(p.numTokens, t.mixTokens));
    t.tileCols = HC_PRE_TILE;
    while (t.tileCols > 256 && p.numTokens * HcPreCeil(p.hiddenSize, t.tileCols) < p.numCores) t.tileCols /= 2;
    t.tilesPerRow = static_cast<uint32_t>(HcPreCeil(p.hiddenSize, t.tileCols));
    t.collapsePerBlock = HcPreCeil(static_cast<uint64_t>(p.numTokens) * t.tilesPerRow, p.numCores);
    return t;
}

inline uint32_t HcPreBlocks(const HcPreParams& params) {
    const HcPreTiling t = HcPreTile(params);
    if (params.numTokens == 0 || params.hiddenSize == 0) return 0;
    const uint64_t projecting = HcPreCeil(static_cast<uint64_t>(t.numChunks) * t.projectGroups, t.projectPerBlock);
    const uint64_t collapsing = HcPreCeil(static_cast<uint64_t>(t.numTokens) * t.tilesPerRow, t.collapsePerBlock);
    const uint64_t most = projecting > collapsing ? projecting : collapsing;
    const uint64_t mixing = t.mixTiles < params.numCores ? t.mixTiles : params.numCores;
    return static_cast<uint32_t>(most > mixing ? most : mixing);
}

/// Bytes of the partial sums [numChunks, numTokens, pitch] float.
inline size_t HcPreWorkspaceBytes(const HcPreParams& params) {
    const HcPreTiling t = HcPreTile(params);
    return static_cast<size_t>(t.numChunks) * t.numTokens * t.pitch * sizeof(float);
}

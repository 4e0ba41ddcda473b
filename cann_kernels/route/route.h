// SPDX-License-Identifier: Apache-2.0
// What the host tells the kernel. Shared by both: fixed-width fields, no padding.
#pragma once

#include <cstdint>

enum RouteScoring : uint32_t { ROUTE_SQRTSOFTPLUS = 0, ROUTE_SIGMOID = 1 };

constexpr uint32_t ROUTE_MAX_EXPERTS = 512;
constexpr uint32_t ROUTE_MAX_TOPK = 32;
constexpr uint32_t ROUTE_MAX_GROUPS = 64;
constexpr uint32_t ROUTE_MAX_SORT_LANES = 2048;  // experts with every group padded to whole runs of 32
constexpr uint32_t ROUTE_TILE_LANES = 4096;
constexpr uint32_t ROUTE_TILE_TOKENS = 16;

struct RouteParams {
    uint32_t numTokens;
    uint32_t numExperts;
    uint32_t vocabSize;
    uint32_t topk;
    uint32_t scoring;
    uint32_t isHashed;
    uint32_t hasBias;
    uint32_t hasImages;
    uint32_t normalize;
    uint32_t numGroups;
    uint32_t topkGroup;
    uint32_t numCores;
    float scaling;
    float normEps;
};

struct RouteTiling {
    uint32_t numTokens;
    uint32_t numExperts;
    uint32_t topk;
    uint32_t scoring;
    uint32_t isHashed;
    uint32_t hasBias;
    uint32_t hasImages;
    uint32_t normalize;
    float scaling;
    float normEps;
    uint32_t expertLanes;   // of a row: numExperts, padded to whole repeats
    uint32_t numGroups;     // 1: no groups
    uint32_t topkGroup;
    uint32_t groupSize;
    uint32_t groupLanes;    // groupSize, padded to whole runs of 32
    uint32_t isRegrouped;   // groups do not lie side by side in runs of 32, so they are gathered
    uint32_t sortLanes;     // of what the experts are chosen from
    uint32_t tileTokens;
    uint32_t tokensPerBlock;
    uint32_t numBlocks;
};

/// A result depends on no figure of the tiling.
inline RouteTiling RouteTile(const RouteParams& params) {
    RouteTiling tiling = {};
    tiling.numTokens = params.numTokens, tiling.numExperts = params.numExperts, tiling.topk = params.topk;
    tiling.scoring = params.scoring, tiling.isHashed = params.isHashed, tiling.hasBias = params.hasBias;
    tiling.hasImages = params.hasImages, tiling.normalize = params.normalize;
    tiling.scaling = params.scaling, tiling.normEps = params.normEps;
    tiling.numGroups = params.isHashed != 0 ? 1 : params.numGroups, tiling.topkGroup = params.topkGroup;
    tiling.groupSize = params.numExperts / tiling.numGroups;
    tiling.groupLanes = (tiling.groupSize + 31) / 32 * 32;
    tiling.isRegrouped = tiling.numGroups > 1 && tiling.groupSize != tiling.groupLanes ? 1 : 0;
    // Gathered groups are filled up from the lane behind the last expert.
    tiling.expertLanes = (params.numExperts + tiling.isRegrouped + 63) / 64 * 64;
    tiling.sortLanes = tiling.numGroups > 1 ? tiling.numGroups * tiling.groupLanes : tiling.expertLanes;
    const uint32_t blocks = params.numTokens < params.numCores ? params.numTokens : params.numCores;
    tiling.numBlocks = blocks;
    tiling.tokensPerBlock = blocks == 0 ? 0 : (params.numTokens + blocks - 1) / blocks;
    const uint32_t fitting = ROUTE_TILE_LANES / tiling.expertLanes;
    tiling.tileTokens = fitting < ROUTE_TILE_TOKENS ? fitting : ROUTE_TILE_TOKENS;
    return tiling;
}

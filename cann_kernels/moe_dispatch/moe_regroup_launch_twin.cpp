// SPDX-License-Identifier: Apache-2.0
// The launcher's C ABI over the twin.
#include "moe_regroup_kernel.h"

#include "twin/abi.h"

extern "C" size_t moe_regroup_workspace(const MoeRegroupParams*) { return 0; }

/// in: rows, row_weights, counts; out: rows, row_weights, counts of experts, row_of. Contiguous. Returns 0, or 1 with the reason in
/// twin_last_error.
extern "C" int moe_regroup_launch(void*, const MoeRegroupParams* params, void** in, void** out, void*, size_t) {
    return twin::Guarded([&] {
        const size_t rows = params->numRows, experts = params->expertsPerRank, segments = experts * params->numRanks;
        if (segments == 0 || segments > MOE_REGROUP_MAX_SEGMENTS) {
            throw twin::TwinError(twin::Format("moe_regroup: numRanks * expertsPerRank must be 1..4096, got %zu", segments));
        }
        const MoeRegroupTiling tiling = MoeRegroupTile(*params);
        if (tiling.numBlocks == 0) return;
        twin::Launch launch("moe_regroup", tiling.numBlocks, twin::Ratio::kVectorOnly, twin::CurrentSettings());
        GM_ADDR from = launch.In("rows", in[0], rows * params->rowBytes);
        GM_ADDR weights = launch.In("row_weights", in[1], rows * sizeof(float));
        GM_ADDR counts = launch.In("counts", in[2], segments * sizeof(int32_t));
        GM_ADDR to = launch.Out("out_rows", out[0], rows * params->rowBytes);
        GM_ADDR outWeights = launch.Out("out_row_weights", out[1], rows * sizeof(float));
        GM_ADDR outCounts = launch.Out("out_counts", out[2], experts * sizeof(int32_t));
        GM_ADDR rowOf = launch.Out("row_of", out[3], rows * sizeof(int32_t));
        launch.Run([=] { moe_regroup(from, weights, counts, to, outWeights, outCounts, rowOf, tiling); });
    });
}

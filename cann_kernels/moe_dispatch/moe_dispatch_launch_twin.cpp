// SPDX-License-Identifier: Apache-2.0
// The launchers' C ABI over the twin.
#include "moe_dispatch_kernel.h"
#include "moe_regroup_kernel.h"

#include "twin/abi.h"

namespace {

void Check(const MoeDispatchParams& p) {
    const auto require = [](bool holds, const char* name, uint32_t got, const char* wanted) {
        if (!holds) throw twin::TwinError(twin::Format("moe_dispatch: %s must be %s, got %u", name, wanted, got));
    };
    require(p.topk >= 1 && p.topk <= MOE_DISPATCH_MAX_TOPK, "topk", p.topk, "1..64");
    require(p.numExperts >= 1 && p.numExperts <= MOE_DISPATCH_MAX_EXPERTS, "numExperts", p.numExperts, "1..1024");
    require(p.firstExpert <= p.endExpert && p.endExpert <= p.numExperts, "endExpert", p.endExpert, "firstExpert..numExperts");
    require(p.numRanks == 0 || (p.numExperts % p.numRanks == 0 && p.numRanks <= MOE_DISPATCH_CHUNK), "numRanks", p.numRanks,
            "a divisor of numExperts up to 256");
    require(p.quantize == 0 || p.hiddenSize <= MOE_DISPATCH_MAX_QUANTIZED_WIDTH, "hiddenSize", p.hiddenSize, "at most 8192 when quantising");
}

}  // namespace

extern "C" size_t moe_dispatch_workspace(const MoeDispatchParams* params) { return MoeDispatchWorkspace(*params); }

/// in: x, ids, weights, smooth or null; out: rows, row_weights, counts, row_of, rank_counts or null, scales or null. Contiguous.
/// Returns 0, or 1 with the reason in twin_last_error.
extern "C" int moe_dispatch_launch(void*, const MoeDispatchParams* params, void** in, void** out, void*, size_t) {
    return twin::Guarded([&] {
        Check(*params);
        const MoeDispatchTiling tiling = MoeDispatchTile(*params);
        if (tiling.numBlocks == 0) return;
        const size_t width = params->dtype == MOE_DISPATCH_FLOAT32 ? 4 : 2, hidden = params->hiddenSize, experts = params->numExperts;
        const size_t choices = size_t{params->numTokens} * params->topk;
        twin::Launch launch("moe_dispatch", tiling.numBlocks, twin::Ratio::kVectorOnly, twin::CurrentSettings());
        const auto words = [&](const char* name, void* data, size_t count) { return launch.Out(name, data, count * 4); };
        GM_ADDR x = launch.In("x", in[0], params->numTokens * hidden * width);
        GM_ADDR ids = launch.In("ids", in[1], choices * sizeof(int32_t));
        GM_ADDR weights = launch.In("weights", in[2], choices * sizeof(float));
        GM_ADDR smooth = params->hasSmooth != 0 ? launch.In("smooth", in[3], experts * hidden * sizeof(float)) : nullptr;
        GM_ADDR rows = launch.Out("rows", out[0], choices * hidden * (params->quantize != 0 ? 1 : width));
        GM_ADDR rowWeights = words("row_weights", out[1], choices);
        GM_ADDR counts = words("counts", out[2], experts);
        GM_ADDR rowOf = words("row_of", out[3], choices);
        GM_ADDR rankCounts = params->numRanks != 0 ? words("rank_counts", out[4], params->numRanks) : nullptr;
        GM_ADDR scales = params->quantize != 0 ? words("scales", out[5], choices) : nullptr;
        GM_ADDR workspace = launch.Workspace("workspace", MoeDispatchWorkspace(*params));
        launch.Run([=] {
            moe_dispatch(x, ids, weights, smooth, rows, rowWeights, counts, rowOf, rankCounts, scales, workspace, tiling);
        });
    });
}

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

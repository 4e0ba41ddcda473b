// SPDX-License-Identifier: Apache-2.0
// The launcher's C ABI over the twin.
#include "route_kernel.h"

#include "twin/abi.h"

namespace {

void Check(const RouteParams& p) {
    const auto require = [](bool holds, const char* name, uint32_t got, const char* wanted) {
        if (!holds) throw twin::TwinError(twin::Format("route: %s must be %s, got %u", name, wanted, got));
    };
    require(p.numExperts >= 1 && p.numExperts <= ROUTE_MAX_EXPERTS, "numExperts", p.numExperts, "1..512");
    require(p.topk >= 1 && p.topk <= ROUTE_MAX_TOPK, "topk", p.topk, "1..32");
    require(p.scoring <= ROUTE_SIGMOID, "scoring", p.scoring, "0 or 1");
    if (p.isHashed != 0) return;
    require(p.topk <= p.numExperts, "topk", p.topk, "at most numExperts");
    require(p.numGroups >= 1 && p.numGroups <= ROUTE_MAX_GROUPS && p.numExperts % p.numGroups == 0, "numGroups", p.numGroups,
            "a divisor of numExperts up to 64");
    if (p.numGroups == 1) return;
    require(p.numExperts / p.numGroups >= 2, "numGroups", p.numGroups, "at most half of numExperts");
    require(p.topkGroup >= 1 && p.topkGroup <= p.numGroups, "topkGroup", p.topkGroup, "1..numGroups");
    require(p.topk <= p.topkGroup * (p.numExperts / p.numGroups), "topk", p.topk, "at most the experts of the groups that are kept");
}

}  // namespace

extern "C" size_t route_workspace(const RouteParams*) { return 0; }

/// in: logits, bias, tid2eid, input_ids, bias_vl, is_image, each null unless the parameters ask for it; out: ids, weights. Contiguous.
/// Returns 0, or 1 with the reason in twin_last_error.
extern "C" int route_launch(void*, const RouteParams* params, void** in, void** out, void*, size_t) {
    return twin::Guarded([&] {
        Check(*params);
        const RouteTiling tiling = RouteTile(*params);
        if (tiling.numBlocks == 0) return;
        const size_t tokens = params->numTokens, experts = params->numExperts, chosen = tokens * params->topk;
        twin::Launch launch("route", tiling.numBlocks, twin::Ratio::kVectorOnly, twin::CurrentSettings());
        const auto words = [&](bool isGiven, const char* name, const void* data, size_t count) {
            return isGiven ? launch.In(name, data, count * 4) : nullptr;
        };
        const bool scored = params->isHashed == 0;
        GM_ADDR logits = words(true, "logits", in[0], tokens * experts);
        GM_ADDR bias = words(scored && params->hasBias != 0, "bias", in[1], experts);
        GM_ADDR tid2eid = words(!scored, "tid2eid", in[2], size_t{params->vocabSize} * params->topk);
        GM_ADDR inputIds = words(!scored, "input_ids", in[3], tokens);
        GM_ADDR imageBias = words(scored && params->hasImages != 0, "bias_vl", in[4], experts);
        GM_ADDR isImage = words(scored && params->hasImages != 0, "is_image", in[5], tokens);
        GM_ADDR ids = launch.Out("ids", out[0], chosen * sizeof(int32_t));
        GM_ADDR weights = launch.Out("weights", out[1], chosen * sizeof(float));
        launch.Run([=] { route(logits, bias, tid2eid, inputIds, imageBias, isImage, ids, weights, tiling); });
    });
}

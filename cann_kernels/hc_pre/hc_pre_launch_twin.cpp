// SPDX-License-Identifier: Apache-2.0
// The launcher's C ABI over the twin.
#include "hc_pre_kernel.h"

#include "twin/abi.h"

extern "C" size_t hc_pre_workspace(const HcPreParams* params) { return HcPreWorkspaceBytes(*params); }

/// in: streams, fn, base, scale, mix (where hasMix); out: x, post, comb, pre. Contiguous. Returns 0, or 1 with the reason in
/// twin_last_error.
extern "C" int hc_pre_launch(void*, const HcPreParams* params, void** in, void** out, void*, size_t) {
    return twin::Guarded([&] {
        const size_t tokens = params->numTokens, width = params->dtype == HC_PRE_FLOAT32 ? 4 : 2, hc = params->hcMult;
        const size_t row = params->hiddenSize * width;
        if (hc == 0 || hc > HC_PRE_MAX_STREAMS) throw twin::TwinError(twin::Format("hc_pre: hcMult must be 1..4, got %zu", hc));
        const uint32_t blocks = HcPreBlocks(*params);
        if (blocks == 0) return;
        const HcPreTiling tiling = HcPreTile(*params);
        twin::Launch launch("hc_pre", blocks, twin::Ratio::kVectorOnly, twin::CurrentSettings());
        GM_ADDR streams = launch.In("streams", in[0], tokens * hc * row);
        GM_ADDR fn = launch.In("fn", in[1], sizeof(float) * tiling.numCoefs * tiling.flatSize);
        GM_ADDR base = launch.In("base", in[2], sizeof(float) * tiling.numCoefs);
        GM_ADDR scale = launch.In("scale", in[3], sizeof(float) * 3);
        GM_ADDR mix = params->hasMix != 0 ? launch.In("mix", in[4], sizeof(float) * tokens * hc) : nullptr;
        GM_ADDR x = launch.Out("x", out[0], tokens * row);
        GM_ADDR post = launch.Out("post", out[1], sizeof(float) * tokens * hc);
        GM_ADDR comb = launch.Out("comb", out[2], sizeof(float) * tokens * hc * hc);
        GM_ADDR pre = launch.Out("pre", out[3], sizeof(float) * tokens * hc);
        GM_ADDR workspace = launch.Workspace("partials", HcPreWorkspaceBytes(*params));
        launch.Run([=] { hc_pre(streams, fn, base, scale, mix, x, post, comb, pre, workspace, tiling); });
    });
}

// SPDX-License-Identifier: Apache-2.0
// The launcher's C ABI over the twin.
#include "hc_post_kernel.h"

#include "twin/abi.h"

extern "C" size_t hc_post_workspace(const HcPostParams*) { return 0; }

/// in: x, streams, post, comb; out: y. Contiguous. Returns 0, or 1 with the reason in twin_last_error.
extern "C" int hc_post_launch(void*, const HcPostParams* params, void** in, void** out, void*, size_t) {
    return twin::Guarded([&] {
        const size_t tokens = params->numTokens, width = params->dtype == HC_POST_FLOAT32 ? 4 : 2, hc = params->hcMult;
        const size_t row = params->hiddenSize * width;
        if (hc == 0 || hc > HC_POST_MAX_STREAMS) throw twin::TwinError(twin::Format("hc_post: hcMult must be 1..4, got %zu", hc));
        const uint32_t blocks = HcPostBlocks(*params);
        if (blocks == 0) return;
        const HcPostTiling tiling = HcPostTile(*params);
        twin::Launch launch("hc_post", blocks, twin::Ratio::kVectorOnly, twin::CurrentSettings());
        GM_ADDR x = launch.In("x", in[0], tokens * row);
        GM_ADDR streams = launch.In("streams", in[1], tokens * hc * row);
        GM_ADDR post = launch.In("post", in[2], tokens * hc * sizeof(float));
        GM_ADDR comb = launch.In("comb", in[3], tokens * hc * hc * sizeof(float));
        GM_ADDR y = launch.Out("y", out[0], tokens * hc * row);
        launch.Run([=] { hc_post(x, streams, post, comb, y, tiling); });
    });
}

// SPDX-License-Identifier: Apache-2.0
// The launcher's C ABI over the twin.
#include "moe_combine_kernel.h"

#include "twin/abi.h"

extern "C" size_t moe_combine_workspace(const MoeCombineParams*) { return 0; }

/// in: rows, row_of; out: y. Contiguous. Returns 0, or 1 with the reason in twin_last_error.
extern "C" int moe_combine_launch(void*, const MoeCombineParams* params, void** in, void** out, void*, size_t) {
    return twin::Guarded([&] {
        if (params->topk == 0 || params->topk > MOE_COMBINE_MAX_TOPK) {
            throw twin::TwinError(twin::Format("moe_combine: topk must be 1..64, got %u", params->topk));
        }
        const MoeCombineTiling tiling = MoeCombineTile(*params);
        if (tiling.numBlocks == 0) return;
        const size_t row = params->hiddenSize * size_t{params->dtype == MOE_COMBINE_FLOAT32 ? 4u : 2u}, tokens = params->numTokens;
        twin::Launch launch("moe_combine", tiling.numBlocks, twin::Ratio::kVectorOnly, twin::CurrentSettings());
        GM_ADDR rows = launch.In("rows", in[0], params->numRows * row);
        GM_ADDR rowOf = launch.In("row_of", in[1], tokens * params->topk * sizeof(int32_t));
        GM_ADDR y = launch.Out("y", out[0], tokens * row);
        launch.Run([=] { moe_combine(rows, rowOf, y, tiling); });
    });
}

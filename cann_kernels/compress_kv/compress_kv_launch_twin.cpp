// SPDX-License-Identifier: Apache-2.0
// The launcher's C ABI over the twin.
#include "compress_kv_kernel.h"

#include "twin/abi.h"

namespace {

void CheckLimits(const CompressKvParams& p) {
    const auto refuse = [](const char* what, size_t most, size_t got) {
        throw twin::TwinError(twin::Format("compress_kv: %s must be 1..%zu, got %zu", what, most, got));
    };
    if (p.headDim == 0 || p.headDim > COMPRESS_KV_MAX_HEAD_DIM) refuse("headDim", COMPRESS_KV_MAX_HEAD_DIM, p.headDim);
    if (p.ratio == 0 || p.stateRows == 0) refuse("ratio and stateRows", UINT32_MAX, 0);
    const size_t most = std::min<size_t>(COMPRESS_KV_MAX_HALF, p.headDim / 2);
    if (p.half > most) refuse("half", most, p.half);
}

}  // namespace

extern "C" size_t compress_kv_workspace(const CompressKvParams*) { return 0; }

/// in: kv, gate, ape, norm, cos, sin, positions, reqIdx, cuQueryLens, stateSlots, slots; out: output, which keeps the rows that
/// no token goes to, and state, which is read and written. Contiguous. Returns 0, or 1 with the reason in twin_last_error.
extern "C" int compress_kv_launch(void*, const CompressKvParams* params, void** in, void** out, void*, size_t) {
    return twin::Guarded([&] {
        const CompressKvParams& p = *params;
        CheckLimits(p);
        const uint32_t blocks = CompressKvBlocks(p);
        if (blocks == 0) return;
        const CompressKvTiling t = CompressKvTile(p);
        const size_t tokens = p.numTokens, size = p.outDtype == COMPRESS_KV_FLOAT32 ? 4 : 2, word = 4;
        twin::Launch launch("compress_kv", blocks, twin::Ratio::kVectorOnly, twin::CurrentSettings());
        GM_ADDR kv = launch.In("kv", in[0], word * tokens * t.width);
        GM_ADDR gate = launch.In("gate", in[1], word * tokens * t.width);
        GM_ADDR ape = launch.In("ape", in[2], word * p.ratio * t.width);
        GM_ADDR norm = launch.In("norm", in[3], word * p.headDim);
        GM_ADDR cos = launch.In("cos", in[4], word * tokens * p.half);
        GM_ADDR sin = launch.In("sin", in[5], word * tokens * p.half);
        GM_ADDR positions = launch.In("positions", in[6], word * tokens);
        GM_ADDR reqIdx = launch.In("reqIdx", in[7], word * tokens);
        GM_ADDR cuQueryLens = launch.In("cuQueryLens", in[8], word * (p.numRequests + size_t{1}));
        GM_ADDR stateSlots = launch.In("stateSlots", in[9], word * p.numRequests);
        GM_ADDR slots = launch.In("slots", in[10], word * tokens);
        GM_ADDR output = launch.InOut("output", out[0], size * p.outRows * p.headDim);
        GM_ADDR state = launch.InOut("state", out[1], word * p.numStateSlots * p.stateRows * 2 * t.width);
        launch.Run([=] {
            compress_kv(state, kv, gate, ape, norm, cos, sin, positions, reqIdx, cuQueryLens, stateSlots, slots, output, t);
        });
    });
}

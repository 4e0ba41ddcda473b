// SPDX-License-Identifier: Apache-2.0
// Folds every `ratio` tokens into one compressed entry, normalises, rotates and stores it. Vector cores only, in two phases: all
// entries, which read the state, then the state's rows.
#pragma once

#include "kernel_operator.h"

#include "compress_kv.h"
#include "compress_kv_entries.h"
#include "compress_kv_state.h"
#include "inf_nan_mode.h"

struct CompressKvAddresses {
    GM_ADDR state;
    GM_ADDR kv;
    GM_ADDR gate;
    GM_ADDR ape;
    GM_ADDR norm;
    GM_ADDR cos;
    GM_ADDR sin;
    GM_ADDR positions;
    GM_ADDR reqIdx;
    GM_ADDR cuQueryLens;
    GM_ADDR stateSlots;
    GM_ADDR slots;
    GM_ADDR out;
};

template <typename T>
__aicore__ inline void CompressKvRun(const CompressKvAddresses& gm, const CompressKvTiling& tiling)
{
    AscendC::TPipe pipe;
    CompressKvEntries<T> entries;
    CompressKvState state;
    entries.InitTables(gm.positions, gm.reqIdx, gm.cuQueryLens, gm.stateSlots, gm.slots, tiling, &pipe);
    entries.InitRows(gm.state, gm.kv, gm.gate, gm.ape, gm.norm, gm.cos, gm.sin, gm.out);
    state.Init(gm.state, gm.kv, gm.gate, gm.ape, gm.positions, gm.cuQueryLens, gm.stateSlots, tiling, &pipe);
    entries.Process();
    AscendC::SyncAll();
    state.Process();
}

extern "C" __global__ __aicore__ void compress_kv(GM_ADDR state, GM_ADDR kv, GM_ADDR gate, GM_ADDR ape, GM_ADDR norm, GM_ADDR cos,
                                                  GM_ADDR sin, GM_ADDR positions, GM_ADDR reqIdx, GM_ADDR cuQueryLens,
                                                  GM_ADDR stateSlots, GM_ADDR slots, GM_ADDR out, CompressKvTiling tiling)
{
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
    const InfNanMode infNanMode;
    const CompressKvAddresses gm = {state, kv, gate, ape, norm, cos, sin, positions, reqIdx, cuQueryLens, stateSlots, slots, out};
    if (tiling.outDtype == COMPRESS_KV_BFLOAT16) {
        CompressKvRun<bfloat16_t>(gm, tiling);
    } else if (tiling.outDtype == COMPRESS_KV_FLOAT16) {
        CompressKvRun<half>(gm, tiling);
    } else {
        CompressKvRun<float>(gm, tiling);
    }
}

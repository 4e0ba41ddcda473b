// SPDX-License-Identifier: Apache-2.0
// Hyper-connection coefficients of a sub-layer and its input, in three phases on the vector cores:
//   project   partial dot products of the flattened streams with every row of fn, and of the streams with themselves, by chunk
//   mix       chunks added in order, then sigmoids, row softmax and Sinkhorn, with tokens side by side in the lanes
//   collapse  x = sum over n of weight[n] * streams[n]
#pragma once

#include "kernel_operator.h"

#include "hc_pre.h"
#include "hc_pre_collapse.h"
#include "hc_pre_mix.h"
#include "hc_pre_project.h"
#include "inf_nan_mode.h"

template <typename T>
__aicore__ inline void HcPreRun(GM_ADDR streams, GM_ADDR fn, GM_ADDR base, GM_ADDR scale, GM_ADDR mix, GM_ADDR x, GM_ADDR post,
                                GM_ADDR comb, GM_ADDR pre, GM_ADDR workspace, const HcPreTiling& tiling)
{
    AscendC::TPipe pipe;
    HcPreProject<T> project;
    HcPreMix mixing;
    HcPreCollapse<T> collapse;
    project.Init(streams, fn, workspace, tiling, &pipe);
    mixing.Init(workspace, base, scale, post, comb, pre, tiling, &pipe);
    collapse.Init(streams, tiling.hasMix != 0 ? mix : pre, x, tiling, &pipe);
    project.Process();
    AscendC::SyncAll();
    mixing.Process();
    if (tiling.hasMix == 0) AscendC::SyncAll();
    collapse.Process();
}

extern "C" __global__ __aicore__ void hc_pre(GM_ADDR streams, GM_ADDR fn, GM_ADDR base, GM_ADDR scale, GM_ADDR mix, GM_ADDR x,
                                             GM_ADDR post, GM_ADDR comb, GM_ADDR pre, GM_ADDR workspace, HcPreTiling tiling)
{
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
    const InfNanMode infNanMode;
    if (tiling.dtype == HC_PRE_BFLOAT16) {
        HcPreRun<bfloat16_t>(streams, fn, base, scale, mix, x, post, comb, pre, workspace, tiling);
    } else if (tiling.dtype == HC_PRE_FLOAT16) {
        HcPreRun<half>(streams, fn, base, scale, mix, x, post, comb, pre, workspace, tiling);
    } else {
        HcPreRun<float>(streams, fn, base, scale, mix, x, post, comb, pre, workspace, tiling);
    }
}

// SPDX-License-Identifier: Apache-2.0
// Attention of each query over its window rows and its compressed entries, with a sink. One cube core and two vector cores work
// together: keys gathered (vector) -> scores (cube) -> weights (vector) -> sums (cube) -> ranges merged (vector).
#pragma once

#include "kernel_operator.h"

#include "inf_nan_mode.h"
#include "sparse_attention.h"
#include "sparse_attention_cube.h"
#include "sparse_attention_vector.h"

template <typename T, typename C>
__aicore__ inline void SparseAttentionRun(GM_ADDR q, GM_ADDR winKv, GM_ADDR cmpKv, GM_ADDR entries, GM_ADDR sink, GM_ADDR positions,
                                          GM_ADDR requests, GM_ADDR windowTable, GM_ADDR blockTable, GM_ADDR o, GM_ADDR workspace,
                                          const SparseAttentionTiling& tiling)
{
    AscendC::TPipe pipe;
    if ASCEND_IS_AIC {
        SparseAttentionCube<T> cube;
        cube.Init(q, positions, requests, workspace, tiling, &pipe);
        cube.Process();
    }
    if ASCEND_IS_AIV {
        SparseAttentionVector<T, C> vector;
        vector.Init(winKv, cmpKv, entries, sink, positions, requests, windowTable, blockTable, o, workspace, tiling, &pipe);
        vector.Process();
    }
}

extern "C" __global__ __aicore__ void sparse_attention(GM_ADDR q, GM_ADDR winKv, GM_ADDR cmpKv, GM_ADDR entries, GM_ADDR sink,
                                                       GM_ADDR positions, GM_ADDR requests, GM_ADDR windowTable, GM_ADDR blockTable,
                                                       GM_ADDR o, GM_ADDR workspace, SparseAttentionTiling tiling)
{
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIC_1_2);
    const InfNanMode infNanMode;
    if (tiling.params.dtype == SPARSE_ATTENTION_BFLOAT16) {
        SparseAttentionRun<bfloat16_t, bfloat16_t>(q, winKv, cmpKv, entries, sink, positions, requests, windowTable, blockTable, o, workspace, tiling);
    } else if (tiling.params.dtype == SPARSE_ATTENTION_FLOAT16) {
        SparseAttentionRun<half, half>(q, winKv, cmpKv, entries, sink, positions, requests, windowTable, blockTable, o, workspace, tiling);
    } else if (tiling.params.cacheDtype == SPARSE_ATTENTION_BFLOAT16) {
        SparseAttentionRun<float, bfloat16_t>(q, winKv, cmpKv, entries, sink, positions, requests, windowTable, blockTable, o, workspace, tiling);
    } else {
        SparseAttentionRun<float, float>(q, winKv, cmpKv, entries, sink, positions, requests, windowTable, blockTable, o, workspace, tiling);
    }
}

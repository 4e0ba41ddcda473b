// SPDX-License-Identifier: Apache-2.0
// Scores every visible entry of each token and keeps the best: cube cores multiply, their vector cores weigh, choose and merge.
#pragma once

#include "index_topk_cube.h"
#include "index_topk_merge.h"
#include "index_topk_vector.h"

/// C: type of a product.
template <typename C>
__aicore__ inline void IndexTopkRunVector(const IndexTopkGm& gm, const IndexTopkTiling& tiling, IndexTopkPlan* plan, AscendC::TPipe* pipe)
{
    AscendC::TBuf<AscendC::TPosition::VECCALC> buffer;
    pipe->InitBuffer(buffer, INDEX_TOPK_UB_BYTES);
    const IndexTopkMemory memory = IndexTopkDivide(&buffer);
    AscendC::CreateVecIndex(memory.ramp, (int32_t)0, INDEX_TOPK_WIDE);
    AscendC::PipeBarrier<PIPE_V>();
    AscendC::Cast(memory.realRamp, memory.ramp, AscendC::RoundMode::CAST_RINT, INDEX_TOPK_WIDE);
    IndexTopkScan<C> scan;
    scan.Init(gm, tiling, plan, memory, pipe);
    IndexTopkMerge merge;
    merge.Init(gm, tiling, plan, memory, pipe);
    const uint32_t tokens = tiling.params.numTokens;
    uint32_t parity = 0;
    for (uint32_t token = 0; token < tokens; token += tiling.groupTokens) {
        const uint32_t count = IndexTopkLeast(tiling.groupTokens, tokens - token);
        scan.Process(token, count, parity);
        AscendC::SyncAll();
        merge.Process(token, count, parity);
        parity = 1 - parity;
    }
    scan.Close();
}

template <typename T, typename C>
__aicore__ inline void IndexTopkRunCube(GM_ADDR q, GM_ADDR keys, const IndexTopkGm& gm, const IndexTopkTiling& tiling, IndexTopkPlan* plan,
                                        AscendC::TPipe* pipe)
{
    IndexTopkCube<T, C> cube;
    cube.Init(q, keys, gm.table, gm.ring, tiling, plan, pipe);
    cube.Process();
}

extern "C" __global__ __aicore__ void index_topk(GM_ADDR q, GM_ADDR weights, GM_ADDR keys, GM_ADDR positions, GM_ADDR reqIdx, GM_ADDR table,
                                                 GM_ADDR candidates, GM_ADDR qScale, GM_ADDR keyScale, GM_ADDR entries, GM_ADDR blocks,
                                                 GM_ADDR ring, GM_ADDR lists, IndexTopkTiling tiling)
{
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIC_1_2);
    AscendC::TPipe pipe;
    IndexTopkPlan plan;
    plan.Init(positions, reqIdx, candidates, tiling);
    const IndexTopkGm gm = {weights, table, candidates, qScale, keyScale, entries, blocks, ring, lists};
    if ASCEND_IS_AIV {
        if (tiling.params.dtype == INDEX_TOPK_INT8) {
            IndexTopkRunVector<int32_t>(gm, tiling, &plan, &pipe);
        } else {
            IndexTopkRunVector<float>(gm, tiling, &plan, &pipe);
        }
    }
    if ASCEND_IS_AIC {
        if (tiling.params.dtype == INDEX_TOPK_INT8) {
            IndexTopkRunCube<int8_t, int32_t>(q, keys, gm, tiling, &plan, &pipe);
        } else if (tiling.params.dtype == INDEX_TOPK_BFLOAT16) {
            IndexTopkRunCube<bfloat16_t, float>(q, keys, gm, tiling, &plan, &pipe);
        } else if (tiling.params.dtype == INDEX_TOPK_FLOAT16) {
            IndexTopkRunCube<half, float>(q, keys, gm, tiling, &plan, &pipe);
        } else {
            IndexTopkRunCube<float, float>(q, keys, gm, tiling, &plan, &pipe);
        }
    }
}

// SPDX-License-Identifier: Apache-2.0
// Copies each token's row once per chosen expert, grouped by expert, in order of token and choice. Vector cores only.
// Three phases: every core counts the choices of a run of tokens; with all counts known it gives the choices of that run their
// rows; then the rows are copied, evenly over the cores.
#pragma once

#include "kernel_operator.h"

#include "moe_dispatch.h"
#include "moe_dispatch_plan.h"
#include "moe_dispatch_quantize.h"
#include "rows.h"

/// The last phase when rows are copied as they are. T is any type of their width.
template <typename T>
class MoeDispatchCopy {
public:
    __aicore__ inline void Init(GM_ADDR x, GM_ADDR rows, const MoeDispatchTiling& tiling, AscendC::TPipe* pipe)
    {
        tiling_ = tiling;
        x_.SetGlobalBuffer((__gm__ T*)x);
        rows_.SetGlobalBuffer((__gm__ T*)rows);
        pipe->InitBuffer(rowQue_, 4, tiling_.tileCols * sizeof(T));
    }

    __aicore__ inline void Process(MoeDispatchPlan& plan)
    {
        const ItemRun run = RunOfBlock((uint64_t)tiling_.numTokens * tiling_.tilesPerRow, tiling_.itemsPerBlock);
        uint32_t staged = 0;
        for (uint64_t item = run.begin; item < run.end; ++item) {
            const uint32_t token = (uint32_t)(item / tiling_.tilesPerRow);
            if (token >= staged) staged = plan.Stage(token);
            CopyTile(plan, token, (uint32_t)(item % tiling_.tilesPerRow) * tiling_.tileCols);
        }
    }

private:
    /// Loaded once, if any expert wants it, and stored once per choice.
    __aicore__ inline void CopyTile(MoeDispatchPlan& plan, uint32_t token, uint32_t column)
    {
        const uint32_t cols = SmallerOf(tiling_.hiddenSize - column, tiling_.tileCols);
        const AscendC::DataCopyExtParams part(1, cols * (uint32_t)sizeof(T), 0, 0, 0);
        AscendC::LocalTensor<T> tile;
        bool isLoaded = false;
        for (uint32_t choice = 0; choice < tiling_.topk; ++choice) {
            const int32_t row = plan.RowOf(token, choice);
            if (row < 0) continue;
            if (!isLoaded) {
                tile = rowQue_.template AllocTensor<T>();
                AscendC::DataCopyPad(tile, x_[(uint64_t)token * tiling_.hiddenSize + column], part,
                                     AscendC::DataCopyPadExtParams<T>(false, 0, 0, 0));
                rowQue_.EnQue(tile);
                tile = rowQue_.template DeQue<T>();
                isLoaded = true;
            }
            AscendC::DataCopyPad(rows_[(uint64_t)row * tiling_.hiddenSize + column], tile, part);
        }
        if (isLoaded) rowQue_.FreeTensor(tile);
    }

    MoeDispatchTiling tiling_;
    AscendC::TQueBind<AscendC::TPosition::VECIN, AscendC::TPosition::VECOUT, 1> rowQue_;
    AscendC::GlobalTensor<T> x_;
    AscendC::GlobalTensor<T> rows_;
};

template <typename T>
__aicore__ inline void MoeDispatchQuantizeRun(GM_ADDR x, GM_ADDR smooth, GM_ADDR rows, GM_ADDR scales, const MoeDispatchTiling& tiling,
                                              MoeDispatchPlan& plan, AscendC::TPipe* pipe)
{
    MoeDispatchQuantize<T> quantize;
    quantize.Init(x, smooth, rows, scales, tiling, pipe);
    quantize.Process(plan);
}

template <typename T>
__aicore__ inline void MoeDispatchCopyRun(GM_ADDR x, GM_ADDR rows, const MoeDispatchTiling& tiling, MoeDispatchPlan& plan,
                                          AscendC::TPipe* pipe)
{
    MoeDispatchCopy<T> copy;
    copy.Init(x, rows, tiling, pipe);
    copy.Process(plan);
}

extern "C" __global__ __aicore__ void moe_dispatch(GM_ADDR x, GM_ADDR ids, GM_ADDR weights, GM_ADDR smooth, GM_ADDR rows,
                                                   GM_ADDR rowWeights, GM_ADDR counts, GM_ADDR rowOf, GM_ADDR rankCounts, GM_ADDR scales,
                                                   GM_ADDR workspace, MoeDispatchTiling tiling)
{
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
    AscendC::TPipe pipe;
    MoeDispatchPlan plan;
    plan.Init(ids, weights, rowWeights, counts, rowOf, rankCounts, workspace, tiling, &pipe);
    plan.Count();
    AscendC::SyncAll();
    plan.Place();
    if (tiling.isSplit != 0) AscendC::SyncAll();  // else a core copies just the tokens that it placed
    if (tiling.quantize == 0 && tiling.dtype == MOE_DISPATCH_FLOAT32) {
        MoeDispatchCopyRun<uint32_t>(x, rows, tiling, plan, &pipe);
    } else if (tiling.quantize == 0) {
        MoeDispatchCopyRun<uint16_t>(x, rows, tiling, plan, &pipe);
    } else if (tiling.dtype == MOE_DISPATCH_FLOAT32) {
        MoeDispatchQuantizeRun<float>(x, smooth, rows, scales, tiling, plan, &pipe);
    } else if (tiling.dtype == MOE_DISPATCH_BFLOAT16) {
        MoeDispatchQuantizeRun<bfloat16_t>(x, smooth, rows, scales, tiling, plan, &pipe);
    } else {
        MoeDispatchQuantizeRun<half>(x, smooth, rows, scales, tiling, plan, &pipe);
    }
}

// SPDX-License-Identifier: Apache-2.0
// y[t] = sum of the rows of token t's choices, in order of choice, in float; one rounding. Vector cores only, bound by memory:
// rows are gathered, so that no two cores add to one sum.
#pragma once

#include "kernel_operator.h"

#include "moe_combine.h"
#include "inf_nan_mode.h"
#include "rows.h"

template <typename T>
class MoeCombineKernel {
public:
    __aicore__ inline void Init(GM_ADDR rows, GM_ADDR rowOf, GM_ADDR y, const MoeCombineTiling& tiling, AscendC::TPipe* pipe)
    {
        tiling_ = tiling;
        pipe_ = pipe;
        rows_.SetGlobalBuffer((__gm__ T*)rows);
        rowOf_.SetGlobalBuffer((__gm__ int32_t*)rowOf);
        y_.SetGlobalBuffer((__gm__ T*)y);
        pipe->InitBuffer(rowOfBuf_, MOE_COMBINE_CHUNK * sizeof(int32_t));
        pipe->InitBuffer(rowQue_, 4, tiling_.tileCols * sizeof(T));
        pipe->InitBuffer(yQue_, 2, tiling_.tileCols * sizeof(T));
        if constexpr (!AscendC::IsSameType<T, float>::value) {
            pipe->InitBuffer(wideBuf_, 2 * tiling_.tileCols * sizeof(float));
            pipe->InitBuffer(sumBuf_, tiling_.tileCols * sizeof(float));
        }
    }

    __aicore__ inline void Process()
    {
        const ItemRun run = RunOfBlock((uint64_t)tiling_.numTokens * tiling_.tilesPerRow, tiling_.itemsPerBlock);
        uint32_t firstStaged = 0;
        uint32_t endStaged = 0;
        for (uint64_t item = run.begin; item < run.end; ++item) {
            const uint32_t token = (uint32_t)(item / tiling_.tilesPerRow);
            if (token >= endStaged) {
                const uint32_t tokens = SmallerOf(tiling_.numTokens - token, tiling_.tokensPerChunk);
                StageScalars(rowOfBuf_.template Get<int32_t>(), rowOf_[(uint64_t)token * tiling_.topk], tokens * tiling_.topk, pipe_);
                firstStaged = token;
                endStaged = token + tokens;
            }
            const uint32_t column = (uint32_t)(item % tiling_.tilesPerRow) * tiling_.tileCols;
            CombineTile(token, (token - firstStaged) * tiling_.topk, column);
        }
    }

private:
    __aicore__ inline void CombineTile(uint32_t token, uint32_t firstChoice, uint32_t column)
    {
        const uint32_t cols = SmallerOf(tiling_.hiddenSize - column, tiling_.tileCols);
        const AscendC::DataCopyExtParams part(1, cols * (uint32_t)sizeof(T), 0, 0, 0);
        AscendC::LocalTensor<T> y = yQue_.template AllocTensor<T>();
        if constexpr (AscendC::IsSameType<T, float>::value) {
            Sum(y, firstChoice, column, cols);
        } else {
            AscendC::LocalTensor<float> sum = sumBuf_.template Get<float>();
            Sum(sum, firstChoice, column, cols);
            AscendC::PipeBarrier<PIPE_V>();
            AscendC::Cast(y, sum, AscendC::RoundMode::CAST_RINT, cols);
            AscendC::PipeBarrier<PIPE_V>();
        }
        yQue_.EnQue(y);
        y = yQue_.template DeQue<T>();
        AscendC::DataCopyPad(y_[(uint64_t)token * tiling_.hiddenSize + column], y, part);
        yQue_.FreeTensor(y);
    }

    /// Choices that sent nothing are skipped: what would be multiplied by zero may be a NaN.
    __aicore__ inline void Sum(const AscendC::LocalTensor<float>& sum, uint32_t firstChoice, uint32_t column, uint32_t cols)
    {
        AscendC::LocalTensor<int32_t> rowOf = rowOfBuf_.template Get<int32_t>();
        const AscendC::DataCopyExtParams part(1, cols * (uint32_t)sizeof(T), 0, 0, 0);
        uint32_t half = 0;
        AscendC::Duplicate(sum, 0.0f, (int32_t)cols);
        for (uint32_t choice = 0; choice < tiling_.topk; ++choice) {
            const int32_t row = rowOf.GetValue(firstChoice + choice);
            if (row < 0) continue;
            AscendC::LocalTensor<T> tile = rowQue_.template AllocTensor<T>();
            AscendC::DataCopyPad(tile, rows_[(uint64_t)row * tiling_.hiddenSize + column], part, NoPad());
            rowQue_.EnQue(tile);
            tile = rowQue_.template DeQue<T>();
            if constexpr (AscendC::IsSameType<T, float>::value) {
                AscendC::PipeBarrier<PIPE_V>();
                AscendC::Add(sum, sum, tile, (int32_t)cols);
            } else {
                // Two buffers in turn, so that widening a row need not wait for the addition of the row before.
                AscendC::LocalTensor<float> wide = wideBuf_.template Get<float>()[half * tiling_.tileCols];
                AscendC::Cast(wide, tile, AscendC::RoundMode::CAST_NONE, cols);
                AscendC::PipeBarrier<PIPE_V>();
                AscendC::Add(sum, sum, wide, (int32_t)cols);
                half = 1 - half;
            }
            rowQue_.FreeTensor(tile);
        }
    }

    __aicore__ inline AscendC::DataCopyPadExtParams<T> NoPad() const
    {
        AscendC::DataCopyPadExtParams<T> noPad;
        noPad.isPad = false;
        return noPad;
    }

    MoeCombineTiling tiling_;
    AscendC::TPipe* pipe_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> rowOfBuf_;
    AscendC::TQue<AscendC::TPosition::VECIN, 1> rowQue_;
    AscendC::TQue<AscendC::TPosition::VECOUT, 1> yQue_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> wideBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> sumBuf_;
    AscendC::GlobalTensor<T> rows_;
    AscendC::GlobalTensor<int32_t> rowOf_;
    AscendC::GlobalTensor<T> y_;
};

template <typename T>
__aicore__ inline void MoeCombineRun(GM_ADDR rows, GM_ADDR rowOf, GM_ADDR y, const MoeCombineTiling& tiling)
{
    AscendC::TPipe pipe;
    MoeCombineKernel<T> kernel;
    kernel.Init(rows, rowOf, y, tiling, &pipe);
    kernel.Process();
}

extern "C" __global__ __aicore__ void moe_combine(GM_ADDR rows, GM_ADDR rowOf, GM_ADDR y, MoeCombineTiling tiling)
{
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
    const InfNanMode infNanMode;
    if (tiling.dtype == MOE_COMBINE_BFLOAT16) {
        MoeCombineRun<bfloat16_t>(rows, rowOf, y, tiling);
    } else if (tiling.dtype == MOE_COMBINE_FLOAT16) {
        MoeCombineRun<half>(rows, rowOf, y, tiling);
    } else {
        MoeCombineRun<float>(rows, rowOf, y, tiling);
    }
}

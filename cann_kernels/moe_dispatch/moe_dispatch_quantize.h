// SPDX-License-Identifier: Apache-2.0
// The last phase of moe_dispatch when rows are sent as int8: q = rint(v · 127 / amax), scale = amax / 127, where v is the row, times
// the smooth factors of the expert if there are any, and amax its largest magnitude. Device code only.
#pragma once

#include "kernel_operator.h"

#include "moe_dispatch.h"
#include "moe_dispatch_plan.h"
#include "rows.h"

constexpr uint32_t MOE_DISPATCH_REDUCE_LANES = 256;  // scratch of a maximum over the widest row

template <typename T>
class MoeDispatchQuantize {
public:
    __aicore__ inline void Init(GM_ADDR x, GM_ADDR smooth, GM_ADDR rows, GM_ADDR scales, const MoeDispatchTiling& tiling,
                                AscendC::TPipe* pipe)
    {
        tiling_ = tiling;
        pipe_ = pipe;
        x_.SetGlobalBuffer((__gm__ T*)x);
        smooth_.SetGlobalBuffer((__gm__ float*)smooth);
        rows_.SetGlobalBuffer((__gm__ int8_t*)rows);
        scales_.SetGlobalBuffer((__gm__ float*)scales);
        const uint32_t wideBytes = tiling_.hiddenSize * sizeof(float);
        pipe->InitBuffer(rowQue_, kIsWide ? 1 : 2, tiling_.hiddenSize * sizeof(T));
        pipe->InitBuffer(quantizedQue_, 2, tiling_.hiddenSize);
        pipe->InitBuffer(scaleQue_, 2, 32);
        pipe->InitBuffer(workBuf_, wideBytes);
        pipe->InitBuffer(reduceBuf_, MOE_DISPATCH_REDUCE_LANES * sizeof(float));
        pipe->InitBuffer(maximumBuf_, 32);
        if constexpr (!kIsWide) pipe->InitBuffer(wideBuf_, wideBytes);
        if (tiling_.hasSmooth != 0) pipe->InitBuffer(smoothQue_, 1, wideBytes);
        AscendC::SetDeqScale((half)1.0f);
    }

    __aicore__ inline void Process(MoeDispatchPlan& plan)
    {
        const ItemRun run = RunOfBlock(tiling_.numTokens, tiling_.itemsPerBlock);
        uint32_t staged = 0;
        for (uint64_t token = run.begin; token < run.end; ++token) {
            if (token >= staged) staged = plan.Stage((uint32_t)token);
            if (IsSent(plan, (uint32_t)token)) Send(plan, (uint32_t)token);
        }
    }

private:
    static constexpr bool kIsWide = AscendC::IsSameType<T, float>::value;

    __aicore__ inline bool IsSent(MoeDispatchPlan& plan, uint32_t token)
    {
        for (uint32_t choice = 0; choice < tiling_.topk; ++choice) {
            if (plan.RowOf(token, choice) >= 0) return true;
        }
        return false;
    }

    /// Without smooth factors a row is quantised once, whatever the number of its choices.
    __aicore__ inline void Send(MoeDispatchPlan& plan, uint32_t token)
    {
        AscendC::LocalTensor<T> row = rowQue_.template AllocTensor<T>();
        AscendC::DataCopyPad(row, x_[(uint64_t)token * tiling_.hiddenSize],
                             AscendC::DataCopyExtParams(1, tiling_.hiddenSize * (uint32_t)sizeof(T), 0, 0, 0), NoPad());
        rowQue_.EnQue(row);
        row = rowQue_.template DeQue<T>();
        AscendC::LocalTensor<float> wide;
        if constexpr (kIsWide) {
            wide = row;
        } else {
            wide = wideBuf_.template Get<float>();
            AscendC::PipeBarrier<PIPE_V>();
            AscendC::Cast(wide, row, AscendC::RoundMode::CAST_NONE, tiling_.hiddenSize);
            AscendC::PipeBarrier<PIPE_V>();
        }
        if (tiling_.hasSmooth == 0) {
            Quantize(wide);
            Store(plan, token, 0, tiling_.topk);
        } else {
            for (uint32_t choice = 0; choice < tiling_.topk; ++choice) {
                if (plan.RowOf(token, choice) >= 0) SendSmoothed(plan, token, choice, wide);
            }
        }
        rowQue_.FreeTensor(row);
    }

    __aicore__ inline void SendSmoothed(MoeDispatchPlan& plan, uint32_t token, uint32_t choice, const AscendC::LocalTensor<float>& wide)
    {
        AscendC::LocalTensor<float> smooth = smoothQue_.template AllocTensor<float>();
        AscendC::DataCopyPad(smooth, smooth_[(uint64_t)plan.ExpertOf(token, choice) * tiling_.hiddenSize],
                             AscendC::DataCopyExtParams(1, tiling_.hiddenSize * (uint32_t)sizeof(float), 0, 0, 0),
                             AscendC::DataCopyPadExtParams<float>(false, 0, 0, 0.0f));
        smoothQue_.EnQue(smooth);
        smooth = smoothQue_.template DeQue<float>();
        AscendC::Mul(smooth, wide, smooth, (int32_t)tiling_.hiddenSize);
        AscendC::PipeBarrier<PIPE_V>();
        Quantize(smooth);
        smoothQue_.FreeTensor(smooth);
        Store(plan, token, choice, choice + 1);
    }

    /// Queues the int8 row and its scale. Its values go by int32 and half, each exact, so that they are rounded once; `value` is
    /// overwritten by the halves.
    __aicore__ inline void Quantize(const AscendC::LocalTensor<float>& value)
    {
        const uint32_t cols = tiling_.hiddenSize;
        AscendC::LocalTensor<float> work = workBuf_.template Get<float>();
        AscendC::Abs(work, value, (int32_t)cols);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::LocalTensor<float> maximum = maximumBuf_.template Get<float>();
        AscendC::ReduceMax(maximum, work, reduceBuf_.template Get<float>(), (int32_t)cols);
        Handover<AscendC::HardEvent::V_S>(pipe_);
        const float amax = maximum.GetValue(0);
        Handover<AscendC::HardEvent::S_V>(pipe_);
        AscendC::LocalTensor<float> scale = scaleQue_.template AllocTensor<float>();
        AscendC::Duplicate(scale, amax / 127.0f, 8);
        scaleQue_.EnQue(scale);
        AscendC::Muls(work, value, amax > 0.0f ? 127.0f / amax : 0.0f, (int32_t)cols);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Cast(work.template ReinterpretCast<int32_t>(), work, AscendC::RoundMode::CAST_RINT, cols);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::LocalTensor<half> halves = value.template ReinterpretCast<half>();
        AscendC::Cast(halves, work.template ReinterpretCast<int32_t>(), AscendC::RoundMode::CAST_NONE, cols);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::LocalTensor<int8_t> quantized = quantizedQue_.template AllocTensor<int8_t>();
        AscendC::Cast(quantized, halves, AscendC::RoundMode::CAST_RINT, cols);
        quantizedQue_.EnQue(quantized);
    }

    /// To the rows of choices [first, end) of a token.
    __aicore__ inline void Store(MoeDispatchPlan& plan, uint32_t token, uint32_t first, uint32_t end)
    {
        AscendC::LocalTensor<int8_t> quantized = quantizedQue_.template DeQue<int8_t>();
        AscendC::LocalTensor<float> scale = scaleQue_.template DeQue<float>();
        for (uint32_t choice = first; choice < end; ++choice) {
            const int32_t row = plan.RowOf(token, choice);
            if (row < 0) continue;
            AscendC::DataCopyPad(rows_[(uint64_t)row * tiling_.hiddenSize], quantized,
                                 AscendC::DataCopyExtParams(1, tiling_.hiddenSize, 0, 0, 0));
            AscendC::DataCopyPad(scales_[row], scale, AscendC::DataCopyExtParams(1, (uint32_t)sizeof(float), 0, 0, 0));
        }
        quantizedQue_.FreeTensor(quantized);
        scaleQue_.FreeTensor(scale);
    }

    __aicore__ inline AscendC::DataCopyPadExtParams<T> NoPad() const
    {
        AscendC::DataCopyPadExtParams<T> noPad;
        noPad.isPad = false;
        return noPad;
    }

    MoeDispatchTiling tiling_;
    AscendC::TPipe* pipe_;
    AscendC::TQue<AscendC::TPosition::VECIN, 1> rowQue_;
    AscendC::TQue<AscendC::TPosition::VECIN, 1> smoothQue_;
    AscendC::TQue<AscendC::TPosition::VECOUT, 1> quantizedQue_;
    AscendC::TQue<AscendC::TPosition::VECOUT, 1> scaleQue_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> workBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> wideBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> reduceBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> maximumBuf_;
    AscendC::GlobalTensor<T> x_;
    AscendC::GlobalTensor<float> smooth_;
    AscendC::GlobalTensor<int8_t> rows_;
    AscendC::GlobalTensor<float> scales_;
};

// SPDX-License-Identifier: Apache-2.0
// Phase 3 of hc_pre: x[t] = sum over n of weight[t, n] * streams[t, n], n ascending, one rounding.
#pragma once

#include "kernel_operator.h"

#include "hc_pre.h"

template <typename T>
class HcPreCollapse {
public:
    __aicore__ inline void Init(GM_ADDR streams, GM_ADDR weights, GM_ADDR x, const HcPreTiling& tiling, AscendC::TPipe* pipe)
    {
        tiling_ = tiling;
        pipe_ = pipe;
        streams_.SetGlobalBuffer((__gm__ T*)streams);
        weights_.SetGlobalBuffer((__gm__ float*)weights);
        x_.SetGlobalBuffer((__gm__ T*)x);
        const uint32_t tile = tiling_.tileCols;
        pipe->InitBuffer(streamQue_, 2, tiling_.hcMult * tile * sizeof(T));
        pipe->InitBuffer(xQue_, 2, tile * sizeof(T));
        pipe->InitBuffer(weightBuf_, HC_PRE_WEIGHT_TOKENS * HC_PRE_MAX_STREAMS * sizeof(float));
        if constexpr (!AscendC::IsSameType<T, float>::value) {
            pipe->InitBuffer(wideBuf_, tiling_.hcMult * tile * sizeof(float));
            pipe->InitBuffer(sumBuf_, tile * sizeof(float));
        }
    }

    __aicore__ inline void Process()
    {
        const uint64_t items = (uint64_t)tiling_.numTokens * tiling_.tilesPerRow;
        uint64_t item = (uint64_t)AscendC::GetBlockIdx() * tiling_.collapsePerBlock;
        const uint64_t end = item + tiling_.collapsePerBlock < items ? item + tiling_.collapsePerBlock : items;
        uint32_t groupStart = 0;
        uint32_t groupEnd = 0;
        for (; item < end; ++item) {
            const uint32_t token = (uint32_t)(item / tiling_.tilesPerRow);
            if (token >= groupEnd) {
                groupStart = token;
                groupEnd = LoadWeights(token);
            }
            const uint32_t column = (uint32_t)(item % tiling_.tilesPerRow) * tiling_.tileCols;
            const uint32_t rest = tiling_.hiddenSize - column;
            const uint32_t cols = rest < tiling_.tileCols ? rest : tiling_.tileCols;
            Load(token, column, cols);
            Compute((token - groupStart) * tiling_.hcMult, cols);
            Store(token, column, cols);
        }
    }

private:
    /// Stages the weights of the tokens from `token` on, for reading as scalars. Returns the first token that is not staged.
    __aicore__ inline uint32_t LoadWeights(uint32_t token)
    {
        const uint32_t rest = tiling_.numTokens - token;
        const uint32_t count = rest < HC_PRE_WEIGHT_TOKENS ? rest : HC_PRE_WEIGHT_TOKENS;
        // The scalar unit has read the previous group before the copy may overwrite it.
        const AscendC::TEventID free = pipe_->FetchEventID(AscendC::HardEvent::S_MTE2);
        AscendC::SetFlag<AscendC::HardEvent::S_MTE2>(free);
        AscendC::WaitFlag<AscendC::HardEvent::S_MTE2>(free);
        const AscendC::DataCopyExtParams row(1, count * tiling_.hcMult * (uint32_t)sizeof(float), 0, 0, 0);
        AscendC::DataCopyPad(weightBuf_.Get<float>(), weights_[(uint64_t)token * tiling_.hcMult], row,
                             AscendC::DataCopyPadExtParams<float>());
        const AscendC::TEventID landed = pipe_->FetchEventID(AscendC::HardEvent::MTE2_S);
        AscendC::SetFlag<AscendC::HardEvent::MTE2_S>(landed);
        AscendC::WaitFlag<AscendC::HardEvent::MTE2_S>(landed);
        return token + count;
    }

    __aicore__ inline void Load(uint32_t token, uint32_t column, uint32_t cols)
    {
        const uint32_t size = (uint32_t)sizeof(T);
        const uint32_t skipped = (tiling_.hiddenSize - cols) * size;
        const uint32_t gap = tiling_.tileCols * size / 32 - (cols * size + 31) / 32;
        const uint64_t row = (uint64_t)token * tiling_.hcMult * tiling_.hiddenSize;
        AscendC::LocalTensor<T> streams = streamQue_.template AllocTensor<T>();
        AscendC::DataCopyPad(streams, streams_[row + column],
                             AscendC::DataCopyExtParams((uint16_t)tiling_.hcMult, cols * size, skipped, gap, 0),
                             AscendC::DataCopyPadExtParams<T>());
        streamQue_.EnQue(streams);
    }

    __aicore__ inline void Compute(uint32_t weight, uint32_t cols)
    {
        AscendC::LocalTensor<T> streams = streamQue_.template DeQue<T>();
        AscendC::LocalTensor<T> x = xQue_.template AllocTensor<T>();
        if constexpr (AscendC::IsSameType<T, float>::value) {
            Sum(x, streams, weight, cols);
        } else {
            AscendC::LocalTensor<float> wide = wideBuf_.template Get<float>();
            AscendC::LocalTensor<float> sum = sumBuf_.template Get<float>();
            for (uint32_t n = 0; n < tiling_.hcMult; ++n) {
                AscendC::Cast(wide[n * tiling_.tileCols], streams[n * tiling_.tileCols], AscendC::RoundMode::CAST_NONE, cols);
            }
            AscendC::PipeBarrier<PIPE_V>();
            Sum(sum, wide, weight, cols);
            AscendC::PipeBarrier<PIPE_V>();
            AscendC::Cast(x, sum, AscendC::RoundMode::CAST_RINT, cols);
        }
        streamQue_.FreeTensor(streams);
        xQue_.EnQue(x);
    }

    __aicore__ inline void Sum(const AscendC::LocalTensor<float>& sum, const AscendC::LocalTensor<float>& streams, uint32_t weight,
                               uint32_t cols)
    {
        AscendC::LocalTensor<float> weights = weightBuf_.template Get<float>();
        AscendC::Muls(sum, streams, weights.GetValue(weight), (int32_t)cols);
        for (uint32_t n = 1; n < tiling_.hcMult; ++n) {
            AscendC::PipeBarrier<PIPE_V>();
            AscendC::Axpy(sum, streams[n * tiling_.tileCols], weights.GetValue(weight + n), (int32_t)cols);
        }
    }

    __aicore__ inline void Store(uint32_t token, uint32_t column, uint32_t cols)
    {
        AscendC::LocalTensor<T> x = xQue_.template DeQue<T>();
        AscendC::DataCopyPad(x_[(uint64_t)token * tiling_.hiddenSize + column], x,
                             AscendC::DataCopyExtParams(1, cols * (uint32_t)sizeof(T), 0, 0, 0));
        xQue_.FreeTensor(x);
    }

    HcPreTiling tiling_;
    AscendC::TPipe* pipe_;
    AscendC::TQue<AscendC::TPosition::VECIN, 2> streamQue_;
    AscendC::TQue<AscendC::TPosition::VECOUT, 2> xQue_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> weightBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> wideBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> sumBuf_;
    AscendC::GlobalTensor<T> streams_;
    AscendC::GlobalTensor<float> weights_;
    AscendC::GlobalTensor<T> x_;
};

// SPDX-License-Identifier: Apache-2.0
// y[t, j] = post[t, j] * x[t] + sum over i of comb[t, i, j] * streams[t, i]; float arithmetic, i ascending, one rounding.
// Vector cores only. Everything is read once and written once: the kernel is bound by memory.
#pragma once

#include "kernel_operator.h"

#include "hc_post.h"
#include "inf_nan_mode.h"

template <typename T>
class HcPostKernel {
public:
    __aicore__ inline void Init(GM_ADDR x, GM_ADDR streams, GM_ADDR post, GM_ADDR comb, GM_ADDR y, const HcPostTiling& tiling,
                                AscendC::TPipe* pipe)
    {
        tiling_ = tiling;
        pipe_ = pipe;
        x_.SetGlobalBuffer((__gm__ T*)x);
        streams_.SetGlobalBuffer((__gm__ T*)streams);
        post_.SetGlobalBuffer((__gm__ float*)post);
        comb_.SetGlobalBuffer((__gm__ float*)comb);
        y_.SetGlobalBuffer((__gm__ T*)y);
        const uint32_t tile = tiling_.tileCols;
        const uint32_t streamTile = tiling_.hcMult * tile;
        pipe->InitBuffer(xQue_, 2, tile * sizeof(T));
        pipe->InitBuffer(streamQue_, 2, streamTile * sizeof(T));
        pipe->InitBuffer(yQue_, 2, streamTile * sizeof(T));
        pipe->InitBuffer(postBuf_, HC_POST_TOKEN_GROUP * HC_POST_MAX_STREAMS * sizeof(float));
        pipe->InitBuffer(combBuf_, HC_POST_TOKEN_GROUP * HC_POST_MAX_STREAMS * HC_POST_MAX_STREAMS * sizeof(float));
        if constexpr (!AscendC::IsSameType<T, float>::value) {
            pipe->InitBuffer(xWideBuf_, tile * sizeof(float));
            pipe->InitBuffer(streamWideBuf_, streamTile * sizeof(float));
            pipe->InitBuffer(sumBuf_, streamTile * sizeof(float));
        }
    }

    __aicore__ inline void Process()
    {
        const uint64_t items = (uint64_t)tiling_.numTokens * tiling_.tilesPerRow;
        uint64_t item = (uint64_t)AscendC::GetBlockIdx() * tiling_.itemsPerBlock;
        const uint64_t end = item + tiling_.itemsPerBlock < items ? item + tiling_.itemsPerBlock : items;
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
            Compute(token - groupStart, cols);
            Store(token, column, cols);
        }
    }

private:
    /// Stages post and comb of the tokens from `token` on, for reading as scalars. Returns the first token that is not staged.
    __aicore__ inline uint32_t LoadWeights(uint32_t token)
    {
        const uint32_t rest = tiling_.numTokens - token;
        const uint32_t count = rest < HC_POST_TOKEN_GROUP ? rest : HC_POST_TOKEN_GROUP;
        const uint32_t hc = tiling_.hcMult;
        // The scalar unit has read the previous group before the copy may overwrite it.
        const AscendC::TEventID free = pipe_->FetchEventID(AscendC::HardEvent::S_MTE2);
        AscendC::SetFlag<AscendC::HardEvent::S_MTE2>(free);
        AscendC::WaitFlag<AscendC::HardEvent::S_MTE2>(free);
        const AscendC::DataCopyPadExtParams<float> noPad(false, 0, 0, 0.0f);
        const AscendC::DataCopyExtParams postRow(1, count * hc * (uint32_t)sizeof(float), 0, 0, 0);
        const AscendC::DataCopyExtParams combRow(1, count * hc * hc * (uint32_t)sizeof(float), 0, 0, 0);
        AscendC::DataCopyPad(postBuf_.Get<float>(), post_[(uint64_t)token * hc], postRow, noPad);
        AscendC::DataCopyPad(combBuf_.Get<float>(), comb_[(uint64_t)token * hc * hc], combRow, noPad);
        const AscendC::TEventID landed = pipe_->FetchEventID(AscendC::HardEvent::MTE2_S);
        AscendC::SetFlag<AscendC::HardEvent::MTE2_S>(landed);
        AscendC::WaitFlag<AscendC::HardEvent::MTE2_S>(landed);
        return token + count;
    }

    /// Free 32-byte blocks between two rows of a tile in the unified buffer, whose rows are tileCols apart.
    __aicore__ inline uint32_t RowGap(uint32_t cols) const
    {
        const uint32_t used = (cols * (uint32_t)sizeof(T) + 31) / 32;
        return tiling_.tileCols * (uint32_t)sizeof(T) / 32 - used;
    }

    __aicore__ inline void Load(uint32_t token, uint32_t column, uint32_t cols)
    {
        const uint32_t hc = tiling_.hcMult;
        const uint32_t bytes = cols * (uint32_t)sizeof(T);
        const uint32_t skipped = (tiling_.hiddenSize - cols) * (uint32_t)sizeof(T);
        const AscendC::DataCopyPadExtParams<T> noPad;
        const uint64_t row = (uint64_t)token * tiling_.hiddenSize;
        AscendC::LocalTensor<T> x = xQue_.template AllocTensor<T>();
        AscendC::DataCopyPad(x, x_[row + column], AscendC::DataCopyExtParams(1, bytes, 0, 0, 0), noPad);
        xQue_.EnQue(x);
        AscendC::LocalTensor<T> streams = streamQue_.template AllocTensor<T>();
        AscendC::DataCopyPad(streams, streams_[row * hc + column],
                             AscendC::DataCopyExtParams((uint16_t)hc, bytes, skipped, RowGap(cols), 0), noPad);
        streamQue_.EnQue(streams);
    }

    __aicore__ inline void Compute(uint32_t tokenInGroup, uint32_t cols)
    {
        AscendC::LocalTensor<T> x = xQue_.template DeQue<T>();
        AscendC::LocalTensor<T> streams = streamQue_.template DeQue<T>();
        AscendC::LocalTensor<T> y = yQue_.template AllocTensor<T>();
        if constexpr (AscendC::IsSameType<T, float>::value) {
            Mix(y, x, streams, tokenInGroup, cols);
        } else {
            AscendC::LocalTensor<float> xWide = xWideBuf_.template Get<float>();
            AscendC::LocalTensor<float> streamWide = streamWideBuf_.template Get<float>();
            AscendC::LocalTensor<float> sum = sumBuf_.template Get<float>();
            AscendC::Cast(xWide, x, AscendC::RoundMode::CAST_NONE, cols);
            for (uint32_t i = 0; i < tiling_.hcMult; ++i) {
                const uint32_t row = i * tiling_.tileCols;
                AscendC::Cast(streamWide[row], streams[row], AscendC::RoundMode::CAST_NONE, cols);
            }
            AscendC::PipeBarrier<PIPE_V>();
            Mix(sum, xWide, streamWide, tokenInGroup, cols);
            AscendC::PipeBarrier<PIPE_V>();
            for (uint32_t j = 0; j < tiling_.hcMult; ++j) {
                const uint32_t row = j * tiling_.tileCols;
                AscendC::Cast(y[row], sum[row], AscendC::RoundMode::CAST_RINT, cols);
            }
        }
        xQue_.FreeTensor(x);
        streamQue_.FreeTensor(streams);
        yQue_.EnQue(y);
    }

    /// All new streams side by side, so that one barrier serves hcMult instructions.
    __aicore__ inline void Mix(const AscendC::LocalTensor<float>& sum, const AscendC::LocalTensor<float>& x,
                               const AscendC::LocalTensor<float>& streams, uint32_t tokenInGroup, uint32_t cols)
    {
        const uint32_t hc = tiling_.hcMult;
        const uint32_t tile = tiling_.tileCols;
        AscendC::LocalTensor<float> post = postBuf_.template Get<float>();
        AscendC::LocalTensor<float> comb = combBuf_.template Get<float>();
        for (uint32_t i = 0; i < hc; ++i) {
            for (uint32_t j = 0; j < hc; ++j) {
                const float weight = comb.GetValue((tokenInGroup * hc + i) * hc + j);
                if (i == 0) {
                    AscendC::Muls(sum[j * tile], streams, weight, (int32_t)cols);
                } else {
                    AscendC::Axpy(sum[j * tile], streams[i * tile], weight, (int32_t)cols);
                }
            }
            AscendC::PipeBarrier<PIPE_V>();
        }
        for (uint32_t j = 0; j < hc; ++j) {
            AscendC::Axpy(sum[j * tile], x, post.GetValue(tokenInGroup * hc + j), (int32_t)cols);
        }
    }

    __aicore__ inline void Store(uint32_t token, uint32_t column, uint32_t cols)
    {
        const uint32_t hc = tiling_.hcMult;
        AscendC::LocalTensor<T> y = yQue_.template DeQue<T>();
        const uint32_t skipped = (tiling_.hiddenSize - cols) * (uint32_t)sizeof(T);
        AscendC::DataCopyPad(y_[(uint64_t)token * hc * tiling_.hiddenSize + column], y,
                             AscendC::DataCopyExtParams((uint16_t)hc, cols * (uint32_t)sizeof(T), RowGap(cols), skipped, 0));
        yQue_.FreeTensor(y);
    }

    HcPostTiling tiling_;
    AscendC::TPipe* pipe_;
    AscendC::TQue<AscendC::TPosition::VECIN, 2> xQue_;
    AscendC::TQue<AscendC::TPosition::VECIN, 2> streamQue_;
    AscendC::TQue<AscendC::TPosition::VECOUT, 2> yQue_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> postBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> combBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> xWideBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> streamWideBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> sumBuf_;
    AscendC::GlobalTensor<T> x_;
    AscendC::GlobalTensor<T> streams_;
    AscendC::GlobalTensor<float> post_;
    AscendC::GlobalTensor<float> comb_;
    AscendC::GlobalTensor<T> y_;
};

template <typename T>
__aicore__ inline void HcPostRun(GM_ADDR x, GM_ADDR streams, GM_ADDR post, GM_ADDR comb, GM_ADDR y, const HcPostTiling& tiling)
{
    AscendC::TPipe pipe;
    HcPostKernel<T> kernel;
    kernel.Init(x, streams, post, comb, y, tiling, &pipe);
    kernel.Process();
}

extern "C" __global__ __aicore__ void hc_post(GM_ADDR x, GM_ADDR streams, GM_ADDR post, GM_ADDR comb, GM_ADDR y, HcPostTiling tiling)
{
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
    const InfNanMode infNanMode;
    if (tiling.dtype == HC_POST_BFLOAT16) {
        HcPostRun<bfloat16_t>(x, streams, post, comb, y, tiling);
    } else if (tiling.dtype == HC_POST_FLOAT16) {
        HcPostRun<half>(x, streams, post, comb, y, tiling);
    } else {
        HcPostRun<float>(x, streams, post, comb, y, tiling);
    }
}

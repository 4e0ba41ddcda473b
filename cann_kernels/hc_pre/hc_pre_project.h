// SPDX-License-Identifier: Apache-2.0
// Phase 1 of hc_pre: for every chunk of flattened columns and every token, the partial sums z * fn[c] and z * z.
#pragma once

#include "kernel_operator.h"

#include "hc_pre.h"

template <typename T>
class HcPreProject {
public:
    __aicore__ inline void Init(GM_ADDR streams, GM_ADDR fn, GM_ADDR partials, const HcPreTiling& tiling, AscendC::TPipe* pipe)
    {
        tiling_ = tiling;
        streams_.SetGlobalBuffer((__gm__ T*)streams);
        fn_.SetGlobalBuffer((__gm__ float*)fn);
        partials_.SetGlobalBuffer((__gm__ float*)partials);
        // One row more than fn has: the token's own, so that its square is one of the products.
        pipe->InitBuffer(fnQue_, 1, (tiling_.numCoefs + 1) * HC_PRE_CHUNK * sizeof(float));
        pipe->InitBuffer(zQue_, 2, HC_PRE_PROJECT_TOKENS * HC_PRE_CHUNK * sizeof(T));
        pipe->InitBuffer(sumBuf_, tiling_.pitch * kLanes * sizeof(float));
        pipe->InitBuffer(partialQue_, 2, HC_PRE_PROJECT_TOKENS * tiling_.pitch * sizeof(float));
        AscendC::Duplicate(sumBuf_.Get<float>(), 0.0f, (int32_t)(tiling_.pitch * kLanes));
    }

    /// A core's items are consecutive, chunk by chunk, so that it loads few chunks of fn.
    __aicore__ inline void Process()
    {
        const uint64_t items = (uint64_t)tiling_.numChunks * tiling_.projectGroups;
        uint64_t item = (uint64_t)AscendC::GetBlockIdx() * tiling_.projectPerBlock;
        const uint64_t end = item + tiling_.projectPerBlock < items ? item + tiling_.projectPerBlock : items;
        while (item < end) {
            const uint32_t chunk = (uint32_t)(item / tiling_.projectGroups);
            const uint64_t chunkEnd = ((uint64_t)chunk + 1) * tiling_.projectGroups;
            AscendC::LocalTensor<float> fn = LoadFn(chunk);
            for (; item < end && item < chunkEnd; ++item) {
                Project(fn, chunk, (uint32_t)(item % tiling_.projectGroups) * HC_PRE_PROJECT_TOKENS);
            }
            fnQue_.FreeTensor(fn);
        }
    }

private:
    static constexpr uint32_t kLanes = 64;  // floats of a repeat

    __aicore__ inline uint32_t Columns(uint32_t chunk) const
    {
        const uint32_t rest = tiling_.flatSize - chunk * HC_PRE_CHUNK;
        return rest < HC_PRE_CHUNK ? rest : HC_PRE_CHUNK;
    }

    /// Free 32-byte blocks behind a row of `cols` elements of `size` bytes, whose rows are a chunk apart in the unified buffer.
    __aicore__ inline uint32_t RowGap(uint32_t cols, uint32_t size) const
    {
        return HC_PRE_CHUNK * size / 32 - (cols * size + 31) / 32;
    }

    __aicore__ inline AscendC::LocalTensor<float> LoadFn(uint32_t chunk)
    {
        const uint32_t cols = Columns(chunk);
        const uint32_t size = (uint32_t)sizeof(float);
        AscendC::LocalTensor<float> fn = fnQue_.template AllocTensor<float>();
        const AscendC::DataCopyExtParams rows((uint16_t)tiling_.numCoefs, cols * size, (tiling_.flatSize - cols) * size,
                                              RowGap(cols, size), 0);
        AscendC::DataCopyPad(fn, fn_[(uint64_t)chunk * HC_PRE_CHUNK], rows, AscendC::DataCopyPadExtParams<float>());
        fnQue_.EnQue(fn);
        fn = fnQue_.template DeQue<float>();
        return fn;
    }

    __aicore__ inline void Project(const AscendC::LocalTensor<float>& fn, uint32_t chunk, uint32_t token)
    {
        const uint32_t rest = tiling_.numTokens - token;
        const uint32_t tokens = rest < HC_PRE_PROJECT_TOKENS ? rest : HC_PRE_PROJECT_TOKENS;
        const uint32_t cols = Columns(chunk);
        const uint32_t size = (uint32_t)sizeof(T);
        AscendC::LocalTensor<T> loaded = zQue_.template AllocTensor<T>();
        const AscendC::DataCopyExtParams rows((uint16_t)tokens, cols * size, (tiling_.flatSize - cols) * size, RowGap(cols, size), 0);
        AscendC::DataCopyPad(loaded, streams_[(uint64_t)token * tiling_.flatSize + (uint64_t)chunk * HC_PRE_CHUNK], rows,
                             AscendC::DataCopyPadExtParams<T>());
        zQue_.EnQue(loaded);
        AscendC::LocalTensor<T> z = zQue_.template DeQue<T>();
        AscendC::LocalTensor<float> partial = partialQue_.template AllocTensor<float>();
        for (uint32_t i = 0; i < tokens; ++i) {
            Products(partial[i * tiling_.pitch], fn, z[i * HC_PRE_CHUNK], cols);
        }
        zQue_.FreeTensor(z);
        partialQue_.EnQue(partial);
        AscendC::LocalTensor<float> ready = partialQue_.template DeQue<float>();
        AscendC::DataCopy(partials_[((uint64_t)chunk * tiling_.numTokens + token) * tiling_.pitch], ready, tokens * tiling_.pitch);
        partialQue_.FreeTensor(ready);
    }

    /// All products of one token with one chunk: 64 running sums a row, then their tree. Rows behind the last stay zero.
    __aicore__ inline void Products(const AscendC::LocalTensor<float>& partial, const AscendC::LocalTensor<float>& fn,
                                    const AscendC::LocalTensor<T>& z, uint32_t cols)
    {
        AscendC::LocalTensor<float> sum = sumBuf_.Get<float>();
        AscendC::LocalTensor<float> own = fn[tiling_.numCoefs * HC_PRE_CHUNK];
        const uint8_t rows = (uint8_t)(tiling_.numCoefs + 1);
        AscendC::PipeBarrier<PIPE_V>();  // the token before has been summed
        if (cols < kLanes) AscendC::Duplicate(sum, 0.0f, (int32_t)(rows * kLanes));  // lanes that no product reaches
        if constexpr (AscendC::IsSameType<T, float>::value) {
            AscendC::Adds(own, z, 0.0f, (int32_t)cols);
        } else {
            AscendC::Cast(own, z, AscendC::RoundMode::CAST_NONE, cols);
        }
        AscendC::PipeBarrier<PIPE_V>();
        const AscendC::BinaryRepeatParams byRow(1, 1, 1, 8, (uint8_t)(HC_PRE_CHUNK / 8), 0);
        AscendC::Mul(sum, fn, own, (uint64_t)(cols < kLanes ? cols : kLanes), rows, byRow);
        for (uint32_t column = kLanes; column < cols; column += kLanes) {
            const uint32_t lanes = cols - column < kLanes ? cols - column : kLanes;
            AscendC::PipeBarrier<PIPE_V>();
            AscendC::MulAddDst(sum, fn[column], own[column], (uint64_t)lanes, rows, byRow);
        }
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::WholeReduceSum(partial, sum, (int32_t)kLanes, (int32_t)tiling_.pitch, 1, 1, 8);
    }

    HcPreTiling tiling_;
    AscendC::TQue<AscendC::TPosition::VECIN, 1> fnQue_;
    AscendC::TQue<AscendC::TPosition::VECIN, 2> zQue_;
    AscendC::TQue<AscendC::TPosition::VECOUT, 2> partialQue_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> sumBuf_;
    AscendC::GlobalTensor<T> streams_;
    AscendC::GlobalTensor<float> fn_;
    AscendC::GlobalTensor<float> partials_;
};

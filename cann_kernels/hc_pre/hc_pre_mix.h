// SPDX-License-Identifier: Apache-2.0
// Phase 2 of hc_pre: coefficients of up to 64 tokens, one vector of tokens a coefficient (a repeat of 64 lanes).
#pragma once

#include "kernel_operator.h"

#include "hc_pre.h"

class HcPreMix {
public:
    __aicore__ inline void Init(GM_ADDR partials, GM_ADDR base, GM_ADDR scale, GM_ADDR post, GM_ADDR comb, GM_ADDR pre,
                                const HcPreTiling& tiling, AscendC::TPipe* pipe)
    {
        tiling_ = tiling;
        pipe_ = pipe;
        partials_.SetGlobalBuffer((__gm__ float*)partials);
        base_.SetGlobalBuffer((__gm__ float*)base);
        scale_.SetGlobalBuffer((__gm__ float*)scale);
        post_.SetGlobalBuffer((__gm__ float*)post);
        comb_.SetGlobalBuffer((__gm__ float*)comb);
        pre_.SetGlobalBuffer((__gm__ float*)pre);
        const uint32_t hc = tiling_.hcMult;
        const uint32_t vector = kLanes * (uint32_t)sizeof(float);
        pipe->InitBuffer(partialQue_, 2, HC_PRE_LOAD_FLOATS * sizeof(float));
        pipe->InitBuffer(rowsBuf_, HC_PRE_LOAD_FLOATS * sizeof(float));
        pipe->InitBuffer(coefBuf_, (tiling_.numCoefs + 1) * vector);
        pipe->InitBuffer(sumBuf_, HC_PRE_MAX_STREAMS * vector);
        pipe->InitBuffer(oneBuf_, vector);
        pipe->InitBuffer(apartBuf_, vector);
        pipe->InitBuffer(weightOrderBuf_, hc * vector);
        pipe->InitBuffer(combOrderBuf_, hc * hc * vector);
        pipe->InitBuffer(baseBuf_, HC_PRE_MAX_PITCH * sizeof(float));
        pipe->InitBuffer(baseBlockBuf_, HC_PRE_MAX_PITCH * 32);
        pipe->InitBuffer(scaleBuf_, 32);
        pipe->InitBuffer(preQue_, 1, hc * vector);
        pipe->InitBuffer(postQue_, 1, hc * vector);
        pipe->InitBuffer(combQue_, 1, hc * hc * vector);
    }

    __aicore__ inline void Process()
    {
        const uint32_t step = (uint32_t)AscendC::GetBlockNum();
        uint32_t tile = (uint32_t)AscendC::GetBlockIdx();
        if (tile >= tiling_.mixTiles) return;
        Prepare();
        for (; tile < tiling_.mixTiles; tile += step) {
            const uint32_t token = tile * tiling_.mixTokens;
            const uint32_t rest = tiling_.numTokens - token;
            tokens_ = rest < tiling_.mixTokens ? rest : tiling_.mixTokens;
            AddPartials(token);
            Coefficients();
            Weights();
            Softmax();
            Sinkhorn();
            Store(token);
        }
    }

private:
    static constexpr uint32_t kLanes = 64;  // floats of a repeat

    /// Tables of byte offsets, the bias as one block a coefficient, the scales as scalars.
    __aicore__ inline void Prepare()
    {
        const uint32_t hc = tiling_.hcMult;
        const AscendC::DataCopyExtParams baseRow(1, tiling_.numCoefs * (uint32_t)sizeof(float), 0, 0, 0);
        const AscendC::DataCopyExtParams scaleRow(1, 3 * (uint32_t)sizeof(float), 0, 0, 0);
        const uint8_t missing = (uint8_t)((8 - tiling_.numCoefs % 8) % 8);
        AscendC::LocalTensor<float> base = baseBuf_.Get<float>();
        AscendC::DataCopyPad(base, base_, baseRow, AscendC::DataCopyPadExtParams<float>(true, 0, missing, 0.0f));
        AscendC::DataCopyPad(scaleBuf_.Get<float>(), scale_, scaleRow, AscendC::DataCopyPadExtParams<float>());
        const AscendC::TEventID scaleLanded = pipe_->FetchEventID(AscendC::HardEvent::MTE2_S);
        AscendC::SetFlag<AscendC::HardEvent::MTE2_S>(scaleLanded);
        const AscendC::TEventID baseLanded = pipe_->FetchEventID(AscendC::HardEvent::MTE2_V);
        AscendC::SetFlag<AscendC::HardEvent::MTE2_V>(baseLanded);
        AscendC::LocalTensor<int32_t> index = rowsBuf_.Get<int32_t>();
        AscendC::CreateVecIndex(index, (int32_t)0, HC_PRE_LOAD_FLOATS / 2);
        AscendC::Duplicate(oneBuf_.Get<float>(), 1.0f, (int32_t)kLanes);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Muls(apartBuf_.Get<int32_t>(), index, (int32_t)(tiling_.pitch * sizeof(float)), (int32_t)kLanes);
        Interleave(weightOrderBuf_.Get<int32_t>(), index, hc);
        Interleave(combOrderBuf_.Get<int32_t>(), index, hc * hc);
        AscendC::WaitFlag<AscendC::HardEvent::MTE2_V>(baseLanded);
        AscendC::Brcb(baseBlockBuf_.Get<float>(), base, (uint8_t)((tiling_.numCoefs + 7) / 8), AscendC::BrcbRepeatParams(1, 8));
        AscendC::WaitFlag<AscendC::HardEvent::MTE2_S>(scaleLanded);
        for (uint32_t i = 0; i < 3; ++i) scales_[i] = scaleBuf_.Get<float>().GetValue(i);
    }

    /// order[i] = byte offset of element (i mod width) of token (i / width) among vectors of 64 tokens.
    __aicore__ inline void Interleave(const AscendC::LocalTensor<int32_t>& order, const AscendC::LocalTensor<int32_t>& index,
                                      uint32_t width)
    {
        const int32_t count = (int32_t)(width * kLanes);
        AscendC::LocalTensor<float> real = coefBuf_.Get<float>();
        AscendC::LocalTensor<int32_t> token = index[HC_PRE_LOAD_FLOATS / 2];
        AscendC::Cast(real, index, AscendC::RoundMode::CAST_NONE, (uint32_t)count);
        AscendC::PipeBarrier<PIPE_V>();
        // Half a step up keeps the quotient clear of whole numbers: its floor is exact.
        AscendC::Adds(real, real, 0.5f, count);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Muls(real, real, 1.0f / (float)width, count);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Cast(token, real, AscendC::RoundMode::CAST_FLOOR, (uint32_t)count);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Muls(order, token, (int32_t)width, count);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Sub(order, index, order, count);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Muls(order, order, (int32_t)(kLanes * sizeof(float)), count);
        AscendC::Muls(token, token, (int32_t)sizeof(float), count);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Add(order, order, token, count);
    }

    /// rows[token][coefficient] = partial sums of all chunks, in their order.
    __aicore__ inline void AddPartials(uint32_t token)
    {
        const uint32_t floats = tokens_ * tiling_.pitch;
        const uint32_t most = HC_PRE_LOAD_FLOATS / floats;
        const uint32_t stride = (tiling_.numTokens - tokens_) * tiling_.pitch * (uint32_t)sizeof(float);
        AscendC::LocalTensor<float> rows = rowsBuf_.Get<float>();
        for (uint32_t chunk = 0; chunk < tiling_.numChunks; chunk += most) {
            const uint32_t rest = tiling_.numChunks - chunk;
            const uint32_t count = rest < most ? rest : most;
            AscendC::LocalTensor<float> loaded = partialQue_.AllocTensor<float>();
            const AscendC::DataCopyExtParams parts((uint16_t)count, floats * (uint32_t)sizeof(float), stride, 0, 0);
            AscendC::DataCopyPad(loaded, partials_[((uint64_t)chunk * tiling_.numTokens + token) * tiling_.pitch], parts,
                                 AscendC::DataCopyPadExtParams<float>());
            partialQue_.EnQue(loaded);
            AscendC::LocalTensor<float> part = partialQue_.DeQue<float>();
            for (uint32_t i = 0; i < count; ++i) {
                AscendC::PipeBarrier<PIPE_V>();
                if (chunk + i == 0) {
                    AscendC::Adds(rows, part, 0.0f, (int32_t)floats);
                } else {
                    AscendC::Add(rows, rows, part[i * floats], (int32_t)floats);
                }
            }
            partialQue_.FreeTensor(part);
        }
        AscendC::PipeBarrier<PIPE_V>();
    }

    /// Vector of 64 tokens number `i` of a tensor.
    __aicore__ static inline AscendC::LocalTensor<float> Vector(const AscendC::LocalTensor<float>& vectors, uint32_t i)
    {
        return vectors[i * kLanes];
    }

    /// coef[c] = u[c] * scale + base[c]
    __aicore__ inline void Coefficients()
    {
        const uint32_t hc = tiling_.hcMult;
        const uint64_t mask = tokens_;
        AscendC::LocalTensor<float> coef = coefBuf_.Get<float>();
        AscendC::LocalTensor<float> rms = Vector(coef, tiling_.numCoefs);
        AscendC::LocalTensor<uint32_t> apart = apartBuf_.Get<uint32_t>();
        for (uint32_t c = 0; c <= tiling_.numCoefs; ++c) {
            AscendC::Gather(Vector(coef, c), rowsBuf_.Get<float>(), apart, c * (uint32_t)sizeof(float), tokens_);
        }
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Muls(rms, rms, tiling_.inverseFlat, (int32_t)tokens_);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Adds(rms, rms, tiling_.normEps, (int32_t)tokens_);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Sqrt(rms, rms, (int32_t)tokens_);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Div(coef, coef, rms, mask, (uint8_t)tiling_.numCoefs, AscendC::BinaryRepeatParams(1, 1, 1, 8, 8, 0));
        AscendC::PipeBarrier<PIPE_V>();
        const AscendC::UnaryRepeatParams inPlace(1, 1, 8, 8);
        AscendC::Muls(coef, coef, scales_[0], mask, (uint8_t)hc, inPlace);
        AscendC::Muls(Vector(coef, hc), Vector(coef, hc), scales_[1], mask, (uint8_t)hc, inPlace);
        AscendC::Muls(Vector(coef, 2 * hc), Vector(coef, 2 * hc), scales_[2], mask, (uint8_t)(hc * hc), inPlace);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Add(coef, coef, baseBlockBuf_.Get<float>(), mask, (uint8_t)tiling_.numCoefs,
                     AscendC::BinaryRepeatParams(1, 1, 0, 8, 8, 1));
        AscendC::PipeBarrier<PIPE_V>();
    }

    /// pre = sigmoid + eps and post = 2 * sigmoid. An overflow of the power is a sigmoid of 0.
    __aicore__ inline void Weights()
    {
        const uint32_t hc = tiling_.hcMult;
        const uint64_t mask = tokens_;
        const uint8_t both = (uint8_t)(2 * hc);
        const AscendC::UnaryRepeatParams inPlace(1, 1, 8, 8);
        AscendC::LocalTensor<float> coef = coefBuf_.Get<float>();
        AscendC::Muls(coef, coef, -1.0f, mask, both, inPlace);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Exp(coef, coef, mask, both, inPlace);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Adds(coef, coef, 1.0f, mask, both, inPlace);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Div(coef, oneBuf_.Get<float>(), coef, mask, both, AscendC::BinaryRepeatParams(1, 1, 1, 8, 0, 8));
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Adds(coef, coef, tiling_.hcEps, mask, (uint8_t)hc, inPlace);
        AscendC::Muls(Vector(coef, hc), Vector(coef, hc), 2.0f, mask, (uint8_t)hc, inPlace);
    }

    /// How an instruction with one repeat for each row i (columns: each column j) walks through comb[i][j].
    struct Axis {
        uint32_t step;      // vectors from one term of a sum to the next
        uint8_t repStride;  // blocks from one sum to the next
    };
    __aicore__ inline Axis AlongRows() const { return {1, (uint8_t)(8 * tiling_.hcMult)}; }
    __aicore__ inline Axis AlongColumns() const { return {tiling_.hcMult, 8}; }

    __aicore__ inline AscendC::LocalTensor<float> Comb() { return Vector(coefBuf_.Get<float>(), 2 * tiling_.hcMult); }

    /// comb = row softmax + eps
    __aicore__ inline void Softmax()
    {
        const uint32_t hc = tiling_.hcMult;
        const uint64_t mask = tokens_;
        const Axis axis = AlongRows();
        AscendC::LocalTensor<float> comb = Comb();
        AscendC::LocalTensor<float> most = sumBuf_.Get<float>();
        AscendC::Max(most, comb, Vector(comb, hc > 1 ? 1 : 0), mask, (uint8_t)hc,
                     AscendC::BinaryRepeatParams(1, 1, 1, 8, axis.repStride, axis.repStride));
        for (uint32_t j = 2; j < hc; ++j) {
            AscendC::PipeBarrier<PIPE_V>();
            AscendC::Max(most, most, Vector(comb, j), mask, (uint8_t)hc, AscendC::BinaryRepeatParams(1, 1, 1, 8, 8, axis.repStride));
        }
        AscendC::PipeBarrier<PIPE_V>();
        for (uint32_t j = 0; j < hc; ++j) {
            AscendC::Sub(Vector(comb, j), Vector(comb, j), most, mask, (uint8_t)hc,
                         AscendC::BinaryRepeatParams(1, 1, 1, axis.repStride, axis.repStride, 8));
        }
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Exp(comb, comb, mask, (uint8_t)(hc * hc), AscendC::UnaryRepeatParams(1, 1, 8, 8));
        AscendC::PipeBarrier<PIPE_V>();
        Normalise(axis, 0.0f);
        AscendC::Adds(comb, comb, tiling_.hcEps, mask, (uint8_t)(hc * hc), AscendC::UnaryRepeatParams(1, 1, 8, 8));
        AscendC::PipeBarrier<PIPE_V>();
    }

    /// The row softmax was the first row step.
    __aicore__ inline void Sinkhorn()
    {
        Normalise(AlongColumns(), tiling_.hcEps);
        for (uint32_t i = 1; i < tiling_.sinkhornIters; ++i) {
            Normalise(AlongRows(), tiling_.hcEps);
            Normalise(AlongColumns(), tiling_.hcEps);
        }
    }

    /// comb /= its sums along an axis + eps; terms in ascending order.
    __aicore__ inline void Normalise(const Axis& axis, float eps)
    {
        const uint32_t hc = tiling_.hcMult;
        const uint64_t mask = tokens_;
        const uint8_t stride = axis.repStride;
        AscendC::LocalTensor<float> comb = Comb();
        AscendC::LocalTensor<float> sum = sumBuf_.Get<float>();
        if (hc == 1) {
            AscendC::Adds(sum, comb, eps, mask, 1, AscendC::UnaryRepeatParams(1, 1, 8, 8));
        } else {
            AscendC::Add(sum, comb, Vector(comb, axis.step), mask, (uint8_t)hc, AscendC::BinaryRepeatParams(1, 1, 1, 8, stride, stride));
            for (uint32_t i = 2; i < hc; ++i) {
                AscendC::PipeBarrier<PIPE_V>();
                AscendC::Add(sum, sum, Vector(comb, i * axis.step), mask, (uint8_t)hc,
                             AscendC::BinaryRepeatParams(1, 1, 1, 8, 8, stride));
            }
            AscendC::PipeBarrier<PIPE_V>();
            AscendC::Adds(sum, sum, eps, mask, (uint8_t)hc, AscendC::UnaryRepeatParams(1, 1, 8, 8));
        }
        AscendC::PipeBarrier<PIPE_V>();
        for (uint32_t i = 0; i < hc; ++i) {
            AscendC::LocalTensor<float> terms = Vector(comb, i * axis.step);
            AscendC::Div(terms, terms, sum, mask, (uint8_t)hc, AscendC::BinaryRepeatParams(1, 1, 1, stride, stride, 8));
        }
        AscendC::PipeBarrier<PIPE_V>();
    }

    /// Back to one row a token.
    __aicore__ inline void Store(uint32_t token)
    {
        const uint32_t hc = tiling_.hcMult;
        const uint32_t vector = kLanes * (uint32_t)sizeof(float);
        AscendC::LocalTensor<uint32_t> weightOrder = weightOrderBuf_.Get<uint32_t>();
        StoreOne(preQue_, pre_, token, weightOrder, 0, hc);
        StoreOne(postQue_, post_, token, weightOrder, hc * vector, hc);
        StoreOne(combQue_, comb_, token, combOrderBuf_.Get<uint32_t>(), 2 * hc * vector, hc * hc);
    }

    __aicore__ inline void StoreOne(AscendC::TQue<AscendC::TPosition::VECOUT, 1>& queue, const AscendC::GlobalTensor<float>& out,
                                    uint32_t token, const AscendC::LocalTensor<uint32_t>& order, uint32_t offset, uint32_t width)
    {
        AscendC::LocalTensor<float> gathered = queue.AllocTensor<float>();
        AscendC::Gather(gathered, coefBuf_.Get<float>(), order, offset, tokens_ * width);
        queue.EnQue(gathered);
        AscendC::LocalTensor<float> ready = queue.DeQue<float>();
        AscendC::DataCopyPad(out[(uint64_t)token * width], ready,
                             AscendC::DataCopyExtParams(1, tokens_ * width * (uint32_t)sizeof(float), 0, 0, 0));
        queue.FreeTensor(ready);
    }

    HcPreTiling tiling_;
    AscendC::TPipe* pipe_;
    uint32_t tokens_;
    float scales_[3];
    AscendC::TQue<AscendC::TPosition::VECIN, 2> partialQue_;
    AscendC::TQue<AscendC::TPosition::VECOUT, 1> preQue_;
    AscendC::TQue<AscendC::TPosition::VECOUT, 1> postQue_;
    AscendC::TQue<AscendC::TPosition::VECOUT, 1> combQue_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> rowsBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> coefBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> sumBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> oneBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> apartBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> weightOrderBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> combOrderBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> baseBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> baseBlockBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> scaleBuf_;
    AscendC::GlobalTensor<float> partials_;
    AscendC::GlobalTensor<float> base_;
    AscendC::GlobalTensor<float> scale_;
    AscendC::GlobalTensor<float> post_;
    AscendC::GlobalTensor<float> comb_;
    AscendC::GlobalTensor<float> pre_;
};

// SPDX-License-Identifier: Apache-2.0
// From the sums of an entry to its stored row: division, root mean square norm, rotation, rounding.
#pragma once

#include "kernel_operator.h"

#include "compress_kv.h"

template <typename T>
class CompressKvFinish {
public:
    __aicore__ inline void Init(GM_ADDR norm, GM_ADDR cos, GM_ADDR sin, GM_ADDR out, const CompressKvTiling& tiling,
                                AscendC::TPipe* pipe)
    {
        tiling_ = tiling;
        pipe_ = pipe;
        norm_.SetGlobalBuffer((__gm__ float*)norm);
        cos_.SetGlobalBuffer((__gm__ float*)cos);
        sin_.SetGlobalBuffer((__gm__ float*)sin);
        out_.SetGlobalBuffer((__gm__ T*)out);
        const uint32_t row = tiling_.pitch * (uint32_t)sizeof(float);
        pipe->InitBuffer(normBuf_, row);
        pipe->InitBuffer(squareBuf_, row);
        pipe->InitBuffer(partBuf_, 2 * kLanes * sizeof(float));
        pipe->InitBuffer(rmsBuf_, 32);
        pipe->InitBuffer(rmsBlockBuf_, 8 * 32);
        pipe->InitBuffer(outQue_, 2, tiling_.pitch * sizeof(T));
        if (tiling_.half == 0) return;
        const uint32_t lanes = tiling_.rotaryLanes * (uint32_t)sizeof(float);
        pipe->InitBuffer(angleQue_, 1, 2 * HalfPitch() * sizeof(float));
        pipe->InitBuffer(tableBuf_, kTables * lanes);
        pipe->InitBuffer(turnedBuf_, 3 * lanes);
    }

    __aicore__ inline void Prepare()
    {
        const AscendC::DataCopyExtParams row(1, tiling_.headDim * (uint32_t)sizeof(float), 0, 0, 0);
        const AscendC::DataCopyPadExtParams<float> zeros(true, 0, (uint8_t)(tiling_.pitch - tiling_.headDim), 0.0f);
        AscendC::DataCopyPad(normBuf_.template Get<float>(), norm_, row, zeros);
        const AscendC::TEventID landed = pipe_->FetchEventID(AscendC::HardEvent::MTE2_V);
        AscendC::SetFlag<AscendC::HardEvent::MTE2_V>(landed);
        AscendC::WaitFlag<AscendC::HardEvent::MTE2_V>(landed);
        AscendC::Duplicate(rmsBuf_.template Get<float>(), 1.0f, 8);
        if (tiling_.half != 0) FillTables();
    }

    /// Stores total / power. Both rows are overwritten.
    __aicore__ inline void Process(const AscendC::LocalTensor<float>& total, const AscendC::LocalTensor<float>& power, uint32_t token,
                                   uint32_t slot)
    {
        AscendC::Div(total, total, power, (int32_t)tiling_.pitch);
        AscendC::PipeBarrier<PIPE_V>();
        RoundEntry(total, power);
        Normalise(total);
        RoundEntry(total, power);
        if (tiling_.half != 0) {
            Rotate(total, token);
            if (tiling_.entryDtype != tiling_.outDtype) RoundEntry(total, power);
        }
        AscendC::LocalTensor<T> made = outQue_.template AllocTensor<T>();
        if constexpr (AscendC::IsSameType<T, float>::value) {
            AscendC::Muls(made, total, 1.0f, (int32_t)tiling_.pitch);
        } else {
            AscendC::Cast(made, total, AscendC::RoundMode::CAST_RINT, tiling_.pitch);
        }
        outQue_.EnQue(made);
        AscendC::LocalTensor<T> ready = outQue_.template DeQue<T>();
        const uint64_t row = tiling_.dense != 0 ? token : slot;
        AscendC::DataCopyPad(out_[row * tiling_.headDim], ready,
                             AscendC::DataCopyExtParams(1, tiling_.headDim * (uint32_t)sizeof(T), 0, 0, 0));
        outQue_.FreeTensor(ready);
        AscendC::PipeBarrier<PIPE_V>();
    }

private:
    static constexpr uint32_t kLanes = 64;  // floats of a repeat
    enum Table : uint32_t { kPartner, kAngle, kKeeps, kTurns, kSign, kTables };

    __aicore__ inline uint32_t HalfPitch() const { return (tiling_.half + 7) / 8 * 8; }

    template <typename U>
    __aicore__ inline AscendC::LocalTensor<U> TableOf(uint32_t table)
    {
        return tableBuf_.template Get<U>()[table * tiling_.rotaryLanes];
    }

    /// For each channel from rotaryStart on: byte offset of its partner in the row and of its angle, whether it keeps its value
    /// or turns, and the sign of the partner's share. Channels beside the pairs, of which there are few if any, are corrected.
    __aicore__ inline void FillTables()
    {
        const uint32_t first = tiling_.headDim - 2 * tiling_.half;
        const uint32_t firstLane = first - tiling_.rotaryStart;
        const uint32_t endLane = tiling_.headDim - tiling_.rotaryStart;
        FillPairs(first, firstLane);
        if (firstLane == 0 && endLane == tiling_.rotaryLanes) return;
        const AscendC::TEventID made = pipe_->FetchEventID(AscendC::HardEvent::V_S);
        AscendC::SetFlag<AscendC::HardEvent::V_S>(made);
        AscendC::WaitFlag<AscendC::HardEvent::V_S>(made);
        for (uint32_t lane = 0; lane < firstLane; ++lane) Keep(lane);
        for (uint32_t lane = endLane; lane < tiling_.rotaryLanes; ++lane) Keep(lane);
        const AscendC::TEventID filled = pipe_->FetchEventID(AscendC::HardEvent::S_V);
        AscendC::SetFlag<AscendC::HardEvent::S_V>(filled);
        AscendC::WaitFlag<AscendC::HardEvent::S_V>(filled);
    }

    /// The tables as if all lanes belonged to pairs: of member m, the partner is m + 1 - 2 (m mod 2) and the angle m / 2.
    __aicore__ inline void FillPairs(uint32_t first, uint32_t firstLane)
    {
        const int32_t count = (int32_t)tiling_.rotaryLanes;
        const int32_t size = (int32_t)sizeof(float);
        AscendC::LocalTensor<int32_t> partner = TableOf<int32_t>(kPartner);
        AscendC::LocalTensor<int32_t> angle = TableOf<int32_t>(kAngle);
        AscendC::LocalTensor<int32_t> member = turnedBuf_.template Get<int32_t>();
        AscendC::LocalTensor<int32_t> odd = member[count];
        AscendC::LocalTensor<float> sign = TableOf<float>(kSign);
        AscendC::CreateVecIndex(member, -(int32_t)firstLane, (uint32_t)count);
        AscendC::Duplicate(TableOf<float>(kKeeps), 0.0f, count);
        AscendC::Duplicate(TableOf<float>(kTurns), 1.0f, count);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::ShiftRight(angle, member, (int32_t)1, count);
        AscendC::Adds(partner, member, (int32_t)(first + 1), count);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Muls(odd, angle, (int32_t)2, count);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Sub(odd, member, odd, count);
        AscendC::Muls(angle, angle, size, count);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Cast(sign, odd, AscendC::RoundMode::CAST_NONE, (uint32_t)count);
        AscendC::Muls(odd, odd, (int32_t)2, count);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Sub(partner, partner, odd, count);
        AscendC::Muls(sign, sign, 2.0f, count);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Muls(partner, partner, size, count);
        AscendC::Adds(sign, sign, -1.0f, count);
    }

    /// The channel of a lane takes no part in the rotation.
    __aicore__ inline void Keep(uint32_t lane)
    {
        TableOf<uint32_t>(kPartner).SetValue(lane, (tiling_.rotaryStart + lane) * (uint32_t)sizeof(float));
        TableOf<uint32_t>(kAngle).SetValue(lane, 0);
        TableOf<float>(kKeeps).SetValue(lane, 1.0f);
        TableOf<float>(kTurns).SetValue(lane, 0.0f);
        TableOf<float>(kSign).SetValue(lane, 0.0f);
    }

    /// The row as the entry's dtype holds it, still in float. `scratch` has room for a row.
    __aicore__ inline void RoundEntry(const AscendC::LocalTensor<float>& row, const AscendC::LocalTensor<float>& scratch)
    {
        if (tiling_.entryDtype == COMPRESS_KV_BFLOAT16) {
            RoundTo(row, scratch.template ReinterpretCast<bfloat16_t>());
        } else if (tiling_.entryDtype == COMPRESS_KV_FLOAT16) {
            RoundTo(row, scratch.template ReinterpretCast<half>());
        }
    }

    template <typename U>
    __aicore__ inline void RoundTo(const AscendC::LocalTensor<float>& row, const AscendC::LocalTensor<U>& narrow)
    {
        AscendC::Cast(narrow, row, AscendC::RoundMode::CAST_RINT, tiling_.pitch);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Cast(row, narrow, AscendC::RoundMode::CAST_NONE, tiling_.pitch);
        AscendC::PipeBarrier<PIPE_V>();
    }

    /// row /= sqrt(mean of squares + eps), times the weight. Squares are added by trees of 64, then by a tree of those sums.
    __aicore__ inline void Normalise(const AscendC::LocalTensor<float>& row)
    {
        const uint32_t full = tiling_.pitch / kLanes;
        const uint32_t tail = tiling_.pitch % kLanes;
        AscendC::LocalTensor<float> square = squareBuf_.template Get<float>();
        AscendC::LocalTensor<float> part = partBuf_.template Get<float>();
        AscendC::LocalTensor<float> rms = rmsBuf_.template Get<float>();
        AscendC::LocalTensor<float> block = rmsBlockBuf_.template Get<float>();
        AscendC::Mul(square, row, row, (int32_t)tiling_.pitch);
        AscendC::PipeBarrier<PIPE_V>();
        if (full != 0) AscendC::WholeReduceSum(part, square, (int32_t)kLanes, (int32_t)full, 1, 1, 8);
        if (tail != 0) {
            AscendC::PipeBarrier<PIPE_V>();
            AscendC::WholeReduceSum(part[full], square[full * kLanes], (int32_t)tail, 1, 1, 1, 8);
        }
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::WholeReduceSum(rms, part, (int32_t)(full + (tail != 0 ? 1 : 0)), 1, 1, 1, 8);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Muls(rms, rms, tiling_.inverseDim, 1);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Adds(rms, rms, tiling_.eps, 1);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Sqrt(rms, rms, 1);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Brcb(block, rms, 1, AscendC::BrcbRepeatParams(1, 8));
        AscendC::PipeBarrier<PIPE_V>();
        const AscendC::BinaryRepeatParams byOne(1, 1, 0, 8, 8, 0);
        if (full != 0) AscendC::Div(row, row, block, (uint64_t)kLanes, (uint8_t)full, byOne);
        if (tail != 0) AscendC::Div(row[full * kLanes], row[full * kLanes], block, (uint64_t)tail, 1, byOne);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Mul(row, row, normBuf_.template Get<float>(), (int32_t)tiling_.pitch);
        AscendC::PipeBarrier<PIPE_V>();
    }

    /// (a, b) -> (a cos - b sin, a sin + b cos) for the pairs of the last channels; the others keep their value.
    __aicore__ inline void Rotate(const AscendC::LocalTensor<float>& row, uint32_t token)
    {
        const AscendC::DataCopyExtParams half(1, tiling_.half * (uint32_t)sizeof(float), 0, 0, 0);
        const AscendC::DataCopyPadExtParams<float> noPad;
        AscendC::LocalTensor<float> loaded = angleQue_.template AllocTensor<float>();
        AscendC::DataCopyPad(loaded, cos_[(uint64_t)token * tiling_.half], half, noPad);
        AscendC::DataCopyPad(loaded[HalfPitch()], sin_[(uint64_t)token * tiling_.half], half, noPad);
        angleQue_.EnQue(loaded);
        AscendC::LocalTensor<float> angles = angleQue_.template DeQue<float>();
        const uint32_t lanes = tiling_.rotaryLanes;
        const int32_t count = (int32_t)lanes;
        AscendC::LocalTensor<float> own = row[tiling_.rotaryStart];
        AscendC::LocalTensor<float> partner = turnedBuf_.template Get<float>();
        AscendC::LocalTensor<float> cos = partner[lanes];
        AscendC::LocalTensor<float> sin = partner[2 * lanes];
        AscendC::Gather(partner, row, TableOf<uint32_t>(kPartner), 0, lanes);
        AscendC::Gather(cos, angles, TableOf<uint32_t>(kAngle), 0, lanes);
        AscendC::Gather(sin, angles, TableOf<uint32_t>(kAngle), HalfPitch() * (uint32_t)sizeof(float), lanes);
        angleQue_.FreeTensor(angles);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Mul(cos, cos, TableOf<float>(kTurns), count);
        AscendC::Mul(sin, sin, TableOf<float>(kSign), count);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Add(cos, cos, TableOf<float>(kKeeps), count);
        AscendC::Mul(partner, partner, sin, count);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Mul(cos, own, cos, count);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Add(own, cos, partner, count);
        AscendC::PipeBarrier<PIPE_V>();
    }

    CompressKvTiling tiling_;
    AscendC::TPipe* pipe_;
    AscendC::TQue<AscendC::TPosition::VECIN, 1> angleQue_;
    AscendC::TQue<AscendC::TPosition::VECOUT, 2> outQue_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> normBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> squareBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> partBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> rmsBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> rmsBlockBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> tableBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> turnedBuf_;
    AscendC::GlobalTensor<float> norm_;
    AscendC::GlobalTensor<float> cos_;
    AscendC::GlobalTensor<float> sin_;
    AscendC::GlobalTensor<T> out_;
};

// SPDX-License-Identifier: Apache-2.0
// The best so far of a stream of (score, number) pairs. Device code.
#pragma once

#include "sort_pairs.h"

#include "index_topk.h"

/// Copies `count` words as they are; any count.
__aicore__ inline void IndexTopkMove(const AscendC::LocalTensor<float>& dst, const AscendC::LocalTensor<float>& src, uint32_t count)
{
    AscendC::Adds(dst.ReinterpretCast<int32_t>(), src.ReinterpretCast<int32_t>(), (int32_t)0, (int32_t)count);
}

/// Buffers that lists may share. `b` is two halves of chosen scores and numbers before it is sorted into.
struct IndexTopkScratch {
    AscendC::LocalTensor<float> a;       // [2 * INDEX_TOPK_CHUNK]
    AscendC::LocalTensor<float> b;       // the same
    AscendC::LocalTensor<float> merged;  // records of a list and of a chunk
    AscendC::LocalTensor<uint8_t> bits;  // [INDEX_TOPK_CHUNK / 8]
};

class IndexTopkBest {
public:
    __aicore__ inline void Init(const AscendC::LocalTensor<float>& records, uint32_t most, AscendC::TPipe* pipe)
    {
        records_ = records;
        most_ = most;
        pipe_ = pipe;
    }

    __aicore__ inline void Clear() { count_ = 0; }
    __aicore__ inline uint32_t Count() const { return count_; }
    __aicore__ inline const AscendC::LocalTensor<float>& Records() const { return records_; }

    /// Takes `count` pairs, whose numbers are all higher than any before; of equal scores the lower number stays. What pads
    /// scores to a multiple of 64 is -inf. Nothing is NaN. Begins with a barrier of its own.
    __aicore__ inline void Add(const AscendC::LocalTensor<float>& scores, const AscendC::LocalTensor<uint32_t>& numbers, uint32_t count,
                               const IndexTopkScratch& scratch)
    {
        if (count == 0) {
            return;
        }
        AscendC::LocalTensor<float> chosen = scores;
        AscendC::LocalTensor<uint32_t> chosenNumbers = numbers;
        if (count_ == most_) {
            chosen = scratch.b;
            chosenNumbers = scratch.b[INDEX_TOPK_CHUNK].ReinterpretCast<uint32_t>();
            count = Filter(chosen, chosenNumbers, scores, numbers, count, scratch);
            if (count == 0) {
                return;
            }
        }
        AscendC::PipeBarrier<PIPE_V>();
        const AscendC::LocalTensor<float> sorted = SortPairs(scratch.a, scratch.b, chosen, chosenNumbers, (count + SORT_RUN - 1) / SORT_RUN, most_);
        const uint32_t added = count < most_ ? count : most_;
        AscendC::PipeBarrier<PIPE_V>();
        if (count_ == 0) {
            IndexTopkMove(records_, sorted, added * SORT_RECORD);
            count_ = added;
            return;
        }
        const uint16_t lengths[4] = {(uint16_t)count_, (uint16_t)added, 0, 0};
        MergePairs(scratch.merged, AscendC::MrgSortSrcList<float>(records_, sorted, records_, records_), lengths, 2);
        count_ = count_ + added < most_ ? count_ + added : most_;
        AscendC::PipeBarrier<PIPE_V>();
        IndexTopkMove(records_, scratch.merged, count_ * SORT_RECORD);
    }

private:
    /// Keeps what is better than the worst of a full list; an equal score loses to the lower number in it.
    __aicore__ inline uint32_t Filter(const AscendC::LocalTensor<float>& chosen, const AscendC::LocalTensor<uint32_t>& chosenNumbers,
                                      const AscendC::LocalTensor<float>& scores, const AscendC::LocalTensor<uint32_t>& numbers, uint32_t count,
                                      const IndexTopkScratch& scratch) const
    {
        const AscendC::TEventID known = pipe_->FetchEventID(AscendC::HardEvent::V_S);
        AscendC::SetFlag<AscendC::HardEvent::V_S>(known);
        AscendC::WaitFlag<AscendC::HardEvent::V_S>(known);
        const float worst = records_.GetValue((most_ - 1) * SORT_RECORD);
        const AscendC::TEventID taken = pipe_->FetchEventID(AscendC::HardEvent::S_V);
        AscendC::SetFlag<AscendC::HardEvent::S_V>(taken);
        AscendC::WaitFlag<AscendC::HardEvent::S_V>(taken);
        const uint32_t padded = (count + 63) / 64 * 64;
        AscendC::CompareScalar(scratch.bits, scores, worst, AscendC::CMPMODE::GT, padded);
        AscendC::Duplicate(chosen, -INDEX_TOPK_INFINITY, (int32_t)padded);
        AscendC::Duplicate(chosenNumbers, (uint32_t)0, (int32_t)padded);
        AscendC::PipeBarrier<PIPE_V>();
        const AscendC::LocalTensor<uint32_t> pattern = scratch.bits.ReinterpretCast<uint32_t>();
        const AscendC::GatherMaskParams whole(1, 1, 8, 8);
        uint64_t kept = 0;
        AscendC::GatherMask(chosenNumbers, numbers, pattern, true, count, whole, kept);
        AscendC::GatherMask(chosen, scores, pattern, true, count, whole, kept);
        return (uint32_t)kept;
    }

    AscendC::LocalTensor<float> records_;
    AscendC::TPipe* pipe_;
    uint32_t most_ = 0;
    uint32_t count_ = 0;
};

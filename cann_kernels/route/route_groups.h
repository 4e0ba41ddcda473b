// SPDX-License-Identifier: Apache-2.0
// The best experts of one token, in groups or not. Device code only.
#pragma once

#include "kernel_operator.h"

#include "route.h"
#include "rows.h"
#include "sort_pairs.h"

constexpr float ROUTE_INFINITY = __builtin_inff();
constexpr float ROUTE_LOWEST = -3.40282347e+38f;  // above -inf, so that a NaN still comes before a lane without an expert

/// The order of NaN in a sort is not defined. `bits` is scratch; count is a multiple of 64. Begins and ends with a barrier.
__aicore__ inline void ReplaceNan(const AscendC::LocalTensor<float>& x, const AscendC::LocalTensor<uint8_t>& bits, uint32_t count)
{
    AscendC::PipeBarrier<PIPE_V>();
    AscendC::Compare(bits, x, x, AscendC::CMPMODE::EQ, count);
    AscendC::PipeBarrier<PIPE_V>();
    AscendC::Select(x, bits, x, ROUTE_LOWEST, AscendC::SELMODE::VSEL_TENSOR_SCALAR_MODE, count);
    AscendC::PipeBarrier<PIPE_V>();
}

/// Every second of `count` values: those of a record's kind. Its scores are 1, its indices 2.
__aicore__ inline void SplitRecords(const AscendC::LocalTensor<float>& dst, const AscendC::LocalTensor<float>& records, uint8_t kind,
                                    uint32_t count)
{
    uint64_t kept = 0;
    AscendC::GatherMask(dst, records, kind, true, count * SORT_RECORD, AscendC::GatherMaskParams(1, 1, 8, 8), kept);
}

class RouteChooser {
public:
    __aicore__ inline void Init(const RouteTiling& tiling, AscendC::TPipe* pipe)
    {
        tiling_ = tiling;
        pipe_ = pipe;
        pipe->InitBuffer(recordBuf_, tiling_.sortLanes * SORT_RECORD * sizeof(float));
        pipe->InitBuffer(mergeBuf_, tiling_.sortLanes * SORT_RECORD * sizeof(float));
        pipe->InitBuffer(indexBuf_, tiling_.sortLanes * sizeof(uint32_t));
        AscendC::CreateVecIndex(indexBuf_.Get<int32_t>(), (int32_t)0, tiling_.sortLanes);
        if (tiling_.numGroups == 1) return;
        pipe->InitBuffer(keptBuf_, (tiling_.sortLanes + SORT_RUN) * sizeof(float));  // the last group is read as a whole repeat
        if (tiling_.isRegrouped != 0) {
            pipe->InitBuffer(groupedBuf_, tiling_.sortLanes * sizeof(float));
            pipe->InitBuffer(sourceBuf_, tiling_.sortLanes * sizeof(uint32_t));
        }
        pipe->InitBuffer(groupSumBuf_, ROUTE_MAX_GROUPS * sizeof(float));
        pipe->InitBuffer(groupRampBuf_, ROUTE_MAX_GROUPS * sizeof(uint32_t));
        pipe->InitBuffer(groupIdBuf_, ROUTE_MAX_GROUPS * sizeof(uint32_t));
        pipe->InitBuffer(bitsBuf_, 32);
        AscendC::CreateVecIndex(groupRampBuf_.Get<int32_t>(), (int32_t)0, ROUTE_MAX_GROUPS);
        AscendC::Duplicate(groupSumBuf_.Get<float>(), -ROUTE_INFINITY, (int32_t)ROUTE_MAX_GROUPS);
        if (tiling_.isRegrouped != 0) Regroup();
    }

    /// ids: the topk best of ranks [expertLanes], best first, and further ones up to 32. Begins behind a barrier, ends with one.
    __aicore__ inline void Choose(const AscendC::LocalTensor<int32_t>& ids, const AscendC::LocalTensor<float>& ranks)
    {
        AscendC::LocalTensor<float> candidates = tiling_.numGroups == 1 ? ranks : KeepGroups(ranks);
        AscendC::LocalTensor<float> sorted = SortPairs(recordBuf_.Get<float>(), mergeBuf_.Get<float>(), candidates,
                                                       indexBuf_.Get<uint32_t>(), tiling_.sortLanes / SORT_RUN, tiling_.topk);
        AscendC::PipeBarrier<PIPE_V>();
        SplitRecords(ids.ReinterpretCast<float>(), sorted, 2, SORT_RUN);
        AscendC::PipeBarrier<PIPE_V>();
    }

private:
    /// Where each lane of the groups, padded to whole runs, comes from. Padding comes from the first lane without an expert.
    __aicore__ inline void Regroup()
    {
        AscendC::LocalTensor<int32_t> index = indexBuf_.Get<int32_t>();
        AscendC::LocalTensor<uint32_t> source = sourceBuf_.Get<uint32_t>();
        Handover<AscendC::HardEvent::V_S>(pipe_);
        for (uint32_t lane = 0; lane < tiling_.sortLanes; ++lane) {
            const uint32_t place = lane % tiling_.groupLanes;
            const bool isPadding = place >= tiling_.groupSize;
            const uint32_t expert = isPadding ? 0 : lane / tiling_.groupLanes * tiling_.groupSize + place;
            index.SetValue(lane, (int32_t)expert);
            source.SetValue(lane, (isPadding ? tiling_.numExperts : expert) * (uint32_t)sizeof(float));
        }
        Handover<AscendC::HardEvent::S_V>(pipe_);
    }

    /// ranks in groups, -inf outside the best ones.
    __aicore__ inline AscendC::LocalTensor<float> KeepGroups(const AscendC::LocalTensor<float>& ranks)
    {
        AscendC::LocalTensor<float> grouped = ranks;
        if (tiling_.isRegrouped != 0) {
            grouped = groupedBuf_.Get<float>();
            AscendC::Gather(grouped, ranks, sourceBuf_.Get<uint32_t>(), 0, tiling_.sortLanes);
            AscendC::PipeBarrier<PIPE_V>();
        }
        SumGroups(grouped);
        SortGroups();
        AscendC::LocalTensor<float> kept = keptBuf_.Get<float>();
        AscendC::LocalTensor<int32_t> groupIds = groupIdBuf_.Get<int32_t>();
        AscendC::Duplicate(kept, -ROUTE_INFINITY, (int32_t)tiling_.sortLanes);
        Handover<AscendC::HardEvent::V_S>(pipe_);
        for (uint32_t i = 0; i < tiling_.topkGroup; ++i) {
            const uint32_t first = (uint32_t)groupIds.GetValue(i) * tiling_.groupLanes;
            AscendC::Adds(kept[first], grouped[first], 0.0f, (int32_t)tiling_.groupLanes);
        }
        Handover<AscendC::HardEvent::S_V>(pipe_);
        AscendC::PipeBarrier<PIPE_V>();
        return kept;
    }

    /// The sum of the two largest of each group.
    __aicore__ inline void SumGroups(const AscendC::LocalTensor<float>& grouped)
    {
        const uint32_t runs = tiling_.groupLanes / SORT_RUN;
        AscendC::LocalTensor<float> records = recordBuf_.Get<float>();
        AscendC::LocalTensor<float> best = keptBuf_.Get<float>();
        if (runs == 1) {
            AscendC::Sort32(records, grouped, indexBuf_.Get<uint32_t>(), (int32_t)tiling_.numGroups);
            AscendC::PipeBarrier<PIPE_V>();
            SplitRecords(best, records, 1, tiling_.sortLanes);
        } else {
            for (uint32_t group = 0; group < tiling_.numGroups; ++group) {
                AscendC::LocalTensor<float> sorted = SortPairs(records, mergeBuf_.Get<float>(), grouped[group * tiling_.groupLanes],
                                                               indexBuf_.Get<uint32_t>(), runs, 2);
                AscendC::PipeBarrier<PIPE_V>();
                SplitRecords(best[group * SORT_RUN], sorted, 1, SORT_RUN);
                AscendC::PipeBarrier<PIPE_V>();
            }
        }
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::WholeReduceSum(groupSumBuf_.Get<float>(), best, 2, (int32_t)tiling_.numGroups, 1, 1, 4);
    }

    /// Ids of the best groups.
    __aicore__ inline void SortGroups()
    {
        const uint32_t runs = (tiling_.numGroups + SORT_RUN - 1) / SORT_RUN;
        AscendC::LocalTensor<float> sums = groupSumBuf_.Get<float>();
        ReplaceNan(sums, bitsBuf_.Get<uint8_t>(), ROUTE_MAX_GROUPS);
        AscendC::LocalTensor<float> sorted = SortPairs(recordBuf_.Get<float>(), mergeBuf_.Get<float>(), sums,
                                                       groupRampBuf_.Get<uint32_t>(), runs, tiling_.topkGroup);
        AscendC::PipeBarrier<PIPE_V>();
        SplitRecords(groupIdBuf_.Get<float>(), sorted, 2, (tiling_.topkGroup + SORT_RUN - 1) / SORT_RUN * SORT_RUN);
    }

    RouteTiling tiling_;
    AscendC::TPipe* pipe_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> recordBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> mergeBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> indexBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> keptBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> groupSumBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> groupRampBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> groupIdBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> bitsBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> groupedBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> sourceBuf_;
};

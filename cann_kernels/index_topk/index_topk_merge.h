// SPDX-License-Identifier: Apache-2.0
// A vector core's second half: merges the lists of one output row, sorts the numbers and writes them. Device code.
#pragma once

#include "index_topk_best.h"
#include "index_topk_memory.h"
#include "index_topk_plan.h"

/// Where the lists of a row are, and how many they are.
struct IndexTopkLists {
    uint64_t place;    // of the first list, in floats
    uint32_t stride;   // between two lists
    uint32_t total;    // entries or blocks behind all lists
    uint32_t perList;  // behind each list but the last
};

class IndexTopkMerge {
public:
    __aicore__ inline void Init(const IndexTopkGm& gm, const IndexTopkTiling& tiling, IndexTopkPlan* plan, const IndexTopkMemory& memory,
                                AscendC::TPipe* pipe)
    {
        tiling_ = tiling;
        plan_ = plan;
        memory_ = memory;
        pipe_ = pipe;
        lists_.SetGlobalBuffer((__gm__ float*)gm.lists);
        entries_.SetGlobalBuffer((__gm__ int32_t*)gm.entries);
        blocks_.SetGlobalBuffer((__gm__ int32_t*)gm.blocks);
    }

    /// Rows of a group: both outputs of all its tokens are dealt to the vector cores in turn.
    __aicore__ inline void Process(uint32_t token, uint32_t tokens, uint32_t parity)
    {
        const uint32_t cores = tiling_.params.numCores * INDEX_TOPK_SIDES;
        const uint32_t outputs = tiling_.params.numCandidates > 0 ? 2 : 1;
        AscendC::Duplicate(memory_.none, (int32_t)-1, (int32_t)INDEX_TOPK_WIDE);
        for (uint32_t job = (uint32_t)AscendC::GetBlockIdx(); job < tokens * outputs; job += cores) {
            const uint32_t inGroup = job / outputs;
            const IndexTopkRow row = plan_->Row(token + inGroup);
            if (job % outputs == 0) {
                Entries(token + inGroup, inGroup, parity, row);
            } else {
                Blocks(token + inGroup, inGroup, parity, row);
            }
        }
    }

private:
    __aicore__ inline IndexTopkLists Lists(uint32_t inGroup, uint32_t item, uint32_t parity, uint32_t offset, uint32_t total, uint32_t perList) const
    {
        const uint32_t records = tiling_.entryRecords + tiling_.blockRecords;
        const uint64_t slots = (uint64_t)tiling_.groupTokens * (tiling_.fullItems + tiling_.restrictedItems);
        const uint64_t slot = parity * slots + plan_->Slot(inGroup, item);
        return {(slot * records + offset) * SORT_RECORD, records * SORT_RECORD, total, perList};
    }

    __aicore__ inline void Entries(uint32_t token, uint32_t inGroup, uint32_t parity, const IndexTopkRow& row)
    {
        const uint32_t topk = tiling_.params.topk;
        if (row.restricted) {
            Choose(Lists(inGroup, tiling_.fullItems, parity, 0, row.restrictedCount, tiling_.segment), topk);
        } else if (row.visible > topk) {
            Choose(Lists(inGroup, 0, parity, 0, row.visible, tiling_.segment), topk);
        } else {
            FirstNumbers(row.visible, topk);
        }
        Store(entries_[(uint64_t)token * topk], topk);
    }

    __aicore__ inline void Blocks(uint32_t token, uint32_t inGroup, uint32_t parity, const IndexTopkRow& row)
    {
        const uint32_t width = tiling_.params.numCandidates;
        if (!row.ranked) {
            FirstNumbers(row.numBlocks, width);
            Store(blocks_[(uint64_t)token * width], width);
            return;
        }
        if (tiling_.numRanked > 0) {
            const uint32_t perList = tiling_.segment / tiling_.params.candidateBlock;
            Choose(Lists(inGroup, 0, parity, tiling_.entryRecords, row.numBlocks - 1, perList), tiling_.numRanked);
        }
        // The newest block has the highest number.
        Signal<AscendC::HardEvent::V_S>();
        memory_.row.SetValue(tiling_.numRanked, (int32_t)row.numBlocks - 1);
        Signal<AscendC::HardEvent::S_MTE3>();
        Store(blocks_[(uint64_t)token * width], width);
    }

    template <AscendC::HardEvent event>
    __aicore__ inline void Signal()
    {
        const AscendC::TEventID id = pipe_->FetchEventID(event);
        AscendC::SetFlag<event>(id);
        AscendC::WaitFlag<event>(id);
    }

    /// 0 .. count - 1, as many as fit, then -1.
    __aicore__ inline void FirstNumbers(uint32_t count, uint32_t width)
    {
        const uint32_t padded = IndexTopkUp(width, 64);
        AscendC::CompareScalar(memory_.rowBits, memory_.realRamp, (float)(int32_t)count, AscendC::CMPMODE::LT, padded);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Select(memory_.row.ReinterpretCast<float>(), memory_.rowBits, memory_.ramp.ReinterpretCast<float>(),
                        memory_.none.ReinterpretCast<float>(), AscendC::SELMODE::VSEL_TENSOR_TENSOR_MODE, padded);
    }

    /// The `most` best of the lists, their numbers ascending in the row, then -1.
    __aicore__ inline void Choose(const IndexTopkLists& lists, uint32_t most)
    {
        const AscendC::LocalTensor<float> current = memory_.current;
        AscendC::Duplicate(current, 0.0f, (int32_t)(IndexTopkUp(most, 64) * SORT_RECORD));
        AscendC::Duplicate(memory_.row, (int32_t)-1, (int32_t)INDEX_TOPK_WIDE);
        uint32_t count = 0;
        for (uint32_t done = 0; done < lists.total;) {
            // Three lists are merged into what there is; what there is comes first, so that equal scores keep their order.
            uint16_t lengths[4] = {(uint16_t)count, 0, 0, 0};
            uint32_t sources = 1;
            uint32_t sum = count;
            Signal<AscendC::HardEvent::V_MTE2>();  // with the event behind the copies, also a barrier for vector instructions
            for (; sources < 4 && done < lists.total; ++sources) {
                const uint32_t behind = IndexTopkLeast(lists.perList, lists.total - done);
                const uint32_t length = IndexTopkLeast(behind, most);
                const uint64_t from = lists.place + (uint64_t)(done / lists.perList) * lists.stride;
                AscendC::DataCopyPad(Incoming(sources - 1), lists_[from],
                                     AscendC::DataCopyExtParams(1, length * SORT_RECORD * (uint32_t)sizeof(float), 0, 0, 0),
                                     AscendC::DataCopyPadExtParams<float>(false, 0, 0, 0.0f));
                lengths[sources] = (uint16_t)length;
                sum += length;
                done += behind;
            }
            Signal<AscendC::HardEvent::MTE2_V>();
            count = IndexTopkLeast(sum, most);
            if (sources == 2 && lengths[0] == 0) {
                IndexTopkMove(current, Incoming(0), count * SORT_RECORD);
                break;
            }
            const AscendC::LocalTensor<float> merged = memory_.area[3 * LIST];
            const AscendC::MrgSortSrcList<float> from(current, Incoming(0), Incoming(1), Incoming(2));
            MergePairs(merged, from, lengths, sources);
            AscendC::PipeBarrier<PIPE_V>();
            IndexTopkMove(current, merged, count * SORT_RECORD);
        }
        Ascend(count);
    }

    static constexpr uint32_t LIST = INDEX_TOPK_WIDE * SORT_RECORD;

    __aicore__ inline AscendC::LocalTensor<float> Incoming(uint32_t list) const { return memory_.area[list * LIST]; }

    /// Numbers of the first `count` records, lowest first, to the row: sorted by what they are below zero.
    __aicore__ inline void Ascend(uint32_t count)
    {
        const uint32_t padded = IndexTopkUp(count, 64);
        const int32_t runs = (int32_t)(padded / SORT_RUN);
        const AscendC::LocalTensor<float> scores = memory_.area;
        const AscendC::LocalTensor<float> numbers = memory_.area[INDEX_TOPK_WIDE];
        const AscendC::LocalTensor<float> a = memory_.area[2 * INDEX_TOPK_WIDE];
        const AscendC::LocalTensor<float> b = memory_.area[2 * INDEX_TOPK_WIDE + LIST];
        AscendC::PipeBarrier<PIPE_V>();
        if (count == 0) {
            return;
        }
        AscendC::Extract(scores, numbers.ReinterpretCast<uint32_t>(), memory_.current, runs);
        AscendC::CompareScalar(memory_.rowBits, memory_.realRamp, (float)(int32_t)count, AscendC::CMPMODE::LT, padded);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Cast(scores, numbers.ReinterpretCast<int32_t>(), AscendC::RoundMode::CAST_RINT, padded);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Muls(scores, scores, -1.0f, (int32_t)padded);
        AscendC::Select(numbers, memory_.rowBits, numbers, memory_.none.ReinterpretCast<float>(), AscendC::SELMODE::VSEL_TENSOR_TENSOR_MODE, padded);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Select(scores, memory_.rowBits, scores, -INDEX_TOPK_INFINITY, AscendC::SELMODE::VSEL_TENSOR_SCALAR_MODE, padded);
        AscendC::PipeBarrier<PIPE_V>();
        const AscendC::LocalTensor<float> sorted = SortPairs(a, b, scores, numbers.ReinterpretCast<uint32_t>(), (uint32_t)runs, count);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Extract(scores, memory_.row.ReinterpretCast<uint32_t>(), sorted, (int32_t)((count + SORT_RUN - 1) / SORT_RUN));
    }

    __aicore__ inline void Store(const AscendC::GlobalTensor<int32_t>& dst, uint32_t width)
    {
        Signal<AscendC::HardEvent::V_MTE3>();
        AscendC::DataCopyPad(dst, memory_.row, AscendC::DataCopyExtParams(1, width * (uint32_t)sizeof(int32_t), 0, 0, 0));
        Signal<AscendC::HardEvent::MTE3_V>();
    }

    IndexTopkTiling tiling_;
    IndexTopkPlan* plan_;
    IndexTopkMemory memory_;
    AscendC::TPipe* pipe_;
    AscendC::GlobalTensor<float> lists_;
    AscendC::GlobalTensor<int32_t> entries_;
    AscendC::GlobalTensor<int32_t> blocks_;
};

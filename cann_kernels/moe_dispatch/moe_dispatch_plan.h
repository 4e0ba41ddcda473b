// SPDX-License-Identifier: Apache-2.0
// The first two phases of moe_dispatch: which row each choice gets. Device code only.
#pragma once

#include "kernel_operator.h"

#include "moe_dispatch.h"
#include "rows.h"

class MoeDispatchPlan {
public:
    __aicore__ inline void Init(GM_ADDR ids, GM_ADDR weights, GM_ADDR rowWeights, GM_ADDR counts, GM_ADDR rowOf, GM_ADDR rankCounts,
                                GM_ADDR workspace, const MoeDispatchTiling& tiling, AscendC::TPipe* pipe)
    {
        tiling_ = tiling;
        pipe_ = pipe;
        ids_.SetGlobalBuffer((__gm__ int32_t*)ids);
        weights_.SetGlobalBuffer((__gm__ float*)weights);
        rowWeights_.SetGlobalBuffer((__gm__ float*)rowWeights);
        counts_.SetGlobalBuffer((__gm__ int32_t*)counts);
        rowOf_.SetGlobalBuffer((__gm__ int32_t*)rowOf);
        rankCounts_.SetGlobalBuffer((__gm__ int32_t*)rankCounts);
        histograms_.SetGlobalBuffer((__gm__ int32_t*)workspace);
        tokens_ = RunOfBlock(tiling_.numTokens, tiling_.tokensPerBlock);
        const uint32_t counters = tiling_.expertLanes * sizeof(int32_t);
        pipe->InitBuffer(idsBuf_, MOE_DISPATCH_CHUNK * sizeof(int32_t));
        pipe->InitBuffer(rowOfBuf_, MOE_DISPATCH_CHUNK * sizeof(int32_t));
        pipe->InitBuffer(weightQue_, 1, MOE_DISPATCH_CHUNK * sizeof(float));
        pipe->InitBuffer(spreadQue_, 1, MOE_DISPATCH_CHUNK * 32);
        pipe->InitBuffer(histogramQue_, 2, MOE_DISPATCH_HISTOGRAM_LANES * sizeof(int32_t));
        pipe->InitBuffer(totalBuf_, counters);
        pipe->InitBuffer(beforeBuf_, counters);
        pipe->InitBuffer(nextBuf_, counters);
        pipe->InitBuffer(sumBuf_, counters);
        pipe->InitBuffer(baseBuf_, COLUMNS * sizeof(int32_t));
    }

    /// Phase 1: this core's histogram goes to the workspace.
    __aicore__ inline void Count()
    {
        AscendC::LocalTensor<int32_t> ids = idsBuf_.Get<int32_t>();
        AscendC::LocalTensor<int32_t> histogram = totalBuf_.Get<int32_t>();
        AscendC::Duplicate(histogram, (int32_t)0, (int32_t)tiling_.expertLanes);
        Handover<AscendC::HardEvent::V_S>(pipe_);
        for (uint64_t token = tokens_.begin; token < tokens_.end; token += tiling_.tokensPerChunk) {
            const uint32_t choices = ChoicesOfChunk(token);
            StageScalars(ids, ids_[token * tiling_.topk], choices, pipe_);
            for (uint32_t i = 0; i < choices; ++i) {
                const int32_t expert = ids.GetValue(i);
                if (!IsSent(expert)) continue;
                const uint32_t counter = CounterOf(expert);
                histogram.SetValue(counter, histogram.GetValue(counter) + 1);
            }
        }
        Handover<AscendC::HardEvent::S_MTE3>(pipe_);
        AscendC::DataCopy(histograms_[(uint64_t)AscendC::GetBlockIdx() * tiling_.expertLanes], histogram, tiling_.expertLanes);
    }

    /// Phase 2: rows of the choices of this core's tokens, and their weights at those rows.
    __aicore__ inline void Place()
    {
        SumHistograms();
        FindFirstRows();
        AscendC::LocalTensor<int32_t> ids = idsBuf_.Get<int32_t>();
        AscendC::LocalTensor<int32_t> rowOf = rowOfBuf_.Get<int32_t>();
        for (uint64_t token = tokens_.begin; token < tokens_.end; token += tiling_.tokensPerChunk) {
            const uint32_t choices = ChoicesOfChunk(token);
            SpreadWeights(token, choices);
            StageScalars(ids, ids_[token * tiling_.topk], choices, pipe_);
            PlaceChunk(ids, rowOf, choices);
            Handover<AscendC::HardEvent::S_MTE3>(pipe_);
            AscendC::DataCopyPad(rowOf_[token * tiling_.topk], rowOf,
                                 AscendC::DataCopyExtParams(1, choices * (uint32_t)sizeof(int32_t), 0, 0, 0));
            Handover<AscendC::HardEvent::MTE3_S>(pipe_);
        }
    }

    /// For the last phase: experts and rows of the choices from `token` on, as scalars. Returns the first token not staged.
    __aicore__ inline uint32_t Stage(uint32_t token)
    {
        const uint32_t end = tiling_.isSplit != 0 ? tiling_.numTokens : (uint32_t)tokens_.end;  // rows that others place may not be there
        const uint32_t tokens = SmallerOf(end - token, tiling_.tokensPerChunk);
        const uint64_t first = (uint64_t)token * tiling_.topk;
        if (tiling_.hasSmooth != 0) StageScalars(idsBuf_.Get<int32_t>(), ids_[first], tokens * tiling_.topk, pipe_);
        StageScalars(rowOfBuf_.Get<int32_t>(), rowOf_[first], tokens * tiling_.topk, pipe_);
        staged_ = token;
        return token + tokens;
    }

    /// Row of a choice of a staged token, -1 for none.
    __aicore__ inline int32_t RowOf(uint32_t token, uint32_t choice)
    {
        return rowOfBuf_.Get<int32_t>().GetValue((token - staged_) * tiling_.topk + choice);
    }

    __aicore__ inline int32_t ExpertOf(uint32_t token, uint32_t choice)
    {
        return idsBuf_.Get<int32_t>().GetValue((token - staged_) * tiling_.topk + choice);
    }

private:
    static constexpr uint32_t COLUMNS = 8;  // counters of a block of 32 bytes

    __aicore__ inline bool IsSent(int32_t expert) const
    {
        return expert >= (int32_t)tiling_.firstExpert && expert < (int32_t)tiling_.endExpert;
    }

    __aicore__ inline uint32_t ChoicesOfChunk(uint64_t token) const
    {
        return SmallerOf((uint32_t)(tokens_.end - token), tiling_.tokensPerChunk) * tiling_.topk;
    }

    /// Over all cores, and over the cores before this one.
    __aicore__ inline void SumHistograms()
    {
        const uint32_t lanes = tiling_.expertLanes;
        const uint32_t self = (uint32_t)AscendC::GetBlockIdx();
        const uint32_t most = MOE_DISPATCH_HISTOGRAM_LANES / lanes;
        AscendC::LocalTensor<int32_t> total = totalBuf_.Get<int32_t>();
        AscendC::LocalTensor<int32_t> before = beforeBuf_.Get<int32_t>();
        AscendC::Duplicate(total, (int32_t)0, (int32_t)lanes);
        AscendC::Duplicate(before, (int32_t)0, (int32_t)lanes);
        for (uint32_t block = 0; block < tiling_.numBlocks; block += most) {
            const uint32_t blocks = SmallerOf(tiling_.numBlocks - block, most);
            AscendC::LocalTensor<int32_t> rows = histogramQue_.AllocTensor<int32_t>();
            AscendC::DataCopy(rows, histograms_[(uint64_t)block * lanes], blocks * lanes);
            histogramQue_.EnQue(rows);
            rows = histogramQue_.DeQue<int32_t>();
            for (uint32_t i = 0; i < blocks; ++i) {
                AscendC::PipeBarrier<PIPE_V>();
                AscendC::Add(total, total, rows[i * lanes], (int32_t)lanes);
                if (block + i < self) AscendC::Add(before, before, rows[i * lanes], (int32_t)lanes);
            }
            histogramQue_.FreeTensor(rows);
        }
    }

    /// Counters of consecutive experts are a block apart, so that a running sum over experts adds whole blocks: they are a matrix of
    /// eight columns, read column by column.
    __aicore__ inline uint32_t CounterOf(uint32_t expert) const
    {
        const uint32_t columnRows = tiling_.expertLanes / COLUMNS;
        return expert % columnRows * COLUMNS + expert / columnRows;
    }

    /// First row of each expert's next choice of this core. The first core hands out the counts.
    __aicore__ inline void FindFirstRows()
    {
        const auto lanes = (int32_t)tiling_.expertLanes;
        AscendC::LocalTensor<int32_t> total = totalBuf_.Get<int32_t>();
        AscendC::LocalTensor<int32_t> next = nextBuf_.Get<int32_t>();
        AscendC::LocalTensor<int32_t> base = baseBuf_.Get<int32_t>();
        AscendC::PipeBarrier<PIPE_V>();
        const AscendC::LocalTensor<int32_t> sums = SumColumns(total);
        Handover<AscendC::HardEvent::V_S>(pipe_);
        int32_t row = 0;
        for (uint32_t column = 0; column < COLUMNS; ++column) {
            base.SetValue(column, row);
            row += sums.GetValue(tiling_.expertLanes - COLUMNS + column);
        }
        Handover<AscendC::HardEvent::S_V>(pipe_);
        AscendC::Sub(next, sums, total, lanes);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Add(next, next, base, (uint64_t)64, (uint8_t)(lanes / 64), AscendC::BinaryRepeatParams(1, 1, 0, 8, 8, 0));
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Add(next, next, beforeBuf_.Get<int32_t>(), lanes);
        Handover<AscendC::HardEvent::V_S>(pipe_);
        if (AscendC::GetBlockIdx() == 0) WriteCounts(total, next);
    }

    /// Running sums down each column, each counter included: over runs of 2, 4, 8 ... rows.
    __aicore__ inline AscendC::LocalTensor<int32_t> SumColumns(const AscendC::LocalTensor<int32_t>& counts)
    {
        AscendC::LocalTensor<int32_t> from = counts;
        AscendC::LocalTensor<int32_t> to = sumBuf_.Get<int32_t>();
        AscendC::LocalTensor<int32_t> spare = nextBuf_.Get<int32_t>();
        for (uint32_t step = COLUMNS; step < tiling_.expertLanes; step *= 2) {
            AscendC::Adds(to, from, (int32_t)0, (int32_t)step);
            AscendC::Add(to[step], from[step], from, (int32_t)(tiling_.expertLanes - step));
            AscendC::PipeBarrier<PIPE_V>();
            from = to;
            to = spare;
            spare = from;
        }
        return from;
    }

    /// `first` holds the first row of each expert, as no core comes before this one.
    __aicore__ inline void WriteCounts(const AscendC::LocalTensor<int32_t>& total, const AscendC::LocalTensor<int32_t>& first)
    {
        const uint32_t columnRows = tiling_.expertLanes / COLUMNS;
        AscendC::LocalTensor<int32_t> counts = sumBuf_.Get<int32_t>();
        AscendC::LocalTensor<int32_t> offsets = beforeBuf_.Get<int32_t>();
        AscendC::CreateVecIndex(offsets, (int32_t)0, columnRows);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Muls(offsets, offsets, (int32_t)(COLUMNS * sizeof(int32_t)), (int32_t)columnRows);
        AscendC::PipeBarrier<PIPE_V>();
        for (uint32_t column = 1; column < COLUMNS; ++column) {
            AscendC::Adds(offsets[column * columnRows], offsets, (int32_t)(column * sizeof(int32_t)), (int32_t)columnRows);
        }
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Gather(counts, total, offsets.ReinterpretCast<uint32_t>(), 0, tiling_.expertLanes);
        Handover<AscendC::HardEvent::V_MTE3>(pipe_);
        AscendC::DataCopyPad(counts_, counts, AscendC::DataCopyExtParams(1, tiling_.numExperts * (uint32_t)sizeof(int32_t), 0, 0, 0));
        if (tiling_.expertsPerRank == 0) return;
        AscendC::LocalTensor<int32_t> ranks = rowOfBuf_.Get<int32_t>();
        const uint32_t numRanks = tiling_.numExperts / tiling_.expertsPerRank;
        for (uint32_t rank = 0; rank < numRanks; ++rank) {
            const uint32_t last = CounterOf((rank + 1) * tiling_.expertsPerRank - 1);
            const int32_t end = first.GetValue(last) + total.GetValue(last);
            ranks.SetValue(rank, end - first.GetValue(CounterOf(rank * tiling_.expertsPerRank)));
        }
        Handover<AscendC::HardEvent::S_MTE3>(pipe_);
        AscendC::DataCopyPad(rankCounts_, ranks, AscendC::DataCopyExtParams(1, numRanks * (uint32_t)sizeof(int32_t), 0, 0, 0));
        Handover<AscendC::HardEvent::MTE3_S>(pipe_);
    }

    /// A copy to global memory starts at a multiple of 32 bytes, so each weight gets a block of its own.
    __aicore__ inline void SpreadWeights(uint64_t token, uint32_t choices)
    {
        AscendC::LocalTensor<float> weights = weightQue_.AllocTensor<float>();
        AscendC::DataCopyPad(weights, weights_[token * tiling_.topk],
                             AscendC::DataCopyExtParams(1, choices * (uint32_t)sizeof(float), 0, 0, 0),
                             AscendC::DataCopyPadExtParams<float>(true, 0, (uint8_t)((8 - choices % 8) % 8), 0.0f));
        weightQue_.EnQue(weights);
        weights = weightQue_.DeQue<float>();
        AscendC::LocalTensor<float> spread = spreadQue_.AllocTensor<float>();
        AscendC::Brcb(spread, weights, (uint8_t)((choices + 7) / 8), AscendC::BrcbRepeatParams(1, 8));
        weightQue_.FreeTensor(weights);
        spreadQue_.EnQue(spread);
    }

    __aicore__ inline void PlaceChunk(const AscendC::LocalTensor<int32_t>& ids, const AscendC::LocalTensor<int32_t>& rowOf,
                                      uint32_t choices)
    {
        AscendC::LocalTensor<int32_t> next = nextBuf_.Get<int32_t>();
        AscendC::LocalTensor<float> spread = spreadQue_.DeQue<float>();
        const AscendC::DataCopyExtParams oneValue(1, (uint32_t)sizeof(float), 0, 0, 0);
        for (uint32_t i = 0; i < choices; ++i) {
            const int32_t expert = ids.GetValue(i);
            int32_t row = -1;
            if (IsSent(expert)) {
                const uint32_t counter = CounterOf(expert);
                row = next.GetValue(counter);
                next.SetValue(counter, row + 1);
                AscendC::DataCopyPad(rowWeights_[row], spread[i * 8], oneValue);
            }
            rowOf.SetValue(i, row);
        }
        spreadQue_.FreeTensor(spread);
    }

    MoeDispatchTiling tiling_;
    AscendC::TPipe* pipe_;
    ItemRun tokens_;
    uint32_t staged_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> idsBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> rowOfBuf_;
    AscendC::TQue<AscendC::TPosition::VECIN, 1> weightQue_;
    AscendC::TQue<AscendC::TPosition::VECOUT, 1> spreadQue_;
    AscendC::TQue<AscendC::TPosition::VECIN, 1> histogramQue_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> totalBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> beforeBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> nextBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> sumBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> baseBuf_;
    AscendC::GlobalTensor<int32_t> ids_;
    AscendC::GlobalTensor<float> weights_;
    AscendC::GlobalTensor<float> rowWeights_;
    AscendC::GlobalTensor<int32_t> counts_;
    AscendC::GlobalTensor<int32_t> rowOf_;
    AscendC::GlobalTensor<int32_t> rankCounts_;
    AscendC::GlobalTensor<int32_t> histograms_;
};

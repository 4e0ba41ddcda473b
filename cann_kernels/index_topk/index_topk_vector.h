// SPDX-License-Identifier: Apache-2.0
// A vector core's first half: weighs the products of its items, sums over heads and keeps the best of each item. Device code.
#pragma once

#include "index_topk_best.h"
#include "index_topk_memory.h"
#include "index_topk_plan.h"

/// C: type of a product. int32_t products are of int8 values, whose scales are in qScale and keyScale.
template <typename C>
class IndexTopkScan {
public:
    __aicore__ inline void Init(const IndexTopkGm& gm, const IndexTopkTiling& tiling, IndexTopkPlan* plan, const IndexTopkMemory& memory,
                                AscendC::TPipe* pipe)
    {
        tiling_ = tiling;
        plan_ = plan;
        pipe_ = pipe;
        memory_ = memory;
        weights_.SetGlobalBuffer((__gm__ float*)gm.weights);
        qScale_.SetGlobalBuffer((__gm__ float*)gm.qScale);
        keyScale_.SetGlobalBuffer((__gm__ float*)gm.keyScale);
        table_.SetGlobalBuffer((__gm__ int32_t*)gm.table);
        candidates_.SetGlobalBuffer((__gm__ int32_t*)gm.candidates);
        lists_.SetGlobalBuffer((__gm__ float*)gm.lists);
        const uint64_t block = (uint64_t)(AscendC::GetBlockIdx() / INDEX_TOPK_SIDES);
        ring_.SetGlobalBuffer((__gm__ C*)gm.ring + (block * INDEX_TOPK_STAGES * INDEX_TOPK_SIDES + (uint64_t)AscendC::GetSubBlockIdx()) * SIDE);
        entries_.Init(memory.entryRecords, tiling.params.topk, pipe);
        blocks_.Init(memory.blockRecords, tiling.numRanked, pipe);
        for (uint32_t i = 0; i < 2; ++i) {
            productsFree_[i] = pipe->AllocEventID<AscendC::HardEvent::V_MTE2>();
            productsReady_[i] = pipe->AllocEventID<AscendC::HardEvent::MTE2_V>();
        }
    }

    /// The items of a group, whose lists go to the half `parity` of the lists.
    __aicore__ inline void Process(uint32_t token, uint32_t tokens, uint32_t parity)
    {
        const IndexTopkParams& params = tiling_.params;
        parity_ = parity;
        Prepare();
        for (uint32_t i = 0; i < 2; ++i) {
            AscendC::SetFlag<AscendC::HardEvent::V_MTE2>(productsFree_[i]);
        }
        plan_->Open(token, tokens);
        for (;;) {
            const IndexTopkItem first = plan_->Next();
            if (first.count == 0) {
                break;
            }
            const IndexTopkItem second = plan_->Next();
            if (pair_++ % params.numCores == (uint32_t)AscendC::GetBlockIdx() / INDEX_TOPK_SIDES) {
                Item(AscendC::GetSubBlockIdx() == 0 ? first : second, AscendC::GetSubBlockIdx() == 0 ? second : first);
            }
        }
        for (uint32_t i = 0; i < 2; ++i) {
            AscendC::WaitFlag<AscendC::HardEvent::V_MTE2>(productsFree_[i]);
        }
    }

    __aicore__ inline void Close()
    {
        for (uint32_t i = 0; i < 2; ++i) {
            pipe_->ReleaseEventID<AscendC::HardEvent::V_MTE2>(productsFree_[i]);
            pipe_->ReleaseEventID<AscendC::HardEvent::MTE2_V>(productsReady_[i]);
        }
    }

private:
    static constexpr uint32_t SIDE = INDEX_TOPK_HEADS * INDEX_TOPK_TILE;

    /// Tables that turn places into numbers. Half a place keeps the quotient right whatever the rounding of the product.
    __aicore__ inline void Prepare()
    {
        const uint32_t size = tiling_.params.candidateBlock;
        const int32_t chunk = (int32_t)INDEX_TOPK_CHUNK;
        const AscendC::LocalTensor<float> real = memory_.scores;
        const AscendC::LocalTensor<int32_t> quotient = memory_.candidateOffset;
        AscendC::PipeBarrier<PIPE_V>();
        if (tiling_.params.hasCandidates != 0) {
            AscendC::Adds(real, memory_.realRamp, 0.5f, chunk);
            AscendC::PipeBarrier<PIPE_V>();
            AscendC::Muls(real, real, 1.0f / (float)(int32_t)size, chunk);
            AscendC::PipeBarrier<PIPE_V>();
            AscendC::Cast(quotient, real, AscendC::RoundMode::CAST_FLOOR, (uint32_t)chunk);
            AscendC::PipeBarrier<PIPE_V>();
            AscendC::Muls(memory_.inCandidate, quotient, -(int32_t)size, chunk);
            AscendC::PipeBarrier<PIPE_V>();
            AscendC::Add(memory_.inCandidate, memory_.inCandidate, memory_.ramp, chunk);
            AscendC::Muls(quotient, quotient, (int32_t)sizeof(int32_t), chunk);
        }
        // Of eight entries the reduction has left one.
        const uint32_t width = size % 8 == 0 ? size / 8 : size;
        AscendC::Muls(memory_.blockOffset, memory_.ramp, (int32_t)(width * sizeof(float)), (int32_t)(INDEX_TOPK_CHUNK / 2));
    }

    /// Goes through the products of one item. The other side may have more of them, or fewer.
    __aicore__ inline void Item(const IndexTopkItem& item, const IndexTopkItem& other)
    {
        const uint32_t mine = plan_->Tiles(item);
        const uint32_t others = plan_->Tiles(other);
        const uint32_t tiles = mine > others ? mine : others;
        const uint32_t perChunk = (tiling_.chunk + INDEX_TOPK_TILE - 1) / INDEX_TOPK_TILE;
        if (item.count > 0) {
            entries_.Clear();
            blocks_.Clear();
            LoadWeights(item.token);
        }
        for (uint32_t tile = 0; tile < tiles; ++tile) {
            for (uint32_t head = 0; head < tiling_.params.numHeads; head += INDEX_TOPK_HEADS) {
                Stage(tile % perChunk, head, tile < mine);
            }
            if (tile < mine && (tile % perChunk + 1 == perChunk || tile + 1 == mine)) {
                const uint32_t start = tile / perChunk * tiling_.chunk;
                FinishChunk(item, item.first + start, IndexTopkLeast(tiling_.chunk, item.count - start));
            }
        }
        if (item.count > 0) {
            Store(item);
        }
    }

    /// The weights of all heads, each repeated over a block of 32 bytes.
    __aicore__ inline void LoadWeights(uint32_t token)
    {
        const uint32_t heads = tiling_.params.numHeads;
        const uint32_t padded = IndexTopkUp(heads, 8);
        const AscendC::DataCopyExtParams row(1, heads * (uint32_t)sizeof(float), 0, 0, 0);
        const AscendC::DataCopyPadExtParams<float> zeros(true, 0, (uint8_t)(padded - heads), 0.0f);
        ReturnToCopies();
        AscendC::DataCopyPad(memory_.weights, weights_[(uint64_t)token * heads], row, zeros);
        if constexpr (AscendC::IsSameType<C, int32_t>::value) {
            AscendC::DataCopyPad(memory_.qScale, qScale_[(uint64_t)token * heads], row, zeros);
        }
        Landed();
        if constexpr (AscendC::IsSameType<C, int32_t>::value) {
            AscendC::Mul(memory_.weights, memory_.weights, memory_.qScale, (int32_t)padded);
            AscendC::PipeBarrier<PIPE_V>();
        }
        AscendC::Brcb(memory_.spreadWeights, memory_.weights, (uint8_t)(padded / 8), AscendC::BrcbRepeatParams(1, 8));
        AscendC::PipeBarrier<PIPE_V>();
    }

    /// Copies may overwrite what vector instructions have read.
    __aicore__ inline void ReturnToCopies()
    {
        const AscendC::TEventID free = pipe_->FetchEventID(AscendC::HardEvent::V_MTE2);
        AscendC::SetFlag<AscendC::HardEvent::V_MTE2>(free);
        AscendC::WaitFlag<AscendC::HardEvent::V_MTE2>(free);
    }

    __aicore__ inline void Landed()
    {
        const AscendC::TEventID ready = pipe_->FetchEventID(AscendC::HardEvent::MTE2_V);
        AscendC::SetFlag<AscendC::HardEvent::MTE2_V>(ready);
        AscendC::WaitFlag<AscendC::HardEvent::MTE2_V>(ready);
    }

    /// One stage of the ring: weighs its products if they are of this side's item.
    __aicore__ inline void Stage(uint32_t tileInChunk, uint32_t head, bool present)
    {
        AscendC::CrossCoreWaitFlag<2, PIPE_MTE2>(INDEX_TOPK_READY);
        const uint32_t place = stage_++ % INDEX_TOPK_STAGES;
        if (!present) {
            AscendC::CrossCoreSetFlag<2, PIPE_MTE2>(INDEX_TOPK_FREE);
            return;
        }
        const uint32_t slot = productSlot_;
        const uint32_t heads = IndexTopkLeast(INDEX_TOPK_HEADS, tiling_.params.numHeads - head);
        const AscendC::LocalTensor<float> products = memory_.products[slot * SIDE];
        AscendC::WaitFlag<AscendC::HardEvent::V_MTE2>(productsFree_[slot]);
        AscendC::DataCopy(products.ReinterpretCast<C>(), ring_[place * INDEX_TOPK_SIDES * SIDE], heads * INDEX_TOPK_TILE);
        AscendC::CrossCoreSetFlag<2, PIPE_MTE2>(INDEX_TOPK_FREE);
        AscendC::SetFlag<AscendC::HardEvent::MTE2_V>(productsReady_[slot]);
        AscendC::WaitFlag<AscendC::HardEvent::MTE2_V>(productsReady_[slot]);
        Weigh(products, memory_.scores[tileInChunk * INDEX_TOPK_TILE], head, heads);
        AscendC::SetFlag<AscendC::HardEvent::V_MTE2>(productsFree_[slot]);
        productSlot_ = 1 - slot;
    }

    /// sum over heads of weight * product, folding the rows in halves. Products are overwritten.
    __aicore__ inline void Weigh(const AscendC::LocalTensor<float>& products, const AscendC::LocalTensor<float>& scores, uint32_t head,
                                 uint32_t heads)
    {
        if constexpr (AscendC::IsSameType<C, int32_t>::value) {
            AscendC::Cast(products, products.ReinterpretCast<int32_t>(), AscendC::RoundMode::CAST_RINT, heads * INDEX_TOPK_TILE);
            AscendC::PipeBarrier<PIPE_V>();
        }
        const AscendC::BinaryRepeatParams byRow(1, 1, 0, 16, 16, 1);
        const AscendC::LocalTensor<float> weights = memory_.spreadWeights[head * 8];
        AscendC::Mul(products, products, weights, 64, (uint8_t)heads, byRow);
        AscendC::Mul(products[64], products[64], weights, 64, (uint8_t)heads, byRow);
        AscendC::PipeBarrier<PIPE_V>();
        for (uint32_t left = heads; left > 1; left -= left / 2) {
            const uint32_t half = left / 2;
            AscendC::Add(products, products, products[(left - half) * INDEX_TOPK_TILE], (int32_t)(half * INDEX_TOPK_TILE));
            AscendC::PipeBarrier<PIPE_V>();
        }
        if (head == 0) {
            AscendC::Adds(scores, products, 0.0f, (int32_t)INDEX_TOPK_TILE);  // -0 becomes 0
        } else {
            AscendC::Add(scores, scores, products, (int32_t)INDEX_TOPK_TILE);
        }
        AscendC::PipeBarrier<PIPE_V>();
    }

    /// `count` scores of a chunk are complete: into the lists with them.
    __aicore__ inline void FinishChunk(const IndexTopkItem& item, uint32_t first, uint32_t count)
    {
        const uint32_t padded = IndexTopkUp(count, INDEX_TOPK_TILE);
        const AscendC::LocalTensor<float> scores = memory_.scores;
        if constexpr (AscendC::IsSameType<C, int32_t>::value) {
            LoadKeyScales(item, first, count);
            AscendC::Mul(scores, scores, memory_.keyScale, (int32_t)count);
            AscendC::PipeBarrier<PIPE_V>();
            AscendC::Adds(scores, scores, 0.0f, (int32_t)padded);
            AscendC::PipeBarrier<PIPE_V>();
        }
        const uint32_t last = padded - INDEX_TOPK_TILE;
        // NaN becomes the lowest score there is, and so does what no entry stands behind.
        AscendC::Compare(memory_.bits, scores, scores, AscendC::CMPMODE::EQ, padded);
        AscendC::CompareScalar(memory_.lastBits, memory_.realRamp, (float)(int32_t)(count - last), AscendC::CMPMODE::LT, INDEX_TOPK_TILE);
        Number(item, first, count, padded);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Select(scores, memory_.bits, scores, -INDEX_TOPK_INFINITY, AscendC::SELMODE::VSEL_TENSOR_SCALAR_MODE, padded);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Select(scores[last], memory_.lastBits, scores[last], -INDEX_TOPK_INFINITY, AscendC::SELMODE::VSEL_TENSOR_SCALAR_MODE,
                        INDEX_TOPK_TILE);
        const IndexTopkScratch scratch = {memory_.a, memory_.b, memory_.merged, memory_.bits};
        if (item.wantsEntries) {
            entries_.Add(scores, memory_.numbers.ReinterpretCast<uint32_t>(), count, scratch);
        }
        if (item.wantsBlocks) {
            RankBlocks(item, first, count, scratch);
        }
    }

    /// The number of each entry of a chunk; behind them whatever is there.
    __aicore__ inline void Number(const IndexTopkItem& item, uint32_t first, uint32_t count, uint32_t padded)
    {
        AscendC::Adds(memory_.numbers, memory_.ramp, (int32_t)first, (int32_t)padded);
        if (!item.fromCandidates) {
            return;
        }
        const uint32_t size = tiling_.params.candidateBlock;
        const uint32_t blocks = (count + size - 1) / size;
        const uint64_t place = (uint64_t)item.token * tiling_.params.numGiven + first / size;
        ReturnToCopies();
        AscendC::DataCopyPad(memory_.candidateStart, candidates_[place], AscendC::DataCopyExtParams(1, blocks * (uint32_t)sizeof(int32_t), 0, 0, 0),
                             AscendC::DataCopyPadExtParams<int32_t>(false, 0, 0, 0));
        Landed();
        AscendC::Muls(memory_.candidateStart, memory_.candidateStart, (int32_t)size, (int32_t)blocks);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Gather(memory_.numbers, memory_.candidateStart, memory_.candidateOffset.ReinterpretCast<uint32_t>(), 0, count);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Add(memory_.numbers, memory_.numbers, memory_.inCandidate, (int32_t)count);
    }

    /// Scales of the keys of a chunk, run by run. Runs start and end at multiples of eight entries, except the last.
    __aicore__ inline void LoadKeyScales(const IndexTopkItem& item, uint32_t first, uint32_t count)
    {
        const IndexTopkParams& params = tiling_.params;
        const AscendC::DataCopyPadExtParams<float> noPad(false, 0, 0, 0.0f);
        ReturnToCopies();
        for (uint32_t done = 0; done < count;) {
            uint32_t entry = first + done;
            uint32_t run = count - done;
            if (item.fromCandidates) {
                const uint32_t inBlock = entry % params.candidateBlock;
                entry = plan_->Candidate(item.token, entry / params.candidateBlock) * params.candidateBlock + inBlock;
                run = IndexTopkLeast(run, params.candidateBlock - inBlock);
            }
            const uint32_t row = entry % params.blockRows;
            run = IndexTopkLeast(run, params.blockRows - row);
            const uint64_t page = (uint64_t)table_.GetValue((uint64_t)item.request * params.maxBlocks + entry / params.blockRows);
            AscendC::DataCopyPad(memory_.keyScale[done], keyScale_[page * params.blockRows + row],
                                 AscendC::DataCopyExtParams(1, run * (uint32_t)sizeof(float), 0, 0, 0), noPad);
            done += run;
        }
        Landed();
    }

    /// The highest score of each block of a chunk but the newest, which is published anyway. All the others are full.
    __aicore__ inline void RankBlocks(const IndexTopkItem& item, uint32_t first, uint32_t count, const IndexTopkScratch& scratch)
    {
        const uint32_t size = tiling_.params.candidateBlock;
        const uint32_t firstBlock = first / size;
        if (firstBlock >= item.newest) {
            return;
        }
        const uint32_t blocks = IndexTopkLeast((count + size - 1) / size, item.newest - firstBlock);
        AscendC::LocalTensor<float> best = memory_.scores;
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Adds(memory_.numbers, memory_.ramp, (int32_t)firstBlock, (int32_t)INDEX_TOPK_CHUNK);
        if (size > 1) {
            best = memory_.blockScores;
            Highest(best, blocks);
        } else if (blocks < count) {
            // Of blocks of one entry the newest is the last in the chunk.
            FillBehind(memory_.scores, blocks, count);
        }
        blocks_.Add(best, memory_.numbers.ReinterpretCast<uint32_t>(), blocks, scratch);
    }

    __aicore__ inline void Highest(const AscendC::LocalTensor<float>& best, uint32_t blocks)
    {
        const uint32_t size = tiling_.params.candidateBlock;
        AscendC::LocalTensor<float> from = memory_.scores;
        uint32_t width = size;
        AscendC::Duplicate(best, -INDEX_TOPK_INFINITY, (int32_t)(INDEX_TOPK_CHUNK / 2));
        if (size % 8 == 0) {
            AscendC::BlockReduceMax<float>(memory_.eighths, memory_.scores, (int32_t)((blocks * size + 63) / 64), 64, 1, 1, 8);
            from = memory_.eighths;
            width = size / 8;
        }
        AscendC::PipeBarrier<PIPE_V>();
        if (width == 1) {
            IndexTopkMove(best, from, blocks);
            return;
        }
        const AscendC::LocalTensor<uint32_t> offsets = memory_.blockOffset.ReinterpretCast<uint32_t>();
        AscendC::Gather(best, from, offsets, 0, blocks);
        for (uint32_t i = 1; i < width; ++i) {
            AscendC::Gather(memory_.blockEntries, from, offsets, i * (uint32_t)sizeof(float), blocks);
            AscendC::PipeBarrier<PIPE_V>();
            AscendC::Max(best, best, memory_.blockEntries, (int32_t)blocks);
            AscendC::PipeBarrier<PIPE_V>();
        }
    }

    /// Makes the score in place `count` of the last tile, and all behind it, the lowest.
    __aicore__ inline void FillBehind(const AscendC::LocalTensor<float>& scores, uint32_t count, uint32_t entries)
    {
        const uint32_t last = IndexTopkUp(entries, INDEX_TOPK_TILE) - INDEX_TOPK_TILE;
        AscendC::CompareScalar(memory_.lastBits, memory_.realRamp, (float)((int32_t)count - (int32_t)last), AscendC::CMPMODE::LT, INDEX_TOPK_TILE);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Select(scores[last], memory_.lastBits, scores[last], -INDEX_TOPK_INFINITY, AscendC::SELMODE::VSEL_TENSOR_SCALAR_MODE,
                        INDEX_TOPK_TILE);
    }

    /// Writes the lists of an item to their place.
    __aicore__ inline void Store(const IndexTopkItem& item)
    {
        const uint64_t slots = (uint64_t)tiling_.groupTokens * (tiling_.fullItems + tiling_.restrictedItems);
        const uint64_t place = (parity_ * slots + item.slot) * (tiling_.entryRecords + tiling_.blockRecords) * SORT_RECORD;
        const AscendC::TEventID ready = pipe_->FetchEventID(AscendC::HardEvent::V_MTE3);
        AscendC::SetFlag<AscendC::HardEvent::V_MTE3>(ready);
        AscendC::WaitFlag<AscendC::HardEvent::V_MTE3>(ready);
        StoreList(entries_, place);
        StoreList(blocks_, place + tiling_.entryRecords * SORT_RECORD);
        const AscendC::TEventID stored = pipe_->FetchEventID(AscendC::HardEvent::MTE3_V);
        AscendC::SetFlag<AscendC::HardEvent::MTE3_V>(stored);
        AscendC::WaitFlag<AscendC::HardEvent::MTE3_V>(stored);
    }

    __aicore__ inline void StoreList(const IndexTopkBest& list, uint64_t place)
    {
        const uint32_t bytes = list.Count() * SORT_RECORD * (uint32_t)sizeof(float);
        if (bytes > 0) {
            AscendC::DataCopyPad(lists_[place], list.Records(), AscendC::DataCopyExtParams(1, bytes, 0, 0, 0));
        }
    }

    IndexTopkTiling tiling_;
    IndexTopkPlan* plan_;
    AscendC::TPipe* pipe_;
    IndexTopkMemory memory_;
    IndexTopkBest entries_;
    IndexTopkBest blocks_;
    AscendC::GlobalTensor<float> weights_;
    AscendC::GlobalTensor<float> qScale_;
    AscendC::GlobalTensor<float> keyScale_;
    AscendC::GlobalTensor<int32_t> table_;
    AscendC::GlobalTensor<int32_t> candidates_;
    AscendC::GlobalTensor<float> lists_;
    AscendC::GlobalTensor<C> ring_;
    AscendC::TEventID productsFree_[2];
    AscendC::TEventID productsReady_[2];
    uint32_t parity_ = 0;
    uint32_t pair_ = 0;
    uint32_t stage_ = 0;
    uint32_t productSlot_ = 0;
};

// SPDX-License-Identifier: Apache-2.0
// The cube core: relu(q k^T) of both items of a pair, 128 entries and up to 64 heads at a time, into the ring. Device code.
#pragma once

#include "index_topk_plan.h"

/// T: element of q and k; C: what products are summed in.
template <typename T, typename C>
class IndexTopkCube {
public:
    __aicore__ inline void Init(GM_ADDR q, GM_ADDR keys, GM_ADDR table, GM_ADDR ring, const IndexTopkTiling& tiling, IndexTopkPlan* plan,
                                AscendC::TPipe* pipe)
    {
        tiling_ = tiling;
        plan_ = plan;
        pipe_ = pipe;
        const IndexTopkParams& params = tiling_.params;
        q_.SetGlobalBuffer((__gm__ T*)q);
        keys_.SetGlobalBuffer((__gm__ T*)keys);
        table_.SetGlobalBuffer((__gm__ int32_t*)table);
        ring_.SetGlobalBuffer((__gm__ C*)ring + (uint64_t)AscendC::GetBlockIdx() * INDEX_TOPK_STAGES * INDEX_TOPK_SIDES * SIDE);
        rows_ = IndexTopkUp(params.numHeads, 16);
        depth_ = IndexTopkUp(params.headDim, C0);
        pipe->InitBuffer(qBuf_, INDEX_TOPK_SIDES * rows_ * depth_ * (uint32_t)sizeof(T));
        pipe->InitBuffer(keyBuf_, 2 * INDEX_TOPK_SIDES * INDEX_TOPK_TILE * depth_ * (uint32_t)sizeof(T));
        pipe->InitBuffer(leftBuf_, 2 * INDEX_TOPK_HEADS * STEP * (uint32_t)sizeof(T));
        pipe->InitBuffer(rightBuf_, 2 * INDEX_TOPK_TILE * STEP * (uint32_t)sizeof(T));
        pipe->InitBuffer(sumBuf_, 2 * SIDE * (uint32_t)sizeof(C));
    }

    __aicore__ inline void Process()
    {
        Open();
        uint32_t pair = 0;
        const IndexTopkParams& params = tiling_.params;
        for (uint32_t token = 0; token < params.numTokens; token += tiling_.groupTokens) {
            plan_->Open(token, IndexTopkLeast(tiling_.groupTokens, params.numTokens - token));
            for (;;) {
                const IndexTopkItem first = plan_->Next();
                if (first.count == 0) {
                    break;
                }
                const IndexTopkItem second = plan_->Next();
                if (pair++ % params.numCores == (uint32_t)AscendC::GetBlockIdx()) {
                    Pair(first, second);
                }
            }
        }
        Close();
    }

private:
    static constexpr uint32_t C0 = 32 / sizeof(T);           // elements in a row of a fractal
    static constexpr uint32_t FRACTAL = 512 / sizeof(T);
    static constexpr uint32_t STEP = 256 / sizeof(T);        // of k in one product
    static constexpr uint32_t SIDE = INDEX_TOPK_HEADS * INDEX_TOPK_TILE;

    /// Takes event ids and declares every buffer free. Rows that nobody loads are zero.
    __aicore__ inline void Open()
    {
        for (uint32_t i = 0; i < 2; ++i) {
            keysFree_[i] = pipe_->AllocEventID<AscendC::HardEvent::MTE1_MTE2>();
            keysReady_[i] = pipe_->AllocEventID<AscendC::HardEvent::MTE2_MTE1>();
            tilesFree_[i] = pipe_->AllocEventID<AscendC::HardEvent::M_MTE1>();
            tilesReady_[i] = pipe_->AllocEventID<AscendC::HardEvent::MTE1_M>();
            sumFree_[i] = pipe_->AllocEventID<AscendC::HardEvent::FIX_M>();
            sumReady_[i] = pipe_->AllocEventID<AscendC::HardEvent::M_FIX>();
            AscendC::SetFlag<AscendC::HardEvent::MTE1_MTE2>(keysFree_[i]);
            AscendC::SetFlag<AscendC::HardEvent::M_MTE1>(tilesFree_[i]);
            AscendC::SetFlag<AscendC::HardEvent::FIX_M>(sumFree_[i]);
        }
        queriesFree_ = pipe_->AllocEventID<AscendC::HardEvent::MTE1_MTE2>();
        AscendC::SetFlag<AscendC::HardEvent::MTE1_MTE2>(queriesFree_);
        Clear(qBuf_.template Get<int16_t>(), INDEX_TOPK_SIDES * rows_ * depth_ * (uint32_t)sizeof(T) / 32);
        Clear(keyBuf_.template Get<int16_t>(), 2 * INDEX_TOPK_SIDES * INDEX_TOPK_TILE * depth_ * (uint32_t)sizeof(T) / 32);
        AscendC::PipeBarrier<PIPE_MTE2>();
    }

    __aicore__ inline void Clear(const AscendC::LocalTensor<int16_t>& tensor, uint32_t blocks) const
    {
        AscendC::Fill(tensor, AscendC::InitConstValueParams<int16_t>(1, (uint16_t)blocks, 0, 0));
    }

    /// Takes back what Open and the vector cores have declared free, so that no flag outlives the kernel.
    __aicore__ inline void Close()
    {
        for (uint32_t i = 0; i < IndexTopkLeast(stage_, INDEX_TOPK_STAGES); ++i) {
            AscendC::CrossCoreWaitFlag<2, PIPE_FIX>(INDEX_TOPK_FREE);
        }
        for (uint32_t i = 0; i < 2; ++i) {
            AscendC::WaitFlag<AscendC::HardEvent::MTE1_MTE2>(keysFree_[i]);
            AscendC::WaitFlag<AscendC::HardEvent::M_MTE1>(tilesFree_[i]);
            AscendC::WaitFlag<AscendC::HardEvent::FIX_M>(sumFree_[i]);
            pipe_->ReleaseEventID<AscendC::HardEvent::MTE1_MTE2>(keysFree_[i]);
            pipe_->ReleaseEventID<AscendC::HardEvent::MTE2_MTE1>(keysReady_[i]);
            pipe_->ReleaseEventID<AscendC::HardEvent::M_MTE1>(tilesFree_[i]);
            pipe_->ReleaseEventID<AscendC::HardEvent::MTE1_M>(tilesReady_[i]);
            pipe_->ReleaseEventID<AscendC::HardEvent::FIX_M>(sumFree_[i]);
            pipe_->ReleaseEventID<AscendC::HardEvent::M_FIX>(sumReady_[i]);
        }
        AscendC::WaitFlag<AscendC::HardEvent::MTE1_MTE2>(queriesFree_);
        pipe_->ReleaseEventID<AscendC::HardEvent::MTE1_MTE2>(queriesFree_);
    }

    __aicore__ inline void Pair(const IndexTopkItem& first, const IndexTopkItem& second)
    {
        const IndexTopkItem items[INDEX_TOPK_SIDES] = {first, second};
        AscendC::WaitFlag<AscendC::HardEvent::MTE1_MTE2>(queriesFree_);
        uint32_t tiles = 0;
        for (uint32_t side = 0; side < INDEX_TOPK_SIDES; ++side) {
            if (items[side].count > 0) {
                LoadQueries(items[side].token, side);
            }
            const uint32_t needed = plan_->Tiles(items[side]);
            tiles = needed > tiles ? needed : tiles;
        }
        for (uint32_t tile = 0; tile < tiles; ++tile) {
            const uint32_t slot = keySlot_;
            bool present[INDEX_TOPK_SIDES];
            AscendC::WaitFlag<AscendC::HardEvent::MTE1_MTE2>(keysFree_[slot]);
            for (uint32_t side = 0; side < INDEX_TOPK_SIDES; ++side) {
                present[side] = LoadKeys(items[side], tile, slot * INDEX_TOPK_SIDES + side);
            }
            AscendC::SetFlag<AscendC::HardEvent::MTE2_MTE1>(keysReady_[slot]);
            AscendC::WaitFlag<AscendC::HardEvent::MTE2_MTE1>(keysReady_[slot]);
            for (uint32_t head = 0; head < tiling_.params.numHeads; head += INDEX_TOPK_HEADS) {
                Stage(head, slot, present);
            }
            AscendC::SetFlag<AscendC::HardEvent::MTE1_MTE2>(keysFree_[slot]);
            keySlot_ = 1 - slot;
        }
        AscendC::SetFlag<AscendC::HardEvent::MTE1_MTE2>(queriesFree_);
    }

    __aicore__ inline void LoadQueries(uint32_t token, uint32_t side)
    {
        const IndexTopkParams& params = tiling_.params;
        CopyRows(qBuf_.template Get<T>()[side * rows_ * depth_], q_[(uint64_t)token * params.numHeads * params.headDim], params.numHeads, rows_);
    }

    /// `count` rows of headDim to columns of fractals that are `pitch` rows high.
    __aicore__ inline void CopyRows(const AscendC::LocalTensor<T>& dst, const AscendC::GlobalTensor<T>& src, uint32_t count, uint32_t pitch) const
    {
        AscendC::Nd2NzParams params;
        params.ndNum = 1;
        params.nValue = (uint16_t)count;
        params.dValue = (uint16_t)tiling_.params.headDim;
        params.srcNdMatrixStride = 0;
        params.srcDValue = (uint16_t)tiling_.params.headDim;
        params.dstNzC0Stride = (uint16_t)pitch;
        params.dstNzNStride = 1;
        params.dstNzMatrixStride = 0;
        AscendC::DataCopy(dst, src, params);
    }

    /// Gathers the keys of a tile page by page. False if the item has no such tile.
    __aicore__ inline bool LoadKeys(const IndexTopkItem& item, uint32_t tile, uint32_t place)
    {
        const IndexTopkParams& params = tiling_.params;
        const uint32_t perChunk = (tiling_.chunk + INDEX_TOPK_TILE - 1) / INDEX_TOPK_TILE;
        const uint32_t chunkStart = tile / perChunk * tiling_.chunk;
        const uint32_t start = chunkStart + tile % perChunk * INDEX_TOPK_TILE;
        if (start >= item.count) {
            return false;
        }
        const uint32_t rest = IndexTopkLeast(chunkStart + tiling_.chunk, item.count) - start;
        const uint32_t count = IndexTopkLeast(rest, INDEX_TOPK_TILE);
        const AscendC::LocalTensor<T> keys = keyBuf_.template Get<T>()[place * INDEX_TOPK_TILE * depth_];
        for (uint32_t done = 0; done < count;) {
            const uint32_t number = item.first + start + done;
            uint32_t entry = number;
            uint32_t run = count - done;
            if (item.fromCandidates) {
                const uint32_t inBlock = number % params.candidateBlock;
                entry = plan_->Candidate(item.token, number / params.candidateBlock) * params.candidateBlock + inBlock;
                run = IndexTopkLeast(run, params.candidateBlock - inBlock);
            }
            const uint32_t row = entry % params.blockRows;
            run = IndexTopkLeast(run, params.blockRows - row);
            const uint64_t page = (uint64_t)table_.GetValue((uint64_t)item.request * params.maxBlocks + entry / params.blockRows);
            CopyRows(keys[done * C0], keys_[(page * params.blockRows + row) * params.headDim], run, INDEX_TOPK_TILE);
            done += run;
        }
        return true;
    }

    /// Products of 64 heads with the keys in a slot, for each side that has a tile.
    __aicore__ inline void Stage(uint32_t head, uint32_t slot, const bool present[INDEX_TOPK_SIDES])
    {
        const uint32_t heads = IndexTopkLeast(INDEX_TOPK_HEADS, tiling_.params.numHeads - head);
        if (stage_ >= INDEX_TOPK_STAGES) {
            AscendC::CrossCoreWaitFlag<2, PIPE_FIX>(INDEX_TOPK_FREE);
        }
        for (uint32_t side = 0; side < INDEX_TOPK_SIDES; ++side) {
            if (present[side]) {
                Multiply(head, heads, slot, side);
            }
        }
        AscendC::CrossCoreSetFlag<2, PIPE_FIX>(INDEX_TOPK_READY);
        ++stage_;
    }

    __aicore__ inline void Multiply(uint32_t head, uint32_t heads, uint32_t slot, uint32_t side)
    {
        const AscendC::LocalTensor<C> sum = sumBuf_.template Get<C>()[sumSlot_ * SIDE];
        const uint32_t rows = IndexTopkUp(heads, 16);
        AscendC::WaitFlag<AscendC::HardEvent::FIX_M>(sumFree_[sumSlot_]);
        for (uint32_t k = 0; k < depth_; k += STEP) {
            const uint32_t depth = IndexTopkLeast(STEP, depth_ - k);
            const uint32_t l0 = tileSlot_;
            const AscendC::LocalTensor<T> left = leftBuf_.template Get<T>()[l0 * INDEX_TOPK_HEADS * STEP];
            const AscendC::LocalTensor<T> right = rightBuf_.template Get<T>()[l0 * INDEX_TOPK_TILE * STEP];
            AscendC::WaitFlag<AscendC::HardEvent::M_MTE1>(tilesFree_[l0]);
            LoadTiles(left, right, head, rows, k, depth, slot, side);
            AscendC::SetFlag<AscendC::HardEvent::MTE1_M>(tilesReady_[l0]);
            AscendC::WaitFlag<AscendC::HardEvent::MTE1_M>(tilesReady_[l0]);
            AscendC::MmadParams params;
            params.m = (uint16_t)rows;
            params.n = INDEX_TOPK_TILE;
            params.k = (uint16_t)depth;
            params.cmatrixInitVal = k == 0;
            if (k > 0 && rows == 16) {  // larger products start late enough to find what the one before has left
                AscendC::PipeBarrier<PIPE_M>();
            }
            AscendC::Mmad(sum, left, right, params);
            AscendC::SetFlag<AscendC::HardEvent::M_MTE1>(tilesFree_[l0]);
            tileSlot_ = 1 - l0;
        }
        AscendC::SetFlag<AscendC::HardEvent::M_FIX>(sumReady_[sumSlot_]);
        AscendC::WaitFlag<AscendC::HardEvent::M_FIX>(sumReady_[sumSlot_]);
        Store(sum, heads, rows, side);
        AscendC::SetFlag<AscendC::HardEvent::FIX_M>(sumFree_[sumSlot_]);
        sumSlot_ = 1 - sumSlot_;
    }

    /// q [rows, depth] to rows of fractals, k [128, depth] as it lies.
    __aicore__ inline void LoadTiles(const AscendC::LocalTensor<T>& left, const AscendC::LocalTensor<T>& right, uint32_t head, uint32_t rows,
                                     uint32_t k, uint32_t depth, uint32_t slot, uint32_t side)
    {
        const uint32_t columns = depth / C0;
        const AscendC::LocalTensor<T> q = qBuf_.template Get<T>()[side * rows_ * depth_];
        for (uint32_t row = 0; row < rows / 16; ++row) {
            const uint32_t start = k / C0 * (rows_ / 16) + head / 16 + row;
            AscendC::LoadData(left[row * columns * FRACTAL], q,
                              AscendC::LoadData2DParams((uint16_t)start, (uint8_t)columns, (uint16_t)(rows_ / 16), 0, 0, false, 0));
        }
        constexpr uint32_t tall = INDEX_TOPK_TILE / 16;
        const AscendC::LocalTensor<T> keys = keyBuf_.template Get<T>()[(slot * INDEX_TOPK_SIDES + side) * INDEX_TOPK_TILE * depth_];
        AscendC::LoadData(right, keys, AscendC::LoadData2DParams((uint16_t)(k / C0 * tall), (uint8_t)(columns * tall), 1, 0, 0, false, 0));
    }

    __aicore__ inline void Store(const AscendC::LocalTensor<C>& sum, uint32_t heads, uint32_t rows, uint32_t side)
    {
        AscendC::FixpipeParamsV220 params;
        params.nSize = INDEX_TOPK_TILE;
        params.mSize = (uint16_t)heads;
        params.srcStride = (uint16_t)rows;
        params.dstStride = INDEX_TOPK_TILE;
        params.ndNum = 1;
        params.srcNdStride = 0;
        params.dstNdStride = 0;
        params.quantPre = QuantMode_t::NoQuant;
        params.reluEn = true;
        const uint32_t place = stage_ % INDEX_TOPK_STAGES * INDEX_TOPK_SIDES + side;
        AscendC::Fixpipe<C, C, AscendC::CFG_ROW_MAJOR>(ring_[place * SIDE], sum, params);
    }

    IndexTopkTiling tiling_;
    IndexTopkPlan* plan_;
    AscendC::TPipe* pipe_;
    AscendC::TBuf<AscendC::TPosition::A1> qBuf_;
    AscendC::TBuf<AscendC::TPosition::B1> keyBuf_;
    AscendC::TBuf<AscendC::TPosition::A2> leftBuf_;
    AscendC::TBuf<AscendC::TPosition::B2> rightBuf_;
    AscendC::TBuf<AscendC::TPosition::CO1> sumBuf_;
    AscendC::GlobalTensor<T> q_;
    AscendC::GlobalTensor<T> keys_;
    AscendC::GlobalTensor<int32_t> table_;
    AscendC::GlobalTensor<C> ring_;
    AscendC::TEventID keysFree_[2];
    AscendC::TEventID keysReady_[2];
    AscendC::TEventID tilesFree_[2];
    AscendC::TEventID tilesReady_[2];
    AscendC::TEventID sumFree_[2];
    AscendC::TEventID sumReady_[2];
    AscendC::TEventID queriesFree_;
    uint32_t rows_ = 0;      // heads, padded
    uint32_t depth_ = 0;     // headDim, padded
    uint32_t keySlot_ = 0;
    uint32_t tileSlot_ = 0;
    uint32_t sumSlot_ = 0;
    uint32_t stage_ = 0;
};

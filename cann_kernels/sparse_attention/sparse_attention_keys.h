// SPDX-License-Identifier: Apache-2.0
// A vector core gathers half of the keys of a range: rows of the caches to the workspace, in the type that the cube core multiplies.
#pragma once

#include "sparse_attention_items.h"

/// C: type of the caches; K: type of the keys in the workspace, C or float.
template <typename C, typename K>
class SparseAttentionKeys {
public:
    __aicore__ inline void Init(GM_ADDR winKv, GM_ADDR cmpKv, GM_ADDR entries, GM_ADDR windowTable, GM_ADDR blockTable,
                                GM_ADDR workspace, const SparseAttentionTiling& tiling, AscendC::TPipe* pipe)
    {
        tiling_ = tiling;
        pipe_ = pipe;
        block_ = (uint32_t)AscendC::GetBlockIdx() / 2;
        half_ = (uint32_t)AscendC::GetBlockIdx() % 2;
        headDim_ = tiling_.params.headDim;
        rowPitch_ = SAME ? tiling_.keyPitch : tiling_.paddedDim;
        winKv_.SetGlobalBuffer((__gm__ C*)winKv);
        cmpKv_.SetGlobalBuffer((__gm__ C*)cmpKv);
        entries_.SetGlobalBuffer((__gm__ int32_t*)entries);
        windowTable_.SetGlobalBuffer((__gm__ int32_t*)windowTable);
        blockTable_.SetGlobalBuffer((__gm__ int32_t*)blockTable);
        keys_.SetGlobalBuffer((__gm__ K*)(workspace + tiling_.keyOffset));
        const uint32_t pitch = tiling_.scorePitch;
        const uint32_t rowBytes = rowPitch_ * (uint32_t)sizeof(K);
        stageRows_ = STAGE_BYTES / rowBytes < SPARSE_ATTENTION_GROUP ? STAGE_BYTES / rowBytes : SPARSE_ATTENTION_GROUP;
        if constexpr (SAME) {
            pipe_->InitBuffer(stageQue_, 2, stageRows_ * rowBytes);
        } else {
            pipe_->InitBuffer(narrowQue_, 2, stageRows_ * rowPitch_ * (uint32_t)sizeof(C));
            pipe_->InitBuffer(wideQue_, 2, stageRows_ * rowBytes);
        }
        zeroElements_ = pitch > tiling_.paddedDim ? pitch : tiling_.paddedDim;
        pipe_->InitBuffer(biasBuf_, 2 * pitch * (uint32_t)sizeof(float));
        pipe_->InitBuffer(rampBuf_, pitch * (uint32_t)sizeof(float));
        pipe_->InitBuffer(entryBuf_, pitch * (uint32_t)sizeof(int32_t));
        pipe_->InitBuffer(wideEntryBuf_, pitch * (uint32_t)sizeof(float));
        pipe_->InitBuffer(maskBuf_, pitch / 8);
        stagesTable_ = tiling_.params.maxBlocks > 0 && tiling_.params.maxBlocks <= TABLE_ENTRIES;
        if (stagesTable_) {
            pipe_->InitBuffer(tableBuf_, tiling_.params.maxBlocks * (uint32_t)sizeof(int32_t));
        }
        pipe_->InitBuffer(zeroBuf_, zeroElements_ * (uint32_t)sizeof(float));
        InitConstants();
    }

    /// Zeros for the vector instructions and for copies out, at least a padded key long.
    __aicore__ inline AscendC::LocalTensor<float> Zeros() { return zeroBuf_.template Get<float>(); }

    /// What is added to the scores of an item that was gathered: 0, or -inf where no key is.
    __aicore__ inline AscendC::LocalTensor<float> Bias(const SparseAttentionItem& item)
    {
        return biasBuf_.template Get<float>()[item.number % 2 * tiling_.scorePitch];
    }

    /// This core's half of every group of keys to the workspace. Tells the cube core of each group.
    __aicore__ inline void Gather(const SparseAttentionItem& item)
    {
        StageTable(item);
        const uint32_t chosen = StageEntries(item);
        MakeBias(item, chosen);
        for (uint32_t start = 0; start < item.padded; start += SPARSE_ATTENTION_GROUP) {
            const uint32_t rest = item.padded - start;
            const uint32_t half = (rest < SPARSE_ATTENTION_GROUP ? rest : SPARSE_ATTENTION_GROUP) / 2;
            GatherRows(item, start + half_ * half, start + half_ * half + half);
            AscendC::CrossCoreSetFlag<2, PIPE_MTE3>((uint16_t)(SPARSE_ATTENTION_KEYS_READY + item.number % 2));
        }
    }

private:
    static constexpr bool SAME = AscendC::IsSameType<C, K>::value;
    static constexpr uint32_t STAGE_BYTES = 8192;
    static constexpr uint32_t TABLE_ENTRIES = 1024;

    __aicore__ inline void InitConstants()
    {
        AscendC::LocalTensor<int32_t> ramp = entryBuf_.template Get<int32_t>();
        AscendC::CreateVecIndex(ramp, (int32_t)0, tiling_.scorePitch);
        AscendC::Duplicate(Zeros(), 0.0f, (int32_t)zeroElements_);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Cast(rampBuf_.template Get<float>(), ramp, AscendC::RoundMode::CAST_NONE, tiling_.scorePitch);
        Wait<AscendC::HardEvent::V_MTE3>();
    }

    template <AscendC::HardEvent event>
    __aicore__ inline void Wait()
    {
        const AscendC::TEventID id = pipe_->FetchEventID(event);
        AscendC::SetFlag<event>(id);
        AscendC::WaitFlag<event>(id);
    }

    /// The block table of the item's request, if it fits: lookups in global memory would take the scalar unit longest of all.
    __aicore__ inline void StageTable(const SparseAttentionItem& item)
    {
        if (!stagesTable_ || item.request == stagedRequest_) {
            return;
        }
        stagedRequest_ = item.request;
        Wait<AscendC::HardEvent::S_MTE2>();
        const uint32_t bytes = tiling_.params.maxBlocks * (uint32_t)sizeof(int32_t);
        AscendC::DataCopyPad(tableBuf_.template Get<int32_t>(), blockTable_[(uint64_t)item.request * tiling_.params.maxBlocks],
                             AscendC::DataCopyExtParams(1, bytes, 0, 0, 0), AscendC::DataCopyPadExtParams<int32_t>(false, 0, 0, 0));
        Wait<AscendC::HardEvent::MTE2_S>();
    }

    /// Entries chosen for the slots of the range, for the scalar unit and for MakeBias. Returns how many.
    __aicore__ inline uint32_t StageEntries(const SparseAttentionItem& item)
    {
        if (tiling_.params.hasEntries == 0 || item.first >= item.entries) {
            return 0;
        }
        const uint32_t rest = item.entries - item.first;
        const uint32_t chosen = rest < item.slots ? rest : item.slots;
        AscendC::LocalTensor<int32_t> staged = entryBuf_.template Get<int32_t>();
        Wait<AscendC::HardEvent::S_V>();
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Duplicate(staged, (int32_t)0, (int32_t)((item.slots + 63) / 64 * 64));
        Wait<AscendC::HardEvent::V_MTE2>();
        AscendC::DataCopyPad(staged, entries_[(uint64_t)item.token * tiling_.params.topk + item.first],
                             AscendC::DataCopyExtParams(1, chosen * (uint32_t)sizeof(int32_t), 0, 0, 0),
                             AscendC::DataCopyPadExtParams<int32_t>(true, 0, (uint8_t)((8 - chosen % 8) % 8), 0));
        Wait<AscendC::HardEvent::MTE2_S>();
        return chosen;
    }

    __aicore__ inline void MakeBias(const SparseAttentionItem& item, uint32_t chosen)
    {
        const uint32_t cols = (item.slots + 63) / 64 * 64;
        const float lost = -__builtin_inff();
        AscendC::LocalTensor<float> bias = Bias(item);
        AscendC::LocalTensor<uint8_t> mask = maskBuf_.template Get<uint8_t>();
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::CompareScalar(mask, rampBuf_.template Get<float>(), (float)item.slots, AscendC::CMPMODE::LT, cols);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Select(bias, mask, Zeros(), lost, AscendC::SELMODE::VSEL_TENSOR_SCALAR_MODE, cols);
        if (chosen == 0) {
            return;
        }
        // What lies behind the chosen entries was staged as 0, which both comparisons let through.
        AscendC::LocalTensor<float> entry = wideEntryBuf_.template Get<float>();
        AscendC::Cast(entry, entryBuf_.template Get<int32_t>(), AscendC::RoundMode::CAST_NONE, cols);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::CompareScalar(mask, entry, 0.0f, AscendC::CMPMODE::GE, cols);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Select(bias, mask, bias, lost, AscendC::SELMODE::VSEL_TENSOR_SCALAR_MODE, cols);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::CompareScalar(mask, entry, (float)item.visible, AscendC::CMPMODE::LT, cols);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Select(bias, mask, bias, lost, AscendC::SELMODE::VSEL_TENSOR_SCALAR_MODE, cols);
    }

    /// Neighbouring rows of a cache.
    struct Run {
        uint64_t row;
        uint32_t count;  // 0: the slot holds no key
        bool window;
    };

    /// The rows that slots of an item from `slot` on lie in, as far as they are neighbours, at most `most`.
    __aicore__ inline Run Locate(const SparseAttentionItem& item, uint32_t slot, uint32_t most)
    {
        const SparseAttentionParams& params = tiling_.params;
        const uint32_t at = item.first + slot;
        if (at >= item.total) {
            return {0, 0, false};
        }
        if (at >= item.entries) {
            const uint32_t position = (uint32_t)item.position + 1 - (item.total - at);
            const uint32_t page = position / params.windowBlockRows;
            const uint32_t within = position % params.windowBlockRows;
            const uint64_t cell = (uint64_t)item.request * params.windowColumns + page % params.windowColumns;
            const uint64_t row = (uint64_t)windowTable_.GetValue(cell) * params.windowBlockRows + within;
            return {row, Least(most, params.windowBlockRows - within, item.total - at), true};
        }
        const bool listed = params.hasEntries != 0;
        const AscendC::LocalTensor<int32_t> staged = entryBuf_.template Get<int32_t>();
        const int32_t chosen = listed ? staged.GetValue(slot) : (int32_t)at;
        if (chosen < 0 || (uint32_t)chosen >= item.visible) {
            return {0, 0, false};
        }
        const uint32_t within = (uint32_t)chosen % params.blockRows;
        const uint32_t page = (uint32_t)chosen / params.blockRows;
        const int32_t block = stagesTable_ ? tableBuf_.template Get<int32_t>().GetValue(page)
                                           : blockTable_.GetValue((uint64_t)item.request * params.maxBlocks + page);
        const uint64_t row = (uint64_t)block * params.blockRows + within;
        uint32_t longest = Least(most, params.blockRows - within, item.entries - at);
        if (listed) {
            uint32_t count = 1;
            while (count < longest && staged.GetValue(slot + count) == chosen + (int32_t)count
                   && (uint32_t)chosen + count < item.visible) {
                ++count;
            }
            longest = count;
        }
        return {row, longest, false};
    }

    __aicore__ inline uint32_t Least(uint32_t a, uint32_t b, uint32_t c) const
    {
        const uint32_t least = a < b ? a : b;
        return least < c ? least : c;
    }

    /// Keys of slots [from, to) to the workspace, through the unified buffer. Slots without a key become zeros.
    __aicore__ inline void GatherRows(const SparseAttentionItem& item, uint32_t from, uint32_t to)
    {
        const uint32_t pitch = tiling_.keyPitch;
        const uint64_t slot = (uint64_t)block_ * SPARSE_ATTENTION_KEY_SLOTS + item.number % SPARSE_ATTENTION_KEY_SLOTS;
        const uint64_t base = slot * tiling_.scorePitch * pitch;
        while (from < to) {
            const uint32_t most = to - from < stageRows_ ? to - from : stageRows_;
            const Run run = Locate(item, from, most);
            if (run.count == 0) {
                AscendC::DataCopy(keys_[base + (uint64_t)from * pitch], Zeros().template ReinterpretCast<K>(), pitch);
                ++from;
            } else if constexpr (SAME) {
                AscendC::LocalTensor<K> rows = stageQue_.template AllocTensor<K>();
                const uint32_t count = LoadRuns(rows, item, run, from, most);
                stageQue_.EnQue(rows);
                rows = stageQue_.template DeQue<K>();
                AscendC::DataCopy(keys_[base + (uint64_t)from * pitch], rows, count * pitch);
                stageQue_.FreeTensor(rows);
                from += count;
            } else {
                AscendC::LocalTensor<C> narrow = narrowQue_.template AllocTensor<C>();
                const uint32_t count = LoadRuns(narrow, item, run, from, most);
                narrowQue_.EnQue(narrow);
                narrow = narrowQue_.template DeQue<C>();
                AscendC::LocalTensor<K> rows = wideQue_.template AllocTensor<K>();
                AscendC::Cast(rows, narrow, AscendC::RoundMode::CAST_NONE, count * rowPitch_);
                narrowQue_.FreeTensor(narrow);
                wideQue_.EnQue(rows);
                rows = wideQue_.template DeQue<K>();
                const AscendC::DataCopyExtParams params((uint16_t)count, pitch * (uint32_t)sizeof(K), (rowPitch_ - pitch) / 8, 0, 0);
                AscendC::DataCopyPad(keys_[base + (uint64_t)from * pitch], rows, params);
                wideQue_.FreeTensor(rows);
                from += count;
            }
        }
    }

    /// Runs of rows from slot `from` on, beginning with `run`, up to the first slot without a key and at most `most` rows. Returns
    /// how many there were.
    __aicore__ inline uint32_t LoadRuns(const AscendC::LocalTensor<C>& rows, const SparseAttentionItem& item, Run run, uint32_t from,
                                        uint32_t most)
    {
        AscendC::DataCopyPadExtParams<C> pad;
        pad.isPad = rowPitch_ != headDim_;
        pad.rightPadding = (uint8_t)(rowPitch_ - headDim_);
        uint32_t count = 0;
        while (run.count != 0) {
            const AscendC::DataCopyExtParams params((uint16_t)run.count, headDim_ * (uint32_t)sizeof(C), 0, 0, 0);
            AscendC::DataCopyPad(rows[count * rowPitch_], run.window ? winKv_[run.row * headDim_] : cmpKv_[run.row * headDim_], params, pad);
            count += run.count;
            run.count = 0;
            if (count < most) {
                run = Locate(item, from + count, most - count);
            }
        }
        return count;
    }

    SparseAttentionTiling tiling_;
    AscendC::TPipe* pipe_;
    uint32_t block_;
    uint32_t half_;          // which of the two vector cores of the AI core
    uint32_t headDim_;
    uint32_t rowPitch_;      // elements of a key in the unified buffer
    uint32_t stageRows_;
    uint32_t zeroElements_;
    int32_t stagedRequest_ = -1;
    bool stagesTable_;       // the block table of a request fits into the unified buffer
    AscendC::TQueBind<AscendC::TPosition::VECIN, AscendC::TPosition::VECOUT, 1> stageQue_;
    AscendC::TQue<AscendC::TPosition::VECIN, 1> narrowQue_;
    AscendC::TQue<AscendC::TPosition::VECOUT, 1> wideQue_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> biasBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> rampBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> entryBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> wideEntryBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> maskBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> tableBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> zeroBuf_;
    AscendC::GlobalTensor<C> winKv_;
    AscendC::GlobalTensor<C> cmpKv_;
    AscendC::GlobalTensor<int32_t> entries_;
    AscendC::GlobalTensor<int32_t> windowTable_;
    AscendC::GlobalTensor<int32_t> blockTable_;
    AscendC::GlobalTensor<K> keys_;
};

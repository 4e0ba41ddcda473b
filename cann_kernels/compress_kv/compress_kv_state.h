// SPDX-License-Identifier: Apache-2.0
// Phase 2 of compress_kv: the last rows of every request go to the rows of the state that their positions name.
#pragma once

#include "kernel_operator.h"

#include "compress_kv.h"

class CompressKvState {
public:
    __aicore__ inline void Init(GM_ADDR state, GM_ADDR kv, GM_ADDR gate, GM_ADDR ape, GM_ADDR positions, GM_ADDR cuQueryLens,
                                GM_ADDR stateSlots, const CompressKvTiling& tiling, AscendC::TPipe* pipe)
    {
        tiling_ = tiling;
        pipe_ = pipe;
        state_.SetGlobalBuffer((__gm__ float*)state);
        kv_.SetGlobalBuffer((__gm__ float*)kv);
        gate_.SetGlobalBuffer((__gm__ float*)gate);
        ape_.SetGlobalBuffer((__gm__ float*)ape);
        positions_.SetGlobalBuffer((__gm__ int32_t*)positions);
        cuQueryLens_.SetGlobalBuffer((__gm__ int32_t*)cuQueryLens);
        stateSlots_.SetGlobalBuffer((__gm__ int32_t*)stateSlots);
        const uint32_t row = (tiling_.width + 7) / 8 * 8 * (uint32_t)sizeof(float);
        pipe->InitBuffer(kvQue_, 2, row);
        pipe->InitBuffer(gateQue_, 1, 2 * row);
        pipe->InitBuffer(sumQue_, 2, row);
        pipe->InitBuffer(tableBuf_, (2 * COMPRESS_KV_TABLE_TOKENS + 8) * sizeof(int32_t));
        pipe->InitBuffer(positionBuf_, 32);
    }

    /// Rows are dealt out to the cores in turn.
    __aicore__ inline void Process()
    {
        const uint32_t cores = (uint32_t)AscendC::GetBlockNum();
        const uint32_t self = (uint32_t)AscendC::GetBlockIdx();
        AscendC::LocalTensor<int32_t> tables = tableBuf_.Get<int32_t>();
        uint32_t turn = 0;
        for (uint32_t request = 0; request < tiling_.numRequests; request += COMPRESS_KV_TABLE_TOKENS) {
            const uint32_t rest = tiling_.numRequests - request;
            const uint32_t requests = rest < COMPRESS_KV_TABLE_TOKENS ? rest : COMPRESS_KV_TABLE_TOKENS;
            LoadTables(request, requests);
            for (uint32_t i = 0; i < requests; ++i) {
                const uint32_t end = (uint32_t)tables.GetValue(kStarts + i + 1);
                uint32_t row = (uint32_t)tables.GetValue(kStarts + i);
                if (end - row > tiling_.stateRows) row = end - tiling_.stateRows;
                for (; row < end; ++row) {
                    if (turn == self) WriteRow(row, (uint64_t)tables.GetValue(i));
                    turn = turn + 1 == cores ? 0 : turn + 1;
                }
            }
        }
    }

private:
    static constexpr uint32_t kStarts = COMPRESS_KV_TABLE_TOKENS;  // in the staged tables: state slots, then where rows begin

    __aicore__ inline void AwaitScalar()
    {
        const AscendC::TEventID free = pipe_->FetchEventID(AscendC::HardEvent::S_MTE2);
        AscendC::SetFlag<AscendC::HardEvent::S_MTE2>(free);
        AscendC::WaitFlag<AscendC::HardEvent::S_MTE2>(free);
    }

    __aicore__ inline void AwaitCopy()
    {
        const AscendC::TEventID landed = pipe_->FetchEventID(AscendC::HardEvent::MTE2_S);
        AscendC::SetFlag<AscendC::HardEvent::MTE2_S>(landed);
        AscendC::WaitFlag<AscendC::HardEvent::MTE2_S>(landed);
    }

    __aicore__ inline void LoadTables(uint32_t request, uint32_t requests)
    {
        const uint32_t size = (uint32_t)sizeof(int32_t);
        const AscendC::DataCopyPadExtParams<int32_t> noPad;
        AscendC::LocalTensor<int32_t> tables = tableBuf_.Get<int32_t>();
        AwaitScalar();
        AscendC::DataCopyPad(tables, stateSlots_[request], AscendC::DataCopyExtParams(1, requests * size, 0, 0, 0), noPad);
        AscendC::DataCopyPad(tables[kStarts], cuQueryLens_[request], AscendC::DataCopyExtParams(1, (requests + 1) * size, 0, 0, 0), noPad);
        AwaitCopy();
    }

    /// kv and gate + ape of one token; kv passes through the unified buffer as it is.
    __aicore__ inline void WriteRow(uint32_t token, uint64_t slot)
    {
        const uint32_t width = tiling_.width;
        const uint32_t pitch = (width + 7) / 8 * 8;
        const AscendC::DataCopyExtParams row(1, width * (uint32_t)sizeof(float), 0, 0, 0);
        const AscendC::DataCopyPadExtParams<float> noPad;
        AscendC::LocalTensor<int32_t> staged = positionBuf_.Get<int32_t>();
        AwaitScalar();
        AscendC::DataCopyPad(staged, positions_[token], AscendC::DataCopyExtParams(1, (uint32_t)sizeof(int32_t), 0, 0, 0),
                             AscendC::DataCopyPadExtParams<int32_t>());
        AwaitCopy();
        const uint32_t position = (uint32_t)staged.GetValue(0);
        const uint64_t to = (slot * tiling_.stateRows + position % tiling_.stateRows) * 2 * width;

        AscendC::LocalTensor<float> kv = kvQue_.AllocTensor<float>();
        AscendC::DataCopyPad(kv, kv_[(uint64_t)token * width], row, noPad);
        kvQue_.EnQue(kv);
        AscendC::LocalTensor<float> gate = gateQue_.AllocTensor<float>();
        AscendC::DataCopyPad(gate, gate_[(uint64_t)token * width], row, noPad);
        AscendC::DataCopyPad(gate[pitch], ape_[(uint64_t)(position % tiling_.ratio) * width], row, noPad);
        gateQue_.EnQue(gate);

        AscendC::LocalTensor<float> kvLoaded = kvQue_.DeQue<float>();
        AscendC::DataCopyPad(state_[to], kvLoaded, row);
        kvQue_.FreeTensor(kvLoaded);
        AscendC::LocalTensor<float> gateLoaded = gateQue_.DeQue<float>();
        AscendC::LocalTensor<float> sum = sumQue_.AllocTensor<float>();
        AscendC::Add(sum, gateLoaded, gateLoaded[pitch], (int32_t)width);
        gateQue_.FreeTensor(gateLoaded);
        sumQue_.EnQue(sum);
        AscendC::LocalTensor<float> ready = sumQue_.DeQue<float>();
        AscendC::DataCopyPad(state_[to + width], ready, row);
        sumQue_.FreeTensor(ready);
    }

    CompressKvTiling tiling_;
    AscendC::TPipe* pipe_;
    AscendC::TQueBind<AscendC::TPosition::VECIN, AscendC::TPosition::VECOUT, 2> kvQue_;
    AscendC::TQue<AscendC::TPosition::VECIN, 1> gateQue_;  // gate of a row, then its ape
    AscendC::TQue<AscendC::TPosition::VECOUT, 2> sumQue_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> tableBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> positionBuf_;
    AscendC::GlobalTensor<float> state_;
    AscendC::GlobalTensor<float> kv_;
    AscendC::GlobalTensor<float> gate_;
    AscendC::GlobalTensor<float> ape_;
    AscendC::GlobalTensor<int32_t> positions_;
    AscendC::GlobalTensor<int32_t> cuQueryLens_;
    AscendC::GlobalTensor<int32_t> stateSlots_;
};

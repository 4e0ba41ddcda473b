// SPDX-License-Identifier: Apache-2.0
// Phase 1 of compress_kv: the entries that this step's tokens close.
#pragma once

#include "kernel_operator.h"

#include "compress_kv.h"
#include "compress_kv_finish.h"

template <typename T>
class CompressKvEntries {
public:
    __aicore__ inline void InitTables(GM_ADDR positions, GM_ADDR reqIdx, GM_ADDR cuQueryLens, GM_ADDR stateSlots, GM_ADDR slots,
                                      const CompressKvTiling& tiling, AscendC::TPipe* pipe)
    {
        tiling_ = tiling;
        pipe_ = pipe;
        positions_.SetGlobalBuffer((__gm__ int32_t*)positions);
        reqIdx_.SetGlobalBuffer((__gm__ int32_t*)reqIdx);
        cuQueryLens_.SetGlobalBuffer((__gm__ int32_t*)cuQueryLens);
        stateSlots_.SetGlobalBuffer((__gm__ int32_t*)stateSlots);
        slots_.SetGlobalBuffer((__gm__ int32_t*)slots);
        pipe->InitBuffer(tableBuf_, 3 * COMPRESS_KV_TABLE_TOKENS * sizeof(int32_t));
        pipe->InitBuffer(requestBuf_, 2 * 32);
    }

    __aicore__ inline void InitRows(GM_ADDR state, GM_ADDR kv, GM_ADDR gate, GM_ADDR ape, GM_ADDR norm, GM_ADDR cos, GM_ADDR sin,
                                    GM_ADDR out)
    {
        state_.SetGlobalBuffer((__gm__ float*)state);
        kv_.SetGlobalBuffer((__gm__ float*)kv);
        gate_.SetGlobalBuffer((__gm__ float*)gate);
        ape_.SetGlobalBuffer((__gm__ float*)ape);
        const uint32_t batch = tiling_.batchRows * tiling_.pitch * (uint32_t)sizeof(float);
        const uint32_t row = tiling_.pitch * (uint32_t)sizeof(float);
        pipe_->InitBuffer(rowQue_, 2, 2 * batch);
        pipe_->InitBuffer(apeQue_, 1, batch);
        pipe_->InitBuffer(mostBuf_, 2 * row);
        pipe_->InitBuffer(powerBuf_, row);
        pipe_->InitBuffer(totalBuf_, row);
        finish_.Init(norm, cos, sin, out, tiling_, pipe_);
    }

    __aicore__ inline void Process()
    {
        uint32_t token = (uint32_t)AscendC::GetBlockIdx() * tiling_.tokensPerBlock;
        const uint32_t rest = tiling_.numTokens - token;
        const uint32_t end = token + (rest < tiling_.tokensPerBlock ? rest : tiling_.tokensPerBlock);
        AscendC::LocalTensor<int32_t> tables = tableBuf_.template Get<int32_t>();
        finish_.Prepare();
        while (token < end) {
            const uint32_t left = end - token;
            const uint32_t tokens = left < COMPRESS_KV_TABLE_TOKENS ? left : COMPRESS_KV_TABLE_TOKENS;
            LoadTables(token, tokens);
            for (uint32_t i = 0; i < tokens; ++i) {
                const int32_t slot = tables.GetValue(i);
                if (slot < 0) continue;
                const int32_t position = tables.GetValue(COMPRESS_KV_TABLE_TOKENS + i);
                LoadRequest(tables.GetValue(2 * COMPRESS_KV_TABLE_TOKENS + i));
                Pool(token + i, (uint32_t)position);
                finish_.Process(totalBuf_.template Get<float>(), powerBuf_.template Get<float>(), token + i, (uint32_t)slot);
            }
            token += tokens;
        }
    }

private:
    __aicore__ inline void AwaitScalar()
    {
        // The scalar unit has read what was there before the copy may overwrite it.
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

    /// Stages slots, positions and requests of the tokens from `token` on, for reading as scalars.
    __aicore__ inline void LoadTables(uint32_t token, uint32_t tokens)
    {
        const AscendC::DataCopyExtParams row(1, tokens * (uint32_t)sizeof(int32_t), 0, 0, 0);
        const AscendC::DataCopyPadExtParams<int32_t> noPad;
        AscendC::LocalTensor<int32_t> tables = tableBuf_.template Get<int32_t>();
        AwaitScalar();
        AscendC::DataCopyPad(tables, slots_[token], row, noPad);
        AscendC::DataCopyPad(tables[COMPRESS_KV_TABLE_TOKENS], positions_[token], row, noPad);
        AscendC::DataCopyPad(tables[2 * COMPRESS_KV_TABLE_TOKENS], reqIdx_[token], row, noPad);
        AwaitCopy();
    }

    /// Where the request's rows begin in this step, and where its state lies. Entries of one request follow each other.
    __aicore__ inline void LoadRequest(int32_t request)
    {
        if (request == request_) return;
        request_ = request;
        const AscendC::DataCopyExtParams one(1, (uint32_t)sizeof(int32_t), 0, 0, 0);
        const AscendC::DataCopyPadExtParams<int32_t> noPad;
        AscendC::LocalTensor<int32_t> staged = requestBuf_.template Get<int32_t>();
        AwaitScalar();
        AscendC::DataCopyPad(staged, cuQueryLens_[(uint64_t)request], one, noPad);
        AscendC::DataCopyPad(staged[8], stateSlots_[(uint64_t)request], one, noPad);
        AwaitCopy();
        firstRow_ = (uint32_t)staged.GetValue(0);
        stateBase_ = (uint64_t)staged.GetValue(8) * tiling_.stateRows;
    }

    /// power = sum of exp(gate - most) and total = sum of exp(gate - most) * kv over the positions of the entry that `token`
    /// closes, by batches of rows in order of position. The older window of a request's first entry is absent.
    __aicore__ inline void Pool(uint32_t token, uint32_t position)
    {
        const int32_t pitch = (int32_t)tiling_.pitch;
        const bool absent = tiling_.count > tiling_.ratio && position + 1 < 2 * tiling_.ratio;
        const uint32_t start = absent ? tiling_.ratio : 0;
        const uint32_t inStep = token - firstRow_ + 1;
        firstInStep_ = inStep < tiling_.count ? tiling_.count - inStep : 0;
        AscendC::Duplicate(powerBuf_.template Get<float>(), 0.0f, pitch);
        AscendC::Duplicate(totalBuf_.template Get<float>(), 0.0f, pitch);
        uint32_t parity = 0;
        for (uint32_t row = start; row < tiling_.count; row += tiling_.batchRows) {
            const uint32_t rest = tiling_.count - row;
            const uint32_t rows = rest < tiling_.batchRows ? rest : tiling_.batchRows;
            LoadBatch(token, position, row, rows);
            PoolBatch(row, rows, parity, row == start);
            parity ^= 1;
        }
    }

    /// Rows that lie one behind the other, of one window: from row `row` of the entry, at most up to `end`.
    struct Run {
        uint32_t rows;
        uint64_t kv;      // element at which the first row begins
        uint64_t gate;
        uint32_t stride;  // elements from one row to the next
    };

    __aicore__ inline Run NextRun(uint32_t token, uint32_t position, uint32_t row, uint32_t end) const
    {
        const uint32_t window = row / tiling_.ratio;
        const uint32_t channel = window * tiling_.headDim;  // an older window takes the first half of the channels
        const uint32_t back = tiling_.count - 1 - row;
        uint32_t last = (window + 1) * tiling_.ratio < end ? (window + 1) * tiling_.ratio : end;
        if (row >= firstInStep_) {
            const uint64_t at = (uint64_t)(token - back) * tiling_.width + channel;
            return {last - row, at, at, tiling_.width};
        }
        const uint32_t stateRow = (position - back) % tiling_.stateRows;
        if (last > firstInStep_) last = firstInStep_;
        if (last > row + tiling_.stateRows - stateRow) last = row + tiling_.stateRows - stateRow;
        const uint64_t at = (stateBase_ + stateRow) * 2 * tiling_.width + channel;
        return {last - row, at, at + tiling_.width, 2 * tiling_.width};
    }

    __aicore__ inline void LoadBatch(uint32_t token, uint32_t position, uint32_t start, uint32_t rows)
    {
        const uint32_t pitch = tiling_.pitch;
        const uint32_t bytes = tiling_.headDim * (uint32_t)sizeof(float);
        const AscendC::DataCopyPadExtParams<float> zeros(true, 0, (uint8_t)(pitch - tiling_.headDim), 0.0f);
        AscendC::LocalTensor<float> kv = rowQue_.template AllocTensor<float>();
        AscendC::LocalTensor<float> gate = kv[tiling_.batchRows * pitch];
        for (uint32_t row = start; row < start + rows;) {
            const Run run = NextRun(token, position, row, start + rows);
            const AscendC::DataCopyExtParams copy((uint16_t)run.rows, bytes, run.stride * (uint32_t)sizeof(float) - bytes, 0, 0);
            const uint32_t to = (row - start) * pitch;
            if (row < firstInStep_) {
                AscendC::DataCopyPad(kv[to], state_[run.kv], copy, zeros);
                AscendC::DataCopyPad(gate[to], state_[run.gate], copy, zeros);
            } else {
                AscendC::DataCopyPad(kv[to], kv_[run.kv], copy, zeros);
                AscendC::DataCopyPad(gate[to], gate_[run.gate], copy, zeros);
            }
            row += run.rows;
        }
        rowQue_.EnQue(kv);
        const uint32_t from = start > firstInStep_ ? start : firstInStep_;
        if (from < start + rows) LoadApe(start, from, start + rows);
    }

    /// The state holds gate + ape already. A window begins at a multiple of `ratio`, so row i of it takes row i of ape.
    __aicore__ inline void LoadApe(uint32_t start, uint32_t from, uint32_t end)
    {
        const uint32_t bytes = tiling_.headDim * (uint32_t)sizeof(float);
        const AscendC::DataCopyPadExtParams<float> zeros(true, 0, (uint8_t)(tiling_.pitch - tiling_.headDim), 0.0f);
        AscendC::LocalTensor<float> ape = apeQue_.template AllocTensor<float>();
        for (uint32_t row = from; row < end;) {
            const uint32_t window = row / tiling_.ratio;
            const uint32_t last = (window + 1) * tiling_.ratio < end ? (window + 1) * tiling_.ratio : end;
            const AscendC::DataCopyExtParams copy((uint16_t)(last - row), bytes, tiling_.width * (uint32_t)sizeof(float) - bytes, 0, 0);
            const uint64_t at = (uint64_t)(row % tiling_.ratio) * tiling_.width + window * tiling_.headDim;
            AscendC::DataCopyPad(ape[(row - start) * tiling_.pitch], ape_[at], copy, zeros);
            row = last;
        }
        apeQue_.EnQue(ape);
    }

    __aicore__ inline void PoolBatch(uint32_t start, uint32_t rows, uint32_t parity, bool isFirst)
    {
        const uint32_t pitch = tiling_.pitch;
        AscendC::LocalTensor<float> kv = rowQue_.template DeQue<float>();
        AscendC::LocalTensor<float> gate = kv[tiling_.batchRows * pitch];
        AscendC::LocalTensor<float> power = powerBuf_.template Get<float>();
        AscendC::LocalTensor<float> total = totalBuf_.template Get<float>();
        const uint32_t from = start > firstInStep_ ? start : firstInStep_;
        if (from < start + rows) {
            AscendC::LocalTensor<float> ape = apeQue_.template DeQue<float>();
            const uint32_t at = (from - start) * pitch;
            AscendC::Add(gate[at], gate[at], ape[at], (int32_t)((start + rows - from) * pitch));
            apeQue_.FreeTensor(ape);
        }
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::LocalTensor<float> most = Largest(gate, rows, parity, isFirst);
        for (uint32_t i = 0; i < rows; ++i) AscendC::Sub(gate[i * pitch], gate[i * pitch], most, (int32_t)pitch);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Exp(gate, gate, (int32_t)(rows * pitch));
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Mul(kv, kv, gate, (int32_t)(rows * pitch));
        for (uint32_t i = 0; i < rows; ++i) {
            AscendC::PipeBarrier<PIPE_V>();
            AscendC::Add(power, power, gate[i * pitch], (int32_t)pitch);
            AscendC::Add(total, total, kv[i * pitch], (int32_t)pitch);
        }
        AscendC::PipeBarrier<PIPE_V>();
        rowQue_.FreeTensor(kv);
    }

    /// The largest gate of each channel up to this batch; the sums so far are brought to it.
    __aicore__ inline AscendC::LocalTensor<float> Largest(const AscendC::LocalTensor<float>& gate, uint32_t rows, uint32_t parity,
                                                          bool isFirst)
    {
        const int32_t pitch = (int32_t)tiling_.pitch;
        AscendC::LocalTensor<float> most = mostBuf_.template Get<float>()[parity * tiling_.pitch];
        AscendC::LocalTensor<float> before = mostBuf_.template Get<float>()[(parity ^ 1) * tiling_.pitch];
        AscendC::LocalTensor<float> power = powerBuf_.template Get<float>();
        AscendC::LocalTensor<float> total = totalBuf_.template Get<float>();
        AscendC::Max(most, gate, isFirst ? gate : before, pitch);
        for (uint32_t i = 1; i < rows; ++i) {
            AscendC::PipeBarrier<PIPE_V>();
            AscendC::Max(most, most, gate[i * tiling_.pitch], pitch);
        }
        AscendC::PipeBarrier<PIPE_V>();
        if (isFirst) return most;
        AscendC::Sub(before, before, most, pitch);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Exp(before, before, pitch);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Mul(power, power, before, pitch);
        AscendC::Mul(total, total, before, pitch);
        return most;
    }

    CompressKvTiling tiling_;
    AscendC::TPipe* pipe_;
    CompressKvFinish<T> finish_;
    int32_t request_ = -1;
    uint32_t firstRow_ = 0;     // of the request in this step
    uint64_t stateBase_ = 0;    // first row of the request's state
    uint32_t firstInStep_ = 0;  // row of the entry from which on rows come from this step
    AscendC::TQue<AscendC::TPosition::VECIN, 2> rowQue_;  // kv of a batch, then its gate
    AscendC::TQue<AscendC::TPosition::VECIN, 1> apeQue_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> tableBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> requestBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> mostBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> powerBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> totalBuf_;
    AscendC::GlobalTensor<float> state_;
    AscendC::GlobalTensor<float> kv_;
    AscendC::GlobalTensor<float> gate_;
    AscendC::GlobalTensor<float> ape_;
    AscendC::GlobalTensor<int32_t> positions_;
    AscendC::GlobalTensor<int32_t> reqIdx_;
    AscendC::GlobalTensor<int32_t> cuQueryLens_;
    AscendC::GlobalTensor<int32_t> stateSlots_;
    AscendC::GlobalTensor<int32_t> slots_;
};

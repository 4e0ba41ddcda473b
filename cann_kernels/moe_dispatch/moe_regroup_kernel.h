// SPDX-License-Identifier: Apache-2.0
// After the all-to-all: rows that stand by sending rank and local expert are brought together by expert, in order of the rank.
// Vector cores only; a core moves a run of the received rows, of which those of one segment stay side by side.
#pragma once

#include "kernel_operator.h"

#include "moe_regroup.h"
#include "rows.h"

class MoeRegroupKernel {
public:
    __aicore__ inline void Init(GM_ADDR rows, GM_ADDR rowWeights, GM_ADDR counts, GM_ADDR outRows, GM_ADDR outWeights, GM_ADDR outCounts,
                                GM_ADDR rowOf, const MoeRegroupTiling& tiling, AscendC::TPipe* pipe)
    {
        tiling_ = tiling;
        pipe_ = pipe;
        rows_.SetGlobalBuffer((__gm__ uint8_t*)rows);
        rowWeights_.SetGlobalBuffer((__gm__ float*)rowWeights);
        counts_.SetGlobalBuffer((__gm__ int32_t*)counts);
        outRows_.SetGlobalBuffer((__gm__ uint8_t*)outRows);
        outWeights_.SetGlobalBuffer((__gm__ float*)outWeights);
        outCounts_.SetGlobalBuffer((__gm__ int32_t*)outCounts);
        rowOf_.SetGlobalBuffer((__gm__ int32_t*)rowOf);
        const uint32_t segments = tiling_.numRanks * tiling_.expertsPerRank;
        pipe->InitBuffer(countBuf_, segments * sizeof(int32_t));
        pipe->InitBuffer(firstBuf_, segments * sizeof(int32_t));
        pipe->InitBuffer(totalBuf_, tiling_.expertsPerRank * sizeof(int32_t));
        pipe->InitBuffer(rowQue_, 4, MOE_REGROUP_TILE_BYTES);
        pipe->InitBuffer(weightQue_, 2, MOE_REGROUP_CHUNK * sizeof(float));
        pipe->InitBuffer(rowOfQue_, 2, MOE_REGROUP_CHUNK * sizeof(int32_t));
        pipe->InitBuffer(rampBuf_, MOE_REGROUP_CHUNK * sizeof(int32_t));
        AscendC::CreateVecIndex(rampBuf_.Get<int32_t>(), (int32_t)0, MOE_REGROUP_CHUNK);
        AscendC::PipeBarrier<PIPE_V>();
    }

    __aicore__ inline void Process()
    {
        const uint32_t segments = tiling_.numRanks * tiling_.expertsPerRank;
        StageScalars(countBuf_.Get<int32_t>(), counts_, segments, pipe_);
        FindFirstRows();
        const ItemRun run = RunOfBlock(tiling_.numRows, tiling_.rowsPerBlock);
        uint64_t start = 0;  // of the segment, among the received rows
        for (uint32_t segment = 0; segment < segments && start < run.end; ++segment) {
            const uint64_t end = start + (uint32_t)countBuf_.Get<int32_t>().GetValue(segment);
            const uint64_t from = start < run.begin ? run.begin : start;
            const uint64_t to = end < run.end ? end : run.end;
            if (from < to) Move(from, (uint64_t)firstBuf_.Get<int32_t>().GetValue(segment) + (from - start), to - from);
            start = end;
        }
    }

private:
    /// Where each segment goes. The first core hands out the counts of the experts.
    __aicore__ inline void FindFirstRows()
    {
        AscendC::LocalTensor<int32_t> counts = countBuf_.Get<int32_t>();
        AscendC::LocalTensor<int32_t> first = firstBuf_.Get<int32_t>();
        AscendC::LocalTensor<int32_t> total = totalBuf_.Get<int32_t>();
        int32_t row = 0;
        for (uint32_t expert = 0; expert < tiling_.expertsPerRank; ++expert) {
            const int32_t before = row;
            for (uint32_t rank = 0; rank < tiling_.numRanks; ++rank) {
                const uint32_t segment = rank * tiling_.expertsPerRank + expert;
                first.SetValue(segment, row);
                row += counts.GetValue(segment);
            }
            total.SetValue(expert, row - before);
        }
        if (AscendC::GetBlockIdx() != 0) return;
        Handover<AscendC::HardEvent::S_MTE3>(pipe_);
        AscendC::DataCopyPad(outCounts_, total,
                             AscendC::DataCopyExtParams(1, tiling_.expertsPerRank * (uint32_t)sizeof(int32_t), 0, 0, 0));
    }

    /// `rows` rows from received row `from` on, to row `to` on.
    __aicore__ inline void Move(uint64_t from, uint64_t to, uint64_t rows)
    {
        const uint64_t bytes = rows * tiling_.rowBytes;
        for (uint64_t done = 0; done < bytes; done += MOE_REGROUP_TILE_BYTES) {
            const uint64_t rest = bytes - done;
            const uint32_t part = rest < MOE_REGROUP_TILE_BYTES ? (uint32_t)rest : MOE_REGROUP_TILE_BYTES;
            Carry(rowQue_, outRows_[to * tiling_.rowBytes + done], rows_[from * tiling_.rowBytes + done], part);
        }
        for (uint64_t done = 0; done < rows; done += MOE_REGROUP_CHUNK) {
            const uint64_t rest = rows - done;
            const uint32_t part = rest < MOE_REGROUP_CHUNK ? (uint32_t)rest : MOE_REGROUP_CHUNK;
            Carry(weightQue_, outWeights_[to + done], rowWeights_[from + done], part);
            AscendC::LocalTensor<int32_t> rowOf = rowOfQue_.AllocTensor<int32_t>();
            AscendC::Adds(rowOf, rampBuf_.Get<int32_t>(), (int32_t)(to + done), (int32_t)part);
            rowOfQue_.EnQue(rowOf);
            rowOf = rowOfQue_.DeQue<int32_t>();
            AscendC::DataCopyPad(rowOf_[from + done], rowOf, AscendC::DataCopyExtParams(1, part * (uint32_t)sizeof(int32_t), 0, 0, 0));
            rowOfQue_.FreeTensor(rowOf);
        }
    }

    template <typename Queue, typename T>
    __aicore__ inline void Carry(Queue& queue, const AscendC::GlobalTensor<T>& to, const AscendC::GlobalTensor<T>& from, uint32_t count)
    {
        const AscendC::DataCopyExtParams part(1, count * (uint32_t)sizeof(T), 0, 0, 0);
        AscendC::LocalTensor<T> tile = queue.template AllocTensor<T>();
        AscendC::DataCopyPad(tile, from, part, AscendC::DataCopyPadExtParams<T>(false, 0, 0, 0));
        queue.EnQue(tile);
        tile = queue.template DeQue<T>();
        AscendC::DataCopyPad(to, tile, part);
        queue.FreeTensor(tile);
    }

    MoeRegroupTiling tiling_;
    AscendC::TPipe* pipe_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> countBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> firstBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> totalBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> rampBuf_;
    AscendC::TQueBind<AscendC::TPosition::VECIN, AscendC::TPosition::VECOUT, 1> rowQue_;
    AscendC::TQueBind<AscendC::TPosition::VECIN, AscendC::TPosition::VECOUT, 1> weightQue_;
    AscendC::TQue<AscendC::TPosition::VECOUT, 1> rowOfQue_;
    AscendC::GlobalTensor<uint8_t> rows_;
    AscendC::GlobalTensor<float> rowWeights_;
    AscendC::GlobalTensor<int32_t> counts_;
    AscendC::GlobalTensor<uint8_t> outRows_;
    AscendC::GlobalTensor<float> outWeights_;
    AscendC::GlobalTensor<int32_t> outCounts_;
    AscendC::GlobalTensor<int32_t> rowOf_;
};

extern "C" __global__ __aicore__ void moe_regroup(GM_ADDR rows, GM_ADDR rowWeights, GM_ADDR counts, GM_ADDR outRows, GM_ADDR outWeights,
                                                  GM_ADDR outCounts, GM_ADDR rowOf, MoeRegroupTiling tiling)
{
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
    AscendC::TPipe pipe;
    MoeRegroupKernel kernel;
    kernel.Init(rows, rowWeights, counts, outRows, outWeights, outCounts, rowOf, tiling, &pipe);
    kernel.Process();
}

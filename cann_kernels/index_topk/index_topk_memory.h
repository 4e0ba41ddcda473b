// SPDX-License-Identifier: Apache-2.0
// How the unified buffer is divided while items are scanned and while lists are merged. Device code.
#pragma once

#include "kernel_operator.h"

#include "index_topk.h"

/// Addresses in global memory that vector cores use.
struct IndexTopkGm {
    GM_ADDR weights;
    GM_ADDR table;
    GM_ADDR candidates;
    GM_ADDR qScale;
    GM_ADDR keyScale;
    GM_ADDR entries;
    GM_ADDR blocks;
    GM_ADDR ring;
    GM_ADDR lists;
};

constexpr uint32_t INDEX_TOPK_WIDE = INDEX_TOPK_MAX_CANDIDATES;  // numbers in the widest row of an output
constexpr uint32_t INDEX_TOPK_UB_BYTES = 180 * 1024;

struct IndexTopkMemory {
    // Kept all the time.
    AscendC::LocalTensor<int32_t> ramp;     // [INDEX_TOPK_WIDE] 0, 1, 2 ..
    AscendC::LocalTensor<float> realRamp;   // the same
    // While items are scanned.
    AscendC::LocalTensor<float> products;   // [2][64][128]
    AscendC::LocalTensor<float> a;
    AscendC::LocalTensor<float> b;
    AscendC::LocalTensor<float> merged;
    AscendC::LocalTensor<float> entryRecords;
    AscendC::LocalTensor<float> blockRecords;
    AscendC::LocalTensor<float> scores;
    AscendC::LocalTensor<int32_t> numbers;
    AscendC::LocalTensor<float> blockScores;
    AscendC::LocalTensor<float> blockEntries;
    AscendC::LocalTensor<float> eighths;
    AscendC::LocalTensor<int32_t> candidateOffset;
    AscendC::LocalTensor<int32_t> inCandidate;
    AscendC::LocalTensor<int32_t> candidateStart;
    AscendC::LocalTensor<int32_t> blockOffset;
    AscendC::LocalTensor<float> keyScale;
    AscendC::LocalTensor<float> weights;
    AscendC::LocalTensor<float> qScale;
    AscendC::LocalTensor<float> spreadWeights;
    AscendC::LocalTensor<uint8_t> bits;
    AscendC::LocalTensor<uint8_t> lastBits;
    // While lists are merged; they take the place of the former.
    AscendC::LocalTensor<float> current;    // [INDEX_TOPK_WIDE] records
    AscendC::LocalTensor<int32_t> row;
    AscendC::LocalTensor<int32_t> none;     // -1 everywhere
    AscendC::LocalTensor<uint8_t> rowBits;
    AscendC::LocalTensor<float> area;       // lists and what they are merged into, then what the numbers are sorted in
};

constexpr uint32_t INDEX_TOPK_AREA = 7 * INDEX_TOPK_WIDE * 2;  // floats: three lists and a merge of four

/// Hands out the buffer from the front.
class IndexTopkArena {
public:
    __aicore__ inline IndexTopkArena(AscendC::TBuf<AscendC::TPosition::VECCALC>* buffer, uint32_t start) : buffer_(buffer), next_(start) {}

    template <typename T>
    __aicore__ inline AscendC::LocalTensor<T> Take(uint32_t count)
    {
        const uint32_t bytes = (count * (uint32_t)sizeof(T) + 255) / 256 * 256;
        const AscendC::LocalTensor<T> tensor = buffer_->GetWithOffset<T>(count, next_);
        next_ += bytes;
        return tensor;
    }

    __aicore__ inline uint32_t Used() const { return next_; }

private:
    AscendC::TBuf<AscendC::TPosition::VECCALC>* buffer_;
    uint32_t next_;
};

__aicore__ inline IndexTopkMemory IndexTopkDivide(AscendC::TBuf<AscendC::TPosition::VECCALC>* buffer)
{
    IndexTopkMemory m;
    IndexTopkArena kept(buffer, 0);
    m.ramp = kept.Take<int32_t>(INDEX_TOPK_WIDE);
    m.realRamp = kept.Take<float>(INDEX_TOPK_WIDE);
    IndexTopkArena scan(buffer, kept.Used());
    m.products = scan.Take<float>(2 * INDEX_TOPK_HEADS * INDEX_TOPK_TILE);
    m.a = scan.Take<float>(2 * INDEX_TOPK_CHUNK);
    m.b = scan.Take<float>(2 * INDEX_TOPK_CHUNK);
    m.merged = scan.Take<float>(2 * (INDEX_TOPK_MAX_CANDIDATES + INDEX_TOPK_CHUNK));
    m.entryRecords = scan.Take<float>(2 * INDEX_TOPK_MAX_TOPK);
    m.blockRecords = scan.Take<float>(2 * INDEX_TOPK_MAX_CANDIDATES);
    m.scores = scan.Take<float>(INDEX_TOPK_CHUNK);
    m.numbers = scan.Take<int32_t>(INDEX_TOPK_CHUNK);
    m.blockScores = scan.Take<float>(INDEX_TOPK_CHUNK / 2);
    m.blockEntries = scan.Take<float>(INDEX_TOPK_CHUNK / 2);
    m.eighths = scan.Take<float>(INDEX_TOPK_CHUNK / 8);
    m.candidateOffset = scan.Take<int32_t>(INDEX_TOPK_CHUNK);
    m.inCandidate = scan.Take<int32_t>(INDEX_TOPK_CHUNK);
    m.candidateStart = scan.Take<int32_t>(INDEX_TOPK_CHUNK);
    m.blockOffset = scan.Take<int32_t>(INDEX_TOPK_CHUNK / 2);
    m.keyScale = scan.Take<float>(INDEX_TOPK_CHUNK);
    m.weights = scan.Take<float>(INDEX_TOPK_MAX_HEADS);
    m.qScale = scan.Take<float>(INDEX_TOPK_MAX_HEADS);
    m.spreadWeights = scan.Take<float>(8 * INDEX_TOPK_MAX_HEADS);
    m.bits = scan.Take<uint8_t>(INDEX_TOPK_CHUNK / 8);
    m.lastBits = scan.Take<uint8_t>(INDEX_TOPK_TILE / 8);
    IndexTopkArena merge(buffer, kept.Used());
    m.current = merge.Take<float>(2 * INDEX_TOPK_WIDE);
    m.row = merge.Take<int32_t>(INDEX_TOPK_WIDE);
    m.none = merge.Take<int32_t>(INDEX_TOPK_WIDE);
    m.rowBits = merge.Take<uint8_t>(INDEX_TOPK_WIDE / 8);
    m.area = merge.Take<float>(INDEX_TOPK_AREA);
    return m;
}

// SPDX-License-Identifier: Apache-2.0
// The cube core: scores = queries x keys transposed, then sums = weights x keys. Keys lie in L1 in blocks of 16 rows, each block
// with its fractals of neighbouring columns together. Read as it stands a block is the right operand of the scores, and with each
// square of fractals transposed it is that of the sums.
#pragma once

#include "sparse_attention_items.h"

template <typename T>
class SparseAttentionCube {
public:
    __aicore__ inline void Init(GM_ADDR q, GM_ADDR positions, GM_ADDR requests, GM_ADDR workspace,
                                const SparseAttentionTiling& tiling, AscendC::TPipe* pipe)
    {
        tiling_ = tiling;
        block_ = (uint32_t)AscendC::GetBlockIdx();
        heads_ = tiling_.params.numHeads;
        headDim_ = tiling_.params.headDim;
        tileCols_ = L0C_TILE / tiling_.paddedHeads / 128 * 128;
        cursor_.Init(positions, requests, tiling_, block_);
        q_.SetGlobalBuffer((__gm__ T*)q);
        keys_.SetGlobalBuffer((__gm__ T*)(workspace + tiling_.keyOffset));
        scores_.SetGlobalBuffer((__gm__ float*)(workspace + tiling_.scoreOffset));
        weights_.SetGlobalBuffer((__gm__ T*)(workspace + tiling_.weightOffset));
        sums_.SetGlobalBuffer((__gm__ float*)(workspace + tiling_.sumOffset));
        const uint32_t heads = tiling_.paddedHeads;
        // 128 heads of 512 floats leave room for one chunk of keys.
        const bool roomy = sizeof(T) == 2 || heads <= 64;
        pipe->InitBuffer(queryQue_, 1, heads * tiling_.keyPitch * (uint32_t)sizeof(T));
        pipe->InitBuffer(keyQue_, roomy ? 2 : 1, CHUNK * tiling_.paddedDim * (uint32_t)sizeof(T));
        pipe->InitBuffer(weightQue_, 1, tiling_.parts * heads * CHUNK * (uint32_t)sizeof(T));
        pipe->InitBuffer(leftQue_, 2, heads * CHUNK * (uint32_t)sizeof(T));
        pipe->InitBuffer(rightQue_, 2, CHUNK * 128 * (uint32_t)sizeof(T));
        pipe->InitBuffer(sumQue_, 2, L0C_TILE * (uint32_t)sizeof(float));
    }

    /// The scores of an item are computed while the vector cores work on the weights of the one before.
    __aicore__ inline void Process()
    {
        SparseAttentionItem items[2];
        bool more = cursor_.Next(items[0]);
        if (more) {
            Score(items[0]);
        }
        for (uint32_t i = 0; more; ++i) {
            more = cursor_.Next(items[(i + 1) % 2]);
            if (more) {
                Score(items[(i + 1) % 2]);
            }
            Sum(items[i % 2]);
        }
    }

private:
    static constexpr uint32_t C0 = 32 / sizeof(T);
    static constexpr uint32_t FRACTAL = 16 * C0;          // elements
    static constexpr uint32_t CHUNK = 256 / sizeof(T);    // keys of one product, and its depth
    static constexpr uint32_t L0C_TILE = 16384;           // floats: half of L0C

    __aicore__ inline uint32_t ChunkRows(const SparseAttentionItem& item, uint32_t start) const
    {
        const uint32_t rest = item.padded - start;
        return rest < CHUNK ? rest : CHUNK;
    }

    /// Rows that no head fills are zeros.
    __aicore__ inline void ClearRows(const AscendC::LocalTensor<T>& tile, uint32_t elements)
    {
        if (heads_ != tiling_.paddedHeads) {
            const AscendC::InitConstValueParams<int32_t> zeros(1, (uint16_t)(elements * sizeof(T) / 32), 0, 0);
            AscendC::Fill(tile.template ReinterpretCast<int32_t>(), zeros);
            AscendC::PipeBarrier<PIPE_MTE2>();
        }
    }

    /// Rows of heads to L1 as columns of fractals.
    __aicore__ inline void LoadHeads(const AscendC::LocalTensor<T>& tile, const AscendC::GlobalTensor<T>& rows, uint32_t cols,
                                     uint32_t pitch)
    {
        AscendC::Nd2NzParams params;
        params.ndNum = 1;
        params.nValue = (uint16_t)heads_;
        params.dValue = cols;
        params.srcNdMatrixStride = 0;
        params.srcDValue = pitch;
        params.dstNzC0Stride = (uint16_t)tiling_.paddedHeads;
        params.dstNzNStride = 1;
        params.dstNzMatrixStride = 0;
        AscendC::DataCopy(tile, rows, params);
    }

    /// Columns [column, column + width) of keys [start, start + rows) of an item to L1.
    __aicore__ inline AscendC::LocalTensor<T> LoadKeys(const SparseAttentionItem& item, uint32_t start, uint32_t rows,
                                                       uint32_t column, uint32_t width)
    {
        AscendC::LocalTensor<T> tile = keyQue_.template AllocTensor<T>();
        const uint64_t slot = (uint64_t)block_ * SPARSE_ATTENTION_KEY_SLOTS + item.number % SPARSE_ATTENTION_KEY_SLOTS;
        const uint32_t pitch = tiling_.keyPitch;
        const uint32_t rest = pitch - column;
        AscendC::Nd2NzParams params;
        params.ndNum = (uint16_t)(rows / 16);
        params.nValue = 16;
        params.dValue = rest < width ? rest : width;
        params.srcNdMatrixStride = 16 * pitch;
        params.srcDValue = pitch;
        params.dstNzC0Stride = 16;
        params.dstNzNStride = 1;
        params.dstNzMatrixStride = (uint16_t)(16 * width);
        AscendC::DataCopy(tile, keys_[(slot * tiling_.scorePitch + start) * pitch + column], params);
        keyQue_.EnQue(tile);
        tile = keyQue_.template DeQue<T>();
        return tile;
    }

    /// Columns [column, column + cols) of rows of heads in L1 to L0A.
    __aicore__ inline AscendC::LocalTensor<T> LoadLeft(const AscendC::LocalTensor<T>& tile, uint32_t column, uint32_t cols)
    {
        AscendC::LocalTensor<T> left = leftQue_.template AllocTensor<T>();
        const uint32_t rowBlocks = tiling_.paddedHeads / 16;
        for (uint32_t i = 0; i < rowBlocks; ++i) {
            const AscendC::LoadData2DParams params((uint16_t)(column / C0 * rowBlocks + i), (uint8_t)(cols / C0),
                                                   (uint16_t)rowBlocks, 0, 0, false, 0);
            AscendC::LoadData(left[i * (cols / C0) * FRACTAL], tile, params);
        }
        leftQue_.EnQue(left);
        left = leftQue_.template DeQue<T>();
        return left;
    }

    /// Columns [column, column + cols) of keys to L0B, for a product along the columns.
    __aicore__ inline AscendC::LocalTensor<T> LoadRight(const AscendC::LocalTensor<T>& tile, uint32_t rows, uint32_t column,
                                                        uint32_t cols)
    {
        AscendC::LocalTensor<T> right = rightQue_.template AllocTensor<T>();
        for (uint32_t i = 0; i < rows / 16; ++i) {
            const AscendC::LoadData2DParams params((uint16_t)(i * (tiling_.paddedDim / C0) + column / C0), (uint8_t)(cols / C0), 1, 0,
                                                   (uint16_t)(rows / 16 - 1), false, 0);
            AscendC::LoadData(right[i * FRACTAL], tile, params);
        }
        rightQue_.EnQue(right);
        right = rightQue_.template DeQue<T>();
        return right;
    }

    /// Columns [column, column + cols) of a tile of keys `width` columns wide to L0B, for a product along the rows.
    __aicore__ inline AscendC::LocalTensor<T> LoadRightTransposed(const AscendC::LocalTensor<T>& tile, uint32_t rows,
                                                                  uint32_t width, uint32_t column, uint32_t cols)
    {
        AscendC::LocalTensor<T> right = rightQue_.template AllocTensor<T>();
        const uint32_t colBlocks = cols / 16;
        for (uint32_t i = 0; i < rows / 16; ++i) {
            const uint16_t square = (uint16_t)((i * width + column) / 16);
            if constexpr (sizeof(T) == 2) {
                const AscendC::LoadData2DParams params(square, (uint8_t)colBlocks, 1, 0, 0, true, 0);
                AscendC::LoadData(right[i * cols * 16], tile, params);
            } else {
                const AscendC::LoadData2dTransposeParams params(square, (uint8_t)colBlocks, 1, 0, (uint16_t)(colBlocks - 1), 0);
                AscendC::LoadDataWithTranspose(right[i * cols * 16], tile, params);
            }
        }
        rightQue_.EnQue(right);
        right = rightQue_.template DeQue<T>();
        return right;
    }

    __aicore__ inline void Multiply(const AscendC::LocalTensor<float>& sum, const AscendC::LocalTensor<T>& left,
                                    const AscendC::LocalTensor<T>& right, uint32_t cols, uint32_t depth, bool clear)
    {
        AscendC::MmadParams params;
        params.m = (uint16_t)tiling_.paddedHeads;
        params.n = (uint16_t)cols;
        params.k = (uint16_t)depth;
        params.cmatrixInitVal = clear;
        // A product of ten fractals or more starts late enough to find what the one before has left.
        if (!clear && tiling_.paddedHeads / 16 * ((cols + 15) / 16) < 10) {
            AscendC::PipeBarrier<PIPE_M>();
        }
        AscendC::Mmad(sum, left, right, params);
    }

    __aicore__ inline void Store(const AscendC::GlobalTensor<float>& to, AscendC::LocalTensor<float> sum, uint32_t cols, uint32_t pitch)
    {
        sumQue_.EnQue(sum);
        sum = sumQue_.template DeQue<float>();
        AscendC::FixpipeParamsV220 params;
        params.nSize = (uint16_t)cols;
        params.mSize = (uint16_t)heads_;
        params.srcStride = (uint16_t)tiling_.paddedHeads;
        params.dstStride = pitch;
        params.ndNum = 1;
        params.srcNdStride = 0;
        params.dstNdStride = 0;
        params.quantPre = QuantMode_t::NoQuant;
        AscendC::Fixpipe<float, float, AscendC::CFG_ROW_MAJOR>(to, sum, params);
        sumQue_.FreeTensor(sum);
    }

    __aicore__ inline void Score(const SparseAttentionItem& item)
    {
        const uint32_t depth = tiling_.keyPitch;
        AscendC::LocalTensor<T> query = queryQue_.template AllocTensor<T>();
        ClearRows(query, tiling_.paddedHeads * depth);
        LoadHeads(query, q_[(uint64_t)item.token * heads_ * headDim_], headDim_, headDim_);
        queryQue_.EnQue(query);
        query = queryQue_.template DeQue<T>();
        const uint64_t slot = (uint64_t)block_ * 2 + item.number % 2;
        for (uint32_t start = 0; start < item.padded; start += CHUNK) {
            if (start % SPARSE_ATTENTION_GROUP == 0) {
                AscendC::CrossCoreWaitFlag<2>((uint16_t)(SPARSE_ATTENTION_KEYS_READY + item.number % 2));
            }
            const uint32_t rows = ChunkRows(item, start);
            AscendC::LocalTensor<T> keys = LoadKeys(item, start, rows, 0, tiling_.paddedDim);
            AscendC::LocalTensor<float> score = sumQue_.template AllocTensor<float>();
            for (uint32_t k = 0; k < depth; k += CHUNK) {
                const uint32_t cols = depth - k < CHUNK ? depth - k : CHUNK;
                AscendC::LocalTensor<T> left = LoadLeft(query, k, cols);
                AscendC::LocalTensor<T> right = LoadRight(keys, rows, k, cols);
                Multiply(score, left, right, rows, cols, k == 0);
                leftQue_.FreeTensor(left);
                rightQue_.FreeTensor(right);
            }
            keyQue_.FreeTensor(keys);
            Store(scores_[slot * heads_ * tiling_.scorePitch + start], score, rows, tiling_.scorePitch);
        }
        queryQue_.FreeTensor(query);
        AscendC::CrossCoreSetFlag<2, PIPE_FIX>(SPARSE_ATTENTION_SCORES_READY);
    }

    __aicore__ inline void Sum(const SparseAttentionItem& item)
    {
        AscendC::CrossCoreWaitFlag<2>(SPARSE_ATTENTION_WEIGHTS_READY);
        const uint64_t rowsBefore = ((uint64_t)item.set * tiling_.ranges + item.range) * heads_;
        for (uint32_t column = 0; column < headDim_; column += 2 * tileCols_) {
            const uint32_t rest = tiling_.paddedDim - column;
            const uint32_t width = rest < 2 * tileCols_ ? rest : 2 * tileCols_;
            AscendC::LocalTensor<float> sums[2];
            for (uint32_t i = 0; i * tileCols_ < width; ++i) {
                sums[i] = sumQue_.template AllocTensor<float>();
            }
            for (uint32_t start = 0; start < item.padded; start += CHUNK) {
                AddChunk(sums, item, start, column, width);
            }
            for (uint32_t i = 0; i * tileCols_ < width; ++i) {
                const uint32_t from = column + i * tileCols_;
                const uint32_t cols = headDim_ - from < tileCols_ ? headDim_ - from : tileCols_;
                Store(sums_[rowsBefore * tiling_.paddedDim + from], sums[i], cols, tiling_.paddedDim);
            }
        }
        AscendC::CrossCoreSetFlag<2, PIPE_FIX>(SPARSE_ATTENTION_SUM_READY);
    }

    /// sums += weights of a chunk x columns [column, column + width) of its keys.
    __aicore__ inline void AddChunk(const AscendC::LocalTensor<float> sums[2], const SparseAttentionItem& item, uint32_t start,
                                    uint32_t column, uint32_t width)
    {
        const uint32_t rows = ChunkRows(item, start);
        const uint32_t partSize = tiling_.paddedHeads * rows;
        AscendC::LocalTensor<T> weights = weightQue_.template AllocTensor<T>();
        ClearRows(weights, tiling_.parts * partSize);
        const uint64_t slot = ((uint64_t)block_ * 2 + item.number % 2) * tiling_.parts;
        for (uint32_t part = 0; part < tiling_.parts; ++part) {
            LoadHeads(weights[part * partSize], weights_[(slot + part) * heads_ * tiling_.scorePitch + start], rows, tiling_.scorePitch);
        }
        weightQue_.EnQue(weights);
        weights = weightQue_.template DeQue<T>();
        AscendC::LocalTensor<T> keys = LoadKeys(item, start, rows, column, width);
        AscendC::LocalTensor<T> left[2];
        for (uint32_t part = 0; part < tiling_.parts; ++part) {
            left[part] = LoadLeft(weights[part * partSize], 0, rows);
        }
        for (uint32_t at = 0; at < width; at += 128) {
            const uint32_t cols = width - at < 128 ? width - at : 128;
            const uint32_t rest = headDim_ - column - at;
            AscendC::LocalTensor<T> right = LoadRightTransposed(keys, rows, width, at, cols);
            for (uint32_t part = 0; part < tiling_.parts; ++part) {
                Multiply(sums[at / tileCols_][at % tileCols_ * tiling_.paddedHeads], left[part], right, rest < cols ? rest : cols, rows,
                         start == 0 && part == 0);
            }
            rightQue_.FreeTensor(right);
        }
        for (uint32_t part = 0; part < tiling_.parts; ++part) {
            leftQue_.FreeTensor(left[part]);
        }
        weightQue_.FreeTensor(weights);
        keyQue_.FreeTensor(keys);
    }

    SparseAttentionTiling tiling_;
    SparseAttentionCursor cursor_;
    uint32_t block_;
    uint32_t heads_;
    uint32_t headDim_;
    uint32_t tileCols_;  // columns of a tile of L0C
    AscendC::TQue<AscendC::TPosition::A1, 1> queryQue_;
    AscendC::TQue<AscendC::TPosition::B1, 1> keyQue_;
    AscendC::TQue<AscendC::TPosition::A1, 1> weightQue_;
    AscendC::TQue<AscendC::TPosition::A2, 1> leftQue_;
    AscendC::TQue<AscendC::TPosition::B2, 1> rightQue_;
    AscendC::TQue<AscendC::TPosition::CO1, 1> sumQue_;
    AscendC::GlobalTensor<T> q_;
    AscendC::GlobalTensor<T> keys_;
    AscendC::GlobalTensor<float> scores_;
    AscendC::GlobalTensor<T> weights_;
    AscendC::GlobalTensor<float> sums_;
};

// SPDX-License-Identifier: Apache-2.0
// A vector core takes half of the heads through the softmax of each range and the merge of ranges.
#pragma once

#include "sparse_attention_keys.h"

/// T: type of the queries and of the output; C: type of the caches, T or narrower.
template <typename T, typename C>
class SparseAttentionVector {
public:
    __aicore__ inline void Init(GM_ADDR winKv, GM_ADDR cmpKv, GM_ADDR entries, GM_ADDR sink, GM_ADDR positions, GM_ADDR requests,
                                GM_ADDR windowTable, GM_ADDR blockTable, GM_ADDR o, GM_ADDR workspace,
                                const SparseAttentionTiling& tiling, AscendC::TPipe* pipe)
    {
        tiling_ = tiling;
        pipe_ = pipe;
        core_ = (uint32_t)AscendC::GetBlockIdx();
        block_ = core_ / 2;
        half_ = core_ % 2;
        heads_ = tiling_.params.numHeads;
        headDim_ = tiling_.params.headDim;
        firstHead_ = half_ == 0 ? 0 : (heads_ + 1) / 2;
        rows_ = half_ == 0 ? (heads_ + 1) / 2 : heads_ / 2;
        cursor_.Init(positions, requests, tiling_, block_);
        sink_.SetGlobalBuffer((__gm__ float*)sink);
        o_.SetGlobalBuffer((__gm__ T*)o);
        scores_.SetGlobalBuffer((__gm__ float*)(workspace + tiling_.scoreOffset));
        weights_.SetGlobalBuffer((__gm__ T*)(workspace + tiling_.weightOffset));
        sums_.SetGlobalBuffer((__gm__ float*)(workspace + tiling_.sumOffset));
        stats_.SetGlobalBuffer((__gm__ float*)(workspace + tiling_.statOffset));
        keySource_.Init(winKv, cmpKv, entries, windowTable, blockTable, workspace, tiling_, pipe);
        InitBuffers();
        LoadSink();
    }

    /// The keys of an item are gathered before the weights of the one before are computed, and its sums are taken up after those of
    /// the next one's weights: the cube core always has something to do.
    __aicore__ inline void Process()
    {
        ClearPadding();
        SparseAttentionItem items[3];
        bool more = cursor_.Next(items[0]);
        const bool any = more;
        if (more) {
            keySource_.Gather(items[0]);
        }
        uint32_t i = 0;
        for (; more; ++i) {
            more = cursor_.Next(items[(i + 1) % 3]);
            if (more) {
                keySource_.Gather(items[(i + 1) % 3]);
            }
            Soften(items[i % 3]);
            if (i > 0) {
                Finish(items[(i - 1) % 3]);
            }
        }
        if (any) {
            Finish(items[(i - 1) % 3]);
        }
        if (tiling_.split != 0) {
            MergeOfOthers();
        }
    }

private:
    static constexpr uint32_t STRIP = SPARSE_ATTENTION_STRIP;
    static constexpr uint32_t STATS = SPARSE_ATTENTION_STAT_PITCH;
    static constexpr uint32_t STAGE_BYTES = 8192;
    static constexpr float LOWEST = -3.40282347e38f;

    __aicore__ inline void InitBuffers()
    {
        const uint32_t pitch = tiling_.scorePitch;
        sumPitch_ = (headDim_ + 63) / 64 * 64;
        const uint32_t wide = (pitch > sumPitch_ ? pitch : sumPitch_) * (uint32_t)sizeof(float);
        pipe_->InitBuffer(scoreQue_, 2, STRIP * wide);
        pipe_->InitBuffer(outQue_, 1, STRIP * wide);
        pipe_->InitBuffer(statInQue_, 1, 2 * STATS * (uint32_t)sizeof(float));
        pipe_->InitBuffer(statOutQue_, 1, 2 * STATS * (uint32_t)sizeof(float));
        if constexpr (!AscendC::IsSameType<T, float>::value) {
            pipe_->InitBuffer(tempBuf_, STRIP * wide);
        }
        pipe_->InitBuffer(partialBuf_, STRIP * pitch / 8 * (uint32_t)sizeof(float));
        pipe_->InitBuffer(broadBuf_, STRIP * 8 * (uint32_t)sizeof(float));
        pipe_->InitBuffer(factorBuf_, STRIP * (uint32_t)sizeof(float));
        pipe_->InitBuffer(sinkBuf_, STATS * (uint32_t)sizeof(float));
        pipe_->InitBuffer(mergeBuf_, 5 * STATS * (uint32_t)sizeof(float));
    }

    __aicore__ inline void LoadSink()
    {
        AscendC::Duplicate(factorBuf_.template Get<float>(), 0.0f, (int32_t)STRIP);
        if (rows_ == 0) {
            return;
        }
        AscendC::LocalTensor<float> sink = sinkBuf_.template Get<float>();
        AscendC::DataCopyPad(sink, sink_[firstHead_], AscendC::DataCopyExtParams(1, rows_ * (uint32_t)sizeof(float), 0, 0, 0),
                             AscendC::DataCopyPadExtParams<float>(false, 0, 0, 0.0f));
        Wait<AscendC::HardEvent::MTE2_V>();
        // An infinite sink must not meet another infinity in a difference.
        AscendC::Maxs(sink, sink, LOWEST, (int32_t)rows_);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Mins(sink, sink, -LOWEST, (int32_t)rows_);
    }

    template <AscendC::HardEvent event>
    __aicore__ inline void Wait()
    {
        const AscendC::TEventID id = pipe_->FetchEventID(event);
        AscendC::SetFlag<event>(id);
        AscendC::WaitFlag<event>(id);
    }

    /// Zeros for the tokens that are padding.
    __aicore__ inline void ClearPadding()
    {
        const AscendC::LocalTensor<T> zeros = keySource_.Zeros().template ReinterpretCast<T>();
        SparseAttentionItem item;
        for (uint64_t token = core_; token < tiling_.params.numTokens; token += 2 * tiling_.blocks) {
            if (cursor_.Describe(item, (uint32_t)token)) {
                continue;
            }
            for (uint32_t head = 0; head < heads_; ++head) {
                AscendC::DataCopyPad(o_[(token * heads_ + head) * headDim_], zeros,
                                     AscendC::DataCopyExtParams(1, headDim_ * (uint32_t)sizeof(T), 0, 0, 0));
            }
        }
    }

    // ---- softmax within a range ----

    /// weights = exp(score - maximum) of each head, with the maxima and the sums of the range.
    __aicore__ inline void Soften(const SparseAttentionItem& item)
    {
        AscendC::CrossCoreWaitFlag<2>(SPARSE_ATTENTION_SCORES_READY);
        if (rows_ > 0) {
            AscendC::LocalTensor<float> stats = statOutQue_.template AllocTensor<float>();
            AscendC::Duplicate(stats, 0.0f, (int32_t)(2 * STATS));
            for (uint32_t head = 0; head < rows_; head += STRIP) {
                SoftenStrip(item, stats[head], head, rows_ - head < STRIP ? rows_ - head : STRIP);
            }
            statOutQue_.EnQue(stats);
            stats = statOutQue_.template DeQue<float>();
            const AscendC::DataCopyExtParams row(1, rows_ * (uint32_t)sizeof(float), 0, 0, 0);
            const uint64_t to = StatOffset(item.set, item.range) + firstHead_;
            AscendC::DataCopyPad(stats_[to], stats, row);
            AscendC::DataCopyPad(stats_[to + STATS], stats[STATS], row);
            statOutQue_.FreeTensor(stats);
        }
        AscendC::CrossCoreSetFlag<2, PIPE_MTE3>(SPARSE_ATTENTION_WEIGHTS_READY);
    }

    __aicore__ inline uint64_t StatOffset(uint32_t set, uint32_t range) const
    {
        return ((uint64_t)set * tiling_.ranges + range) * 2 * STATS;
    }

    /// Heads [head, head + rows) of this core. Their maxima go to stats[0..], their sums to stats[STATS..].
    __aicore__ inline void SoftenStrip(const SparseAttentionItem& item, const AscendC::LocalTensor<float>& stats, uint32_t head, uint32_t rows)
    {
        const uint32_t cols = (item.slots + 63) / 64 * 64;
        const uint32_t all = rows * cols;
        AscendC::LocalTensor<float> score = LoadScores(item, head, rows, cols);
        AscendC::LocalTensor<float> broad = broadBuf_.template Get<float>();
        const AscendC::LocalTensor<float> bias = keySource_.Bias(item);
        const uint8_t pitch = (uint8_t)(cols / 8);
        AscendC::Muls(score, score, tiling_.params.scale, (int32_t)all);
        AscendC::PipeBarrier<PIPE_V>();
        for (uint32_t at = 0; at < cols; at += 64) {
            AscendC::Add(score[at], score[at], bias[at], 64, (uint8_t)rows, AscendC::BinaryRepeatParams(1, 1, 1, pitch, pitch, 0));
        }
        AscendC::PipeBarrier<PIPE_V>();
        RowMax(stats, score, rows, cols);
        AscendC::PipeBarrier<PIPE_V>();
        // Finite even where no key is, so that no difference is inf - inf.
        AscendC::Maxs(stats, stats, LOWEST, (int32_t)STRIP);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Brcb(broad, stats, 1, AscendC::BrcbRepeatParams(1, 8));
        AscendC::PipeBarrier<PIPE_V>();
        for (uint32_t at = 0; at < cols; at += 64) {
            AscendC::Sub(score[at], score[at], broad, 64, (uint8_t)rows, AscendC::BinaryRepeatParams(1, 1, 0, pitch, pitch, 1));
        }
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::LocalTensor<T> weights = outQue_.template AllocTensor<T>();
        if constexpr (AscendC::IsSameType<T, float>::value) {
            AscendC::Exp(weights, score, (int32_t)all);
            AscendC::PipeBarrier<PIPE_V>();
            RowSum(stats[STATS], weights, rows, cols);
        } else {
            AscendC::Exp(score, score, (int32_t)all);
            AscendC::PipeBarrier<PIPE_V>();
            RowSum(stats[STATS], score, rows, cols);
            SplitWeights(weights, score, all);
        }
        scoreQue_.FreeTensor(score);
        outQue_.EnQue(weights);
        StoreWeights(item, head, rows, cols);
    }

    __aicore__ inline AscendC::LocalTensor<float> LoadScores(const SparseAttentionItem& item, uint32_t head, uint32_t rows, uint32_t cols)
    {
        const uint32_t pitch = tiling_.scorePitch;
        const uint64_t slot = (uint64_t)block_ * 2 + item.number % 2;
        AscendC::LocalTensor<float> score = scoreQue_.template AllocTensor<float>();
        const AscendC::DataCopyExtParams params((uint16_t)rows, item.padded * (uint32_t)sizeof(float),
                                                (pitch - item.padded) * (uint32_t)sizeof(float), (cols - item.padded) / 8, 0);
        AscendC::DataCopyPad(score, scores_[(slot * heads_ + firstHead_ + head) * pitch], params,
                             AscendC::DataCopyPadExtParams<float>(false, 0, 0, 0.0f));
        scoreQue_.EnQue(score);
        score = scoreQue_.template DeQue<float>();
        if (item.padded < cols) {
            AscendC::Duplicate(score[item.padded], 0.0f, (uint64_t)(cols - item.padded), (uint8_t)rows, 1, (uint8_t)(cols / 8));
            AscendC::PipeBarrier<PIPE_V>();
        }
        return score;
    }

    /// dst[row] = maximum of a row of `cols` columns: of each 8, of what lies 64 of these apart, and of the rest.
    __aicore__ inline void RowMax(const AscendC::LocalTensor<float>& dst, const AscendC::LocalTensor<float>& src, uint32_t rows, uint32_t cols)
    {
        AscendC::LocalTensor<float> partial = partialBuf_.template Get<float>();
        const uint32_t width = cols / 8;
        AscendC::BlockReduceMax<float>(partial, src, (int32_t)(rows * cols / 64), 64, 1, 1, 8);
        AscendC::PipeBarrier<PIPE_V>();
        if (width > 64) {
            const uint8_t pitch = (uint8_t)(width / 8);
            AscendC::Max(partial, partial, partial[64], (uint64_t)(width - 64), (uint8_t)rows,
                         AscendC::BinaryRepeatParams(1, 1, 1, pitch, pitch, pitch));
            AscendC::PipeBarrier<PIPE_V>();
        }
        AscendC::WholeReduceMax<float>(dst, partial, (int32_t)(width < 64 ? width : 64), (int32_t)rows, 1, 1, (int32_t)(width / 8),
                                       AscendC::ReduceOrder::ORDER_ONLY_VALUE);
    }

    /// dst[row] = sum of a row, in the same order for every row.
    __aicore__ inline void RowSum(const AscendC::LocalTensor<float>& dst, const AscendC::LocalTensor<float>& src, uint32_t rows, uint32_t cols)
    {
        AscendC::LocalTensor<float> partial = partialBuf_.template Get<float>();
        const uint32_t width = cols / 8;
        AscendC::BlockReduceSum<float>(partial, src, (int32_t)(rows * cols / 64), 64, 1, 1, 8);
        AscendC::PipeBarrier<PIPE_V>();
        if (width > 64) {
            const uint8_t pitch = (uint8_t)(width / 8);
            AscendC::Add(partial, partial, partial[64], (uint64_t)(width - 64), (uint8_t)rows,
                         AscendC::BinaryRepeatParams(1, 1, 1, pitch, pitch, pitch));
            AscendC::PipeBarrier<PIPE_V>();
        }
        AscendC::WholeReduceSum<float>(dst, partial, (int32_t)(width < 64 ? width : 64), (int32_t)rows, 1, 1, (int32_t)(width / 8));
    }

    /// A weight as the sum of two 16-bit numbers: one alone would cost half the digits of the result.
    __aicore__ inline void SplitWeights(const AscendC::LocalTensor<T>& weights, const AscendC::LocalTensor<float>& exact, uint32_t all)
    {
        AscendC::LocalTensor<float> temp = tempBuf_.template Get<float>();
        AscendC::Cast(weights, exact, AscendC::RoundMode::CAST_RINT, all);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Cast(temp, weights, AscendC::RoundMode::CAST_NONE, all);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Sub(temp, exact, temp, (int32_t)all);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Cast(weights[all], temp, AscendC::RoundMode::CAST_RINT, all);
    }

    __aicore__ inline void StoreWeights(const SparseAttentionItem& item, uint32_t head, uint32_t rows, uint32_t cols)
    {
        const uint32_t width = (uint32_t)sizeof(T);
        const uint32_t pitch = tiling_.scorePitch;
        const uint64_t slot = ((uint64_t)block_ * 2 + item.number % 2) * tiling_.parts;
        AscendC::LocalTensor<T> weights = outQue_.template DeQue<T>();
        const AscendC::DataCopyExtParams params((uint16_t)rows, item.padded * width, (cols - item.padded) * width / 32,
                                                (pitch - item.padded) * width, 0);
        for (uint32_t part = 0; part < tiling_.parts; ++part) {
            AscendC::DataCopyPad(weights_[((slot + part) * heads_ + firstHead_ + head) * pitch], weights[part * rows * cols], params);
        }
        outQue_.FreeTensor(weights);
    }

    // ---- merge of ranges ----

    __aicore__ inline void Finish(const SparseAttentionItem& item)
    {
        AscendC::CrossCoreWaitFlag<2>(SPARSE_ATTENTION_SUM_READY);
        if (tiling_.split == 0 && item.range + 1 == item.ranges) {
            // The sums are ready, so the weights were, and the maxima that were stored before them.
            Merge(item);
        }
    }

    /// Every range has been summed by some core: each vector core merges its heads of some tokens.
    __aicore__ inline void MergeOfOthers()
    {
        AscendC::SyncAll();
        SparseAttentionItem item;
        for (uint32_t token = block_; token < tiling_.params.numTokens; token += tiling_.blocks) {
            item.set = token;
            if (cursor_.Describe(item, token)) {
                Merge(item);
            }
        }
    }

    /// o = sum over ranges of sums * exp(maximum - top) / (exp(sink - top) + sum over ranges of their sum * exp(maximum - top)).
    __aicore__ inline void Merge(const SparseAttentionItem& item)
    {
        if (rows_ == 0) {
            return;
        }
        AscendC::LocalTensor<float> top = mergeBuf_.template Get<float>();
        AscendC::LocalTensor<float> total = top[STATS];
        AscendC::Adds(top, sinkBuf_.template Get<float>(), 0.0f, (int32_t)rows_);
        AscendC::Duplicate(total, 1.0f, (int32_t)rows_);
        for (uint32_t range = 0; range < item.ranges; ++range) {
            AddRange(top, total, item, range);
        }
        for (uint32_t head = 0; head < rows_; head += STRIP) {
            MergeStrip(item, top[head], total[head], head, rows_ - head < STRIP ? rows_ - head : STRIP);
        }
    }

    /// Maxima, and if wanted sums, of heads [head, head + rows) of a range.
    __aicore__ inline AscendC::LocalTensor<float> LoadStats(const SparseAttentionItem& item, uint32_t range, uint32_t head, uint32_t rows,
                                                            bool sums)
    {
        AscendC::LocalTensor<float> stats = statInQue_.template AllocTensor<float>();
        const AscendC::DataCopyExtParams row(1, rows * (uint32_t)sizeof(float), 0, 0, 0);
        const AscendC::DataCopyPadExtParams<float> noPad(false, 0, 0, 0.0f);
        const uint64_t from = StatOffset(item.set, range) + firstHead_ + head;
        AscendC::DataCopyPad(stats, stats_[from], row, noPad);
        if (sums) {
            AscendC::DataCopyPad(stats[STATS], stats_[from + STATS], row, noPad);
        }
        statInQue_.EnQue(stats);
        stats = statInQue_.template DeQue<float>();
        return stats;
    }

    __aicore__ inline void AddRange(const AscendC::LocalTensor<float>& top, const AscendC::LocalTensor<float>& total,
                                    const SparseAttentionItem& item, uint32_t range)
    {
        const int32_t rows = (int32_t)rows_;
        AscendC::LocalTensor<float> stats = LoadStats(item, range, 0, rows_, true);
        AscendC::LocalTensor<float> higher = top[2 * STATS];
        AscendC::LocalTensor<float> before = top[3 * STATS];
        AscendC::LocalTensor<float> now = top[4 * STATS];
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Max(higher, top, stats, rows);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Sub(before, top, higher, rows);
        AscendC::Sub(now, stats, higher, rows);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Exp(before, before, rows);
        AscendC::Exp(now, now, rows);
        AscendC::Adds(top, higher, 0.0f, rows);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Mul(total, total, before, rows);
        AscendC::Mul(now, now, stats[STATS], rows);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Add(total, total, now, rows);
        statInQue_.FreeTensor(stats);
    }

    __aicore__ inline void MergeStrip(const SparseAttentionItem& item, const AscendC::LocalTensor<float>& top,
                                      const AscendC::LocalTensor<float>& total, uint32_t head, uint32_t rows)
    {
        const uint32_t pitch = sumPitch_;
        AscendC::LocalTensor<T> out = outQue_.template AllocTensor<T>();
        if constexpr (AscendC::IsSameType<T, float>::value) {
            for (uint32_t range = 0; range < item.ranges; ++range) {
                AddSums(out, item, range, top, total, head, rows);
            }
        } else {
            // No barrier: whatever used it before was followed by a store from the one buffer that `out` has waited for.
            AscendC::LocalTensor<float> sum = tempBuf_.template Get<float>();
            if (headDim_ != pitch) {
                AscendC::Duplicate(sum, 0.0f, (int32_t)(rows * pitch));
            }
            for (uint32_t range = 0; range < item.ranges; ++range) {
                AddSums(sum, item, range, top, total, head, rows);
            }
            AscendC::PipeBarrier<PIPE_V>();
            AscendC::Cast(out, sum, AscendC::RoundMode::CAST_RINT, rows * pitch);
        }
        outQue_.EnQue(out);
        out = outQue_.template DeQue<T>();
        const uint32_t bytes = headDim_ * (uint32_t)sizeof(T);
        const uint32_t gap = (pitch * (uint32_t)sizeof(T) - (bytes + 31) / 32 * 32) / 32;
        AscendC::DataCopyPad(o_[((uint64_t)item.token * heads_ + firstHead_ + head) * headDim_], out,
                             AscendC::DataCopyExtParams((uint16_t)rows, bytes, gap, 0, 0));
        outQue_.FreeTensor(out);
    }

    /// sum (+)= sums of a range * exp(maximum - top) / total.
    __aicore__ inline void AddSums(const AscendC::LocalTensor<float>& sum, const SparseAttentionItem& item, uint32_t range,
                                   const AscendC::LocalTensor<float>& top, const AscendC::LocalTensor<float>& total, uint32_t head,
                                   uint32_t rows)
    {
        const uint32_t dim = tiling_.paddedDim;
        const uint8_t pitch = (uint8_t)(sumPitch_ / 8);
        AscendC::LocalTensor<float> stats = LoadStats(item, range, head, rows, false);
        AscendC::LocalTensor<float> factor = factorBuf_.template Get<float>();
        AscendC::LocalTensor<float> broad = broadBuf_.template Get<float>();
        AscendC::Sub(factor, stats, top, (int32_t)rows);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Exp(factor, factor, (int32_t)rows);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Div(factor, factor, total, (int32_t)rows);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Brcb(broad, factor, 1, AscendC::BrcbRepeatParams(1, 8));
        statInQue_.FreeTensor(stats);
        AscendC::LocalTensor<float> part = scoreQue_.template AllocTensor<float>();
        const uint32_t bytes = headDim_ * (uint32_t)sizeof(float);
        const uint64_t from = (((uint64_t)item.set * tiling_.ranges + range) * heads_ + firstHead_ + head) * dim;
        AscendC::DataCopyPad(part, sums_[from],
                             AscendC::DataCopyExtParams((uint16_t)rows, bytes, (dim - headDim_) * (uint32_t)sizeof(float),
                                                        sumPitch_ / 8 - (bytes + 31) / 32, 0),
                             AscendC::DataCopyPadExtParams<float>(false, 0, 0, 0.0f));
        scoreQue_.EnQue(part);
        part = scoreQue_.template DeQue<float>();
        AscendC::PipeBarrier<PIPE_V>();
        const AscendC::BinaryRepeatParams params(1, 1, 0, pitch, pitch, 1);
        for (uint32_t at = 0; at < headDim_; at += 64) {
            const uint64_t cols = headDim_ - at < 64 ? headDim_ - at : 64;
            if (range == 0) {
                AscendC::Mul(sum[at], part[at], broad, cols, (uint8_t)rows, params);
            } else {
                AscendC::MulAddDst(sum[at], part[at], broad, cols, (uint8_t)rows, params);
            }
        }
        scoreQue_.FreeTensor(part);
    }

    SparseAttentionTiling tiling_;
    SparseAttentionCursor cursor_;
    SparseAttentionKeys<C, T> keySource_;
    AscendC::TPipe* pipe_;
    uint32_t core_;
    uint32_t block_;
    uint32_t half_;       // which of the two vector cores of the AI core
    uint32_t heads_;
    uint32_t headDim_;
    uint32_t firstHead_;  // of this core
    uint32_t rows_;       // heads of this core
    uint32_t sumPitch_;   // of a head's sums in the unified buffer: whole repeats, so that no two heads share one
    AscendC::TQue<AscendC::TPosition::VECIN, 1> scoreQue_;
    AscendC::TQue<AscendC::TPosition::VECIN, 1> statInQue_;
    AscendC::TQue<AscendC::TPosition::VECOUT, 1> outQue_;
    AscendC::TQue<AscendC::TPosition::VECOUT, 1> statOutQue_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> tempBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> partialBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> broadBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> factorBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> sinkBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> mergeBuf_;
    AscendC::GlobalTensor<float> sink_;
    AscendC::GlobalTensor<T> o_;
    AscendC::GlobalTensor<float> scores_;
    AscendC::GlobalTensor<T> weights_;
    AscendC::GlobalTensor<float> sums_;
    AscendC::GlobalTensor<float> stats_;
};

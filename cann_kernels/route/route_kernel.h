// SPDX-License-Identifier: Apache-2.0
// Chooses the experts of each token and their weights. Vector cores only; a tile is some tokens, whose scores are computed at once
// and whose experts are sorted one token after the other. A NaN ranks below every number, and stays a NaN in the weights.
#pragma once

#include "kernel_operator.h"

#include "route.h"
#include "route_groups.h"
#include "rows.h"
#include "sort_pairs.h"

class RouteKernel {
public:
    __aicore__ inline void Init(GM_ADDR logits, GM_ADDR bias, GM_ADDR tid2eid, GM_ADDR inputIds, GM_ADDR imageBias, GM_ADDR isImage,
                                GM_ADDR ids, GM_ADDR weights, const RouteTiling& tiling, AscendC::TPipe* pipe)
    {
        tiling_ = tiling;
        pipe_ = pipe;
        logits_.SetGlobalBuffer((__gm__ float*)logits);
        tid2eid_.SetGlobalBuffer((__gm__ int32_t*)tid2eid);
        inputIds_.SetGlobalBuffer((__gm__ int32_t*)inputIds);
        isImage_.SetGlobalBuffer((__gm__ int32_t*)isImage);
        ids_.SetGlobalBuffer((__gm__ int32_t*)ids);
        weights_.SetGlobalBuffer((__gm__ float*)weights);
        const uint32_t tileBytes = tiling_.tileTokens * tiling_.expertLanes * sizeof(float);
        const uint32_t chosenBytes = tiling_.tileTokens * ROUTE_MAX_TOPK * sizeof(float);
        pipe->InitBuffer(logitQue_, 2, tileBytes);
        pipe->InitBuffer(scoreBuf_, tileBytes);
        pipe->InitBuffer(rankBuf_, tileBytes);
        pipe->InitBuffer(firstBuf_, tileBytes);
        pipe->InitBuffer(secondBuf_, tileBytes);
        // Sorting wants its operands at multiples of 256 bytes, which the tiles are.
        if (tiling_.isHashed == 0) chooser_.Init(tiling_, pipe);
        pipe->InitBuffer(maskBuf_, tileBytes / 32);
        pipe->InitBuffer(idsQue_, 2, chosenBytes);
        pipe->InitBuffer(weightQue_, 2, chosenBytes);
        pipe->InitBuffer(offsetBuf_, chosenBytes);
        pipe->InitBuffer(chosenBuf_, chosenBytes + ROUTE_MAX_TOPK * sizeof(float));  // the last row is read as a whole repeat
        pipe->InitBuffer(sumBuf_, ROUTE_TILE_TOKENS * sizeof(float));
        pipe->InitBuffer(spreadBuf_, ROUTE_TILE_TOKENS * 32);
        pipe->InitBuffer(tokenBuf_, ROUTE_TILE_TOKENS * sizeof(int32_t));
        if (tiling_.numExperts != tiling_.expertLanes) {
            AscendC::Duplicate(scoreBuf_.Get<float>(), 0.0f, (int32_t)(tiling_.tileTokens * tiling_.expertLanes));
        }
        AscendC::Duplicate(sumBuf_.Get<float>(), 1.0f, (int32_t)ROUTE_TILE_TOKENS);
        if (tiling_.isHashed != 0) {
            pipe->InitBuffer(tableQue_, 1, chosenBytes);
            return;
        }
        pipe->InitBuffer(biasBuf_, tiling_.expertLanes * sizeof(float));
        LoadBias(biasBuf_.Get<float>(), bias, tiling_.hasBias != 0);
        if (tiling_.hasImages != 0) {
            pipe->InitBuffer(imageBiasBuf_, tiling_.expertLanes * sizeof(float));
            LoadBias(imageBiasBuf_.Get<float>(), imageBias, true);
        }
    }

    __aicore__ inline void Process()
    {
        const ItemRun tokens = RunOfBlock(tiling_.numTokens, tiling_.tokensPerBlock);
        for (uint64_t token = tokens.begin; token < tokens.end; token += tiling_.tileTokens) {
            const uint32_t rows = SmallerOf((uint32_t)(tokens.end - token), tiling_.tileTokens);
            Load(token, rows);
            Score(rows * tiling_.expertLanes);
            AscendC::LocalTensor<int32_t> ids = idsQue_.AllocTensor<int32_t>();
            if (tiling_.isHashed != 0) {
                LookUp(ids, token, rows);
            } else {
                Rank(token, rows);
                for (uint32_t row = 0; row < rows; ++row) {
                    const AscendC::LocalTensor<float> ranks = rankBuf_.Get<float>()[row * tiling_.expertLanes];
                    chooser_.Choose(ids[row * ROUTE_MAX_TOPK], ranks);
                }
            }
            AscendC::LocalTensor<float> weights = weightQue_.AllocTensor<float>();
            AscendC::PipeBarrier<PIPE_V>();
            Weigh(weights, ids, rows);
            Store(ids, weights, token, rows);
        }
    }

private:
    /// Lanes without an expert are -inf, so that no token chooses them.
    __aicore__ inline void LoadBias(const AscendC::LocalTensor<float>& to, GM_ADDR from, bool isGiven)
    {
        AscendC::Duplicate(to, -ROUTE_INFINITY, (int32_t)tiling_.expertLanes);
        if (!isGiven) {
            AscendC::PipeBarrier<PIPE_V>();
            AscendC::Duplicate(to, 0.0f, (int32_t)tiling_.numExperts);
            return;
        }
        AscendC::GlobalTensor<float> bias;
        bias.SetGlobalBuffer((__gm__ float*)from);
        Handover<AscendC::HardEvent::V_MTE2>(pipe_);
        AscendC::DataCopyPad(to, bias, AscendC::DataCopyExtParams(1, tiling_.numExperts * (uint32_t)sizeof(float), 0, 0, 0),
                             AscendC::DataCopyPadExtParams<float>(true, 0, (uint8_t)((8 - tiling_.numExperts % 8) % 8), -ROUTE_INFINITY));
        // No event: whoever waits for the logits, which are loaded next, has waited for this too.
    }

    __aicore__ inline void Load(uint64_t token, uint32_t rows)
    {
        const uint32_t experts = tiling_.numExperts;
        const uint32_t lanes = tiling_.expertLanes;
        AscendC::LocalTensor<float> logits = logitQue_.AllocTensor<float>();
        const AscendC::DataCopyExtParams part((uint16_t)rows, experts * (uint32_t)sizeof(float), 0, lanes / 8 - (experts + 7) / 8, 0);
        AscendC::DataCopyPad(logits, logits_[token * experts], part, AscendC::DataCopyPadExtParams<float>(false, 0, 0, 0.0f));
        logitQue_.EnQue(logits);
        logits = logitQue_.DeQue<float>();
        AscendC::LocalTensor<float> x = scoreBuf_.Get<float>();
        AscendC::PipeBarrier<PIPE_V>();
        // Lanes without an expert keep what they have, which is finite.
        for (uint32_t row = 0; row < rows; ++row) {
            AscendC::Adds(x[row * lanes], logits[row * lanes], 0.0f, (int32_t)experts);
        }
        logitQue_.FreeTensor(logits);
        AscendC::PipeBarrier<PIPE_V>();
    }

    /// Logits to scores, in place. Both functions are computed from e^-|x|, which cannot overflow.
    __aicore__ inline void Score(uint32_t lanes)
    {
        const auto count = (int32_t)lanes;
        AscendC::LocalTensor<float> x = scoreBuf_.Get<float>();
        AscendC::LocalTensor<float> small = firstBuf_.Get<float>();
        AscendC::Abs(small, x, count);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Muls(small, small, -1.0f, count);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Exp(small, small, count);
        AscendC::PipeBarrier<PIPE_V>();
        if (tiling_.scoring == ROUTE_SIGMOID) {
            Sigmoid(x, small, count);
        } else {
            SqrtSoftplus(x, small, count);
        }
        AscendC::PipeBarrier<PIPE_V>();
    }

    /// (x < 0 ? small : 1) / (1 + small) in place of x.
    __aicore__ inline void Sigmoid(const AscendC::LocalTensor<float>& x, const AscendC::LocalTensor<float>& small, int32_t count)
    {
        AscendC::LocalTensor<float> divisor = secondBuf_.Get<float>();
        AscendC::LocalTensor<float> dividend = rankBuf_.Get<float>();
        AscendC::LocalTensor<uint8_t> isNegative = maskBuf_.Get<uint8_t>();
        AscendC::CompareScalar(isNegative, x, 0.0f, AscendC::CMPMODE::LT, (uint32_t)count);
        AscendC::Adds(divisor, small, 1.0f, count);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Select(dividend, isNegative, small, 1.0f, AscendC::SELMODE::VSEL_TENSOR_SCALAR_MODE, (uint32_t)count);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Div(x, dividend, divisor, count);
    }

    /// sqrt(max(x, 0) + ln(1 + small)) in place of x. With u = 1 + small rounded, ln(u) · small / (u - 1) repairs what the rounding
    /// took from small; where u is 1, small is the logarithm.
    __aicore__ inline void SqrtSoftplus(const AscendC::LocalTensor<float>& x, const AscendC::LocalTensor<float>& small, int32_t count)
    {
        AscendC::LocalTensor<float> sum = secondBuf_.Get<float>();
        AscendC::LocalTensor<float> seen = rankBuf_.Get<float>();
        AscendC::LocalTensor<uint8_t> isOne = maskBuf_.Get<uint8_t>();
        AscendC::Adds(sum, small, 1.0f, count);
        AscendC::Maxs(x, x, 0.0f, count);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Adds(seen, sum, -1.0f, count);
        AscendC::CompareScalar(isOne, sum, 1.0f, AscendC::CMPMODE::EQ, (uint32_t)count);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Ln(sum, sum, count);
        AscendC::Div(seen, small, seen, count);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Mul(sum, sum, seen, count);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Select(sum, isOne, small, sum, AscendC::SELMODE::VSEL_TENSOR_TENSOR_MODE, (uint32_t)count);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Add(x, x, sum, count);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Sqrt(x, x, count);
    }

    /// What experts are chosen by: scores plus the bias of the token's kind, without NaN.
    __aicore__ inline void Rank(uint64_t token, uint32_t rows)
    {
        const uint32_t lanes = tiling_.expertLanes;
        AscendC::LocalTensor<float> scores = scoreBuf_.Get<float>();
        AscendC::LocalTensor<float> ranks = rankBuf_.Get<float>();
        AscendC::LocalTensor<int32_t> isImage = tokenBuf_.Get<int32_t>();
        if (tiling_.hasImages != 0) StageScalars(isImage, isImage_[token], rows, pipe_);
        for (uint32_t row = 0; row < rows; ++row) {
            AscendC::LocalTensor<float> bias = biasBuf_.Get<float>();
            if (tiling_.hasImages != 0 && isImage.GetValue(row) != 0) bias = imageBiasBuf_.Get<float>();
            AscendC::Add(ranks[row * lanes], scores[row * lanes], bias, (int32_t)lanes);
        }
        ReplaceNan(ranks, maskBuf_.Get<uint8_t>(), rows * lanes);
    }

    /// Hash layers: the table knows the experts of a token id.
    __aicore__ inline void LookUp(const AscendC::LocalTensor<int32_t>& ids, uint64_t token, uint32_t rows)
    {
        AscendC::LocalTensor<int32_t> tokenIds = tokenBuf_.Get<int32_t>();
        StageScalars(tokenIds, inputIds_[token], rows, pipe_);
        AscendC::LocalTensor<int32_t> table = tableQue_.AllocTensor<int32_t>();
        for (uint32_t row = 0; row < rows; ++row) {
            AscendC::DataCopyPad(table[row * ROUTE_MAX_TOPK], tid2eid_[(uint64_t)tokenIds.GetValue(row) * tiling_.topk],
                                 AscendC::DataCopyExtParams(1, tiling_.topk * (uint32_t)sizeof(int32_t), 0, 0, 0),
                                 AscendC::DataCopyPadExtParams<int32_t>(false, 0, 0, 0));
        }
        tableQue_.EnQue(table);
        table = tableQue_.DeQue<int32_t>();
        for (uint32_t row = 0; row < rows; ++row) {
            AscendC::Adds(ids[row * ROUTE_MAX_TOPK], table[row * ROUTE_MAX_TOPK], (int32_t)0, (int32_t)tiling_.topk);
        }
        tableQue_.FreeTensor(table);
    }

    /// Scores of the chosen experts, without the bias.
    __aicore__ inline void Weigh(const AscendC::LocalTensor<float>& weights, const AscendC::LocalTensor<int32_t>& ids, uint32_t rows)
    {
        AscendC::LocalTensor<int32_t> offsets = offsetBuf_.Get<int32_t>();
        AscendC::LocalTensor<float> chosen = chosenBuf_.Get<float>();
        for (uint32_t row = 0; row < rows; ++row) {
            AscendC::Muls(offsets[row * ROUTE_MAX_TOPK], ids[row * ROUTE_MAX_TOPK], (int32_t)sizeof(float), (int32_t)tiling_.topk);
        }
        AscendC::PipeBarrier<PIPE_V>();
        for (uint32_t row = 0; row < rows; ++row) {
            AscendC::Gather(chosen[row * ROUTE_MAX_TOPK], scoreBuf_.Get<float>()[row * tiling_.expertLanes],
                            offsets[row * ROUTE_MAX_TOPK].ReinterpretCast<uint32_t>(), 0, tiling_.topk);
        }
        AscendC::PipeBarrier<PIPE_V>();
        if (tiling_.normalize != 0) chosen = Normalized(chosen, rows);
        AscendC::Muls(weights, chosen, tiling_.scaling, (uint64_t)tiling_.topk, (uint8_t)rows, AscendC::UnaryRepeatParams(1, 1, 4, 4));
    }

    /// Divided by their sum; where the offsets were.
    __aicore__ inline AscendC::LocalTensor<float> Normalized(const AscendC::LocalTensor<float>& chosen, uint32_t rows)
    {
        AscendC::LocalTensor<float> sums = sumBuf_.Get<float>();
        AscendC::LocalTensor<float> spread = spreadBuf_.Get<float>();
        AscendC::LocalTensor<float> shares = offsetBuf_.Get<float>();
        AscendC::WholeReduceSum(sums, chosen, (int32_t)tiling_.topk, (int32_t)rows, 1, 1, 4);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Adds(sums, sums, tiling_.normEps, (int32_t)rows);
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Brcb(spread, sums, (uint8_t)(ROUTE_TILE_TOKENS / 8), AscendC::BrcbRepeatParams(1, 8));
        AscendC::PipeBarrier<PIPE_V>();
        AscendC::Div(shares, chosen, spread, (uint64_t)tiling_.topk, (uint8_t)rows, AscendC::BinaryRepeatParams(1, 1, 0, 4, 4, 1));
        AscendC::PipeBarrier<PIPE_V>();
        return shares;
    }

    __aicore__ inline void Store(AscendC::LocalTensor<int32_t>& ids, AscendC::LocalTensor<float>& weights, uint64_t token, uint32_t rows)
    {
        const uint32_t gap = ROUTE_MAX_TOPK / 8 - (tiling_.topk + 7) / 8;
        const AscendC::DataCopyExtParams part((uint16_t)rows, tiling_.topk * (uint32_t)sizeof(float), gap, 0, 0);
        idsQue_.EnQue(ids);
        weightQue_.EnQue(weights);
        ids = idsQue_.DeQue<int32_t>();
        weights = weightQue_.DeQue<float>();
        AscendC::DataCopyPad(ids_[token * tiling_.topk], ids, part);
        AscendC::DataCopyPad(weights_[token * tiling_.topk], weights, part);
        idsQue_.FreeTensor(ids);
        weightQue_.FreeTensor(weights);
    }

    RouteTiling tiling_;
    AscendC::TPipe* pipe_;
    RouteChooser chooser_;
    AscendC::TQue<AscendC::TPosition::VECIN, 1> logitQue_;
    AscendC::TQue<AscendC::TPosition::VECIN, 1> tableQue_;
    AscendC::TQue<AscendC::TPosition::VECOUT, 1> idsQue_;
    AscendC::TQue<AscendC::TPosition::VECOUT, 1> weightQue_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> scoreBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> rankBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> firstBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> secondBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> maskBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> offsetBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> chosenBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> sumBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> spreadBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> tokenBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> biasBuf_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> imageBiasBuf_;
    AscendC::GlobalTensor<float> logits_;
    AscendC::GlobalTensor<int32_t> tid2eid_;
    AscendC::GlobalTensor<int32_t> inputIds_;
    AscendC::GlobalTensor<int32_t> isImage_;
    AscendC::GlobalTensor<int32_t> ids_;
    AscendC::GlobalTensor<float> weights_;
};

extern "C" __global__ __aicore__ void route(GM_ADDR logits, GM_ADDR bias, GM_ADDR tid2eid, GM_ADDR inputIds, GM_ADDR imageBias,
                                            GM_ADDR isImage, GM_ADDR ids, GM_ADDR weights, RouteTiling tiling)
{
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
    AscendC::TPipe pipe;
    RouteKernel kernel;
    kernel.Init(logits, bias, tid2eid, inputIds, imageBias, isImage, ids, weights, tiling, &pipe);
    kernel.Process();
}

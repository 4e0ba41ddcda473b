// SPDX-License-Identifier: Apache-2.0
// Who does what: every core walks over the same items in the same order. Device code.
//
// An item is up to `segment` entries of one token. Two items make a pair; an AI Core computes the products of both, one for
// each of its vector cores. A token has items of all its visible entries, or of those in its candidate blocks, or both.
#pragma once

#include "kernel_operator.h"

#include "index_topk.h"

constexpr uint16_t INDEX_TOPK_READY = 0;  // flag: a stage of the ring holds products
constexpr uint16_t INDEX_TOPK_FREE = 1;   // flag: a stage of the ring has been read

__aicore__ inline uint32_t IndexTopkUp(uint32_t value, uint32_t unit) { return (value + unit - 1) / unit * unit; }
__aicore__ inline uint32_t IndexTopkLeast(uint32_t a, uint32_t b) { return a < b ? a : b; }

/// What is to be done for one token.
struct IndexTopkRow {
    uint32_t visible;
    uint32_t numBlocks;         // candidate blocks with a visible entry
    uint32_t fullCount;         // entries to score: of all visible ones, 0 if that is not needed
    uint32_t restrictedCount;   // of those in the candidate blocks
    bool restricted;            // entries are chosen from the candidate blocks, else from all
    bool ranked;                // blocks are chosen by score
};

struct IndexTopkItem {
    uint32_t token;
    uint32_t request;
    uint32_t first;  // in the order of the entries to score
    uint32_t count;  // 0: no item
    uint32_t slot;   // place of its lists
    uint32_t newest;        // block that is published anyway
    bool fromCandidates;
    bool wantsEntries;
    bool wantsBlocks;
};

class IndexTopkPlan {
public:
    __aicore__ inline void Init(GM_ADDR positions, GM_ADDR reqIdx, GM_ADDR candidates, const IndexTopkTiling& tiling)
    {
        tiling_ = tiling;
        positions_.SetGlobalBuffer((__gm__ int32_t*)positions);
        reqIdx_.SetGlobalBuffer((__gm__ int32_t*)reqIdx);
        candidates_.SetGlobalBuffer((__gm__ int32_t*)candidates);
    }

    __aicore__ inline IndexTopkRow Row(uint32_t token) const
    {
        const IndexTopkParams& params = tiling_.params;
        const int32_t position = positions_.GetValue(token);
        IndexTopkRow row;
        row.visible = reqIdx_.GetValue(token) >= 0 && position >= 0 ? ((uint32_t)position + 1) / params.ratio : 0;
        row.numBlocks = (row.visible + params.candidateBlock - 1) / params.candidateBlock;
        row.ranked = params.numCandidates > 0 && row.numBlocks > params.numCandidates;
        row.restricted = params.hasCandidates != 0 && row.visible > 0 && Lacks(token, row.numBlocks);
        row.restrictedCount = row.restricted ? CountGiven(token, row) : 0;
        const bool scoreEntries = !row.restricted && row.visible > params.topk;
        row.fullCount = scoreEntries || (row.ranked && tiling_.numRanked > 0) ? row.visible : 0;
        return row;
    }

    /// Starts on the items of a group of tokens.
    __aicore__ inline void Open(uint32_t firstToken, uint32_t tokens)
    {
        group_ = firstToken;
        token_ = firstToken;
        end_ = firstToken + tokens;
        next_ = 0;
        row_ = tokens > 0 ? Row(token_) : IndexTopkRow();
        fromCandidates_ = false;
    }

    /// The next item of the group, or one with count 0.
    __aicore__ inline IndexTopkItem Next()
    {
        IndexTopkItem item = {};
        while (token_ < end_) {
            const uint32_t count = fromCandidates_ ? row_.restrictedCount : row_.fullCount;
            if (next_ < count) {
                const uint32_t first = fromCandidates_ ? tiling_.fullItems : 0;
                item.token = token_;
                item.request = (uint32_t)reqIdx_.GetValue(token_);
                item.first = next_;
                item.count = IndexTopkLeast(count - next_, tiling_.segment);
                item.slot = Slot(token_ - group_, first + next_ / tiling_.segment);
                item.newest = row_.numBlocks - 1;
                item.fromCandidates = fromCandidates_;
                item.wantsEntries = fromCandidates_ || (!row_.restricted && row_.visible > tiling_.params.topk);
                item.wantsBlocks = !fromCandidates_ && row_.ranked && tiling_.numRanked > 0;
                next_ += item.count;
                return item;
            }
            next_ = 0;
            if (fromCandidates_ && ++token_ < end_) {
                row_ = Row(token_);
            }
            fromCandidates_ = !fromCandidates_;
        }
        return item;
    }

    __aicore__ inline uint32_t Slot(uint32_t tokenInGroup, uint32_t item) const
    {
        return tokenInGroup * (tiling_.fullItems + tiling_.restrictedItems) + item;
    }

    /// Products that an item needs.
    __aicore__ inline uint32_t Tiles(const IndexTopkItem& item) const
    {
        const uint32_t whole = item.count / tiling_.chunk;
        return whole * ((tiling_.chunk + INDEX_TOPK_TILE - 1) / INDEX_TOPK_TILE) +
               (item.count - whole * tiling_.chunk + INDEX_TOPK_TILE - 1) / INDEX_TOPK_TILE;
    }

    /// Which candidate block the place `block` of a token's row holds.
    __aicore__ inline uint32_t Candidate(uint32_t token, uint32_t block) const
    {
        return (uint32_t)candidates_.GetValue((uint64_t)token * tiling_.params.numGiven + block);
    }

private:
    /// Distinct numbers in ascending order begin with 0 .. last exactly if the one in place `last` is `last`.
    __aicore__ inline bool Lacks(uint32_t token, uint32_t numBlocks) const
    {
        return numBlocks > tiling_.params.numGiven || Candidate(token, numBlocks - 1) != numBlocks - 1;
    }

    /// Visible entries in the candidate blocks, whose numbers ascend and end with -1.
    __aicore__ inline uint32_t CountGiven(uint32_t token, const IndexTopkRow& row) const
    {
        uint32_t low = 0;
        uint32_t high = tiling_.params.numGiven;
        while (low < high) {
            const uint32_t middle = (low + high) / 2;
            // -1 is the largest number there is once it is taken for unsigned.
            if (Candidate(token, middle) < row.numBlocks) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        if (low == 0) {
            return 0;
        }
        const uint32_t size = tiling_.params.candidateBlock;
        return (low - 1) * size + IndexTopkLeast(size, row.visible - Candidate(token, low - 1) * size);
    }

    IndexTopkTiling tiling_;
    AscendC::GlobalTensor<int32_t> positions_;
    AscendC::GlobalTensor<int32_t> reqIdx_;
    AscendC::GlobalTensor<int32_t> candidates_;
    IndexTopkRow row_;
    uint32_t group_ = 0;
    uint32_t token_ = 0;
    uint32_t end_ = 0;
    uint32_t next_ = 0;
    bool fromCandidates_ = false;
};

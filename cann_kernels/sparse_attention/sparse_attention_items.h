// SPDX-License-Identifier: Apache-2.0
// The order in which a core works: one range of keys of one token after the other. The cube core and both vector cores of an AI
// core derive the same order from the positions, so that they need to tell each other nothing but that something is ready.
#pragma once

#include "kernel_operator.h"

#include "sparse_attention.h"

enum SparseAttentionFlag : uint16_t {
    SPARSE_ATTENTION_KEYS_READY = 0,  // and 1: by parity of the item, one set for each group of keys
    SPARSE_ATTENTION_SCORES_READY = 2,
    SPARSE_ATTENTION_WEIGHTS_READY = 3,
    SPARSE_ATTENTION_SUM_READY = 4,
};

/// Keys of one range: compressed entries first, then the rows of the window.
struct SparseAttentionItem {
    uint32_t number;     // of the core's items
    uint32_t token;
    uint32_t range;
    uint32_t ranges;     // of this token
    uint32_t set;        // where the token's sums and statistics lie in the workspace
    int32_t position;
    int32_t request;
    uint32_t visible;    // compressed entries that exist for this position
    uint32_t entries;    // slots of compressed entries of the token
    uint32_t total;      // slots of the token
    uint32_t first;      // slot of the token that the range begins with
    uint32_t slots;      // of the range
    uint32_t padded;     // slots up to a multiple of 16
};

class SparseAttentionCursor {
public:
    __aicore__ inline void Init(GM_ADDR positions, GM_ADDR requests, const SparseAttentionTiling& tiling, uint32_t block)
    {
        params_ = tiling.params;
        blocks_ = tiling.blocks;
        mostRanges_ = tiling.ranges;
        split_ = tiling.split != 0;
        block_ = block;
        unit_ = block;
        positions_.SetGlobalBuffer((__gm__ int32_t*)positions);
        requests_.SetGlobalBuffer((__gm__ int32_t*)requests);
        item_.number = 0;
        item_.range = 0;
        item_.ranges = 0;
    }

    /// The next range that holds a key. false at the end.
    __aicore__ inline bool Next(SparseAttentionItem& item)
    {
        if (!split_ && item_.range + 1 < item_.ranges) {
            ++item_.range;
        } else if (!Advance()) {
            return false;
        }
        item_.first = item_.range * SPARSE_ATTENTION_RANGE;
        const uint32_t rest = item_.total - item_.first;
        item_.slots = rest < SPARSE_ATTENTION_RANGE ? rest : SPARSE_ATTENTION_RANGE;
        item_.padded = (item_.slots + 15) / 16 * 16;
        item = item_;
        ++item_.number;
        return true;
    }

    /// Fills in what follows from the token. false for padding.
    __aicore__ inline bool Describe(SparseAttentionItem& item, uint32_t token) const
    {
        item.token = token;
        item.request = requests_.GetValue(token);
        item.position = positions_.GetValue(token);
        if (item.request < 0 || item.position < 0) {
            return false;
        }
        const uint32_t length = (uint32_t)item.position + 1;
        item.visible = params_.hasCompressed != 0 ? length / params_.ratio : 0;
        item.entries = item.visible;
        if (params_.hasEntries != 0 && item.entries > params_.topk) {
            item.entries = params_.topk;
        }
        const uint64_t capacity = (uint64_t)params_.maxBlocks * params_.blockRows;
        if (item.entries > capacity) {
            item.entries = (uint32_t)capacity;
        }
        item.total = item.entries + (length < params_.window ? length : params_.window);
        item.ranges = (item.total + SPARSE_ATTENTION_RANGE - 1) / SPARSE_ATTENTION_RANGE;
        return true;
    }

private:
    /// To the next unit of this core that has keys: a token, or a range of one if ranges are spread over cores.
    __aicore__ inline bool Advance()
    {
        const uint64_t units = (uint64_t)params_.numTokens * (split_ ? mostRanges_ : 1);
        for (; unit_ < units; unit_ += blocks_) {
            const uint32_t token = (uint32_t)(split_ ? unit_ / mostRanges_ : unit_);
            const uint32_t range = (uint32_t)(split_ ? unit_ % mostRanges_ : 0);
            if (!Describe(item_, token) || range >= item_.ranges) {
                continue;
            }
            item_.range = range;
            item_.set = split_ ? token : block_ * 2 + tokens_ % 2;
            ++tokens_;
            unit_ += blocks_;
            return true;
        }
        return false;
    }

    SparseAttentionParams params_;
    SparseAttentionItem item_;
    uint32_t blocks_;
    uint32_t mostRanges_;
    uint32_t block_;
    uint32_t tokens_ = 0;
    uint64_t unit_;
    bool split_;
    AscendC::GlobalTensor<int32_t> positions_;
    AscendC::GlobalTensor<int32_t> requests_;
};

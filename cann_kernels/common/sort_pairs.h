// SPDX-License-Identifier: Apache-2.0
// Sorting (score, index) pairs on a vector core: runs of 32, then merges of up to four lists a level. Device code only.
#pragma once

#include "kernel_operator.h"

constexpr uint32_t SORT_RUN = 32;       // pairs that one repeat of Sort32 sorts
constexpr uint32_t SORT_MAX_RUNS = 64;
constexpr uint32_t SORT_RECORD = 2;     // floats of a record: score, index

/// Merges `count` (2 to 4) sorted lists of records. Equal scores: earlier list first. dst lies apart from the lists.
__aicore__ inline void MergePairs(const AscendC::LocalTensor<float>& dst, const AscendC::MrgSortSrcList<float>& lists,
                                  const uint16_t lengths[4], uint32_t count, uint16_t repeats = 1)
{
    const uint16_t valid = (uint16_t)((1u << count) - 1);
    AscendC::MrgSort(dst, lists, AscendC::MrgSort4Info(lengths, false, valid, repeats));
}

/// Sorts `runs` * 32 pairs, highest score first, equal scores in the order they were given. No score may be NaN.
/// a, b [runs * 64] are scratch, 256-byte aligned; scores and indices are 128-byte aligned. The first `keep`
/// records of the tensor that is returned (a or b), rounded up to whole runs, are sorted and the best; what follows them is
/// not defined. Ends without a barrier.
__aicore__ inline AscendC::LocalTensor<float> SortPairs(const AscendC::LocalTensor<float>& a, const AscendC::LocalTensor<float>& b,
                                                        const AscendC::LocalTensor<float>& scores,
                                                        const AscendC::LocalTensor<uint32_t>& indices, uint32_t runs, uint32_t keep)
{
    keep = (keep + SORT_RUN - 1) / SORT_RUN * SORT_RUN;
    AscendC::LocalTensor<float> from = a;
    AscendC::LocalTensor<float> to = b;
    AscendC::Sort32(from, scores, indices, (int32_t)runs);
    uint16_t bounds[SORT_MAX_RUNS + 1];  // list i holds the best of runs bounds[i] .. bounds[i + 1], and starts at the first's place
    for (uint32_t i = 0; i <= runs; ++i) {
        bounds[i] = (uint16_t)i;
    }
    uint32_t lists = runs;
    uint32_t length = SORT_RUN;  // of every list, while they are equal and side by side; then 0
    while (lists > 1) {
        AscendC::PipeBarrier<PIPE_V>();
        const uint32_t groups = (lists + 3) / 4;
        if (length != 0 && lists % 4 == 0) {
            const uint16_t lengths[4] = {(uint16_t)length, (uint16_t)length, (uint16_t)length, (uint16_t)length};
            const uint32_t step = length * SORT_RECORD;
            MergePairs(to, AscendC::MrgSortSrcList<float>(from, from[step], from[2 * step], from[3 * step]), lengths, 4, (uint16_t)groups);
        } else {
            for (uint32_t g = 0; g < groups; ++g) {
                // Groups of nearly one size: with two lists or more no group has only one.
                const uint32_t first = g * lists / groups;
                const uint32_t count = (g + 1) * lists / groups - first;
                uint16_t lengths[4] = {0, 0, 0, 0};
                uint32_t starts[4] = {0, 0, 0, 0};
                for (uint32_t i = 0; i < count; ++i) {
                    const uint32_t size = (uint32_t)(bounds[first + i + 1] - bounds[first + i]) * SORT_RUN;
                    lengths[i] = (uint16_t)(size < keep ? size : keep);
                    starts[i] = (uint32_t)bounds[first + i] * SORT_RUN * SORT_RECORD;
                }
                const AscendC::MrgSortSrcList<float> sources(from[starts[0]], from[starts[1]], from[starts[2]], from[starts[3]]);
                MergePairs(to[starts[0]], sources, lengths, count);
            }
        }
        length = lists % 4 == 0 && length * 4 <= keep ? length * 4 : 0;
        for (uint32_t g = 0; g <= groups; ++g) {
            bounds[g] = bounds[g * lists / groups];
        }
        lists = groups;
        const AscendC::LocalTensor<float> swap = from;
        from = to;
        to = swap;
    }
    return from;
}

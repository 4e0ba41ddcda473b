// SPDX-License-Identifier: Apache-2.0
// Sorting instructions and SortPairs on the caller's numbers: `scores` and `indices` of n lanes in, `out` of 2 n floats out.
#include <map>
#include <string>

#include "sort_pairs.h"
#include "twin/abi.h"

using namespace AscendC;

namespace {

constexpr uint32_t kLanes = 2048;

struct Operands {
    LocalTensor<float> scores;
    LocalTensor<uint32_t> indices;
    LocalTensor<float> out, a, b;
    uint32_t n, k;
};

using Step = void (*)(const Operands& o);

/// Lists of `k` records side by side, as many as fit into `lists`, each sorted by itself.
void Merge(const Operands& o, uint32_t lists, bool suspend) {
    Sort32(o.a, o.scores, o.indices, static_cast<int32_t>(o.n / 32));
    PipeBarrier<PIPE_V>();
    const uint32_t step = o.n / lists * 2;
    const auto length = static_cast<uint16_t>(o.k);
    const uint16_t lengths[4] = {length, length, length, length};
    const MrgSortSrcList<float> sources(o.a, o.a[step], o.a[lists > 2 ? 2 * step : 0], o.a[lists > 3 ? 3 * step : 0]);
    const auto valid = static_cast<uint16_t>((1u << lists) - 1);
    if (!suspend) return MrgSort(o.out, sources, MrgSort4Info(lengths, false, valid, 1));
    uint32_t sorted[4];
    MrgSort<float, true>(o.out, sources, lengths, sorted, valid, 1);
    PipeBarrier<PIPE_ALL>();
    for (uint32_t i = 0; i < 4; ++i) o.out.SetValue(o.n * 2 - 4 + i, static_cast<float>(sorted[i]));
}

void Keep(const Operands& o, uint64_t kept) {
    PipeBarrier<PIPE_ALL>();
    o.out.SetValue(o.n * 2 - 1, static_cast<float>(kept));
}

const std::map<std::string, Step> kSteps = {
    {"sort32", [](const Operands& o) { Sort32(o.out, o.scores, o.indices, static_cast<int32_t>(o.n / 32)); }},
    {"sort32_none", [](const Operands& o) { Sort32(o.out, o.scores, o.indices, 0); }},
    {"sort32_misaligned", [](const Operands& o) { Sort32(o.out[8], o.scores, o.indices, 1); }},
    {"sort32_misaligned_score", [](const Operands& o) { Sort32(o.out, o.scores[8], o.indices, 1); }},
    {"sort32_overlap", [](const Operands& o) { Sort32(o.scores, o.scores, o.indices, 1); }},
    {"sort32_many", [](const Operands& o) { Sort32(o.out, o.scores, o.indices, 256); }},
    {"merge2", [](const Operands& o) { Merge(o, 2, false); }},
    {"merge4", [](const Operands& o) { Merge(o, 4, false); }},
    {"merge4_suspend", [](const Operands& o) { Merge(o, 4, true); }},
    {"merge_unsorted", [](const Operands& o) {
        const uint16_t lengths[4] = {32, 32, 0, 0};
        MrgSort(o.out, MrgSortSrcList<float>(o.scores, o.scores[64], o.scores, o.scores), MrgSort4Info(lengths, false, 3, 1));
    }},
    {"merge_overlap", [](const Operands& o) {
        Sort32(o.out, o.scores, o.indices, 2);
        PipeBarrier<PIPE_V>();
        const uint16_t lengths[4] = {32, 32, 0, 0};
        MrgSort(o.out, MrgSortSrcList<float>(o.out, o.out[64], o.out, o.out), MrgSort4Info(lengths, false, 3, 1));
    }},
    {"merge_valid_bit", [](const Operands& o) {
        const uint16_t lengths[4] = {0, 0, 0, 0};
        MrgSort(o.out, MrgSortSrcList<float>(o.a, o.a, o.a, o.a), MrgSort4Info(lengths, false, 5, 1));
    }},
    {"merge_long", [](const Operands& o) {
        const uint16_t lengths[4] = {4096, 0, 0, 0};
        MrgSort(o.out, MrgSortSrcList<float>(o.a, o.a, o.a, o.a), MrgSort4Info(lengths, false, 3, 1));
    }},
    {"merge_repeat_apart", [](const Operands& o) {
        Sort32(o.a, o.scores, o.indices, 8);
        PipeBarrier<PIPE_V>();
        const uint16_t lengths[4] = {16, 16, 16, 16};
        MrgSort(o.out, MrgSortSrcList<float>(o.a, o.a[64], o.a[128], o.a[192]), MrgSort4Info(lengths, false, 15, 2));
    }},
    {"extract", [](const Operands& o) {
        Sort32(o.a, o.scores, o.indices, static_cast<int32_t>(o.n / 32));
        PipeBarrier<PIPE_V>();
        Extract(o.out, o.out[o.n].ReinterpretCast<uint32_t>(), o.a, static_cast<int32_t>(o.n / 32));
    }},
    {"gather_mask", [](const Operands& o) {
        LocalTensor<uint8_t> bits = o.a.ReinterpretCast<uint8_t>();
        CompareScalar(bits, o.scores, 0.0f, CMPMODE::GT, (o.n + 63) / 64 * 64);
        PipeBarrier<PIPE_V>();
        uint64_t kept = 0;
        GatherMask(o.out, o.scores, bits.ReinterpretCast<uint32_t>(), true, o.k, GatherMaskParams(1, 1, 8, 8), kept);
        Keep(o, kept);
    }},
    {"gather_fixed", [](const Operands& o) {
        uint64_t kept = 0;
        GatherMask(o.out, o.scores, static_cast<uint8_t>(o.k), false, 0, GatherMaskParams(1, static_cast<uint16_t>(o.n / 64), 8, 0), kept);
        Keep(o, kept);
    }},
    {"gather_overlap", [](const Operands& o) {
        uint64_t kept = 0;
        GatherMask(o.scores, o.scores, static_cast<uint8_t>(1), true, 64, GatherMaskParams(1, 1, 8, 0), kept);
    }},
    {"gather_pattern_8", [](const Operands& o) {
        uint64_t kept = 0;
        GatherMask(o.out, o.scores, static_cast<uint8_t>(8), true, 64, GatherMaskParams(1, 1, 8, 0), kept);
    }},
    {"gather_no_mask", [](const Operands& o) {
        uint64_t kept = 0;
        GatherMask(o.out, o.scores, static_cast<uint8_t>(7), true, 0, GatherMaskParams(1, 1, 8, 0), kept);
    }},
    {"sort_pairs_split", [](const Operands& o) {
        const LocalTensor<float> sorted = SortPairs(o.a, o.b, o.scores, o.indices, o.n / 32, o.k);
        PipeBarrier<PIPE_V>();
        Extract(o.out, o.out[o.n].ReinterpretCast<uint32_t>(), sorted, static_cast<int32_t>((o.k + 31) / 32));
    }},
};

}  // namespace

extern "C" int sort_run(const char* name, const float* scores, const uint32_t* indices, float* out, uint32_t n, uint32_t k) {
    return twin::Guarded([=] {
        twin::Launch launch(name, 1, twin::Ratio::kVectorOnly, twin::CurrentSettings());
        GlobalTensor<float> fromScores, to;
        GlobalTensor<uint32_t> fromIndices;
        fromScores.SetGlobalBuffer((__gm__ float*)launch.In("scores", scores, n * 4));
        fromIndices.SetGlobalBuffer((__gm__ uint32_t*)launch.In("indices", indices, n * 4));
        to.SetGlobalBuffer((__gm__ float*)launch.Out("out", out, n * 8));
        launch.Run([&] {
            TPipe pipe;
            TBuf<TPosition::VECCALC> x, i, y, a, b;
            pipe.InitBuffer(x, kLanes * 4), pipe.InitBuffer(i, kLanes * 4);
            pipe.InitBuffer(y, kLanes * 8), pipe.InitBuffer(a, kLanes * 8), pipe.InitBuffer(b, kLanes * 8);
            const Operands o = {x.Get<float>(), i.Get<uint32_t>(), y.Get<float>(), a.Get<float>(), b.Get<float>(), n, k};
            DataCopy(o.scores, fromScores, n);
            DataCopy(o.indices, fromIndices, n);
            Duplicate(o.out, -7.0f, static_cast<int32_t>(n * 2));
            PipeBarrier<PIPE_ALL>();
            kSteps.at(name)(o);
            PipeBarrier<PIPE_ALL>();
            DataCopy(to, o.out, n * 2);
        });
    });
}

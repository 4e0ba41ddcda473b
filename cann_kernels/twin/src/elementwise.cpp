// SPDX-License-Identifier: Apache-2.0
#include "twin/elementwise.h"

#include <unordered_map>

namespace AscendC {

namespace detail {

namespace {

/// Calls `touch(offset, bytes)` for every piece of memory that the working lanes of one repeat lie in.
template <typename F>
void Pieces(const Walk& operand, const Lanes& lanes, uint32_t width, uint32_t repeat, const F& touch) {
    if (lanes.None()) return;
    if (const uint32_t leading = lanes.Leading(); leading != 0 && operand.blockStride == 1) {
        return touch(operand.At(repeat, 0), leading * operand.element);
    }
    const uint32_t perBlock = std::min<uint32_t>(twin::kBlock / operand.element, width);
    for (uint32_t first = 0; first < width; first += perBlock) {
        uint64_t bits = lanes.Part(first, perBlock);
        for (uint32_t lane = first; bits != 0;) {
            const auto skip = static_cast<uint32_t>(__builtin_ctzll(bits));
            lane += skip, bits >>= skip;
            const auto run = static_cast<uint32_t>(__builtin_ctzll(~bits));
            touch(operand.At(repeat, lane), run * operand.element);
            lane += run, bits >>= run;
        }
    }
}

template <typename F>
void AllPieces(const Walk& operand, const Work& work, const F& touch) {
    const uint32_t whole = work.lanes * operand.element;
    const bool dense = operand.blockStride == 1 && operand.repeatStride * twin::kBlock == whole;
    if (work.contiguous || (dense && work.count != 0)) return touch(0, static_cast<uint32_t>(work.count * operand.element));
    if (dense && work.each.Leading() == work.lanes) return touch(0, work.repeats * whole);
    const uint32_t repeats = operand.repeatStride == 0 && work.count == 0 ? 1 : work.repeats;
    for (uint32_t repeat = 0; repeat < repeats; ++repeat) Pieces(operand, work.Of(repeat), work.lanes, repeat, touch);
}

struct Place {
    uint32_t repeat, lane;
};

}  // namespace

void ForPieces(const Walk& operand, const Work& work, const std::function<void(int64_t, uint32_t)>& touch) { AllPieces(operand, work, touch); }

void CheckRead(Instruction& instruction, const Work& work, const Walk& source) {
    AllPieces(source, work, [&](int64_t offset, uint32_t bytes) { instruction.Read(source.span, offset, bytes, source.name); });
}

void CheckWrite(Instruction& instruction, const Work& work, const Walk& target) {
    AllPieces(target, work, [&](int64_t offset, uint32_t bytes) { instruction.Write(target.span, offset, bytes, target.name); });
}

void RequireNoOverlap(const Instruction& instruction, const Work& work, const Walk& dst, const Walk& src, bool accumulates) {
    const auto &d = dst.span, &s = src.span;
    if (d.memory != s.memory || d.address + dst.Reach(work) <= s.address || s.address + src.Reach(work) <= d.address) return;
    const bool same = d.address == s.address && dst.element == src.element;
    if (work.contiguous) {
        instruction.Require(same, "dst (UB byte %u) and %s (UB byte %u) overlap in part", d.address, src.name, s.address);
        return;
    }
    const bool dense = dst.blockStride == 1 && dst.repeatStride * twin::kBlock >= work.Used() * dst.element;
    if (same && dense && src.blockStride == 1 && src.repeatStride == dst.repeatStride) return;
    std::unordered_map<int64_t, Place> written;  // by block: the first to write it
    for (uint32_t repeat = 0; repeat < work.repeats; ++repeat) {
        for (uint32_t lane = 0; lane < work.Used(); lane += twin::kBlock / dst.element) {
            written.insert({(d.address + dst.At(repeat, lane)) / twin::kBlock, {repeat, lane}});
        }
    }
    for (uint32_t repeat = 0; repeat < work.repeats; ++repeat) {
        for (uint32_t lane = 0; lane < work.Used(); lane += twin::kBlock / src.element) {
            const auto found = written.find((s.address + src.At(repeat, lane)) / twin::kBlock);
            if (found == written.end() || found->second.repeat > repeat) continue;
            const Place place = found->second;
            instruction.Require(place.repeat != repeat || (place.lane == lane && dst.element == src.element),
                                "dst and %s overlap in part in repeat %u", src.name, repeat);
            instruction.Require(place.repeat == repeat || accumulates, "repeat %u reads as %s what repeat %u writes", repeat, src.name, place.repeat);
        }
    }
}

}  // namespace detail

}  // namespace AscendC

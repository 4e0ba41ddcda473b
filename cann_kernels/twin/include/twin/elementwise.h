// SPDX-License-Identifier: Apache-2.0
// The walk of an elementwise instruction over its operands: every byte is checked before the first is computed, and whatever lies
// side by side is checked and computed in one piece.
#pragma once

#include <algorithm>
#include <unordered_map>

#include "twin/control.h"
#include "twin/mask.h"

namespace AscendC {

namespace detail {

using twin::kOneOf;
using twin::Narrow;
using twin::Where;
using twin::Widen;

/// The type an operation is computed in: float for 16-bit floats.
template <typename T>
using Wide = std::conditional_t<kOneOf<T, half, bfloat16_t>, float, T>;

template <typename T>
Wide<T> Load(const uint8_t* address) {
    T value;
    std::memcpy(&value, address, sizeof(T));
    if constexpr (kOneOf<T, half, bfloat16_t>) return Widen(value);
    else return value;
}

/// Stores a value in the type of the operation, rounded, or in that of the tensor.
template <typename T, typename V>
void Save(uint8_t* address, V value) {
    if constexpr (kOneOf<T, half, bfloat16_t> && !std::is_same_v<T, V>) {
        const T narrow = Narrow<T>(value);
        std::memcpy(address, &narrow, sizeof(T));
    } else {
        const T same = value;
        std::memcpy(address, &same, sizeof(T));
    }
}

/// A tensor and the strides, in blocks of 32 bytes, between its blocks and between its repeats.
template <typename T>
struct Operand {
    const LocalTensor<T>& tensor;
    const char* name;
    uint32_t blockStride = 1, repeatStride = 8;

    int64_t At(uint32_t repeat, uint32_t lane) const {
        const uint32_t byte = lane * static_cast<uint32_t>(sizeof(T));
        return (int64_t{repeat} * repeatStride + int64_t{byte / twin::kBlock} * blockStride) * twin::kBlock + byte % twin::kBlock;
    }
    /// Bytes from the first to behind the last that `work` may touch.
    uint64_t Reach(const Work& work) const {
        if (work.contiguous) return work.count * sizeof(T);
        const uint32_t blocks = (work.Used() * static_cast<uint32_t>(sizeof(T)) + twin::kBlock - 1) / twin::kBlock;
        return (uint64_t{work.repeats - 1} * repeatStride + uint64_t{blocks - 1} * blockStride + 1) * twin::kBlock;
    }
    uint8_t* Base(const Instruction& instruction) const {
        twin::LocalMemory& memory = instruction.core().memories[static_cast<uint32_t>(tensor.span().memory)];
        return memory.bytes.data() + tensor.span().address;
    }
};

template <typename T>
Operand<T> Flat(const LocalTensor<T>& tensor, const char* name) {
    return {tensor, name};
}

/// Calls `touch(offset, bytes)` for every piece of memory that the working lanes of one repeat lie in.
template <typename T, typename F>
void Pieces(const Operand<T>& operand, const Lanes& lanes, uint32_t width, uint32_t repeat, F touch) {
    if (lanes.None()) return;
    if (const uint32_t leading = lanes.Leading(); leading != 0 && operand.blockStride == 1) {
        return touch(operand.At(repeat, 0), leading * static_cast<uint32_t>(sizeof(T)));
    }
    const uint32_t perBlock = std::min<uint32_t>(twin::kBlock / sizeof(T), width);
    for (uint32_t first = 0; first < width; first += perBlock) {
        uint64_t bits = lanes.Part(first, perBlock);
        for (uint32_t lane = first; bits != 0;) {
            const auto skip = static_cast<uint32_t>(__builtin_ctzll(bits));
            lane += skip, bits >>= skip;
            const auto run = static_cast<uint32_t>(__builtin_ctzll(~bits));
            touch(operand.At(repeat, lane), run * static_cast<uint32_t>(sizeof(T)));
            lane += run, bits >>= run;
        }
    }
}

/// The same for all repeats.
template <typename T, typename F>
void AllPieces(const Operand<T>& operand, const Work& work, F touch) {
    const auto whole = static_cast<uint32_t>(work.lanes * sizeof(T));
    const bool dense = operand.blockStride == 1 && operand.repeatStride * twin::kBlock == whole;
    if (work.contiguous || (dense && work.count != 0)) return touch(0, static_cast<uint32_t>(work.count * sizeof(T)));
    if (dense && work.each.Leading() == work.lanes) return touch(0, work.repeats * whole);
    const uint32_t repeats = operand.repeatStride == 0 && work.count == 0 ? 1 : work.repeats;
    for (uint32_t repeat = 0; repeat < repeats; ++repeat) Pieces(operand, work.Of(repeat), work.lanes, repeat, touch);
}

template <typename T>
void CheckRead(Instruction& instruction, const Work& work, const Operand<T>& source) {
    AllPieces(source, work, [&](int64_t offset, uint32_t bytes) { instruction.Read(source.tensor.span(), offset, bytes, source.name); });
}

template <typename T>
void CheckWrite(Instruction& instruction, const Work& work, const Operand<T>& target) {
    AllPieces(target, work, [&](int64_t offset, uint32_t bytes) { instruction.Write(target.tensor.span(), offset, bytes, target.name); });
}

/// Inside one repeat dst is a source exactly or lies apart from it, and no repeat reads what an earlier one has written;
/// `accumulates` is the case that the device documents: dst is the second source and one of the two stays in place.
template <typename D, typename S>
void RequireNoOverlap(const Instruction& instruction, const Work& work, const Operand<D>& dst, const Operand<S>& src, bool accumulates = false) {
    const auto &d = dst.tensor.span(), &s = src.tensor.span();
    if (d.memory != s.memory || d.address + dst.Reach(work) <= s.address || s.address + src.Reach(work) <= d.address) return;
    if (work.contiguous) {
        instruction.Require(d.address == s.address && sizeof(D) == sizeof(S), "dst (UB byte %u) and %s (UB byte %u) overlap in part", d.address,
                            src.name, s.address);
        return;
    }
    struct Place {
        uint32_t repeat, lane;
    };
    std::unordered_map<int64_t, Place> written;  // by block: the first to write it
    for (uint32_t repeat = 0; repeat < work.repeats; ++repeat) {
        for (uint32_t lane = 0; lane < work.Used(); lane += twin::kBlock / sizeof(D)) {
            written.insert({(d.address + dst.At(repeat, lane)) / twin::kBlock, {repeat, lane}});
        }
    }
    for (uint32_t repeat = 0; repeat < work.repeats; ++repeat) {
        for (uint32_t lane = 0; lane < work.Used(); lane += twin::kBlock / sizeof(S)) {
            const auto found = written.find((s.address + src.At(repeat, lane)) / twin::kBlock);
            if (found == written.end() || found->second.repeat > repeat) continue;
            const Place place = found->second;
            instruction.Require(place.repeat != repeat || (place.lane == lane && sizeof(D) == sizeof(S)),
                                "dst and %s overlap in part in repeat %u", src.name, repeat);
            instruction.Require(place.repeat == repeat || accumulates, "repeat %u reads as %s what repeat %u writes", repeat, src.name, place.repeat);
        }
    }
}

/// dst[i] = f(sources[i]...) for pieces that lie side by side.
template <typename D, typename... S>
struct Row {
    template <typename F, typename... P>
    static void Compute(uint32_t count, F& f, uint8_t* target, P... sources) {
#pragma GCC ivdep
        for (uint32_t i = 0; i < count; ++i) Save<D>(target + i * sizeof(D), f(Load<S>(sources + i * sizeof(S))...));
    }
};

template <typename F, typename D, typename... S>
void Compute(const Instruction& instruction, const Work& work, F& f, const Operand<D>& dst, const Operand<S>&... src) {
    constexpr uint32_t widest = static_cast<uint32_t>(std::max({sizeof(D), sizeof(S)...}));
    constexpr uint32_t group = twin::kBlock / widest;  // lanes that lie side by side in every operand
    if (work.contiguous) {
        return Row<D, S...>::Compute(static_cast<uint32_t>(work.count), f, dst.Base(instruction),
                                     static_cast<const uint8_t*>(src.Base(instruction))...);
    }
    for (uint32_t repeat = 0; repeat < work.repeats; ++repeat) {
        const Lanes lanes = work.Of(repeat);
        for (uint32_t first = 0; first < work.lanes; first += group) {
            const uint64_t bits = lanes.Part(first, group);
            if (bits == (uint64_t{1} << group) - 1) {
                Row<D, S...>::Compute(group, f, dst.Base(instruction) + dst.At(repeat, first),
                                      static_cast<const uint8_t*>(src.Base(instruction) + src.At(repeat, first))...);
                continue;
            }
            for (uint32_t i = 0; i < group; ++i) {
                if ((bits >> i & 1u) == 0) continue;
                Save<D>(dst.Base(instruction) + dst.At(repeat, first + i), f(Load<S>(src.Base(instruction) + src.At(repeat, first + i))...));
            }
        }
    }
}

/// One elementwise instruction. `accumulates`: whether the last source may be dst in the way RequireNoOverlap speaks of.
template <typename F, typename D, typename... S>
void Elementwise(Instruction& instruction, const Work& work, bool accumulates, F f, const Operand<D>& dst, const Operand<S>&... src) {
    (instruction.Align(src.tensor.span(), twin::kBlock, src.name), ...);
    instruction.Align(dst.tensor.span(), twin::kBlock, dst.name);
    if (work.Nothing()) return;
    [[maybe_unused]] size_t left = sizeof...(S);
    (RequireNoOverlap(instruction, work, dst, src, accumulates && --left == 0), ...);
    (CheckRead(instruction, work, src), ...);
    CheckWrite(instruction, work, dst);
    Compute(instruction, work, f, dst, src...);
    if constexpr (sizeof...(S) != 0 && kOneOf<D, half, bfloat16_t>) {
        AllPieces(dst, work, [&](int64_t offset, uint32_t bytes) {
            twin::Settle<D>(instruction, dst.Base(instruction) + offset, bytes / sizeof(D));
        });
    }
}

/// Checked bytes of the first `count` elements.
template <typename S>
const uint8_t* Source(Instruction& instruction, const LocalTensor<S>& src, uint32_t count, const char* operand) {
    instruction.Align(src.span(), twin::kBlock, operand);
    return instruction.Read(src.span(), 0, count * sizeof(S), operand);
}

template <typename D>
uint8_t* Target(Instruction& instruction, const LocalTensor<D>& dst, uint32_t count) {
    instruction.Align(dst.span(), twin::kBlock, "dst");
    return instruction.Write(dst.span(), 0, count * sizeof(D), "dst");
}

}  // namespace detail

}  // namespace AscendC

// SPDX-License-Identifier: Apache-2.0
// The walk of an elementwise instruction over its operands: every byte is checked before the first is computed, and whatever lies
// side by side is checked and computed in one piece.
#pragma once

#include <algorithm>
#include <functional>

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

/// What a tensor is to an instruction: where it lies, how wide its elements are, and the strides, in blocks of 32 bytes, between its
/// blocks and between its repeats.
struct Walk {
    const twin::LocalSpan& span;
    const char* name;
    uint32_t element, blockStride, repeatStride;

    int64_t At(uint32_t repeat, uint32_t lane) const {
        const uint32_t byte = lane * element;
        return (int64_t{repeat} * repeatStride + int64_t{byte / twin::kBlock} * blockStride) * twin::kBlock + byte % twin::kBlock;
    }
    /// Bytes from the first to behind the last that `work` may touch.
    uint64_t Reach(const Work& work) const {
        if (work.contiguous) return work.count * element;
        const uint32_t blocks = (work.Used() * element + twin::kBlock - 1) / twin::kBlock;
        return (uint64_t{work.repeats - 1} * repeatStride + uint64_t{blocks - 1} * blockStride + 1) * twin::kBlock;
    }
    uint8_t* Base(const Instruction& instruction) const {
        return instruction.core().memories[static_cast<uint32_t>(span.memory)].bytes.data() + span.address;
    }
};

template <typename T>
struct Operand : Walk {
    Operand(const LocalTensor<T>& tensor, const char* operand, uint32_t blocks = 1, uint32_t repeats = 8)
        : Walk{tensor.span(), operand, sizeof(T), blocks, repeats} {}
};

template <typename T>
Operand<T> Flat(const LocalTensor<T>& tensor, const char* name) {
    return {tensor, name};
}

/// Calls `touch(offset, bytes)` for every piece of memory that the working lanes of the operand lie in.
void ForPieces(const Walk& operand, const Work& work, const std::function<void(int64_t, uint32_t)>& touch);

/// Every byte that the working lanes of the operand lie in passes through the instruction's checks.
void CheckRead(Instruction& instruction, const Work& work, const Walk& source);
void CheckWrite(Instruction& instruction, const Work& work, const Walk& target);

/// Inside one repeat dst is a source exactly or lies apart from it, and no repeat reads what an earlier one has written;
/// `accumulates` is the case that the device documents: dst is the second source and one of the two stays in place.
void RequireNoOverlap(const Instruction& instruction, const Work& work, const Walk& dst, const Walk& src, bool accumulates = false);

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
    (instruction.Align(src.span, twin::kBlock, src.name), ...);
    instruction.Align(dst.span, twin::kBlock, dst.name);
    if (work.Nothing()) return;
    [[maybe_unused]] size_t left = sizeof...(S);
    (RequireNoOverlap(instruction, work, dst, src, accumulates && --left == 0), ...);
    (CheckRead(instruction, work, src), ...);
    CheckWrite(instruction, work, dst);
    Compute(instruction, work, f, dst, src...);
    if constexpr (sizeof...(S) != 0 && kOneOf<D, half, bfloat16_t>) {
        ForPieces(dst, work, [&](int64_t offset, uint32_t bytes) {
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

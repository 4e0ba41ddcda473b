// SPDX-License-Identifier: Apache-2.0
// Which lanes of a vector instruction work: the first `count` elements, a mask in each repeat, or the mask that the kernel has set.
#pragma once

#include "twin/copy.h"

namespace AscendC {

enum class MaskMode : uint8_t { NORMAL, COUNTER };

/// Stands for the mask of an instruction with isSetMask=false.
static constexpr uint64_t MASK_PLACEHOLDER = 0;

inline void SetMaskCount() { twin::Current().mask.counter = true; }
inline void SetMaskNorm() { twin::Current().mask.counter = false; }
inline void ResetMask() {
    twin::VectorMask& mask = twin::Current().mask;
    mask.high = mask.low = ~uint64_t{0};
    mask.known = true;
}

namespace detail {

using twin::Instruction;

/// Which lanes of a repeat work: the leading ones, or a bitmap.
struct Lanes {
    uint64_t bits[2];
    bool Has(uint32_t lane) const { return (bits[lane / 64] >> lane % 64 & 1u) != 0; }
    bool None() const { return (bits[0] | bits[1]) == 0; }
    /// `count` lanes from `first` on, which lie in one word.
    uint64_t Part(uint32_t first, uint32_t count) const {
        const uint64_t word = bits[first / 64] >> first % 64;
        return count == 64 ? word : word & ((uint64_t{1} << count) - 1);
    }
    /// Number of working lanes if these are the leading ones, else 0.
    uint32_t Leading() const {
        const uint32_t low = Ones(bits[0]), high = Ones(bits[1]);
        if (high == 0) return *this == First(low) ? low : 0;
        return *this == First(64 + high) ? 64 + high : 0;
    }
    bool operator==(const Lanes& other) const { return bits[0] == other.bits[0] && bits[1] == other.bits[1]; }

    static Lanes First(uint64_t count) {
        const auto ones = [](uint64_t n) { return n >= 64 ? ~uint64_t{0} : (uint64_t{1} << n) - 1; };
        return {{ones(count), count > 64 ? ones(count - 64) : 0}};
    }

private:
    static uint32_t Ones(uint64_t word) { return static_cast<uint32_t>(__builtin_popcountll(word)); }
};

template <typename T>
constexpr uint32_t kLanes = twin::kRepeat / sizeof(T);

/// Lanes of one instruction: `repeats` times `each`, or `count` elements over as many repeats as they take.
struct Work {
    uint32_t lanes;  // of a whole repeat
    uint32_t repeats;
    Lanes each;
    uint64_t count = 0;  // counter mode, else 0
    bool contiguous = false;

    Lanes Of(uint32_t repeat) const {
        if (count == 0) return each;
        const uint64_t left = count - uint64_t{repeat} * lanes;
        return Lanes::First(left < lanes ? left : lanes);
    }
    /// Lanes up to the last that works, in a repeat under a leading mask.
    uint32_t Used() const {
        const uint32_t leading = count == 0 ? each.Leading() : 0;
        return leading != 0 ? leading : lanes;
    }
    bool Nothing() const { return repeats == 0 || (count == 0 && each.None()); }
};

inline Work CountedWork(uint32_t lanes, uint64_t count) {
    return {lanes, static_cast<uint32_t>((count + lanes - 1) / lanes), Lanes{{0, 0}}, count, false};
}

/// An instruction that sets its own mask destroys what the kernel has set.
inline void RequireOwnMask(const Instruction& instruction) {
    instruction.Require(instruction.core().mask.Default(), "the kernel's own mask is in force (SetMaskCount or SetVectorMask), which this "
                        "instruction would destroy; call SetMaskNorm and ResetMask first, or use isSetMask=false");
    instruction.core().mask.known = false;
}

/// Work under the kernel's own mask, which replaces the arguments `mask` and in counter mode `repeats` too.
inline Work ExternalWork(const Instruction& instruction, uint32_t lanes, uint32_t repeats) {
    const twin::VectorMask& mask = instruction.core().mask;
    instruction.Require(mask.known, "isSetMask=false, and the mask holds what the last instruction has left in it; call SetVectorMask or "
                        "ResetMask first");
    if (!mask.counter) return {lanes, repeats, lanes > 64 ? Lanes{{mask.low, mask.high}} : Lanes{{mask.low & Lanes::First(lanes).bits[0], 0}}};
    instruction.Require(mask.high == 0, "counter mode needs SetVectorMask<T, MaskMode::COUNTER>(0, n) before an instruction with isSetMask=false");
    instruction.Require(mask.low <= twin::kUbBytes, "counter mode: %llu elements do not fit into the UB", static_cast<unsigned long long>(mask.low));
    return CountedWork(lanes, mask.low);
}

inline Lanes LeadingLanes(const Instruction& instruction, uint32_t lanes, int64_t mask) {
    instruction.Require(mask >= 1 && mask <= lanes, "mask must be 1..%u for this type, got %lld", lanes, static_cast<long long>(mask));
    return Lanes::First(static_cast<uint64_t>(mask));
}

inline Lanes MaskedLanes(const Instruction& instruction, uint32_t lanes, const uint64_t* mask) {
    if (lanes == 128) return {{mask[0], mask[1]}};
    instruction.Require(mask[1] == 0, "mask[1] must be 0 for 4- and 8-byte types");
    instruction.Require(lanes == 64 || mask[0] >> 32 == 0, "mask[0] has bits beyond lane 31");
    return {{mask[0], 0}};
}

/// Work of a mask form; `mask` is a number of leading lanes or a bitmap.
template <bool isSetMask, typename M>
Work MaskedWork(const Instruction& instruction, uint32_t lanes, M mask, int64_t repeats) {
    instruction.Require(repeats >= 0 && repeats <= 255, "repeatTime must be 0..255, got %lld", static_cast<long long>(repeats));
    const auto times = static_cast<uint32_t>(repeats);
    instruction.Repeats(lanes, times);
    if constexpr (!isSetMask) {
        return ExternalWork(instruction, lanes, times);
    } else {
        RequireOwnMask(instruction);
        if (times == 0) return {lanes, 0, Lanes{{0, 0}}};
        if constexpr (std::is_pointer_v<M>) return {lanes, times, MaskedLanes(instruction, lanes, mask)};
        else return {lanes, times, LeadingLanes(instruction, lanes, static_cast<int64_t>(mask))};
    }
}

/// Work of a count form: side by side from the first element on.
template <bool isSetMask = true>
Work CountWork(const Instruction& instruction, uint32_t lanes, int64_t count) {
    instruction.Require(count >= 0, "count must not be negative, got %lld", static_cast<long long>(count));
    Work work = {lanes, 1, Lanes{{0, 0}}};
    if constexpr (isSetMask) {
        RequireOwnMask(instruction);
        instruction.Require(count <= twin::kUbBytes, "count %lld is beyond the UB", static_cast<long long>(count));
        work = CountedWork(lanes, static_cast<uint64_t>(count));
        work.contiguous = true;
    } else {
        work = ExternalWork(instruction, lanes, 1);
    }
    instruction.Repeats(lanes, work.repeats);
    return work;
}

}  // namespace detail

template <typename T, MaskMode mode = MaskMode::NORMAL>
void SetVectorMask(const uint64_t maskHigh, const uint64_t maskLow, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("SetVectorMask", PIPE_V, where);
    twin::VectorMask& mask = twin::Current().mask;
    instruction.Require(mask.counter == (mode == MaskMode::COUNTER), "the mask's mode is %s; call %s first", mask.counter ? "counter" : "normal",
                        mask.counter ? "SetMaskNorm" : "SetMaskCount");
    instruction.Require(!mask.counter || maskHigh == 0, "maskHigh must be 0 in counter mode");
    mask.high = maskHigh, mask.low = maskLow, mask.known = true;
}

template <typename T, MaskMode mode = MaskMode::NORMAL>
void SetVectorMask(int32_t len, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("SetVectorMask", PIPE_V, where);
    twin::VectorMask& mask = twin::Current().mask;
    instruction.Require(mask.counter == (mode == MaskMode::COUNTER), "the mask's mode is %s; call %s first", mask.counter ? "counter" : "normal",
                        mask.counter ? "SetMaskNorm" : "SetMaskCount");
    const int32_t most = mask.counter ? static_cast<int32_t>(twin::kUbBytes) : static_cast<int32_t>(detail::kLanes<T>);
    instruction.Require(len >= 0 && len <= most, "len must be 0..%d, got %d", most, len);
    const detail::Lanes first = detail::Lanes::First(static_cast<uint64_t>(len));
    mask.high = mask.counter ? 0 : first.bits[1];
    mask.low = mask.counter ? static_cast<uint64_t>(len) : first.bits[0];
    mask.known = true;
}

}  // namespace AscendC

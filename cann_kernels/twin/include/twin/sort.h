// SPDX-License-Identifier: Apache-2.0
// Stream compaction, sorting of 32 records, merging of sorted lists. A record is 8 bytes: score first, index in the upper word.
#pragma once

#include "twin/select.h"

namespace AscendC {

struct GatherMaskParams {
    GatherMaskParams() = default;
    GatherMaskParams(uint8_t src0Blk, uint16_t repeats, uint16_t src0Rep, uint8_t src1Rep)
        : src0BlockStride(src0Blk), repeatTimes(repeats), src0RepeatStride(src0Rep), src1RepeatStride(src1Rep) {}
    uint8_t src0BlockStride = 1;
    uint16_t repeatTimes = 0, src0RepeatStride = 0;
    uint8_t src1RepeatStride = 0;
};

struct MrgSort4Info {
    MrgSort4Info() = default;
    MrgSort4Info(const uint16_t lengths[4], bool suspend, uint16_t valid, uint16_t repeats)
        : ifExhaustedSuspension(suspend), validBit(valid), repeatTimes(static_cast<uint8_t>(repeats)) {
        std::memcpy(elementLengths, lengths, sizeof(elementLengths));
    }
    uint16_t elementLengths[4] = {0, 0, 0, 0};
    bool ifExhaustedSuspension = false;
    uint16_t validBit = 0;
    uint8_t repeatTimes = 1;
};

template <typename T>
struct MrgSortSrcList {
    MrgSortSrcList() = default;
    MrgSortSrcList(const LocalTensor<T>& a, const LocalTensor<T>& b, const LocalTensor<T>& c, const LocalTensor<T>& d)
        : src1(a), src2(b), src3(c), src4(d) {}
    LocalTensor<T> src1, src2, src3, src4;
};

namespace detail {

constexpr uint32_t kRecord = 8;
constexpr uint32_t kSorted = 32;
constexpr uint32_t kLongestList = 4095;

template <typename T>
void RequireDisjoint(const Instruction& instruction, const LocalTensor<T>& dst, uint64_t dstBytes, const twin::LocalSpan& s, uint64_t srcBytes,
                     const char* operand) {
    const auto& d = dst.span();
    instruction.Require(dstBytes == 0 || srcBytes == 0 || d.address + dstBytes <= s.address || s.address + srcBytes <= d.address,
                        "dst (UB byte %u) and %s (UB byte %u) overlap", d.address, operand, s.address);
}

/// Elements of one repeat that GatherMask looks at, and how far its source reaches.
struct GatherShape {
    uint32_t perRepeat;
    uint64_t bytes;
};

template <typename T>
GatherShape GatherSize(const Instruction& instruction, bool reduceMode, uint32_t mask, const GatherMaskParams& p) {
    constexpr uint32_t lanes = twin::kRepeat / sizeof(T);
    instruction.Require(p.repeatTimes <= 255, "repeatTimes must be 0..255, got %u", p.repeatTimes);
    if (!reduceMode) return {lanes, p.repeatTimes == 0 ? 0 : ((p.repeatTimes - 1) * uint64_t{p.src0RepeatStride} + 7 * p.src0BlockStride + 1) * twin::kBlock};
    instruction.Require(mask >= 1, "counter mode needs mask >= 1");
    instruction.Require(p.src0BlockStride == 1, "counter mode of the twin has src0BlockStride 1 only, got %u", p.src0BlockStride);
    instruction.Require(p.repeatTimes == 0 || uint64_t{mask} * sizeof(T) <= twin::kUbBytes, "mask %u reaches beyond the UB", mask);
    return {mask, p.repeatTimes == 0 ? 0 : (p.repeatTimes - 1) * uint64_t{p.src0RepeatStride} * twin::kBlock + uint64_t{mask} * sizeof(T)};
}

/// Writes the elements that `keep(repeat, element)` is true for side by side; the number of them is the result.
template <typename T, typename F>
uint64_t Compact(Instruction& instruction, const LocalTensor<T>& dst, const LocalTensor<T>& src, const GatherShape& shape,
                 const GatherMaskParams& p, F keep) {
    instruction.Align(src.span(), twin::kBlock, "src0");
    instruction.Align(dst.span(), twin::kBlock, "dst");
    constexpr uint32_t perBlock = twin::kBlock / sizeof(T);
    uint64_t kept = 0;
    for (uint32_t repeat = 0; repeat < p.repeatTimes; ++repeat) {
        for (uint32_t i = 0; i < shape.perRepeat; i += perBlock) {
            const uint32_t count = shape.perRepeat - i < perBlock ? shape.perRepeat - i : perBlock;
            const int64_t from = (static_cast<int64_t>(repeat) * p.src0RepeatStride + i / perBlock * p.src0BlockStride) * twin::kBlock;
            const uint8_t* values = instruction.Read(src.span(), from, count * sizeof(T), "src0");
            uint8_t chosen[twin::kBlock];
            uint32_t found = 0;
            for (uint32_t e = 0; e < count; ++e) {
                if (keep(repeat, i + e)) std::memcpy(chosen + found++ * sizeof(T), values + e * sizeof(T), sizeof(T));
            }
            if (found == 0) continue;
            RequireDisjoint(instruction, dst, (kept + found) * sizeof(T), src.span(), shape.bytes, "src0");
            std::memcpy(instruction.Write(dst.span(), static_cast<int64_t>(kept * sizeof(T)), found * sizeof(T), "dst"), chosen, found * sizeof(T));
            kept += found;
        }
    }
    return kept;
}

template <typename T>
inline constexpr bool kGatherMaskType = kOneOf<T, half, bfloat16_t, uint16_t, int16_t, float, uint32_t, int32_t>;

inline bool FixedPattern(uint8_t pattern, uint32_t element) {
    if (pattern == 7) return true;
    return pattern <= 2 ? element % 2 == pattern - 1u : element % 4 == pattern - 3u;
}

/// A list of records that MrgSort takes from.
struct SortedList {
    const uint8_t* records = nullptr;
    uint32_t left = 0;
    uint32_t taken = 0;
};

template <typename T>
auto RecordScore(const uint8_t* record) {
    return Load<T>(record);
}

template <typename T>
SortedList ReadList(Instruction& instruction, const LocalTensor<T>& src, int64_t offset, uint32_t length, const char* operand) {
    if (length == 0) return {};
    const SortedList list = {instruction.Read(src.span(), offset, length * kRecord, operand), length, 0};
    for (uint32_t i = 1; i < length; ++i) {
        const auto before = RecordScore<T>(list.records + (i - 1) * kRecord), score = RecordScore<T>(list.records + i * kRecord);
        instruction.Require(before >= score, "%s is not sorted: record %u has %g, record %u has %g", operand, i - 1,
                            static_cast<double>(before), i, static_cast<double>(score));
    }
    return list;
}

/// The list with the highest head, the earliest among equals; null when all are empty.
template <typename T>
SortedList* HighestHead(SortedList* lists, uint32_t count) {
    SortedList* best = nullptr;
    for (uint32_t i = 0; i < count; ++i) {
        if (lists[i].left == 0) continue;
        if (best == nullptr || RecordScore<T>(lists[i].records) > RecordScore<T>(best->records)) best = &lists[i];
    }
    return best;
}

template <typename T>
void MergeLists(Instruction& instruction, const LocalTensor<T>& dst, const MrgSortSrcList<T>& src, const MrgSort4Info& info, uint32_t sortedNum[4]) {
    static_assert(kOneOf<T, half, float>, "MrgSort has no such element type on 2201");
    const uint16_t valid = info.validBit;
    instruction.Require(valid == 3 || valid == 7 || valid == 15, "validBit must be 3, 7 or 15, got %u", valid);
    instruction.Require(info.repeatTimes >= 1, "repeatTimes must be 1..255, got %u", info.repeatTimes);
    const uint32_t count = valid == 3 ? 2 : valid == 7 ? 3 : 4;
    const LocalTensor<T>* tensors[4] = {&src.src1, &src.src2, &src.src3, &src.src4};
    static const char* const names[4] = {"src1", "src2", "src3", "src4"};
    instruction.Align(dst.span(), twin::kBlock, "dst");
    uint32_t total = 0;
    for (uint32_t i = 0; i < count; ++i) {
        instruction.Require(info.elementLengths[i] <= kLongestList, "elementLengths[%u] must be 0..4095, got %u", i, info.elementLengths[i]);
        instruction.Align(tensors[i]->span(), twin::kBlock, names[i]);
        total += info.elementLengths[i];
    }
    if (info.repeatTimes > 1) {
        const bool equal = count == 4 && !info.ifExhaustedSuspension && total == 4u * info.elementLengths[0];
        bool contiguous = equal;
        for (uint32_t i = 1; equal && i < 4; ++i) {
            contiguous = contiguous && info.elementLengths[i] == info.elementLengths[0] &&
                         tensors[i]->span().address == tensors[0]->span().address + i * info.elementLengths[0] * kRecord;
        }
        instruction.Require(contiguous, "repeatTimes %u needs four valid lists of one length, side by side, without suspension", info.repeatTimes);
    }
    const uint64_t bytes = uint64_t{total} * kRecord * info.repeatTimes;
    for (uint32_t repeat = 0; repeat < info.repeatTimes; ++repeat) {
        SortedList lists[4];
        const int64_t base = static_cast<int64_t>(repeat) * total * kRecord;
        for (uint32_t i = 0; i < count; ++i) {
            const uint64_t reach = info.repeatTimes > 1 && i == 0 ? bytes : info.elementLengths[i] * uint64_t{kRecord};
            RequireDisjoint(instruction, dst, bytes, tensors[i]->span(), reach, names[i]);
            lists[i] = ReadList(instruction, info.repeatTimes > 1 ? *tensors[0] : *tensors[i],
                                info.repeatTimes > 1 ? base + i * int64_t{info.elementLengths[0]} * kRecord : 0, info.elementLengths[i], names[i]);
        }
        std::vector<uint8_t> merged;
        merged.reserve(total * kRecord);
        const auto exhausted = [&] {
            for (uint32_t i = 0; i < count; ++i) {
                if (lists[i].left == 0) return true;
            }
            return false;
        };
        while (!(info.ifExhaustedSuspension && exhausted())) {
            SortedList* best = HighestHead<T>(lists, count);
            if (best == nullptr) break;
            merged.insert(merged.end(), best->records, best->records + kRecord);
            best->records += kRecord, --best->left, ++best->taken;
        }
        if (!merged.empty()) std::memcpy(instruction.Write(dst.span(), base, static_cast<uint32_t>(merged.size()), "dst"), merged.data(), merged.size());
        if (sortedNum != nullptr) {
            for (uint32_t i = 0; i < 4; ++i) sortedNum[i] = lists[i].taken;
        }
    }
}

}  // namespace detail

/// Keeps the elements whose bit is 1; the lowest bit of the pattern belongs to the first element.
template <typename T, typename U>
void GatherMask(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<U>& src1Pattern, const bool reduceMode,
                const uint32_t mask, const GatherMaskParams& gatherMaskParams, uint64_t& rsvdCnt,
                const twin::Where& where = twin::Where::Here()) {
    static_assert(detail::kGatherMaskType<T> && twin::kOneOf<U, uint16_t, uint32_t> && sizeof(T) == sizeof(U),
                  "GatherMask has no such types on 2201: uint16_t patterns for 2-byte types, uint32_t patterns for 4-byte types");
    twin::Instruction instruction("GatherMask", PIPE_V, where);
    detail::RequireOwnMask(instruction);
    const detail::GatherShape shape = detail::GatherSize<T>(instruction, reduceMode, mask, gatherMaskParams);
    instruction.Align(src1Pattern.span(), twin::kBlock, "src1Pattern");
    const uint32_t repeats = gatherMaskParams.repeatTimes, bytes = (shape.perRepeat + 7) / 8;
    std::vector<uint8_t> bits;
    for (uint32_t repeat = 0; repeat < repeats; ++repeat) {
        const int64_t from = static_cast<int64_t>(repeat) * gatherMaskParams.src1RepeatStride * twin::kBlock;
        const uint8_t* pattern = instruction.Read(src1Pattern.span(), from, bytes, "src1Pattern");
        bits.insert(bits.end(), pattern, pattern + bytes);
    }
    const uint64_t reach = repeats == 0 ? 0 : (repeats - 1) * uint64_t{gatherMaskParams.src1RepeatStride} * twin::kBlock + bytes;
    const auto keep = [&](uint32_t repeat, uint32_t element) { return detail::Bit(bits.data() + size_t{repeat} * bytes, element); };
    rsvdCnt = detail::Compact(instruction, dst, src0, shape, gatherMaskParams, keep);
    detail::RequireDisjoint(instruction, dst, rsvdCnt * sizeof(T), src1Pattern.span(), reach, "src1Pattern");
}

/// Fixed patterns: 1 and 2 even and odd elements, 3 to 6 every fourth from the first to the fourth on, 7 all.
template <typename T>
void GatherMask(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const uint8_t src1Pattern, const bool reduceMode, const uint32_t mask,
                const GatherMaskParams& gatherMaskParams, uint64_t& rsvdCnt, const twin::Where& where = twin::Where::Here()) {
    static_assert(detail::kGatherMaskType<T>, "GatherMask has no such element type on 2201");
    twin::Instruction instruction("GatherMask", PIPE_V, where);
    detail::RequireOwnMask(instruction);
    instruction.Require(src1Pattern >= 1 && src1Pattern <= 7, "fixed patterns are 1..7, got %u", src1Pattern);
    const detail::GatherShape shape = detail::GatherSize<T>(instruction, reduceMode, mask, gatherMaskParams);
    const auto keep = [&](uint32_t, uint32_t element) { return detail::FixedPattern(src1Pattern, element); };
    rsvdCnt = detail::Compact(instruction, dst, src0, shape, gatherMaskParams, keep);
}

/// Each repeat sorts 32 scores and their indices into 32 records, highest score first; equal scores keep their order.
template <typename T>
void Sort32(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<uint32_t>& src1, const int32_t repeatTime,
            const twin::Where& where = twin::Where::Here()) {
    static_assert(twin::kOneOf<T, half, float>, "Sort32 has no such element type on 2201");
    twin::Instruction instruction("Sort32", PIPE_V, where);
    instruction.Require(repeatTime >= 0 && repeatTime <= 255, "repeatTime must be 0..255, got %d", repeatTime);
    instruction.Align(src0.span(), detail::kSorted * sizeof(T), "src0");
    instruction.Align(src1.span(), detail::kSorted * 4, "src1");
    instruction.Align(dst.span(), detail::kSorted * detail::kRecord, "dst");
    const uint32_t count = static_cast<uint32_t>(repeatTime) * detail::kSorted;
    if (count == 0) return;
    detail::RequireDisjoint(instruction, dst, count * detail::kRecord, src0.span(), count * sizeof(T), "src0");
    detail::RequireDisjoint(instruction, dst, count * detail::kRecord, src1.span(), count * 4, "src1");
    const uint8_t* scores = instruction.Read(src0.span(), 0, count * sizeof(T), "src0");
    const uint8_t* indices = instruction.Read(src1.span(), 0, count * 4, "src1");
    uint8_t* target = instruction.Write(dst.span(), 0, count * detail::kRecord, "dst");
    for (uint32_t first = 0; first < count; first += detail::kSorted) {
        uint32_t order[detail::kSorted];
        for (uint32_t i = 0; i < detail::kSorted; ++i) {
            const auto score = detail::Load<T>(scores + (first + i) * sizeof(T));
            instruction.Require(score == score, "score %u is NaN, whose place is undefined; replace it before sorting", first + i);
            uint32_t at = i;
            for (; at > 0 && detail::Load<T>(scores + order[at - 1] * sizeof(T)) < score; --at) order[at] = order[at - 1];
            order[at] = first + i;
        }
        for (uint32_t i = 0; i < detail::kSorted; ++i) {
            uint8_t* record = target + (first + i) * detail::kRecord;
            std::memset(record, 0, detail::kRecord);
            std::memcpy(record, scores + order[i] * sizeof(T), sizeof(T));
            std::memcpy(record + 4, indices + order[i] * 4, 4);
        }
    }
}

/// Merges 2 to 4 lists of records, highest score first; equal scores in the order of the lists.
template <typename T>
void MrgSort(const LocalTensor<T>& dst, const MrgSortSrcList<T>& src, const MrgSort4Info& params, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("MrgSort", PIPE_V, where);
    detail::MergeLists(instruction, dst, src, params, nullptr);
}

/// The same; with isExhaustedSuspension `sortedNum` says how many records of each list were merged.
template <typename T, bool isExhaustedSuspension = false>
void MrgSort(const LocalTensor<T>& dst, const MrgSortSrcList<T>& sortList, const uint16_t elementCountList[4], uint32_t sortedNum[4],
             uint16_t validBit, const int32_t repeatTime, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("MrgSort", PIPE_V, where);
    instruction.Require(repeatTime >= 1 && repeatTime <= 255, "repeatTime must be 1..255, got %d", repeatTime);
    const MrgSort4Info info(elementCountList, isExhaustedSuspension, validBit, static_cast<uint16_t>(repeatTime));
    detail::MergeLists(instruction, dst, sortList, info, isExhaustedSuspension ? sortedNum : nullptr);
}

/// Splits records, 32 a repeat, into scores and indices.
template <typename T>
void Extract(const LocalTensor<T>& dstValue, const LocalTensor<uint32_t>& dstIndex, const LocalTensor<T>& sorted, const int32_t repeatTime,
             const twin::Where& where = twin::Where::Here()) {
    static_assert(twin::kOneOf<T, half, float>, "Extract has no such element type on 2201");
    twin::Instruction instruction("Extract", PIPE_V, where);
    instruction.Require(repeatTime >= 0 && repeatTime <= 255, "repeatTime must be 0..255, got %d", repeatTime);
    instruction.Align(dstValue.span(), twin::kBlock, "dstValue");
    instruction.Align(dstIndex.span(), twin::kBlock, "dstIndex");
    instruction.Align(sorted.span(), twin::kBlock, "sorted");
    const uint32_t count = static_cast<uint32_t>(repeatTime) * detail::kSorted;
    if (count == 0) return;
    detail::RequireDisjoint(instruction, dstValue, count * sizeof(T), sorted.span(), count * detail::kRecord, "sorted");
    detail::RequireDisjoint(instruction, dstIndex, count * 4, sorted.span(), count * detail::kRecord, "sorted");
    detail::RequireDisjoint(instruction, dstValue, count * sizeof(T), dstIndex.span(), count * 4, "dstIndex");
    const uint8_t* records = instruction.Read(sorted.span(), 0, count * detail::kRecord, "sorted");
    uint8_t* values = instruction.Write(dstValue.span(), 0, count * sizeof(T), "dstValue");
    uint8_t* indices = instruction.Write(dstIndex.span(), 0, count * 4, "dstIndex");
    for (uint32_t i = 0; i < count; ++i) {
        std::memcpy(values + i * sizeof(T), records + i * detail::kRecord, sizeof(T));
        std::memcpy(indices + i * 4, records + i * detail::kRecord + 4, 4);
    }
}

}  // namespace AscendC

// SPDX-License-Identifier: Apache-2.0
// Reductions of repeats, blocks, pairs and whole tensors. Sums are binary trees of neighbours; a lane that is masked off takes no part.
#pragma once

#include "twin/select.h"

namespace AscendC {

enum class ReduceOrder : uint8_t { ORDER_VALUE_INDEX = 0, ORDER_INDEX_VALUE, ORDER_ONLY_VALUE, ORDER_ONLY_INDEX };
enum class ReduceType : uint8_t { SUM = 0, MAX, MIN };

namespace detail {

/// The lanes of one repeat in the type of the operation.
template <typename T>
struct Values {
    std::array<Wide<T>, kLanes<T>> lane;
    Lanes active;
};

struct Extreme {
    bool found = false;
    float value = 0.0f;
    uint32_t index = 0;
};

/// Sum of a power of two of neighbours, rounded to T at every step.
template <typename T>
Wide<T> TreeSum(const Wide<T>* lane, uint32_t count) {
    std::array<Wide<T>, kLanes<T>> tree;
    std::copy(lane, lane + count, tree.begin());
    for (uint32_t width = count / 2; width > 0; width /= 2) {
        for (uint32_t i = 0; i < width; ++i) tree[i] = Widen(Narrow<T>(tree[2 * i] + tree[2 * i + 1]));
    }
    return tree[0];
}

/// The largest or smallest of some lanes and where it is: the first of equals; the first NaN if there is one.
template <typename T>
Extreme FindExtreme(const Values<T>& values, uint32_t first, uint32_t count, bool largest) {
    Extreme best;
    const bool all = values.active.Leading() >= first + count;
    for (uint32_t i = first; i < first + count; ++i) {
        if (!all && !values.active.Has(i)) continue;
        const float value = values.lane[i];
        const bool better = !best.found || value != value || (largest ? value > best.value : value < best.value);
        if (better) best = {true, value, i};
        if (value != value) break;
    }
    return best;
}

/// Calls `use(repeat, values)` for each repeat; masked lanes are 0.
template <typename T, typename F>
void ForRepeats(Instruction& instruction, const Work& work, const Operand<T>& src, F use) {
    static_assert(kOneOf<T, half, float>, "reductions take half and float on 2201");
    instruction.Align(src.span, twin::kBlock, src.name);
    if (work.Nothing()) return;
    CheckRead(instruction, work, src);
    std::vector<Values<T>> all(work.repeats);
    for (uint32_t repeat = 0; repeat < work.repeats; ++repeat) {
        Values<T>& values = all[repeat];
        values.active = work.Of(repeat);
        const uint32_t leading = values.active.Leading();
        values.lane.fill(0.0f);
        for (uint32_t lane = 0; lane < (leading != 0 ? leading : kLanes<T>); ++lane) {
            if (values.active.Has(lane)) values.lane[lane] = Load<T>(src.Base(instruction) + src.At(repeat, lane));
        }
    }
    for (uint32_t repeat = 0; repeat < work.repeats; ++repeat) use(repeat, all[repeat]);
}

/// Results are small and lie behind one another, so they may not fall on a source that is still to be read.
template <typename T>
void RequireResultsApart(const Instruction& instruction, const Work& work, const LocalTensor<T>& dst, uint64_t bytes, const Operand<T>& src) {
    if (work.Nothing()) return;
    const auto &d = dst.span(), &s = src.span;
    instruction.Require(d.address == s.address || d.address + bytes <= s.address || s.address + src.Reach(work) <= d.address,
                        "dst (UB byte %u) and src (UB byte %u) overlap in part", d.address, s.address);
}

template <typename T>
void Put(Instruction& instruction, const LocalTensor<T>& dst, uint64_t element, Wide<T> value) {
    uint8_t* target = instruction.Write(dst.span(), static_cast<int64_t>(element * sizeof(T)), sizeof(T), "dst");
    Save<T>(target, value);
    twin::Settle<T>(instruction, target, 1);
}

/// An index keeps its bits in an element of the values' width.
template <typename T>
void PutIndex(Instruction& instruction, const LocalTensor<T>& dst, uint64_t element, uint32_t index) {
    instruction.Require(sizeof(T) == 4 || index <= 0xffff, "index %u does not fit into 16 bits", index);
    std::memcpy(instruction.Write(dst.span(), static_cast<int64_t>(element * sizeof(T)), sizeof(T), "dst"), &index, sizeof(T));
}

inline void RequireStrides(const Instruction& instruction, int32_t dstRep, int32_t srcBlk, int32_t srcRep) {
    const auto in = [](int32_t stride) { return stride >= 0 && stride <= 65535; };
    instruction.Require(in(dstRep) && in(srcBlk) && in(srcRep), "strides are 0..65535, got dst %d, src blocks %d, src repeats %d", dstRep, srcBlk, srcRep);
}

template <typename T>
Operand<T> RepeatSource(const LocalTensor<T>& src, int32_t blockStride, int32_t repeatStride) {
    return {src, "src", static_cast<uint32_t>(blockStride), static_cast<uint32_t>(repeatStride)};
}

/// One sum a repeat; dstRepStride counts elements.
template <typename T>
void SumRepeats(Instruction& instruction, const Work& work, const LocalTensor<T>& dst, const LocalTensor<T>& src, int32_t dstRep, int32_t srcBlk,
                int32_t srcRep) {
    RequireStrides(instruction, dstRep, srcBlk, srcRep);
    instruction.Align(dst.span(), sizeof(T), "dst");
    const Operand<T> source = RepeatSource(src, srcBlk, srcRep);
    RequireResultsApart(instruction, work, dst, (uint64_t{work.repeats - 1} * static_cast<uint32_t>(dstRep) + 1) * sizeof(T), source);
    ForRepeats(instruction, work, source, [&](uint32_t repeat, const Values<T>& values) {
        Put(instruction, dst, uint64_t{repeat} * static_cast<uint32_t>(dstRep), TreeSum<T>(values.lane.data(), kLanes<T>));
    });
}

/// One extreme a repeat; dstRepStride counts results, which are two elements with value and index.
template <typename T>
void ExtremeRepeats(Instruction& instruction, const Work& work, const LocalTensor<T>& dst, const LocalTensor<T>& src, int32_t dstRep, int32_t srcBlk,
                    int32_t srcRep, ReduceOrder order, bool largest) {
    RequireStrides(instruction, dstRep, srcBlk, srcRep);
    const bool both = order == ReduceOrder::ORDER_VALUE_INDEX || order == ReduceOrder::ORDER_INDEX_VALUE;
    // An index alone takes 32 bits whatever the values take.
    const uint32_t width = both ? 2 * sizeof(T) : order == ReduceOrder::ORDER_ONLY_INDEX ? 4 : sizeof(T);
    instruction.Align(dst.span(), width, "dst");
    const Operand<T> source = RepeatSource(src, srcBlk, srcRep);
    RequireResultsApart(instruction, work, dst, (uint64_t{work.repeats - 1} * static_cast<uint32_t>(dstRep) + 1) * width, source);
    ForRepeats(instruction, work, source, [&](uint32_t repeat, const Values<T>& values) {
        const Extreme best = FindExtreme(values, 0, kLanes<T>, largest);
        const uint64_t at = uint64_t{repeat} * static_cast<uint32_t>(dstRep) * width / sizeof(T);
        if (!best.found) return;
        if (order == ReduceOrder::ORDER_ONLY_INDEX) {
            std::memcpy(instruction.Write(dst.span(), static_cast<int64_t>(at * sizeof(T)), 4, "dst"), &best.index, 4);
            return;
        }
        Put(instruction, dst, at + (order == ReduceOrder::ORDER_INDEX_VALUE ? 1 : 0), best.value);
        if (both) PutIndex(instruction, dst, at + (order == ReduceOrder::ORDER_INDEX_VALUE ? 0 : 1), best.index);
    });
}

/// Eight results a repeat, one a block; dstRepStride counts eight results. A block without a working lane leaves garbage.
template <typename T>
void ReduceBlocks(Instruction& instruction, const Work& work, const LocalTensor<T>& dst, const LocalTensor<T>& src, int32_t dstRep, int32_t srcBlk,
                  int32_t srcRep, ReduceType type) {
    constexpr uint32_t results = 8, perBlock = twin::kBlock / sizeof(T);
    RequireStrides(instruction, dstRep, srcBlk, srcRep);
    instruction.Align(dst.span(), results * sizeof(T), "dst");
    const Operand<T> source = RepeatSource(src, srcBlk, srcRep);
    RequireResultsApart(instruction, work, dst, (uint64_t{work.repeats - 1} * static_cast<uint32_t>(dstRep) + 1) * results * sizeof(T), source);
    ForRepeats(instruction, work, source, [&](uint32_t repeat, const Values<T>& values) {
        for (uint32_t block = 0; block < results; ++block) {
            const uint64_t at = uint64_t{repeat} * static_cast<uint32_t>(dstRep) * results + block;
            const Extreme best = FindExtreme(values, block * perBlock, perBlock, type == ReduceType::MAX);
            const float sum = type == ReduceType::SUM ? TreeSum<T>(&values.lane[block * perBlock], perBlock) : best.value;
            Put(instruction, dst, at, sum);
            if (!best.found) instruction.core().Forget(twin::Memory::kUb, dst.span().address + static_cast<uint32_t>(at * sizeof(T)), sizeof(T));
        }
    });
}

/// Sums of neighbours, half a repeat of results a repeat; dstRepStride counts 128 bytes.
template <typename T>
void SumPairs(Instruction& instruction, const Work& work, const LocalTensor<T>& dst, const LocalTensor<T>& src, int32_t dstRep, int32_t srcBlk,
              int32_t srcRep) {
    constexpr uint32_t results = kLanes<T> / 2;
    RequireStrides(instruction, dstRep, srcBlk, srcRep);
    instruction.Align(dst.span(), twin::kBlock, "dst");
    const Operand<T> source = RepeatSource(src, srcBlk, srcRep);
    RequireResultsApart(instruction, work, dst, (uint64_t{work.repeats - 1} * static_cast<uint32_t>(dstRep) + 1) * results * sizeof(T), source);
    ForRepeats(instruction, work, source, [&](uint32_t repeat, const Values<T>& values) {
        for (uint32_t i = 0; i < results; ++i) {
            if (!values.active.Has(2 * i) && !values.active.Has(2 * i + 1)) continue;
            Put(instruction, dst, uint64_t{repeat} * static_cast<uint32_t>(dstRep) * results + i, TreeSum<T>(&values.lane[2 * i], 2));
        }
    });
}

/// Elements of working space: one a repeat for a sum, two for an extreme, and with an index the space of every further round too.
template <typename T>
uint64_t WorkingSpace(uint64_t repeats, bool extreme, bool index) {
    constexpr uint64_t perBlock = twin::kBlock / sizeof(T);
    const auto blocks = [](uint64_t elements) { return (elements + perBlock - 1) / perBlock * perBlock; };
    uint64_t elements = repeats * (extreme ? 2 : 1), total = blocks(elements);
    while (index && elements > 2) {
        elements = (elements + kLanes<T> - 1) / kLanes<T> * 2;
        total += blocks(elements);
    }
    return total;
}

/// The working space holds garbage afterwards. It may be the source or hold the result.
template <typename T>
void UseWorkingSpace(Instruction& instruction, const LocalTensor<T>& space, uint64_t elements) {
    instruction.Align(space.span(), twin::kBlock, "sharedTmpBuffer");
    instruction.Write(space.span(), 0, static_cast<uint32_t>(elements * sizeof(T)), "sharedTmpBuffer");
    instruction.core().Forget(twin::Memory::kUb, space.span().address, static_cast<uint32_t>(elements * sizeof(T)));
}

/// A whole tensor to one sum: the sums of the repeats are summed in the same way.
template <typename T>
void SumAll(Instruction& instruction, const Work& work, const LocalTensor<T>& dst, const LocalTensor<T>& space, const Operand<T>& src) {
    instruction.Align(dst.span(), sizeof(T), "dst");
    std::vector<Wide<T>> sums;
    ForRepeats(instruction, work, src, [&](uint32_t, const Values<T>& values) { sums.push_back(TreeSum<T>(values.lane.data(), kLanes<T>)); });
    if (sums.empty()) return;
    UseWorkingSpace(instruction, space, WorkingSpace<T>(sums.size(), false, false));
    while (sums.size() > 1) {
        std::vector<Wide<T>> next;
        sums.resize((sums.size() + kLanes<T> - 1) / kLanes<T> * kLanes<T>, 0.0f);
        for (size_t i = 0; i < sums.size(); i += kLanes<T>) next.push_back(TreeSum<T>(&sums[i], kLanes<T>));
        sums = std::move(next);
    }
    Put(instruction, dst, 0, sums[0]);
}

/// A whole tensor to its extreme, and on request where that is: its place in the source.
template <typename T>
void ExtremeAll(Instruction& instruction, const Work& work, const LocalTensor<T>& dst, const LocalTensor<T>& space, const Operand<T>& src,
                bool index, bool largest) {
    instruction.Align(dst.span(), (index ? 2 : 1) * sizeof(T), "dst");
    Extreme best;
    ForRepeats(instruction, work, src, [&](uint32_t repeat, const Values<T>& values) {
        Extreme found = FindExtreme(values, 0, kLanes<T>, largest);
        found.index += repeat * src.repeatStride * static_cast<uint32_t>(twin::kBlock / sizeof(T));
        if (!found.found || (best.found && best.value != best.value)) return;
        if (!best.found || found.value != found.value || (largest ? found.value > best.value : found.value < best.value)) best = found;
    });
    if (!best.found) return;
    UseWorkingSpace(instruction, space, WorkingSpace<T>(work.repeats, true, index));
    Put(instruction, dst, 0, best.value);
    if (index) PutIndex(instruction, dst, 1, best.index);
}

/// The whole-tensor forms take any number of repeats.
template <typename T, typename M>
Work ManyRepeats(const Instruction& instruction, M mask, int32_t repeats) {
    instruction.Require(repeats >= 0, "repeatTime must not be negative, got %d", repeats);
    Work work = MaskedWork<true>(instruction, kLanes<T>, mask, repeats > 0 ? 1 : 0);
    work.repeats = static_cast<uint32_t>(repeats);
    return work;
}

}  // namespace detail

/// One sum a repeat. dstRepStride counts elements.
template <typename T, bool isSetMask = true>
void WholeReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t mask, const int32_t repeatTime, const int32_t dstRepStride,
                    const int32_t srcBlkStride, const int32_t srcRepStride, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("WholeReduceSum", PIPE_V, where);
    const detail::Work work = detail::MaskedWork<isSetMask>(instruction, detail::kLanes<T>, mask, repeatTime);
    detail::SumRepeats(instruction, work, dst, src, dstRepStride, srcBlkStride, srcRepStride);
}

/// One sum a repeat. dstRepStride counts elements.
template <typename T, bool isSetMask = true>
void WholeReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, const uint64_t mask[], const int32_t repeatTime, const int32_t dstRepStride,
                    const int32_t srcBlkStride, const int32_t srcRepStride, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("WholeReduceSum", PIPE_V, where);
    const detail::Work work = detail::MaskedWork<isSetMask>(instruction, detail::kLanes<T>, mask, repeatTime);
    detail::SumRepeats(instruction, work, dst, src, dstRepStride, srcBlkStride, srcRepStride);
}

template <typename T, bool isSetMask = true>
void WholeReduceMax(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t mask, const int32_t repeatTime, const int32_t dstRepStride,
                    const int32_t srcBlkStride, const int32_t srcRepStride, ReduceOrder order = ReduceOrder::ORDER_VALUE_INDEX,
                    const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("WholeReduceMax", PIPE_V, where);
    const detail::Work work = detail::MaskedWork<isSetMask>(instruction, detail::kLanes<T>, mask, repeatTime);
    detail::ExtremeRepeats(instruction, work, dst, src, dstRepStride, srcBlkStride, srcRepStride, order, true);
}

template <typename T, bool isSetMask = true>
void WholeReduceMax(const LocalTensor<T>& dst, const LocalTensor<T>& src, const uint64_t mask[], const int32_t repeatTime, const int32_t dstRepStride,
                    const int32_t srcBlkStride, const int32_t srcRepStride, ReduceOrder order = ReduceOrder::ORDER_VALUE_INDEX,
                    const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("WholeReduceMax", PIPE_V, where);
    const detail::Work work = detail::MaskedWork<isSetMask>(instruction, detail::kLanes<T>, mask, repeatTime);
    detail::ExtremeRepeats(instruction, work, dst, src, dstRepStride, srcBlkStride, srcRepStride, order, true);
}

template <typename T, bool isSetMask = true>
void WholeReduceMin(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t mask, const int32_t repeatTime, const int32_t dstRepStride,
                    const int32_t srcBlkStride, const int32_t srcRepStride, ReduceOrder order = ReduceOrder::ORDER_VALUE_INDEX,
                    const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("WholeReduceMin", PIPE_V, where);
    const detail::Work work = detail::MaskedWork<isSetMask>(instruction, detail::kLanes<T>, mask, repeatTime);
    detail::ExtremeRepeats(instruction, work, dst, src, dstRepStride, srcBlkStride, srcRepStride, order, false);
}

template <typename T, bool isSetMask = true>
void WholeReduceMin(const LocalTensor<T>& dst, const LocalTensor<T>& src, const uint64_t mask[], const int32_t repeatTime, const int32_t dstRepStride,
                    const int32_t srcBlkStride, const int32_t srcRepStride, ReduceOrder order = ReduceOrder::ORDER_VALUE_INDEX,
                    const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("WholeReduceMin", PIPE_V, where);
    const detail::Work work = detail::MaskedWork<isSetMask>(instruction, detail::kLanes<T>, mask, repeatTime);
    detail::ExtremeRepeats(instruction, work, dst, src, dstRepStride, srcBlkStride, srcRepStride, order, false);
}

template <typename T, bool isSetMask = true>
void BlockReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t repeatTime, const int32_t mask, const int32_t dstRepStride,
                    const int32_t srcBlkStride, const int32_t srcRepStride, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("BlockReduceSum", PIPE_V, where);
    const detail::Work work = detail::MaskedWork<isSetMask>(instruction, detail::kLanes<T>, mask, repeatTime);
    detail::ReduceBlocks(instruction, work, dst, src, dstRepStride, srcBlkStride, srcRepStride, ReduceType::SUM);
}

template <typename T, bool isSetMask = true>
void BlockReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t repeatTime, const uint64_t mask[], const int32_t dstRepStride,
                    const int32_t srcBlkStride, const int32_t srcRepStride, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("BlockReduceSum", PIPE_V, where);
    const detail::Work work = detail::MaskedWork<isSetMask>(instruction, detail::kLanes<T>, mask, repeatTime);
    detail::ReduceBlocks(instruction, work, dst, src, dstRepStride, srcBlkStride, srcRepStride, ReduceType::SUM);
}

template <typename T, bool isSetMask = true>
void BlockReduceMax(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t repeatTime, const int32_t mask, const int32_t dstRepStride,
                    const int32_t srcBlkStride, const int32_t srcRepStride, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("BlockReduceMax", PIPE_V, where);
    const detail::Work work = detail::MaskedWork<isSetMask>(instruction, detail::kLanes<T>, mask, repeatTime);
    detail::ReduceBlocks(instruction, work, dst, src, dstRepStride, srcBlkStride, srcRepStride, ReduceType::MAX);
}

template <typename T, bool isSetMask = true>
void BlockReduceMax(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t repeatTime, const uint64_t mask[], const int32_t dstRepStride,
                    const int32_t srcBlkStride, const int32_t srcRepStride, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("BlockReduceMax", PIPE_V, where);
    const detail::Work work = detail::MaskedWork<isSetMask>(instruction, detail::kLanes<T>, mask, repeatTime);
    detail::ReduceBlocks(instruction, work, dst, src, dstRepStride, srcBlkStride, srcRepStride, ReduceType::MAX);
}

template <typename T, bool isSetMask = true>
void BlockReduceMin(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t repeatTime, const int32_t mask, const int32_t dstRepStride,
                    const int32_t srcBlkStride, const int32_t srcRepStride, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("BlockReduceMin", PIPE_V, where);
    const detail::Work work = detail::MaskedWork<isSetMask>(instruction, detail::kLanes<T>, mask, repeatTime);
    detail::ReduceBlocks(instruction, work, dst, src, dstRepStride, srcBlkStride, srcRepStride, ReduceType::MIN);
}

template <typename T, bool isSetMask = true>
void BlockReduceMin(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t repeatTime, const uint64_t mask[], const int32_t dstRepStride,
                    const int32_t srcBlkStride, const int32_t srcRepStride, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("BlockReduceMin", PIPE_V, where);
    const detail::Work work = detail::MaskedWork<isSetMask>(instruction, detail::kLanes<T>, mask, repeatTime);
    detail::ReduceBlocks(instruction, work, dst, src, dstRepStride, srcBlkStride, srcRepStride, ReduceType::MIN);
}

template <typename T, bool isSetMask = true>
void PairReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t repeatTime, const int32_t mask, const int32_t dstRepStride,
                   const int32_t srcBlkStride, const int32_t srcRepStride, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("PairReduceSum", PIPE_V, where);
    const detail::Work work = detail::MaskedWork<isSetMask>(instruction, detail::kLanes<T>, mask, repeatTime);
    detail::SumPairs(instruction, work, dst, src, dstRepStride, srcBlkStride, srcRepStride);
}

template <typename T, bool isSetMask = true>
void PairReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t repeatTime, const uint64_t mask[], const int32_t dstRepStride,
                   const int32_t srcBlkStride, const int32_t srcRepStride, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("PairReduceSum", PIPE_V, where);
    const detail::Work work = detail::MaskedWork<isSetMask>(instruction, detail::kLanes<T>, mask, repeatTime);
    detail::SumPairs(instruction, work, dst, src, dstRepStride, srcBlkStride, srcRepStride);
}

/// WholeReduceSum with its arguments in another order; dstBlkStride is not used.
template <typename T, bool isSetMask = true>
void RepeatReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t repeatTime, const int32_t mask, const int32_t dstBlkStride,
                     const int32_t srcBlkStride, const int32_t dstRepStride, const int32_t srcRepStride,
                     const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("RepeatReduceSum", PIPE_V, where);
    static_cast<void>(dstBlkStride);
    const detail::Work work = detail::MaskedWork<isSetMask>(instruction, detail::kLanes<T>, mask, repeatTime);
    detail::SumRepeats(instruction, work, dst, src, dstRepStride, srcBlkStride, srcRepStride);
}

/// A whole tensor to dst[0]; sharedTmpBuffer takes one element for every 256 bytes of input, rounded up to a block.
template <typename T, bool isSetMask = true>
void ReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& sharedTmpBuffer, const int32_t count,
               const twin::Where& where = twin::Where::Here()) {
    static_assert(isSetMask, "the twin has ReduceSum with its own mask only");
    twin::Instruction instruction("ReduceSum", PIPE_V, where);
    const detail::Work work = detail::CountWork(instruction, detail::kLanes<T>, count);
    detail::SumAll(instruction, work, dst, sharedTmpBuffer, detail::Flat(src, "src"));
}

template <typename T>
void ReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& sharedTmpBuffer, const int32_t mask, const int32_t repeatTime,
               const int32_t srcRepStride, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("ReduceSum", PIPE_V, where);
    detail::RequireStrides(instruction, 0, 0, srcRepStride);
    const detail::Work work = detail::ManyRepeats<T>(instruction, mask, repeatTime);
    detail::SumAll(instruction, work, dst, sharedTmpBuffer, detail::RepeatSource(src, 1, srcRepStride));
}

template <typename T>
void ReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& sharedTmpBuffer, const uint64_t mask[], const int32_t repeatTime,
               const int32_t srcRepStride, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("ReduceSum", PIPE_V, where);
    detail::RequireStrides(instruction, 0, 0, srcRepStride);
    const detail::Work work = detail::ManyRepeats<T>(instruction, mask, repeatTime);
    detail::SumAll(instruction, work, dst, sharedTmpBuffer, detail::RepeatSource(src, 1, srcRepStride));
}

/// With calIndex dst[1] holds the place of the first extreme, as an integer of the values' width.
template <typename T>
void ReduceMax(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& sharedTmpBuffer, const int32_t count,
               bool calIndex = false, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("ReduceMax", PIPE_V, where);
    const detail::Work work = detail::CountWork(instruction, detail::kLanes<T>, count);
    detail::ExtremeAll(instruction, work, dst, sharedTmpBuffer, detail::Flat(src, "src"), calIndex, true);
}

template <typename T>
void ReduceMax(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& sharedTmpBuffer, const int32_t mask, const int32_t repeatTime,
               const int32_t srcRepStride, bool calIndex = false, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("ReduceMax", PIPE_V, where);
    detail::RequireStrides(instruction, 0, 0, srcRepStride);
    const detail::Work work = detail::ManyRepeats<T>(instruction, mask, repeatTime);
    detail::ExtremeAll(instruction, work, dst, sharedTmpBuffer, detail::RepeatSource(src, 1, srcRepStride), calIndex, true);
}

template <typename T>
void ReduceMax(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& sharedTmpBuffer, const uint64_t mask[], const int32_t repeatTime,
               const int32_t srcRepStride, bool calIndex = false, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("ReduceMax", PIPE_V, where);
    detail::RequireStrides(instruction, 0, 0, srcRepStride);
    const detail::Work work = detail::ManyRepeats<T>(instruction, mask, repeatTime);
    detail::ExtremeAll(instruction, work, dst, sharedTmpBuffer, detail::RepeatSource(src, 1, srcRepStride), calIndex, true);
}

/// With calIndex dst[1] holds the place of the first extreme, as an integer of the values' width.
template <typename T>
void ReduceMin(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& sharedTmpBuffer, const int32_t count,
               bool calIndex = false, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("ReduceMin", PIPE_V, where);
    const detail::Work work = detail::CountWork(instruction, detail::kLanes<T>, count);
    detail::ExtremeAll(instruction, work, dst, sharedTmpBuffer, detail::Flat(src, "src"), calIndex, false);
}

template <typename T>
void ReduceMin(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& sharedTmpBuffer, const int32_t mask, const int32_t repeatTime,
               const int32_t srcRepStride, bool calIndex = false, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("ReduceMin", PIPE_V, where);
    detail::RequireStrides(instruction, 0, 0, srcRepStride);
    const detail::Work work = detail::ManyRepeats<T>(instruction, mask, repeatTime);
    detail::ExtremeAll(instruction, work, dst, sharedTmpBuffer, detail::RepeatSource(src, 1, srcRepStride), calIndex, false);
}

template <typename T>
void ReduceMin(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& sharedTmpBuffer, const uint64_t mask[], const int32_t repeatTime,
               const int32_t srcRepStride, bool calIndex = false, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("ReduceMin", PIPE_V, where);
    detail::RequireStrides(instruction, 0, 0, srcRepStride);
    const detail::Work work = detail::ManyRepeats<T>(instruction, mask, repeatTime);
    detail::ExtremeAll(instruction, work, dst, sharedTmpBuffer, detail::RepeatSource(src, 1, srcRepStride), calIndex, false);
}

}  // namespace AscendC

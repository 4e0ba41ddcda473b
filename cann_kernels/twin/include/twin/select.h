// SPDX-License-Identifier: Apache-2.0
// Comparison, selection, gathering, broadcasting of blocks.
#pragma once

#include "twin/fill.h"

namespace AscendC {

namespace detail {

/// A value with its own bits: NaNs are selected unchanged.
template <typename T>
T Exactly(const uint8_t* address) {
    T value;
    std::memcpy(&value, address, sizeof(T));
    return value;
}

template <typename T>
void CheckCompare(const Instruction& instruction, CMPMODE mode) {
    static_assert(kOneOf<T, half, float, int32_t>, "Compare has no such element type on 2201");
    instruction.Require(kOneOf<T, half, float> || mode == CMPMODE::EQ, "int32 compares for EQ only");
}

template <typename T>
Work CompareCount(const Instruction& instruction, uint32_t count) {
    instruction.Require(uint64_t{count} * sizeof(T) % twin::kRepeat == 0, "count * sizeof(T) must be a multiple of 256 bytes, got %llu",
                        static_cast<unsigned long long>(uint64_t{count} * sizeof(T)));
    return CountWork(instruction, kLanes<T>, count);
}

/// Repeats of a compare yield whole bytes of bits, so every lane must work.
template <typename T, bool isSetMask, typename M>
Work CompareRepeats(const Instruction& instruction, M mask, uint8_t repeats) {
    const Work work = MaskedWork<isSetMask>(instruction, kLanes<T>, mask, repeats);
    instruction.Require(work.Nothing() || (work.count == 0 && work.each.Leading() == work.lanes),
                        "the twin compares whole repeats only: mask must cover all %u lanes", work.lanes);
    return work;
}

inline bool Bit(const uint8_t* bits, uint32_t index) { return (bits[index / 8] >> index % 8 & 1u) != 0; }

/// One bit an element, lowest bit of each byte first; repeats lie side by side in dst.
template <typename F, typename... S>
void CompareRun(Instruction& instruction, const Work& work, const LocalTensor<uint8_t>& dst, F f, const Operand<S>&... src) {
    (instruction.Align(src.span, twin::kBlock, src.name), ...);
    instruction.Align(dst.span(), twin::kBlock, "dst");
    if (work.Nothing()) return;
    const uint32_t bytes = work.repeats * work.lanes / 8;
    const auto apart = [&](const twin::LocalSpan& s, uint64_t reach, const char* name) {
        const auto& d = dst.span();
        instruction.Require(d.address + bytes <= s.address || s.address + reach <= d.address, "dst (UB byte %u) and %s (UB byte %u) overlap",
                            d.address, name, s.address);
    };
    (apart(src.span, src.Reach(work), src.name), ...);
    (CheckRead(instruction, work, src), ...);
    uint8_t* target = instruction.Write(dst.span(), 0, bytes, "dst");
    for (uint32_t repeat = 0; repeat < work.repeats; ++repeat) {
        for (uint32_t lane = 0; lane < work.lanes; lane += 8) {
            uint32_t byte = 0;
            for (uint32_t bit = 0; bit < 8; ++bit) {
                byte |= (f(Load<S>(src.Base(instruction) + src.At(repeat, lane + bit))...) ? 1u : 0u) << bit;
            }
            *target++ = static_cast<uint8_t>(byte);
        }
    }
}

/// The comparison chosen once, not for every element.
template <typename F>
void ForMode(CMPMODE mode, F run) {
    switch (mode) {
        case CMPMODE::LT: return run([](auto a, auto b) { return a < b; });
        case CMPMODE::GT: return run([](auto a, auto b) { return a > b; });
        case CMPMODE::EQ: return run([](auto a, auto b) { return a == b; });
        case CMPMODE::LE: return run([](auto a, auto b) { return a <= b; });
        case CMPMODE::GE: return run([](auto a, auto b) { return a >= b; });
        default: return run([](auto a, auto b) { return a != b; });
    }
}

template <typename T, typename U>
void CompareTensors(Instruction& instruction, const Work& work, const LocalTensor<U>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,
                    CMPMODE mode, const BinaryRepeatParams& p) {
    static_assert(std::is_same_v<U, uint8_t>, "the result of Compare is LocalTensor<uint8_t>");
    CheckCompare<T>(instruction, mode);
    ForMode(mode, [&](auto f) {
        CompareRun(instruction, work, dst, f, Operand<T>{src0, "src0", p.src0BlkStride, p.src0RepStride},
                   Operand<T>{src1, "src1", p.src1BlkStride, p.src1RepStride});
    });
}

template <typename T, typename U>
void CompareWithScalar(Instruction& instruction, const Work& work, const LocalTensor<U>& dst, const LocalTensor<T>& src, T scalar, CMPMODE mode,
                       const UnaryRepeatParams& p) {
    static_assert(std::is_same_v<U, uint8_t>, "the result of CompareScalar is LocalTensor<uint8_t>");
    CheckCompare<T>(instruction, mode);
    ForMode(mode, [&, b = WideScalar(scalar)](auto f) {
        CompareRun(instruction, work, dst, [f, b](auto a) { return f(a, b); }, Operand<T>{src, "src0", p.srcBlkStride, p.srcRepStride});
    });
}

/// Bits of the elements of one instruction, checked: those of a repeat lie behind those of the one before, or serve all of them.
struct ChosenBits {
    const uint8_t* bits;
    bool same;
    bool Of(const Work& work, uint32_t repeat, uint32_t lane) const { return Bit(bits, (same ? 0 : repeat * work.lanes) + lane); }
};

/// `other` gives what is taken where the bit is 0.
template <typename T, typename F, typename... S>
void SelectRun(Instruction& instruction, const Work& work, const Operand<T>& dst, const LocalTensor<uint8_t>& selMask, bool same, F f,
               const Operand<S>&... src) {
    (instruction.Align(src.span, twin::kBlock, src.name), ...);
    instruction.Align(dst.span, twin::kBlock, "dst");
    instruction.Align(selMask.span(), twin::kBlock, "selMask");
    if (work.Nothing()) return;
    (RequireNoOverlap(instruction, work, dst, src), ...);
    const uint64_t elements = same ? work.lanes : work.count != 0 ? work.count : uint64_t{work.repeats} * work.lanes;
    const ChosenBits chosen = {instruction.Read(selMask.span(), 0, static_cast<uint32_t>((elements + 7) / 8), "selMask"), same};
    (CheckRead(instruction, work, src), ...);
    CheckWrite(instruction, work, dst);
    for (uint32_t repeat = 0; repeat < work.repeats; ++repeat) {
        const Lanes lanes = work.Of(repeat);
        for (uint32_t lane = 0; lane < work.lanes; ++lane) {
            if (!lanes.Has(lane)) continue;
            const T value = f(chosen.Of(work, repeat, lane), Exactly<S>(src.Base(instruction) + src.At(repeat, lane))...);
            std::memcpy(dst.Base(instruction) + dst.At(repeat, lane), &value, sizeof(T));
        }
    }
}

template <typename T, typename U>
void SelectTensors(Instruction& instruction, const Work& work, const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0,
                   const LocalTensor<T>& src1, SELMODE mode, const BinaryRepeatParams& p) {
    static_assert(kOneOf<T, half, float> && std::is_same_v<U, uint8_t>, "Select has no such types on 2201");
    instruction.Require(mode != SELMODE::VSEL_TENSOR_SCALAR_MODE, "two tensors need VSEL_TENSOR_TENSOR_MODE or VSEL_CMPMASK_SPR");
    SelectRun(instruction, work, Operand<T>{dst, "dst", p.dstBlkStride, p.dstRepStride}, selMask, mode == SELMODE::VSEL_CMPMASK_SPR,
              [](bool bit, T a, T b) { return bit ? a : b; }, Operand<T>{src0, "src0", p.src0BlkStride, p.src0RepStride},
              Operand<T>{src1, "src1", p.src1BlkStride, p.src1RepStride});
}

template <typename T, typename U>
void SelectScalar(Instruction& instruction, const Work& work, const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0,
                  T src1, SELMODE mode, const BinaryRepeatParams& p) {
    static_assert(kOneOf<T, half, float> && std::is_same_v<U, uint8_t>, "Select has no such types on 2201");
    instruction.Require(mode == SELMODE::VSEL_TENSOR_SCALAR_MODE, "a scalar needs VSEL_TENSOR_SCALAR_MODE");
    SelectRun(instruction, work, Operand<T>{dst, "dst", p.dstBlkStride, p.dstRepStride}, selMask, false,
              [src1](bool bit, T a) { return bit ? a : src1; }, Operand<T>{src0, "src0", p.src0BlkStride, p.src0RepStride});
}

}  // namespace detail

template <typename T, typename U>
void Compare(const LocalTensor<U>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1, CMPMODE cmpMode, uint32_t count,
             const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("Compare", PIPE_V, where);
    detail::CompareTensors(instruction, detail::CompareCount<T>(instruction, count), dst, src0, src1, cmpMode, BinaryRepeatParams());
}

template <typename T, typename U, bool isSetMask = true>
void Compare(const LocalTensor<U>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1, CMPMODE cmpMode, const uint64_t mask,
             uint8_t repeatTime, const BinaryRepeatParams& repeatParams, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("Compare", PIPE_V, where);
    const detail::Work work = detail::CompareRepeats<T, isSetMask>(instruction, mask, repeatTime);
    detail::CompareTensors(instruction, work, dst, src0, src1, cmpMode, repeatParams);
}

template <typename T, typename U, bool isSetMask = true>
void Compare(const LocalTensor<U>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1, CMPMODE cmpMode, const uint64_t mask[],
             uint8_t repeatTime, const BinaryRepeatParams& repeatParams, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("Compare", PIPE_V, where);
    const detail::Work work = detail::CompareRepeats<T, isSetMask>(instruction, mask, repeatTime);
    detail::CompareTensors(instruction, work, dst, src0, src1, cmpMode, repeatParams);
}

template <typename T, typename U>
void CompareScalar(const LocalTensor<U>& dst, const LocalTensor<T>& src0, const T src1Scalar, CMPMODE cmpMode, uint32_t count,
                   const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("CompareScalar", PIPE_V, where);
    detail::CompareWithScalar(instruction, detail::CompareCount<T>(instruction, count), dst, src0, src1Scalar, cmpMode, UnaryRepeatParams());
}

template <typename T, typename U, bool isSetMask = true>
void CompareScalar(const LocalTensor<U>& dst, const LocalTensor<T>& src0, const T src1Scalar, CMPMODE cmpMode, const uint64_t mask,
                   uint8_t repeatTime, const UnaryRepeatParams& repeatParams, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("CompareScalar", PIPE_V, where);
    const detail::Work work = detail::CompareRepeats<T, isSetMask>(instruction, mask, repeatTime);
    detail::CompareWithScalar(instruction, work, dst, src0, src1Scalar, cmpMode, repeatParams);
}

template <typename T, typename U, bool isSetMask = true>
void CompareScalar(const LocalTensor<U>& dst, const LocalTensor<T>& src0, const T src1Scalar, CMPMODE cmpMode, const uint64_t mask[],
                   uint8_t repeatTime, const UnaryRepeatParams& repeatParams, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("CompareScalar", PIPE_V, where);
    const detail::Work work = detail::CompareRepeats<T, isSetMask>(instruction, mask, repeatTime);
    detail::CompareWithScalar(instruction, work, dst, src0, src1Scalar, cmpMode, repeatParams);
}

/// The newer name of CompareScalar.
template <typename T, typename U>
void Compares(const LocalTensor<U>& dst, const LocalTensor<T>& src0, const T src1Scalar, CMPMODE cmpMode, uint32_t count,
              const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("Compares", PIPE_V, where);
    detail::CompareWithScalar(instruction, detail::CompareCount<T>(instruction, count), dst, src0, src1Scalar, cmpMode, UnaryRepeatParams());
}

template <typename T, typename U, bool isSetMask = true>
void Compares(const LocalTensor<U>& dst, const LocalTensor<T>& src0, const T src1Scalar, CMPMODE cmpMode, const uint64_t mask,
              uint8_t repeatTime, const UnaryRepeatParams& repeatParams, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("Compares", PIPE_V, where);
    const detail::Work work = detail::CompareRepeats<T, isSetMask>(instruction, mask, repeatTime);
    detail::CompareWithScalar(instruction, work, dst, src0, src1Scalar, cmpMode, repeatParams);
}

template <typename T, typename U, bool isSetMask = true>
void Compares(const LocalTensor<U>& dst, const LocalTensor<T>& src0, const T src1Scalar, CMPMODE cmpMode, const uint64_t mask[],
              uint8_t repeatTime, const UnaryRepeatParams& repeatParams, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("Compares", PIPE_V, where);
    const detail::Work work = detail::CompareRepeats<T, isSetMask>(instruction, mask, repeatTime);
    detail::CompareWithScalar(instruction, work, dst, src0, src1Scalar, cmpMode, repeatParams);
}

template <typename T, typename U>
void Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0, const LocalTensor<T>& src1, SELMODE selMode, uint32_t count,
            const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("Select", PIPE_V, where);
    const detail::Work work = detail::CountWork(instruction, detail::kLanes<T>, count);
    detail::SelectTensors(instruction, work, dst, selMask, src0, src1, selMode, BinaryRepeatParams());
}

template <typename T, typename U, bool isSetMask = true>
void Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0, const LocalTensor<T>& src1, SELMODE selMode,
            uint64_t mask, uint8_t repeatTime, const BinaryRepeatParams& repeatParams, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("Select", PIPE_V, where);
    const detail::Work work = detail::MaskedWork<isSetMask>(instruction, detail::kLanes<T>, mask, repeatTime);
    detail::SelectTensors(instruction, work, dst, selMask, src0, src1, selMode, repeatParams);
}

template <typename T, typename U, bool isSetMask = true>
void Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0, const LocalTensor<T>& src1, SELMODE selMode,
            uint64_t mask[], uint8_t repeatTime, const BinaryRepeatParams& repeatParams, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("Select", PIPE_V, where);
    const detail::Work work = detail::MaskedWork<isSetMask>(instruction, detail::kLanes<T>, mask, repeatTime);
    detail::SelectTensors(instruction, work, dst, selMask, src0, src1, selMode, repeatParams);
}

template <typename T, typename U>
void Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0, T src1, SELMODE selMode, uint32_t count,
            const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("Select", PIPE_V, where);
    const detail::Work work = detail::CountWork(instruction, detail::kLanes<T>, count);
    detail::SelectScalar(instruction, work, dst, selMask, src0, src1, selMode, BinaryRepeatParams());
}

template <typename T, typename U, bool isSetMask = true>
void Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0, T src1, SELMODE selMode,
            uint64_t mask, uint8_t repeatTime, const BinaryRepeatParams& repeatParams, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("Select", PIPE_V, where);
    const detail::Work work = detail::MaskedWork<isSetMask>(instruction, detail::kLanes<T>, mask, repeatTime);
    detail::SelectScalar(instruction, work, dst, selMask, src0, src1, selMode, repeatParams);
}

template <typename T, typename U, bool isSetMask = true>
void Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0, T src1, SELMODE selMode,
            uint64_t mask[], uint8_t repeatTime, const BinaryRepeatParams& repeatParams, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("Select", PIPE_V, where);
    const detail::Work work = detail::MaskedWork<isSetMask>(instruction, detail::kLanes<T>, mask, repeatTime);
    detail::SelectScalar(instruction, work, dst, selMask, src0, src1, selMode, repeatParams);
}

namespace detail {

/// dst[i] = the element of src at byte offsets[i] + base. dst is checked to lie apart from every element that is read.
template <typename T>
void GatherRun(Instruction& instruction, const Work& work, const Operand<T>& dst, const LocalTensor<T>& src, const LocalTensor<uint32_t>& offsets,
               uint32_t base) {
    static_assert(kFillType<T>, "Gather has no such element type on 2201");
    instruction.Align(src.span(), twin::kBlock, "src");
    instruction.Align(offsets.span(), twin::kBlock, "srcOffset");
    instruction.Align(dst.span, twin::kBlock, "dst");
    if (work.Nothing()) return;
    const Operand<uint32_t> places = {offsets, "srcOffset", 1, work.lanes * 4 / twin::kBlock};
    CheckRead(instruction, work, places);
    const auto &d = dst.span, &s = src.span();
    const uint64_t end = d.address + dst.Reach(work);
    for (uint32_t repeat = 0; repeat < work.repeats; ++repeat) {
        const Lanes lanes = work.Of(repeat);
        for (uint32_t lane = 0; lane < work.lanes; ++lane) {
            if (!lanes.Has(lane)) continue;
            const uint64_t offset = uint64_t{Load<uint32_t>(places.Base(instruction) + places.At(repeat, lane))} + base, at = s.address + offset;
            instruction.Require(offset % sizeof(T) == 0, "offset %llu of element %u is no multiple of sizeof(T)",
                                static_cast<unsigned long long>(offset), repeat * work.lanes + lane);
            const uint8_t* value = instruction.Read(s, static_cast<int64_t>(offset), sizeof(T), "src");
            instruction.Require(at + sizeof(T) <= d.address || at >= end, "dst and src must not overlap");
            uint8_t* target = instruction.Write(d, dst.At(repeat, lane), sizeof(T), "dst");
            std::memcpy(target, value, sizeof(T));
        }
    }
}

}  // namespace detail

/// Byte offsets from the start of src. There is no scatter.
template <typename T>
void Gather(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<uint32_t>& srcOffset, const uint32_t srcBaseOffset,
            const uint32_t count, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("Gather", PIPE_V, where);
    const detail::Work work = detail::CountWork(instruction, detail::kLanes<T>, count);
    detail::GatherRun(instruction, work, detail::Flat(dst, "dst"), src, srcOffset, srcBaseOffset);
}

template <typename T>
void Gather(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<uint32_t>& srcOffset, const uint32_t srcBaseOffset,
            const uint64_t mask, const uint8_t repeatTime, const uint16_t dstRepStride, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("Gather", PIPE_V, where);
    const detail::Work work = detail::MaskedWork<true>(instruction, detail::kLanes<T>, mask, repeatTime);
    detail::GatherRun(instruction, work, detail::Operand<T>{dst, "dst", 1, dstRepStride}, src, srcOffset, srcBaseOffset);
}

template <typename T>
void Gather(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<uint32_t>& srcOffset, const uint32_t srcBaseOffset,
            const uint64_t mask[], const uint8_t repeatTime, const uint16_t dstRepStride, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("Gather", PIPE_V, where);
    const detail::Work work = detail::MaskedWork<true>(instruction, detail::kLanes<T>, mask, repeatTime);
    detail::GatherRun(instruction, work, detail::Operand<T>{dst, "dst", 1, dstRepStride}, src, srcOffset, srcBaseOffset);
}

template <typename T>
void Brcb(const LocalTensor<T>& dst, const LocalTensor<T>& src, const uint8_t repeatTime, const BrcbRepeatParams& repeatParams,
          const twin::Where& where = twin::Where::Here()) {
    static_assert(sizeof(T) == 2 || sizeof(T) == 4, "Brcb takes 2- and 4-byte types");
    twin::Instruction instruction("Brcb", PIPE_V, where);
    detail::RequireOwnMask(instruction);
    instruction.Align(dst.span(), twin::kBlock, "dst");
    instruction.Align(src.span(), twin::kBlock, "src");
    const auto &d = dst.span(), &s = src.span();
    const uint64_t reach = ((repeatTime - 1) * uint64_t{repeatParams.dstRepStride} + 7 * repeatParams.dstBlkStride + 1) * twin::kBlock;
    instruction.Require(repeatTime == 0 || d.address + reach <= s.address || s.address + repeatTime * 8 * sizeof(T) <= d.address,
                        "dst (UB byte %u) and src (UB byte %u) overlap", d.address, s.address);
    for (uint32_t i = 0; i < repeatTime * 8u; ++i) {
        const uint8_t* value = instruction.Read(src.span(), i * sizeof(T), sizeof(T), "src");
        const int64_t to = static_cast<int64_t>(i / 8 * repeatParams.dstRepStride + i % 8 * repeatParams.dstBlkStride) * twin::kBlock;
        uint8_t* target = instruction.Write(dst.span(), to, twin::kBlock, "dst");
        for (uint32_t at = 0; at < twin::kBlock; at += sizeof(T)) std::memcpy(target + at, value, sizeof(T));
    }
}

}  // namespace AscendC

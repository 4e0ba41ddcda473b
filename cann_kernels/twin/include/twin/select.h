// SPDX-License-Identifier: Apache-2.0
// Comparison, selection, gathering, broadcasting of blocks and row reductions.
#pragma once

#include "twin/vector.h"

namespace AscendC {

namespace detail {

template <typename T>
bool Compares(CMPMODE mode, T a, T b) {
    switch (mode) {
        case CMPMODE::LT: return a < b;
        case CMPMODE::GT: return a > b;
        case CMPMODE::EQ: return a == b;
        case CMPMODE::LE: return a <= b;
        case CMPMODE::GE: return a >= b;
        default: return a != b;
    }
}

template <typename T>
void CheckCompare(const Instruction& instruction, CMPMODE mode, uint32_t count) {
    static_assert(kOneOf<T, half, float, int32_t>, "Compare has no such element type on 2201");
    instruction.Require(kOneOf<T, half, float> || mode == CMPMODE::EQ, "int32 compares for EQ only");
    instruction.Require(uint64_t{count} * sizeof(T) % twin::kRepeat == 0, "count * sizeof(T) must be a multiple of 256 bytes, got %llu",
                        static_cast<unsigned long long>(uint64_t{count} * sizeof(T)));
}

/// One bit an element, lowest bit of each byte first.
template <typename F>
void SaveBits(uint8_t* target, uint32_t count, F f) {
    for (uint32_t i = 0; i < count; i += 8) {
        uint8_t byte = 0;
        for (uint32_t bit = 0; bit < 8; ++bit) byte = static_cast<uint8_t>(byte | (f(i + bit) ? 1u << bit : 0u));
        target[i / 8] = byte;
    }
}

inline bool Bit(const uint8_t* bits, uint32_t index) { return (bits[index / 8] >> index % 8 & 1u) != 0; }

}  // namespace detail

template <typename T, typename U>
void Compare(const LocalTensor<U>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1, CMPMODE cmpMode, uint32_t count,
             const twin::Where& where = twin::Where::Here()) {
    static_assert(std::is_same_v<U, uint8_t>, "the result of Compare is LocalTensor<uint8_t>");
    twin::Instruction instruction("Compare", PIPE_V, where);
    detail::CheckCompare<T>(instruction, cmpMode, count);
    if (count == 0) return;
    const uint8_t *a = detail::Source(instruction, src0, count, "src0"), *b = detail::Source(instruction, src1, count, "src1");
    detail::SaveBits(detail::Target(instruction, dst, count / 8), count, [&](uint32_t i) {
        return detail::Compares(cmpMode, detail::Load<T>(a + i * sizeof(T)), detail::Load<T>(b + i * sizeof(T)));
    });
}

template <typename T, typename U>
void CompareScalar(const LocalTensor<U>& dst, const LocalTensor<T>& src0, const T src1Scalar, CMPMODE cmpMode, uint32_t count,
                   const twin::Where& where = twin::Where::Here()) {
    static_assert(std::is_same_v<U, uint8_t>, "the result of CompareScalar is LocalTensor<uint8_t>");
    twin::Instruction instruction("CompareScalar", PIPE_V, where);
    detail::CheckCompare<T>(instruction, cmpMode, count);
    if (count == 0) return;
    const uint8_t* a = detail::Source(instruction, src0, count, "src0");
    const auto b = detail::Load<T>(reinterpret_cast<const uint8_t*>(&src1Scalar));
    detail::SaveBits(detail::Target(instruction, dst, count / 8), count,
                     [&](uint32_t i) { return detail::Compares(cmpMode, detail::Load<T>(a + i * sizeof(T)), b); });
}

template <typename T, typename U>
void Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0, T src1, SELMODE selMode, uint32_t count,
            const twin::Where& where = twin::Where::Here()) {
    static_assert(twin::kOneOf<T, half, float> && std::is_same_v<U, uint8_t>, "Select has no such types on 2201");
    twin::Instruction instruction("Select", PIPE_V, where);
    instruction.Require(selMode == SELMODE::VSEL_TENSOR_SCALAR_MODE, "a scalar needs VSEL_TENSOR_SCALAR_MODE");
    if (count == 0) return;
    const uint8_t *bits = detail::Source(instruction, selMask, (count + 7) / 8, "selMask"), *a = detail::Source(instruction, src0, count, "src0");
    uint8_t* target = detail::Target(instruction, dst, count);
    for (uint32_t i = 0; i < count; ++i) {
        std::memmove(target + i * sizeof(T), detail::Bit(bits, i) ? a + i * sizeof(T) : reinterpret_cast<const uint8_t*>(&src1), sizeof(T));
    }
}

template <typename T, typename U>
void Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0, const LocalTensor<T>& src1, SELMODE selMode,
            uint32_t count, const twin::Where& where = twin::Where::Here()) {
    static_assert(twin::kOneOf<T, half, float> && std::is_same_v<U, uint8_t>, "Select has no such types on 2201");
    twin::Instruction instruction("Select", PIPE_V, where);
    instruction.Require(selMode == SELMODE::VSEL_TENSOR_TENSOR_MODE, "two tensors need VSEL_TENSOR_TENSOR_MODE");
    if (count == 0) return;
    const uint8_t* bits = detail::Source(instruction, selMask, (count + 7) / 8, "selMask");
    const uint8_t *a = detail::Source(instruction, src0, count, "src0"), *b = detail::Source(instruction, src1, count, "src1");
    uint8_t* target = detail::Target(instruction, dst, count);
    for (uint32_t i = 0; i < count; ++i) std::memmove(target + i * sizeof(T), (detail::Bit(bits, i) ? a : b) + i * sizeof(T), sizeof(T));
}

template <typename T>
void Gather(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<uint32_t>& srcOffset, const uint32_t srcBaseOffset,
            const uint32_t count, const twin::Where& where = twin::Where::Here()) {
    static_assert(twin::kOneOf<T, half, bfloat16_t, float, int16_t, uint16_t, int32_t, uint32_t>, "Gather has no such element type on 2201");
    twin::Instruction instruction("Gather", PIPE_V, where);
    if (count == 0) return;
    const auto &d = dst.span(), &s = src.span();
    instruction.Require(d.address + count * sizeof(T) <= s.address || s.address + s.bytes <= d.address, "dst and src must not overlap");
    const uint8_t* offsets = detail::Source(instruction, srcOffset, count, "srcOffset");
    uint8_t* target = detail::Target(instruction, dst, count);
    for (uint32_t i = 0; i < count; ++i) {
        const uint32_t offset = detail::Load<uint32_t>(offsets + i * 4) + srcBaseOffset;
        instruction.Require(offset % sizeof(T) == 0, "offset %u of element %u is no multiple of sizeof(T)", offset, i);
        std::memcpy(target + i * sizeof(T), instruction.Read(s, offset, sizeof(T), "src"), sizeof(T));
    }
}

template <typename T>
void Brcb(const LocalTensor<T>& dst, const LocalTensor<T>& src, const uint8_t repeatTime, const BrcbRepeatParams& repeatParams,
          const twin::Where& where = twin::Where::Here()) {
    static_assert(sizeof(T) == 2 || sizeof(T) == 4, "Brcb takes 2- and 4-byte types");
    twin::Instruction instruction("Brcb", PIPE_V, where);
    instruction.Align(dst.span(), twin::kBlock, "dst");
    instruction.Align(src.span(), twin::kBlock, "src");
    for (uint32_t i = 0; i < repeatTime * 8u; ++i) {
        const uint8_t* value = instruction.Read(src.span(), i * sizeof(T), sizeof(T), "src");
        const int64_t to = static_cast<int64_t>(i / 8 * repeatParams.dstRepStride + i % 8 * repeatParams.dstBlkStride) * twin::kBlock;
        uint8_t* target = instruction.Write(dst.span(), to, twin::kBlock, "dst");
        for (uint32_t at = 0; at < twin::kBlock; at += sizeof(T)) std::memcpy(target + at, value, sizeof(T));
    }
}

/// One sum a repeat, by a tree of pairs; a lane that is masked off adds nothing. dstRepStride counts elements.
template <typename T, bool isSetMask = true>
void WholeReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t mask, const int32_t repeatTime,
                    const int32_t dstRepStride, const int32_t srcBlkStride, const int32_t srcRepStride,
                    const twin::Where& where = twin::Where::Here()) {
    static_assert(twin::kOneOf<T, half, float>, "WholeReduceSum has no such element type on 2201");
    twin::Instruction instruction("WholeReduceSum", PIPE_V, where);
    constexpr uint32_t lanes = twin::kRepeat / sizeof(T);
    instruction.Require(repeatTime >= 0 && repeatTime <= 255, "repeatTime must be 0..255, got %d", repeatTime);
    instruction.Align(src.span(), twin::kBlock, "src");
    instruction.Align(dst.span(), sizeof(T), "dst");
    const detail::Lanes active = detail::LeadingLanes<T>(instruction, static_cast<uint64_t>(static_cast<int64_t>(mask)));
    for (int32_t repeat = 0; repeat < repeatTime; ++repeat) {
        T tree[lanes];
        for (uint32_t lane = 0; lane < lanes; ++lane) {
            detail::Wide<T> value = 0;
            const int64_t from = detail::LaneOffset<T>(static_cast<uint32_t>(repeat), lane, static_cast<uint32_t>(srcRepStride),
                                                       static_cast<uint32_t>(srcBlkStride));
            if (active.Has(lane)) value = detail::Load<T>(instruction.Read(src.span(), from, sizeof(T), "src"));
            tree[lane] = twin::Narrow<T>(value);
        }
        for (uint32_t width = lanes / 2; width > 0; width /= 2) {
            for (uint32_t i = 0; i < width; ++i) tree[i] = twin::Narrow<T>(twin::Widen(tree[2 * i]) + twin::Widen(tree[2 * i + 1]));
        }
        std::memcpy(instruction.Write(dst.span(), static_cast<int64_t>(repeat) * dstRepStride * sizeof(T), sizeof(T), "dst"), tree, sizeof(T));
    }
}

}  // namespace AscendC

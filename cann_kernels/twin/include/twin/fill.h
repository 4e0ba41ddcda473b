// SPDX-License-Identifier: Apache-2.0
// Filling and copying inside the unified buffer, and conversions between element types.
#pragma once

#include "twin/vector.h"

namespace AscendC {

struct CopyRepeatParams {
    CopyRepeatParams() = default;
    CopyRepeatParams(uint16_t dst, uint16_t src, uint16_t dstRepeat, uint16_t srcRepeat)
        : dstStride(dst), srcStride(src), dstRepeatSize(dstRepeat), srcRepeatSize(srcRepeat) {}
    uint16_t dstStride = 1, srcStride = 1, dstRepeatSize = 8, srcRepeatSize = 8;
};

namespace detail {

template <typename T>
inline constexpr bool kFillType = kOneOf<T, half, bfloat16_t, float, int16_t, uint16_t, int32_t, uint32_t>;

/// Bits are moved, not numbers: infinities and NaN of 16-bit floats stay what they are.
template <typename T>
using BitsOf = std::conditional_t<sizeof(T) == 2, uint16_t, uint32_t>;

template <typename T>
void Fill(Instruction& instruction, const Work& work, const LocalTensor<T>& dst, T value, uint32_t blockStride, uint32_t repeatStride) {
    static_assert(kFillType<T>, "Duplicate has no such element type on 2201");
    using Bits = BitsOf<T>;
    const LocalTensor<Bits> to(dst.span());
    Bits bits;
    std::memcpy(&bits, &value, sizeof(bits));
    Elementwise(instruction, work, false, [bits] { return bits; }, Operand<Bits>{to, "dst", blockStride, repeatStride});
}

template <typename T>
void Move(Instruction& instruction, const Work& work, const LocalTensor<T>& dst, const LocalTensor<T>& src, const CopyRepeatParams& p) {
    static_assert(kFillType<T>, "Copy has no such element type on 2201");
    using Bits = BitsOf<T>;
    const LocalTensor<Bits> to(dst.span()), from(src.span());
    Elementwise(instruction, work, false, [](Bits value) { return value; }, Operand<Bits>{to, "dst", p.dstStride, p.dstRepeatSize},
                Operand<Bits>{from, "src", p.srcStride, p.srcRepeatSize});
}

}  // namespace detail

template <typename T>
void Duplicate(const LocalTensor<T>& dst, const T& scalarValue, const int32_t& count, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("Duplicate", PIPE_V, where);
    detail::Fill(instruction, detail::CountWork(instruction, detail::kLanes<T>, count), dst, scalarValue, 1, 8);
}

template <typename T, bool isSetMask = true>
void Duplicate(const LocalTensor<T>& dst, const T& scalarValue, uint64_t mask, const uint8_t repeatTime, const uint16_t dstBlockStride,
               const uint8_t dstRepeatStride, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("Duplicate", PIPE_V, where);
    const detail::Work work = detail::MaskedWork<isSetMask>(instruction, detail::kLanes<T>, mask, repeatTime);
    detail::Fill(instruction, work, dst, scalarValue, dstBlockStride, dstRepeatStride);
}

template <typename T, bool isSetMask = true>
void Duplicate(const LocalTensor<T>& dst, const T& scalarValue, uint64_t mask[], const uint8_t repeatTime, const uint16_t dstBlockStride,
               const uint8_t dstRepeatStride, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("Duplicate", PIPE_V, where);
    const detail::Work work = detail::MaskedWork<isSetMask>(instruction, detail::kLanes<T>, mask, repeatTime);
    detail::Fill(instruction, work, dst, scalarValue, dstBlockStride, dstRepeatStride);
}

template <typename T, bool isSetMask = true>
void Copy(const LocalTensor<T>& dst, const LocalTensor<T>& src, const uint64_t mask, const uint8_t repeatTime,
          const CopyRepeatParams& repeatParams, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("Copy", PIPE_V, where);
    detail::Move(instruction, detail::MaskedWork<isSetMask>(instruction, detail::kLanes<T>, mask, repeatTime), dst, src, repeatParams);
}

template <typename T, bool isSetMask = true>
void Copy(const LocalTensor<T>& dst, const LocalTensor<T>& src, const uint64_t mask[], const uint8_t repeatTime,
          const CopyRepeatParams& repeatParams, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("Copy", PIPE_V, where);
    detail::Move(instruction, detail::MaskedWork<isSetMask>(instruction, detail::kLanes<T>, mask, repeatTime), dst, src, repeatParams);
}

/// Inside the unified buffer; the vector unit does it.
template <typename T>
void DataCopy(const LocalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyParams& params, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("DataCopy", PIPE_V, where);
    const auto &d = dst.span(), &s = src.span();
    instruction.Require(d.memory == twin::Memory::kUb && s.memory == twin::Memory::kUb, "local copies go from UB to UB");
    instruction.Align(d, twin::kBlock, "dst");
    instruction.Align(s, twin::kBlock, "src");
    instruction.Require(params.blockCount <= 4095, "blockCount must be at most 4095, got %u", params.blockCount);
    const uint32_t row = params.blockLen * twin::kBlock, dstPitch = row + params.dstStride * twin::kBlock, srcPitch = row + params.srcStride * twin::kBlock;
    if (row == 0 || params.blockCount == 0) return;
    const uint32_t last = params.blockCount - 1u;
    instruction.Require(d.address + last * dstPitch + row <= s.address || s.address + last * srcPitch + row <= d.address,
                        "dst (UB byte %u) and src (UB byte %u) overlap", d.address, s.address);
    for (uint32_t i = 0; i <= last; ++i) {
        const uint8_t* source = instruction.Read(s, int64_t{i} * srcPitch, row, "src");
        std::memcpy(instruction.Write(d, int64_t{i} * dstPitch, row, "dst"), source, row);
    }
}

template <typename T>
void DataCopy(const LocalTensor<T>& dst, const LocalTensor<T>& src, const uint32_t count, const twin::Where& where = twin::Where::Here()) {
    const uint64_t bytes = uint64_t{count} * sizeof(T);
    if (bytes % twin::kBlock != 0 || bytes / twin::kBlock > 65535) {
        twin::Fail("DataCopy", where, twin::Format("count * sizeof(T) must be a multiple of 32 bytes in the UB, got %llu",
                                                   static_cast<unsigned long long>(bytes)));
    }
    DataCopy(dst, src, DataCopyParams(1, static_cast<uint16_t>(bytes / twin::kBlock), 0, 0), where);
}

namespace detail {

/// first, first + step, ... The device writes the first block by scalar stores, with an event for the vector unit behind them.
template <typename T>
void Ramp(const char* name, const LocalTensor<T>& dst, T first, T step, int64_t count, const Where& where) {
    static_assert(kOneOf<T, int16_t, int32_t, half, float>, "a ramp has no such element type on 2201");
    if (count <= 0) return;
    const auto n = static_cast<uint32_t>(count);
    Instruction scalar(name, PIPE_S, where);
    scalar.Require(scalar.core().isVector, "vector instructions do nothing on the cube core; guard with ASCEND_IS_AIV");
    scalar.Align(dst.span(), twin::kBlock, "dst");
    scalar.Write(dst.span(), 0, std::min<uint32_t>(n * sizeof(T), twin::kBlock), "dst");
    twin::Core& core = scalar.core();
    core.known[PIPE_V].Join(core.Complete(PIPE_S));
    Instruction vector(name, PIPE_V, where);
    RequireOwnMask(vector);
    vector.Require(n <= twin::kUbBytes, "count %u is beyond the UB", n);
    uint8_t* target = vector.Write(dst.span(), 0, static_cast<uint32_t>(n * sizeof(T)), "dst");
    const double from = static_cast<double>(WideScalar(first)), by = static_cast<double>(WideScalar(step));
    for (uint32_t i = 0; i < n; ++i) {
        const double value = from + by * i;
        if constexpr (std::is_integral_v<T>) Save<T>(target + i * sizeof(T), static_cast<T>(static_cast<int64_t>(value)));
        else Save<T>(target + i * sizeof(T), static_cast<float>(value));
    }
}

}  // namespace detail

/// firstValue, firstValue + 1, ...
template <typename T>
void CreateVecIndex(LocalTensor<T> dst, const T& firstValue, uint32_t count, const twin::Where& where = twin::Where::Here()) {
    T one{};
    if constexpr (std::is_same_v<T, half>) one = half(1.0f);
    else one = static_cast<T>(1);
    detail::Ramp("CreateVecIndex", dst, firstValue, one, count, where);
}

template <typename T>
void Arange(const LocalTensor<T>& dst, const T firstValue, const T diffValue, const int32_t count, const twin::Where& where = twin::Where::Here()) {
    detail::Ramp("Arange", dst, firstValue, diffValue, count, where);
}

/// One tile of 16 x 16.
template <typename T>
void Transpose(const LocalTensor<T>& dst, const LocalTensor<T>& src, const twin::Where& where = twin::Where::Here()) {
    static_assert(twin::kOneOf<T, half, int16_t, uint16_t>, "Transpose has no such element type on 2201");
    constexpr uint32_t side = 16, bytes = side * side * 2;
    twin::Instruction instruction("Transpose", PIPE_V, where);
    detail::RequireOwnMask(instruction);
    const uint8_t* source = detail::Source(instruction, src, side * side, "src");
    uint8_t tile[bytes];
    std::memcpy(tile, source, bytes);
    const auto &d = dst.span(), &s = src.span();
    instruction.Require(d.address == s.address || d.address + bytes <= s.address || s.address + bytes <= d.address,
                        "dst (UB byte %u) and src (UB byte %u) overlap in part", d.address, s.address);
    uint8_t* target = detail::Target(instruction, dst, side * side);
    for (uint32_t i = 0; i < side; ++i) {
        for (uint32_t j = 0; j < side; ++j) std::memcpy(target + (j * side + i) * 2, tile + (i * side + j) * 2, 2);
    }
}

/// Scale of Cast from int32 to half.
inline void SetDeqScale(half scale) {
    twin::Current().deqScale = static_cast<float>(scale);
    twin::Current().hasDeqScale = true;
}

namespace detail {

template <typename D, typename S>
inline constexpr bool kCastPair =
    (std::is_same_v<S, float> && kOneOf<D, half, bfloat16_t, float, int16_t, int32_t, int64_t>) ||
    (std::is_same_v<S, half> && kOneOf<D, float, int8_t, uint8_t, int16_t, int32_t>) || (std::is_same_v<S, bfloat16_t> && kOneOf<D, float, int32_t>) ||
    (std::is_same_v<S, int16_t> && kOneOf<D, float, half>) || (std::is_same_v<S, int32_t> && kOneOf<D, float, half, int16_t, int64_t>) ||
    (std::is_same_v<S, int64_t> && kOneOf<D, float, int32_t>) || (kOneOf<S, int8_t, uint8_t> && std::is_same_v<D, half>);

/// Modes that the device has for a pair: exact ones take CAST_NONE alone, lossy ones a direction; CAST_ODD is float -> half only.
template <typename D, typename S>
constexpr bool CanCast(RoundMode mode) {
    if (mode == RoundMode::CAST_ODD) return std::is_same_v<S, float> && std::is_same_v<D, half>;
    constexpr bool exact = (std::is_same_v<D, float> && kOneOf<S, half, bfloat16_t, int16_t>) || (std::is_same_v<D, half> && sizeof(S) == 1) ||
                           (std::is_integral_v<D> && std::is_integral_v<S>) || (std::is_same_v<D, half> && std::is_same_v<S, int32_t>);
    constexpr bool both = (std::is_same_v<D, half> && kOneOf<S, float, int16_t>) || (std::is_same_v<S, half> && sizeof(D) == 1) ||
                          (std::is_same_v<D, float> && std::is_same_v<S, int32_t>);
    return both || (mode == RoundMode::CAST_NONE) == exact;
}

/// The value of a cast, rounded once.
template <typename D, typename S>
auto Caster(RoundMode mode, float deqScale) {
    return [mode, deqScale](Wide<S> value) {
        if constexpr (std::is_integral_v<D> && std::is_integral_v<S>) {
            const auto wide = static_cast<int64_t>(value);
            return static_cast<D>(std::clamp<int64_t>(wide, std::numeric_limits<D>::min(), std::numeric_limits<D>::max()));
        } else if constexpr (std::is_integral_v<D>) {
            return twin::NarrowToInteger<D>(static_cast<double>(value), mode);
        } else if constexpr (std::is_same_v<D, half> && std::is_same_v<S, int32_t>) {
            return Narrow<half>(static_cast<float>(static_cast<double>(value) * deqScale));
        } else if constexpr (std::is_same_v<D, float> && std::is_same_v<S, float>) {
            return static_cast<float>(twin::RoundToIntegral(static_cast<double>(value), mode));
        } else if constexpr (std::is_same_v<D, float> && sizeof(S) >= 4) {
            return twin::NarrowToFloat(value, mode);
        } else {
            return Narrow<D>(static_cast<float>(value), mode);
        }
    };
}

template <typename D, typename S>
void CastRun(Instruction& instruction, const Work& work, const LocalTensor<D>& dst, const LocalTensor<S>& src, RoundMode mode,
             const UnaryRepeatParams& p) {
    static_assert(kCastPair<D, S>, "Cast has no such pair of types on 2201");
    const twin::Core& core = instruction.core();
    instruction.Require(CanCast<D, S>(mode), "this pair of types has no such rounding mode (%d)", static_cast<int>(mode));
    constexpr bool scaled = std::is_same_v<D, half> && std::is_same_v<S, int32_t>;
    instruction.Require(!scaled || core.hasDeqScale, "int32 to half is scaled; call SetDeqScale first");
    const Operand<D> to{dst, "dst", p.dstBlkStride, p.dstRepStride};
    const Operand<S> from{src, "src", p.srcBlkStride, p.srcRepStride};
    if constexpr (std::is_same_v<D, bfloat16_t> || (std::is_same_v<D, half> && std::is_same_v<S, float>)) {
        // The usual direction as a constant: the loop runs without a branch.
        if (mode == RoundMode::CAST_RINT) {
            return Elementwise(instruction, work, false, [](float value) { return Narrow<D>(value, RoundMode::CAST_RINT); }, to, from);
        }
    }
    Elementwise(instruction, work, false, Caster<D, S>(mode, core.deqScale), to, from);
}

/// Lanes of a repeat of Cast: the wider type fills the 256 bytes.
template <typename D, typename S>
constexpr uint32_t kCastLanes = twin::kRepeat / (sizeof(D) > sizeof(S) ? sizeof(D) : sizeof(S));

}  // namespace detail

template <typename T, typename U>
void Cast(const LocalTensor<T>& dst, const LocalTensor<U>& src, const RoundMode& roundMode, const uint32_t count,
          const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("Cast", PIPE_V, where);
    detail::CastRun(instruction, detail::CountWork(instruction, detail::kCastLanes<T, U>, count), dst, src, roundMode, UnaryRepeatParams());
}

template <typename T, typename U, bool isSetMask = true>
void Cast(const LocalTensor<T>& dst, const LocalTensor<U>& src, const RoundMode& roundMode, const uint64_t mask, const uint8_t repeatTime,
          const UnaryRepeatParams& repeatParams, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("Cast", PIPE_V, where);
    const detail::Work work = detail::MaskedWork<isSetMask>(instruction, detail::kCastLanes<T, U>, mask, repeatTime);
    detail::CastRun(instruction, work, dst, src, roundMode, repeatParams);
}

template <typename T, typename U, bool isSetMask = true>
void Cast(const LocalTensor<T>& dst, const LocalTensor<U>& src, const RoundMode& roundMode, const uint64_t mask[], const uint8_t repeatTime,
          const UnaryRepeatParams& repeatParams, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("Cast", PIPE_V, where);
    const detail::Work work = detail::MaskedWork<isSetMask>(instruction, detail::kCastLanes<T, U>, mask, repeatTime);
    detail::CastRun(instruction, work, dst, src, roundMode, repeatParams);
}

}  // namespace AscendC

// SPDX-License-Identifier: Apache-2.0
// Elementwise vector instructions: first `count` elements, or repeats of 256 bytes under a mask.
#pragma once

#include "twin/copy.h"

namespace AscendC {

namespace detail {

using twin::Instruction;
using twin::kOneOf;
using twin::Narrow;
using twin::Widen;
using twin::Where;

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

template <typename T>
void Save(uint8_t* address, Wide<T> value) {
    if constexpr (kOneOf<T, half, bfloat16_t>) {
        const T narrow = Narrow<T>(value);
        std::memcpy(address, &narrow, sizeof(T));
    } else {
        std::memcpy(address, &value, sizeof(T));
    }
}

/// Signed integers wrap on the device; here they must not be undefined.
template <typename T, typename F>
auto Wrapping(F f) {
    return [f](T a, T b) {
        if constexpr (std::is_integral_v<T>) return static_cast<T>(f(static_cast<uint64_t>(a), static_cast<uint64_t>(b)));
        else return f(a, b);
    };
}

/// dst may be a source exactly, or lie apart from it.
template <typename D, typename S>
void RequireApart(const Instruction& instruction, const LocalTensor<D>& dst, uint64_t dstBytes, const LocalTensor<S>& src, uint64_t srcBytes,
                  const char* operand) {
    const auto &d = dst.span(), &s = src.span();
    const bool apart = d.memory != s.memory || d.address + dstBytes <= s.address || s.address + srcBytes <= d.address;
    instruction.Require(apart || (d.address == s.address && sizeof(D) == sizeof(S)),
                        "dst (UB byte %u) and %s (UB byte %u) overlap in part", d.address, operand, s.address);
}

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

inline bool Counts(const Instruction& instruction, int64_t count) {
    instruction.Require(count >= 0, "count must not be negative, got %lld", static_cast<long long>(count));
    return count > 0;
}

template <typename T, typename F>
void BinaryCount(const char* name, const LocalTensor<T>& dst, const LocalTensor<T>& a, const LocalTensor<T>& b, int32_t count, F f,
                 const Where& where) {
    Instruction instruction(name, PIPE_V, where);
    if (!Counts(instruction, count)) return;
    const auto n = static_cast<uint32_t>(count);
    RequireApart(instruction, dst, n * sizeof(T), a, n * sizeof(T), "src0");
    RequireApart(instruction, dst, n * sizeof(T), b, n * sizeof(T), "src1");
    const uint8_t *left = Source(instruction, a, n, "src0"), *right = Source(instruction, b, n, "src1");
    uint8_t* target = Target(instruction, dst, n);
    for (uint32_t i = 0; i < n; ++i) Save<T>(target + i * sizeof(T), f(Load<T>(left + i * sizeof(T)), Load<T>(right + i * sizeof(T))));
}

template <typename T, typename F>
void UnaryCount(const char* name, const LocalTensor<T>& dst, const LocalTensor<T>& src, int32_t count, F f, const Where& where) {
    Instruction instruction(name, PIPE_V, where);
    if (!Counts(instruction, count)) return;
    const auto n = static_cast<uint32_t>(count);
    RequireApart(instruction, dst, n * sizeof(T), src, n * sizeof(T), "src");
    const uint8_t* source = Source(instruction, src, n, "src");
    uint8_t* target = Target(instruction, dst, n);
    for (uint32_t i = 0; i < n; ++i) Save<T>(target + i * sizeof(T), f(Load<T>(source + i * sizeof(T))));
}

/// Which lanes of a repeat work: the leading `mask`, or a bitmap.
struct Lanes {
    uint64_t bits[2];
    bool Has(uint32_t lane) const { return (bits[lane / 64] >> lane % 64 & 1u) != 0; }
};

template <typename T>
Lanes LeadingLanes(const Instruction& instruction, uint64_t mask) {
    const uint64_t most = twin::kRepeat / sizeof(T);
    instruction.Require(mask >= 1 && mask <= most, "mask must be 1..%llu for this type, got %llu", static_cast<unsigned long long>(most),
                        static_cast<unsigned long long>(mask));
    const auto ones = [](uint64_t n) { return n >= 64 ? ~uint64_t{0} : (uint64_t{1} << n) - 1; };
    return {{ones(mask), mask > 64 ? ones(mask - 64) : 0}};
}

template <typename T>
Lanes MaskedLanes(const Instruction& instruction, const uint64_t mask[]) {
    instruction.Require(sizeof(T) == 2 || mask[1] == 0, "mask[1] must be 0 for 4-byte types");
    return {{mask[0], sizeof(T) == 2 ? mask[1] : 0}};
}

template <typename T>
int64_t LaneOffset(uint32_t repeat, uint32_t lane, uint32_t repStride, uint32_t blkStride) {
    constexpr uint32_t perBlock = twin::kBlock / sizeof(T);
    return static_cast<int64_t>(repeat) * repStride * twin::kBlock + lane / perBlock * blkStride * twin::kBlock + lane % perBlock * sizeof(T);
}

template <typename T, typename F>
void BinaryRepeat(Instruction& instruction, const LocalTensor<T>& dst, const LocalTensor<T>& a, const LocalTensor<T>& b, const Lanes& lanes,
                  uint8_t repeats, const BinaryRepeatParams& p, F f) {
    instruction.Align(dst.span(), twin::kBlock, "dst");
    instruction.Align(a.span(), twin::kBlock, "src0");
    instruction.Align(b.span(), twin::kBlock, "src1");
    for (uint32_t repeat = 0; repeat < repeats; ++repeat) {
        for (uint32_t lane = 0; lane < twin::kRepeat / sizeof(T); ++lane) {
            if (!lanes.Has(lane)) continue;
            const auto left = Load<T>(instruction.Read(a.span(), LaneOffset<T>(repeat, lane, p.src0RepStride, p.src0BlkStride), sizeof(T), "src0"));
            const auto right = Load<T>(instruction.Read(b.span(), LaneOffset<T>(repeat, lane, p.src1RepStride, p.src1BlkStride), sizeof(T), "src1"));
            Save<T>(instruction.Write(dst.span(), LaneOffset<T>(repeat, lane, p.dstRepStride, p.dstBlkStride), sizeof(T), "dst"), f(left, right));
        }
    }
}

template <typename T, typename F>
void UnaryRepeat(Instruction& instruction, const LocalTensor<T>& dst, const LocalTensor<T>& src, const Lanes& lanes, uint8_t repeats,
                 const UnaryRepeatParams& p, F f) {
    instruction.Align(dst.span(), twin::kBlock, "dst");
    instruction.Align(src.span(), twin::kBlock, "src");
    for (uint32_t repeat = 0; repeat < repeats; ++repeat) {
        for (uint32_t lane = 0; lane < twin::kRepeat / sizeof(T); ++lane) {
            if (!lanes.Has(lane)) continue;
            const auto value = Load<T>(instruction.Read(src.span(), LaneOffset<T>(repeat, lane, p.srcRepStride, p.srcBlkStride), sizeof(T), "src"));
            Save<T>(instruction.Write(dst.span(), LaneOffset<T>(repeat, lane, p.dstRepStride, p.dstBlkStride), sizeof(T), "dst"), f(value));
        }
    }
}

}  // namespace detail

// `types` are those of 2201; `a` and `b` are the operands in the type the operation is computed in.
/// IEEE maximum and minimum are not wrapped to unsigned; a NaN operand gives NaN.
#define TWIN_ORDER(binary, scalar, sign)                                                                                                \
    template <typename T>                                                                                                               \
    void binary(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1, const int32_t& count,                 \
                const twin::Where& where = twin::Where::Here()) {                                                                       \
        static_assert(twin::kOneOf<T, half, float, int16_t, int32_t>, #binary " has no such element type on 2201");                     \
        detail::BinaryCount(#binary, dst, src0, src1, count, [](auto a, auto b) { return a != a || a sign b ? a : b; }, where);          \
    }                                                                                                                                   \
    template <typename T, bool isSetMask = true>                                                                                        \
    void scalar(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalarValue, const int32_t& count,                        \
                const twin::Where& where = twin::Where::Here()) {                                                                       \
        static_assert(twin::kOneOf<T, half, float, int16_t, int32_t>, #scalar " has no such element type on 2201");                     \
        const auto b = detail::Load<T>(reinterpret_cast<const uint8_t*>(&scalarValue));                                                 \
        detail::UnaryCount(#scalar, dst, src, count, [b](auto a) { return a != a || a sign b ? a : b; }, where);                         \
    }

TWIN_ORDER(Max, Maxs, >)
TWIN_ORDER(Min, Mins, <)
#undef TWIN_ORDER

#define TWIN_BINARY(name, expression, ...)                                                                                              \
    template <typename T>                                                                                                               \
    void name(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1, const int32_t& count,                   \
              const twin::Where& where = twin::Where::Here()) {                                                                         \
        static_assert(twin::kOneOf<T, __VA_ARGS__>, #name " has no such element type on 2201");                                         \
        detail::BinaryCount(#name, dst, src0, src1, count,                                                                              \
                            detail::Wrapping<detail::Wide<T>>([](auto a, auto b) { return expression; }), where);                       \
    }                                                                                                                                   \
    template <typename T, bool isSetMask = true>                                                                                        \
    void name(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1, uint64_t mask, const uint8_t repeatTime, \
              const BinaryRepeatParams& repeatParams, const twin::Where& where = twin::Where::Here()) {                                 \
        static_assert(twin::kOneOf<T, __VA_ARGS__>, #name " has no such element type on 2201");                                         \
        twin::Instruction instruction(#name, PIPE_V, where);                                                                            \
        detail::BinaryRepeat(instruction, dst, src0, src1, detail::LeadingLanes<T>(instruction, mask), repeatTime, repeatParams,         \
                             detail::Wrapping<detail::Wide<T>>([](auto a, auto b) { return expression; }));                             \
    }                                                                                                                                   \
    template <typename T, bool isSetMask = true>                                                                                        \
    void name(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1, uint64_t mask[],                        \
              const uint8_t repeatTime, const BinaryRepeatParams& repeatParams, const twin::Where& where = twin::Where::Here()) {        \
        static_assert(twin::kOneOf<T, __VA_ARGS__>, #name " has no such element type on 2201");                                         \
        twin::Instruction instruction(#name, PIPE_V, where);                                                                            \
        detail::BinaryRepeat(instruction, dst, src0, src1, detail::MaskedLanes<T>(instruction, mask), repeatTime, repeatParams,          \
                             detail::Wrapping<detail::Wide<T>>([](auto a, auto b) { return expression; }));                             \
    }

TWIN_BINARY(Add, a + b, half, float, int16_t, int32_t)
TWIN_BINARY(Sub, a - b, half, float, int16_t, int32_t)
TWIN_BINARY(Mul, a * b, half, float, int16_t, int32_t)
TWIN_BINARY(Div, a / b, half, float)
#undef TWIN_BINARY

#define TWIN_SCALAR(name, expression, ...)                                                                                              \
    template <typename T, bool isSetMask = true>                                                                                        \
    void name(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalarValue, const int32_t& count,                          \
              const twin::Where& where = twin::Where::Here()) {                                                                         \
        static_assert(twin::kOneOf<T, __VA_ARGS__>, #name " has no such element type on 2201");                                         \
        const auto scalar = detail::Load<T>(reinterpret_cast<const uint8_t*>(&scalarValue));                                            \
        const auto f = detail::Wrapping<detail::Wide<T>>([](auto a, auto b) { return expression; });                                    \
        detail::UnaryCount(#name, dst, src, count, [&](detail::Wide<T> value) { return f(value, scalar); }, where);                      \
    }                                                                                                                                   \
    template <typename T, bool isSetMask = true>                                                                                        \
    void name(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalarValue, uint64_t mask, const uint8_t repeatTime,        \
              const UnaryRepeatParams& repeatParams, const twin::Where& where = twin::Where::Here()) {                                  \
        static_assert(twin::kOneOf<T, __VA_ARGS__>, #name " has no such element type on 2201");                                         \
        twin::Instruction instruction(#name, PIPE_V, where);                                                                            \
        const auto scalar = detail::Load<T>(reinterpret_cast<const uint8_t*>(&scalarValue));                                            \
        const auto f = detail::Wrapping<detail::Wide<T>>([](auto a, auto b) { return expression; });                                    \
        detail::UnaryRepeat(instruction, dst, src, detail::LeadingLanes<T>(instruction, mask), repeatTime, repeatParams,                 \
                            [&](detail::Wide<T> value) { return f(value, scalar); });                                                   \
    }

TWIN_SCALAR(Adds, a + b, half, float, int16_t, int32_t)
TWIN_SCALAR(Muls, a * b, half, float, int16_t, int32_t)
#undef TWIN_SCALAR

#define TWIN_UNARY(name, expression, ...)                                                                                               \
    template <typename T>                                                                                                               \
    void name(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t& count,                                                \
              const twin::Where& where = twin::Where::Here()) {                                                                         \
        static_assert(twin::kOneOf<T, __VA_ARGS__>, #name " has no such element type on 2201");                                         \
        detail::UnaryCount(#name, dst, src, count, [](auto a) { return expression; }, where);                                           \
    }                                                                                                                                   \
    template <typename T, bool isSetMask = true>                                                                                        \
    void name(const LocalTensor<T>& dst, const LocalTensor<T>& src, uint64_t mask, const uint8_t repeatTime,                             \
              const UnaryRepeatParams& repeatParams, const twin::Where& where = twin::Where::Here()) {                                  \
        static_assert(twin::kOneOf<T, __VA_ARGS__>, #name " has no such element type on 2201");                                         \
        twin::Instruction instruction(#name, PIPE_V, where);                                                                            \
        detail::UnaryRepeat(instruction, dst, src, detail::LeadingLanes<T>(instruction, mask), repeatTime, repeatParams,                 \
                            [](auto a) { return expression; });                                                                         \
    }

TWIN_UNARY(Exp, std::exp(a), half, float)
TWIN_UNARY(Ln, std::log(a), half, float)
TWIN_UNARY(Sqrt, std::sqrt(a), half, float)
TWIN_UNARY(Abs, std::fabs(a), half, float)
#undef TWIN_UNARY

template <typename T, typename U>
void Axpy(const LocalTensor<T>& dst, const LocalTensor<U>& src, const U& scalarValue, const int32_t& count,
          const twin::Where& where = twin::Where::Here()) {
    static_assert(std::is_same_v<T, U> && twin::kOneOf<T, half, float>, "Axpy has no such element types in the twin");
    twin::Instruction instruction("Axpy", PIPE_V, where);
    if (!detail::Counts(instruction, count)) return;
    const auto n = static_cast<uint32_t>(count);
    detail::RequireApart(instruction, dst, n * sizeof(T), src, n * sizeof(T), "src");
    const uint8_t* source = detail::Source(instruction, src, n, "src");
    detail::Source(instruction, dst, n, "dst");
    uint8_t* target = detail::Target(instruction, dst, n);
    const auto scalar = twin::Widen(scalarValue);
    for (uint32_t at = 0; at < n * sizeof(T); at += sizeof(T)) {
        detail::Save<T>(target + at, detail::Load<T>(target + at) + detail::Load<T>(source + at) * scalar);
    }
}

template <typename T>
void Duplicate(const LocalTensor<T>& dst, const T& scalarValue, const int32_t& count, const twin::Where& where = twin::Where::Here()) {
    static_assert(twin::kOneOf<T, half, bfloat16_t, float, int16_t, uint16_t, int32_t, uint32_t>, "Duplicate has no such element type on 2201");
    twin::Instruction instruction("Duplicate", PIPE_V, where);
    if (!detail::Counts(instruction, count)) return;
    uint8_t* target = detail::Target(instruction, dst, static_cast<uint32_t>(count));
    for (int32_t i = 0; i < count; ++i) std::memcpy(target + static_cast<size_t>(i) * sizeof(T), &scalarValue, sizeof(T));
}

namespace detail {

template <typename D, typename S>
constexpr bool CanCast(RoundMode mode) {
    const bool exact = mode == RoundMode::CAST_NONE;
    if constexpr (std::is_same_v<D, float>) return kOneOf<S, half, bfloat16_t, int16_t, int32_t> ? exact || std::is_same_v<S, int32_t> : !exact;
    else if constexpr (std::is_same_v<D, bfloat16_t>) return std::is_same_v<S, float> && !exact && mode != RoundMode::CAST_ODD;
    else return true;
}

template <typename D, typename S>
inline constexpr bool kCastPair =
    (std::is_same_v<S, float> && kOneOf<D, half, bfloat16_t, float, int32_t, int16_t>) ||
    (std::is_same_v<S, half> && kOneOf<D, float, int32_t, int16_t, int8_t, uint8_t>) ||
    (std::is_same_v<S, bfloat16_t> && kOneOf<D, float, int32_t>) || (std::is_same_v<S, int32_t> && kOneOf<D, float, int16_t>) ||
    (std::is_same_v<S, int16_t> && kOneOf<D, float, half>) || (kOneOf<S, int8_t, uint8_t> && std::is_same_v<D, half>);

}  // namespace detail

template <typename T, typename U>
void Cast(const LocalTensor<T>& dst, const LocalTensor<U>& src, const RoundMode& roundMode, const uint32_t count,
          const twin::Where& where = twin::Where::Here()) {
    static_assert(detail::kCastPair<T, U>, "Cast has no such pair of types on 2201");
    twin::Instruction instruction("Cast", PIPE_V, where);
    instruction.Require(detail::CanCast<T, U>(roundMode), "this pair of types has no such rounding mode (%d)", static_cast<int>(roundMode));
    if (!detail::Counts(instruction, count)) return;
    detail::RequireApart(instruction, dst, uint64_t{count} * sizeof(T), src, uint64_t{count} * sizeof(U), "src");
    const uint8_t* source = detail::Source(instruction, src, count, "src");
    uint8_t* target = detail::Target(instruction, dst, count);
    for (uint32_t i = 0; i < count; ++i) {
        const auto value = detail::Load<U>(source + i * sizeof(U));
        T result;
        if constexpr (std::is_integral_v<T>) result = twin::NarrowToInteger<T>(static_cast<double>(value), roundMode);
        else if constexpr (std::is_same_v<T, U>) result = static_cast<T>(twin::RoundToIntegral(value, roundMode));
        else result = twin::Narrow<T>(static_cast<float>(value), roundMode);
        std::memcpy(target + i * sizeof(T), &result, sizeof(T));
    }
}

}  // namespace AscendC

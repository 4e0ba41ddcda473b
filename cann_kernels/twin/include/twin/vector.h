// SPDX-License-Identifier: Apache-2.0
// Elementwise arithmetic: first `count` elements, or repeats of 256 bytes under a mask.
#pragma once

#include <cmath>

#include "twin/elementwise.h"

namespace AscendC {

namespace detail {

template <typename T, typename F>
void Binary(Instruction& instruction, const Work& work, const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,
            const BinaryRepeatParams& p, bool ordered, F f) {
    const bool accumulates = ordered && kOneOf<T, half, float, int32_t> && (p.src1RepStride == 0 || p.dstRepStride == 0);
    Elementwise(instruction, work, accumulates, f, Operand<T>{dst, "dst", p.dstBlkStride, p.dstRepStride},
                Operand<T>{src0, "src0", p.src0BlkStride, p.src0RepStride}, Operand<T>{src1, "src1", p.src1BlkStride, p.src1RepStride});
}

template <typename T, typename F>
void Unary(Instruction& instruction, const Work& work, const LocalTensor<T>& dst, const LocalTensor<T>& src, const UnaryRepeatParams& p, F f) {
    Elementwise(instruction, work, false, f, Operand<T>{dst, "dst", p.dstBlkStride, p.dstRepStride},
                Operand<T>{src, "src", p.srcBlkStride, p.srcRepStride});
}

/// Signed integers wrap on the device; here they must not be undefined.
template <typename T, typename F>
auto Wrapping(F f) {
    return [f](T a, T b) {
        using Unsigned = std::conditional_t<std::is_integral_v<T>, uint32_t, T>;
        return static_cast<T>(f(static_cast<Unsigned>(a), static_cast<Unsigned>(b)));
    };
}

/// IEEE maximum and minimum; a NaN operand gives NaN.
template <typename T>
auto Larger() {
    return [](T a, T b) { return a > b || a != a ? a : b; };
}

template <typename T>
auto Smaller() {
    return [](T a, T b) { return a < b || a != a ? a : b; };
}

/// The scalar operand in the type of the operation.
template <typename T>
Wide<T> WideScalar(const T& value) {
    return Load<T>(reinterpret_cast<const uint8_t*>(&value));
}

/// Rsqrt and Reciprocal of the device are estimates: an error of up to 2^-11, drawn from the seed, keeps kernels from relying on more.
inline auto Estimate(const Instruction& instruction) {
    const auto salt = static_cast<uint32_t>(instruction.core().launch.Random());
    return [salt](float exact) {
        uint32_t hash = (twin::FloatToBits(exact) ^ salt) * 0x9e3779b1u;
        hash = (hash ^ hash >> 15) * 0x85ebca77u;
        return exact * (1.0f + (static_cast<float>(hash >> 8) * 0x1p-23f - 1.0f) * 0x1p-11f);
    };
}

}  // namespace detail

// Each instruction: first `count` elements, repeats under a number of leading lanes, repeats under a bitmap. `f` names a functor of
// the element type; the types are those of 2201.
#define TWIN_BINARY(name, ordered, f, ...)                                                                                              \
    template <typename T>                                                                                                               \
    void name(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1, const int32_t& count,                   \
              const twin::Where& where = twin::Where::Here()) {                                                                         \
        static_assert(twin::kOneOf<T, __VA_ARGS__>, #name " has no such element type on 2201");                                         \
        twin::Instruction instruction(#name, PIPE_V, where);                                                                            \
        detail::Binary(instruction, detail::CountWork(instruction, detail::kLanes<T>, count), dst, src0, src1, BinaryRepeatParams(),     \
                       ordered, f);                                                                                                     \
    }                                                                                                                                   \
    template <typename T, bool isSetMask = true>                                                                                        \
    void name(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1, uint64_t mask, const uint8_t repeatTime, \
              const BinaryRepeatParams& repeatParams, const twin::Where& where = twin::Where::Here()) {                                 \
        static_assert(twin::kOneOf<T, __VA_ARGS__>, #name " has no such element type on 2201");                                         \
        twin::Instruction instruction(#name, PIPE_V, where);                                                                            \
        detail::Binary(instruction, detail::MaskedWork<isSetMask>(instruction, detail::kLanes<T>, mask, repeatTime), dst, src0, src1,    \
                       repeatParams, ordered, f);                                                                                       \
    }                                                                                                                                   \
    template <typename T, bool isSetMask = true>                                                                                        \
    void name(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1, uint64_t mask[],                        \
              const uint8_t repeatTime, const BinaryRepeatParams& repeatParams, const twin::Where& where = twin::Where::Here()) {        \
        static_assert(twin::kOneOf<T, __VA_ARGS__>, #name " has no such element type on 2201");                                         \
        twin::Instruction instruction(#name, PIPE_V, where);                                                                            \
        detail::Binary(instruction, detail::MaskedWork<isSetMask>(instruction, detail::kLanes<T>, mask, repeatTime), dst, src0, src1,    \
                       repeatParams, ordered, f);                                                                                       \
    }

#define TWIN_ARITHMETIC(expression) detail::Wrapping<detail::Wide<T>>([](auto a, auto b) { return expression; })

TWIN_BINARY(Add, true, TWIN_ARITHMETIC(a + b), half, float, int16_t, int32_t)
TWIN_BINARY(Sub, true, TWIN_ARITHMETIC(a - b), half, float, int16_t, int32_t)
TWIN_BINARY(Mul, true, TWIN_ARITHMETIC(a * b), half, float, int16_t, int32_t)
TWIN_BINARY(Div, false, TWIN_ARITHMETIC(a / b), half, float)
TWIN_BINARY(Max, true, detail::Larger<detail::Wide<T>>(), half, float, int16_t, int32_t)
TWIN_BINARY(Min, true, detail::Smaller<detail::Wide<T>>(), half, float, int16_t, int32_t)
TWIN_BINARY(And, false, [](T a, T b) { return static_cast<T>(a & b); }, int16_t, uint16_t)
TWIN_BINARY(Or, false, [](T a, T b) { return static_cast<T>(a | b); }, int16_t, uint16_t)
#undef TWIN_BINARY

#define TWIN_SCALAR(name, f, ...)                                                                                                       \
    template <typename T, bool isSetMask = true>                                                                                        \
    void name(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalarValue, const int32_t& count,                          \
              const twin::Where& where = twin::Where::Here()) {                                                                         \
        static_assert(twin::kOneOf<T, __VA_ARGS__>, #name " has no such element type on 2201");                                         \
        twin::Instruction instruction(#name, PIPE_V, where);                                                                            \
        const auto scalar = detail::WideScalar(scalarValue);                                                                            \
        detail::Unary(instruction, detail::CountWork<isSetMask>(instruction, detail::kLanes<T>, count), dst, src, UnaryRepeatParams(),   \
                      [scalar, g = f](detail::Wide<T> value) { return g(value, scalar); });                                             \
    }                                                                                                                                   \
    template <typename T, bool isSetMask = true>                                                                                        \
    void name(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalarValue, uint64_t mask, const uint8_t repeatTime,        \
              const UnaryRepeatParams& repeatParams, const twin::Where& where = twin::Where::Here()) {                                  \
        static_assert(twin::kOneOf<T, __VA_ARGS__>, #name " has no such element type on 2201");                                         \
        twin::Instruction instruction(#name, PIPE_V, where);                                                                            \
        const auto scalar = detail::WideScalar(scalarValue);                                                                            \
        detail::Unary(instruction, detail::MaskedWork<isSetMask>(instruction, detail::kLanes<T>, mask, repeatTime), dst, src,            \
                      repeatParams, [scalar, g = f](detail::Wide<T> value) { return g(value, scalar); });                               \
    }                                                                                                                                   \
    template <typename T, bool isSetMask = true>                                                                                        \
    void name(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalarValue, uint64_t mask[], const uint8_t repeatTime,      \
              const UnaryRepeatParams& repeatParams, const twin::Where& where = twin::Where::Here()) {                                  \
        static_assert(twin::kOneOf<T, __VA_ARGS__>, #name " has no such element type on 2201");                                         \
        twin::Instruction instruction(#name, PIPE_V, where);                                                                            \
        const auto scalar = detail::WideScalar(scalarValue);                                                                            \
        detail::Unary(instruction, detail::MaskedWork<isSetMask>(instruction, detail::kLanes<T>, mask, repeatTime), dst, src,            \
                      repeatParams, [scalar, g = f](detail::Wide<T> value) { return g(value, scalar); });                               \
    }

TWIN_SCALAR(Adds, TWIN_ARITHMETIC(a + b), half, float, int16_t, int32_t)
TWIN_SCALAR(Muls, TWIN_ARITHMETIC(a * b), half, float, int16_t, int32_t)
TWIN_SCALAR(Maxs, detail::Larger<detail::Wide<T>>(), half, float, int16_t, int32_t)
TWIN_SCALAR(Mins, detail::Smaller<detail::Wide<T>>(), half, float, int16_t, int32_t)
TWIN_SCALAR(LeakyRelu, [](auto a, auto slope) { return a < 0 ? a * slope : a; }, half, float)
#undef TWIN_SCALAR
#undef TWIN_ARITHMETIC

#define TWIN_UNARY(name, f, ...)                                                                                                        \
    template <typename T>                                                                                                               \
    void name(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t& count,                                                \
              const twin::Where& where = twin::Where::Here()) {                                                                         \
        static_assert(twin::kOneOf<T, __VA_ARGS__>, #name " has no such element type on 2201");                                         \
        twin::Instruction instruction(#name, PIPE_V, where);                                                                            \
        detail::Unary(instruction, detail::CountWork(instruction, detail::kLanes<T>, count), dst, src, UnaryRepeatParams(), f);          \
    }                                                                                                                                   \
    template <typename T, bool isSetMask = true>                                                                                        \
    void name(const LocalTensor<T>& dst, const LocalTensor<T>& src, uint64_t mask, const uint8_t repeatTime,                             \
              const UnaryRepeatParams& repeatParams, const twin::Where& where = twin::Where::Here()) {                                  \
        static_assert(twin::kOneOf<T, __VA_ARGS__>, #name " has no such element type on 2201");                                         \
        twin::Instruction instruction(#name, PIPE_V, where);                                                                            \
        detail::Unary(instruction, detail::MaskedWork<isSetMask>(instruction, detail::kLanes<T>, mask, repeatTime), dst, src,            \
                      repeatParams, f);                                                                                                 \
    }                                                                                                                                   \
    template <typename T, bool isSetMask = true>                                                                                        \
    void name(const LocalTensor<T>& dst, const LocalTensor<T>& src, uint64_t mask[], const uint8_t repeatTime,                           \
              const UnaryRepeatParams& repeatParams, const twin::Where& where = twin::Where::Here()) {                                  \
        static_assert(twin::kOneOf<T, __VA_ARGS__>, #name " has no such element type on 2201");                                         \
        twin::Instruction instruction(#name, PIPE_V, where);                                                                            \
        detail::Unary(instruction, detail::MaskedWork<isSetMask>(instruction, detail::kLanes<T>, mask, repeatTime), dst, src,            \
                      repeatParams, f);                                                                                                 \
    }

TWIN_UNARY(Exp, [](float a) { return std::exp(a); }, half, float)
TWIN_UNARY(Ln, [](float a) { return std::log(a); }, half, float)
TWIN_UNARY(Sqrt, [](float a) { return std::sqrt(a); }, half, float)
TWIN_UNARY(Abs, [](float a) { return std::fabs(a); }, half, float)
TWIN_UNARY(Rsqrt, ([estimate = detail::Estimate(instruction)](float a) { return estimate(1.0f / std::sqrt(a)); }), half, float)
TWIN_UNARY(Reciprocal, ([estimate = detail::Estimate(instruction)](float a) { return estimate(1.0f / a); }), half, float)
TWIN_UNARY(Relu, [](auto a) { return a < 0 ? decltype(a){0} : a; }, half, float, int32_t)
TWIN_UNARY(Not, [](T a) { return static_cast<T>(~a); }, int16_t, uint16_t)
#undef TWIN_UNARY

namespace detail {

template <typename T>
inline constexpr bool kShiftType = kOneOf<T, int16_t, uint16_t, int32_t, uint32_t>;

template <typename T>
void RequireShift(const Instruction& instruction, T bits) {
    instruction.Require(bits >= 0 && static_cast<uint64_t>(bits) <= 8 * sizeof(T), "shifts are 0..%zu for this type, got %lld", 8 * sizeof(T),
                        static_cast<long long>(bits));
}

template <typename T>
auto LeftBy(const Instruction& instruction, T bits, bool) {
    RequireShift(instruction, bits);
    return [bits](T a) { return static_cast<T>(static_cast<uint64_t>(a) << bits); };
}

/// Arithmetic for signed types; `rounds` adds the last bit that falls out.
template <typename T>
auto RightBy(const Instruction& instruction, T bits, bool rounds) {
    RequireShift(instruction, bits);
    const int64_t half = rounds && bits > 0 ? int64_t{1} << (bits - 1) : 0;
    return [bits, half](T a) { return static_cast<T>((static_cast<int64_t>(a) + half) >> bits); };
}

}  // namespace detail

#define TWIN_SHIFT(name, f, extra, rounds)                                                                                              \
    template <typename T, bool isSetMask = true>                                                                                        \
    void name(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalarValue, const int32_t& count,                          \
              const twin::Where& where = twin::Where::Here()) {                                                                         \
        static_assert(detail::kShiftType<T>, #name " has no such element type on 2201");                                                \
        twin::Instruction instruction(#name, PIPE_V, where);                                                                            \
        detail::Unary(instruction, detail::CountWork<isSetMask>(instruction, detail::kLanes<T>, count), dst, src, UnaryRepeatParams(),   \
                      f(instruction, scalarValue, false));                                                                              \
    }                                                                                                                                   \
    template <typename T, bool isSetMask = true>                                                                                        \
    void name(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalarValue, uint64_t mask, const uint8_t repeatTime,        \
              const UnaryRepeatParams& repeatParams extra, const twin::Where& where = twin::Where::Here()) {                            \
        static_assert(detail::kShiftType<T>, #name " has no such element type on 2201");                                                \
        twin::Instruction instruction(#name, PIPE_V, where);                                                                            \
        detail::Unary(instruction, detail::MaskedWork<isSetMask>(instruction, detail::kLanes<T>, mask, repeatTime), dst, src,            \
                      repeatParams, f(instruction, scalarValue, rounds));                                                               \
    }                                                                                                                                   \
    template <typename T, bool isSetMask = true>                                                                                        \
    void name(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalarValue, uint64_t mask[], const uint8_t repeatTime,      \
              const UnaryRepeatParams& repeatParams extra, const twin::Where& where = twin::Where::Here()) {                            \
        static_assert(detail::kShiftType<T>, #name " has no such element type on 2201");                                                \
        twin::Instruction instruction(#name, PIPE_V, where);                                                                            \
        detail::Unary(instruction, detail::MaskedWork<isSetMask>(instruction, detail::kLanes<T>, mask, repeatTime), dst, src,            \
                      repeatParams, f(instruction, scalarValue, rounds));                                                               \
    }

#define TWIN_ROUND_EN , bool roundEn = false
TWIN_SHIFT(ShiftLeft, detail::LeftBy, , false)
TWIN_SHIFT(ShiftRight, detail::RightBy, TWIN_ROUND_EN, roundEn)
#undef TWIN_ROUND_EN
#undef TWIN_SHIFT

namespace detail {

/// Sources in half may feed a destination in float.
template <typename T, typename U>
inline constexpr bool kMulAddTypes = kOneOf<U, half, float> && (std::is_same_v<T, U> || (std::is_same_v<T, float> && std::is_same_v<U, half>));

/// old + a * b with two roundings, each to the destination's type.
template <typename T>
auto MulAdd() {
    return [](float a, float b, float old) { return old + Widen(Narrow<T>(a * b)); };
}

template <typename T, typename U>
void AxpyRun(Instruction& instruction, const Work& work, const LocalTensor<T>& dst, const LocalTensor<U>& src, U scalar, const UnaryRepeatParams& p) {
    static_assert(kMulAddTypes<T, U>, "Axpy has no such element types on 2201");
    const float b = WideScalar(scalar);
    Elementwise(instruction, work, false, [b, f = MulAdd<T>()](float a, float old) { return f(a, b, old); },
                Operand<T>{dst, "dst", p.dstBlkStride, p.dstRepStride}, Operand<U>{src, "src", p.srcBlkStride, p.srcRepStride},
                Operand<T>{dst, "dst", p.dstBlkStride, p.dstRepStride});
}

template <typename T, typename U>
void MulAddDstRun(Instruction& instruction, const Work& work, const LocalTensor<T>& dst, const LocalTensor<U>& src0, const LocalTensor<U>& src1,
                  const BinaryRepeatParams& p) {
    static_assert(kMulAddTypes<T, U>, "MulAddDst has no such element types on 2201");
    Elementwise(instruction, work, false, MulAdd<T>(), Operand<T>{dst, "dst", p.dstBlkStride, p.dstRepStride},
                Operand<U>{src0, "src0", p.src0BlkStride, p.src0RepStride}, Operand<U>{src1, "src1", p.src1BlkStride, p.src1RepStride},
                Operand<T>{dst, "dst", p.dstBlkStride, p.dstRepStride});
}

}  // namespace detail

/// dst += src * scalarValue
template <typename T, typename U>
void Axpy(const LocalTensor<T>& dst, const LocalTensor<U>& src, const U& scalarValue, const int32_t& count,
          const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("Axpy", PIPE_V, where);
    detail::AxpyRun(instruction, detail::CountWork(instruction, detail::kLanes<T>, count), dst, src, scalarValue, UnaryRepeatParams());
}

template <typename T, typename U, bool isSetMask = true>
void Axpy(const LocalTensor<T>& dst, const LocalTensor<U>& src, const U& scalarValue, uint64_t mask, const uint8_t repeatTime,
          const UnaryRepeatParams& repeatParams, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("Axpy", PIPE_V, where);
    detail::AxpyRun(instruction, detail::MaskedWork<isSetMask>(instruction, detail::kLanes<T>, mask, repeatTime), dst, src, scalarValue, repeatParams);
}

template <typename T, typename U, bool isSetMask = true>
void Axpy(const LocalTensor<T>& dst, const LocalTensor<U>& src, const U& scalarValue, uint64_t mask[], const uint8_t repeatTime,
          const UnaryRepeatParams& repeatParams, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("Axpy", PIPE_V, where);
    detail::AxpyRun(instruction, detail::MaskedWork<isSetMask>(instruction, detail::kLanes<T>, mask, repeatTime), dst, src, scalarValue, repeatParams);
}

/// dst += src0 * src1
template <typename T, typename U>
void MulAddDst(const LocalTensor<T>& dst, const LocalTensor<U>& src0, const LocalTensor<U>& src1, const int32_t& count,
               const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("MulAddDst", PIPE_V, where);
    detail::MulAddDstRun(instruction, detail::CountWork(instruction, detail::kLanes<T>, count), dst, src0, src1, BinaryRepeatParams());
}

template <typename T, typename U, bool isSetMask = true>
void MulAddDst(const LocalTensor<T>& dst, const LocalTensor<U>& src0, const LocalTensor<U>& src1, uint64_t mask, const uint8_t repeatTime,
               const BinaryRepeatParams& repeatParams, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("MulAddDst", PIPE_V, where);
    detail::MulAddDstRun(instruction, detail::MaskedWork<isSetMask>(instruction, detail::kLanes<T>, mask, repeatTime), dst, src0, src1, repeatParams);
}

template <typename T, typename U, bool isSetMask = true>
void MulAddDst(const LocalTensor<T>& dst, const LocalTensor<U>& src0, const LocalTensor<U>& src1, const uint64_t mask[], const uint8_t repeatTime,
               const BinaryRepeatParams& repeatParams, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("MulAddDst", PIPE_V, where);
    detail::MulAddDstRun(instruction, detail::MaskedWork<isSetMask>(instruction, detail::kLanes<T>, mask, repeatTime), dst, src0, src1, repeatParams);
}

}  // namespace AscendC

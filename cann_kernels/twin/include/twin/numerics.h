// SPDX-License-Identifier: Apache-2.0
// Conversions. 16-bit floats are rounded once, from the float that the operation gives.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "twin/types.h"

namespace twin {

using AscendC::RoundMode;

/// Whether a magnitude whose low bits are dropped goes up. `half` is half of the last kept bit.
inline bool RoundsUp(RoundMode mode, bool negative, bool odd, uint32_t low, uint32_t half) {
    switch (mode) {
        case RoundMode::CAST_NONE:
        case RoundMode::CAST_RINT: return low > half || (low == half && odd);
        case RoundMode::CAST_ROUND: return low >= half;
        case RoundMode::CAST_FLOOR: return negative && low != 0;
        case RoundMode::CAST_CEIL: return !negative && low != 0;
        case RoundMode::CAST_ODD: return !odd && low != 0;
        default: return false;
    }
}

inline uint16_t NarrowToBfloat16(float value, RoundMode mode = RoundMode::CAST_RINT) {
    const uint32_t bits = FloatToBits(value);
    if (std::isnan(value)) return static_cast<uint16_t>(bits >> 16 | 0x40u);
    if (mode == RoundMode::CAST_RINT) return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
    if (std::isinf(value)) return static_cast<uint16_t>(bits >> 16);
    const bool up = RoundsUp(mode, bits >> 31 != 0, (bits >> 16 & 1u) != 0, bits & 0xffffu, 0x8000u);
    return static_cast<uint16_t>((bits >> 16) + (up ? 1u : 0u));
}

inline uint16_t NarrowToHalf(float value, RoundMode mode = RoundMode::CAST_RINT) {
    const uint32_t bits = FloatToBits(value), magnitude = bits & 0x7fffffffu;
    const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
    if (magnitude > 0x7f800000u) return sign | 0x7e00u;
    if (magnitude == 0x7f800000u) return sign | 0x7c00u;
    const int exponent = static_cast<int>(magnitude >> 23) - 127;
    if (exponent > 15) return sign | (RoundsUp(mode, sign != 0, true, 3, 2) ? 0x7c00u : 0x7bffu);
    const uint32_t fraction = magnitude >> 23 == 0 ? 0 : (magnitude & 0x7fffffu) | 0x800000u;
    const int shift = exponent >= -14 ? 13 : std::min(13 - 14 - exponent, 26);
    const uint32_t low = fraction & ((1u << shift) - 1u), kept = fraction >> shift;
    uint32_t result = exponent >= -14 ? (static_cast<uint32_t>(exponent + 14) << 10) + kept : kept;
    if (fraction == 0 && magnitude != 0) return sign | (RoundsUp(mode, sign != 0, false, 1, 2) ? 1u : 0u);
    if (RoundsUp(mode, sign != 0, (kept & 1u) != 0, low, 1u << (shift - 1))) ++result;
    return static_cast<uint16_t>(sign | result);
}

inline double RoundToIntegral(double value, RoundMode mode) {
    switch (mode) {
        case RoundMode::CAST_FLOOR: return std::floor(value);
        case RoundMode::CAST_CEIL: return std::ceil(value);
        case RoundMode::CAST_ROUND: return std::round(value);
        case RoundMode::CAST_TRUNC: return std::trunc(value);
        case RoundMode::CAST_ODD: {
            const double down = std::floor(value);
            return down == value || std::fmod(down, 2.0) != 0.0 ? down : down + 1.0;
        }
        default: return std::nearbyint(value);
    }
}

/// Saturates; NaN becomes 0.
template <typename T>
T NarrowToInteger(double value, RoundMode mode) {
    if (std::isnan(value)) return 0;
    const double rounded = RoundToIntegral(value, mode);
    if (rounded <= static_cast<double>(std::numeric_limits<T>::min())) return std::numeric_limits<T>::min();
    if (rounded >= static_cast<double>(std::numeric_limits<T>::max())) return std::numeric_limits<T>::max();
    return static_cast<T>(rounded);
}

/// An integer as a float, rounded in the direction of `mode`.
inline float NarrowToFloat(int64_t value, RoundMode mode) {
    const auto nearest = static_cast<float>(value);
    const auto exact = static_cast<long double>(value), found = static_cast<long double>(nearest);
    if (found == exact) return nearest;
    const float infinity = std::numeric_limits<float>::infinity();
    const float other = std::nextafter(nearest, found > exact ? -infinity : infinity);
    const float low = std::min(nearest, other), high = std::max(nearest, other);
    switch (mode) {
        case RoundMode::CAST_FLOOR: return low;
        case RoundMode::CAST_CEIL: return high;
        case RoundMode::CAST_TRUNC: return value < 0 ? high : low;
        case RoundMode::CAST_ROUND: return exact - low == high - exact ? (value < 0 ? low : high) : nearest;
        default: return nearest;
    }
}

template <typename T>
T Narrow(float value, RoundMode mode = RoundMode::CAST_RINT) {
    if constexpr (kOneOf<T, half, bfloat16_t>) {
        const uint16_t bits = std::is_same_v<T, half> ? NarrowToHalf(value, mode) : NarrowToBfloat16(value, mode);
        T result;
        std::memcpy(&result, &bits, sizeof(result));
        return result;
    } else {
        return value;
    }
}

}  // namespace twin

#ifndef TWIN_ADDRESS_SPACES
inline half::half(float value) : bits(twin::NarrowToHalf(value)) {}
#endif

// SPDX-License-Identifier: Apache-2.0
// Scalar types, keywords, enums and parameter structs of the API subset. Field names are those of the device headers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define __aicore__
#define __global__
#define __vector__
#define __cube__
#define GM_ADDR __gm__ uint8_t*
#define KERNEL_TASK_TYPE_DEFAULT(type)
#ifdef TWIN_ADDRESS_SPACES  // the syntax check: one kind of core at a time, qualifiers and 16-bit floats of the compiler
#ifdef __DAV_VEC__
#define ASCEND_IS_AIV constexpr(true)
#define ASCEND_IS_AIC constexpr(false)
#else
#define ASCEND_IS_AIV constexpr(false)
#define ASCEND_IS_AIC constexpr(true)
#endif
#else
#define __gm__
#define __ubuf__
#define __cbuf__
#define __ca__
#define __cb__
#define __cc__
#define __fbuf__
#define __biasbuf__
// The twin compiles a kernel once for both kinds of core, so what is `if constexpr` on the device is a plain `if` here.
#define ASCEND_IS_AIV (::twin::OnVectorCore())
#define ASCEND_IS_AIC (!::twin::OnVectorCore())
#endif

namespace twin {

bool OnVectorCore();

inline float BitsToFloat(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

inline uint32_t FloatToBits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return bits;
}

/// Where in the kernel source a call stands. The last, defaulted parameter of every instruction.
struct Where {
    const char* file;
    int line;
    static constexpr Where Here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

template <typename T, typename... Allowed>
inline constexpr bool kOneOf = (std::is_same_v<T, Allowed> || ...);

}  // namespace twin

#ifdef TWIN_ADDRESS_SPACES
using half = _Float16;
using bfloat16_t = __bf16;
#else
/// Storage only: arithmetic on a 16-bit float in scalar code does not compile, as it must not on the device.
struct half {
    uint16_t bits;
    half() = default;
    explicit half(float value);
    explicit operator float() const;
};

struct bfloat16_t {
    uint16_t bits;
};
#endif

enum pipe_t { PIPE_S, PIPE_V, PIPE_MTE1, PIPE_MTE2, PIPE_MTE3, PIPE_M, PIPE_FIX, PIPE_ALL };
enum event_t { EVENT_ID0, EVENT_ID1, EVENT_ID2, EVENT_ID3, EVENT_ID4, EVENT_ID5, EVENT_ID6, EVENT_ID7 };

namespace AscendC {

enum class TPosition : uint8_t { GM, A1, A2, B1, B2, C1, C2, CO1, CO2, VECIN, VECOUT, VECCALC, LCM };
using QuePosition = TPosition;
using TEventID = int8_t;

enum class HardEvent : uint8_t { MTE2_MTE1, MTE1_MTE2, MTE1_M, M_MTE1, MTE2_V, V_MTE2, MTE3_V, V_MTE3, V_V, M_FIX, FIX_M, MTE3_MTE2,
    MTE2_MTE3, S_V, V_S, S_MTE2, MTE2_S, S_MTE3, MTE3_S, MTE2_FIX, FIX_MTE2, FIX_S, M_S, MAX };

enum class RoundMode : uint8_t { CAST_NONE, CAST_RINT, CAST_FLOOR, CAST_CEIL, CAST_ROUND, CAST_TRUNC, CAST_ODD };

enum class CMPMODE : uint8_t { LT, GT, EQ, LE, GE, NE };
enum class SELMODE : uint8_t { VSEL_CMPMASK_SPR, VSEL_TENSOR_SCALAR_MODE, VSEL_TENSOR_TENSOR_MODE };

struct BinaryRepeatParams {
    BinaryRepeatParams() = default;
    BinaryRepeatParams(uint8_t dstBlk, uint8_t src0Blk, uint8_t src1Blk, uint8_t dstRep, uint8_t src0Rep, uint8_t src1Rep)
        : dstBlkStride(dstBlk), src0BlkStride(src0Blk), src1BlkStride(src1Blk), dstRepStride(dstRep), src0RepStride(src0Rep),
          src1RepStride(src1Rep) {}
    uint8_t dstBlkStride = 1, src0BlkStride = 1, src1BlkStride = 1, dstRepStride = 8, src0RepStride = 8, src1RepStride = 8;
};

struct UnaryRepeatParams {
    UnaryRepeatParams() = default;
    UnaryRepeatParams(uint16_t dstBlk, uint16_t srcBlk, uint8_t dstRep, uint8_t srcRep)
        : dstBlkStride(dstBlk), srcBlkStride(srcBlk), dstRepStride(dstRep), srcRepStride(srcRep) {}
    uint16_t dstBlkStride = 1, srcBlkStride = 1;
    uint8_t dstRepStride = 8, srcRepStride = 8;
};

struct BrcbRepeatParams {
    BrcbRepeatParams() = default;
    BrcbRepeatParams(uint16_t dstBlk, uint16_t dstRep) : dstRepStride(dstRep), dstBlkStride(dstBlk) {}
    uint16_t dstRepStride = 8, dstBlkStride = 1;
};

struct DataCopyParams {
    DataCopyParams() = default;
    DataCopyParams(uint16_t count, uint16_t len, uint16_t src, uint16_t dst)
        : blockCount(count), blockLen(len), srcStride(src), dstStride(dst) {}
    uint16_t blockCount = 1, blockLen = 0, srcStride = 0, dstStride = 0;
};

struct DataCopyExtParams {
    DataCopyExtParams() = default;
    DataCopyExtParams(uint16_t count, uint32_t len, uint32_t src, uint32_t dst, uint32_t reserved)
        : blockCount(count), blockLen(len), srcStride(src), dstStride(dst), rsv(reserved) {}
    uint16_t blockCount = 1;
    uint32_t blockLen = 0, srcStride = 0, dstStride = 0, rsv = 0;
};

template <typename T>
struct DataCopyPadExtParams {
    DataCopyPadExtParams() = default;
    DataCopyPadExtParams(bool pad, uint8_t left, uint8_t right, T value)
        : isPad(pad), leftPadding(left), rightPadding(right), paddingValue(value) {}
    bool isPad = false;
    uint8_t leftPadding = 0, rightPadding = 0;
    T paddingValue{};
};

template <typename A, typename B>
struct IsSameType {
    static constexpr bool value = std::is_same_v<A, B>;
};

}  // namespace AscendC

#ifdef TWIN_ADDRESS_SPACES
namespace twin {

inline float Widen(float value) { return value; }
inline float Widen(half value) { return static_cast<float>(value); }
inline float Widen(bfloat16_t value) { return static_cast<float>(value); }

}  // namespace twin
#else
inline half::operator float() const {
    const uint32_t sign = static_cast<uint32_t>(bits >> 15) << 31, exponent = (bits >> 10) & 31u, fraction = bits & 1023u;
    if (exponent == 31) return twin::BitsToFloat(sign | 0x7f800000u | fraction << 13);
    if (exponent != 0) return twin::BitsToFloat(sign | (exponent + 112) << 23 | fraction << 13);
    const float tiny = static_cast<float>(fraction) * 0x1p-24f;
    return sign != 0 ? -tiny : tiny;
}

namespace twin {

inline float Widen(float value) { return value; }
inline float Widen(half value) { return static_cast<float>(value); }
inline float Widen(bfloat16_t value) { return BitsToFloat(static_cast<uint32_t>(value.bits) << 16); }

}  // namespace twin
#endif

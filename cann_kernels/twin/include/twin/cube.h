// SPDX-License-Identifier: Apache-2.0
// The cube core: fractals from global memory through L1, L0A and L0B to L0C and back.
//
// A fractal is 16 rows of 32 bytes. L1 holds columns of fractals (NZ), L0A rows of fractals (ZZ), L0B rows of fractals whose
// columns lie together (ZN), L0C columns of 16 x 16 accumulators (NZ). Bytes that nobody wrote travel as poison until a
// product needs them.
#pragma once

#include "twin/control.h"
#include "twin/copy.h"
#include "twin/cube_types.h"

namespace twin {

constexpr uint32_t kFractal = 512;  // bytes
constexpr uint32_t kRows = 16;      // of a fractal

/// c[n/16][rows][16] (+)= a[m][k] * b[n/16][k][16] in blocks of 16 along k, each summed by itself. k is a multiple of 16.
void MultiplyBlocks(const float* a, const float* b, float* c, uint32_t m, uint32_t rows, uint32_t n, uint32_t k, bool clear);
void MultiplyBlocks(const int32_t* a, const int32_t* b, int32_t* c, uint32_t m, uint32_t rows, uint32_t n, uint32_t k, bool clear);

}  // namespace twin

namespace AscendC {

namespace detail {

using twin::Format;
using twin::kFractal;
using twin::kRows;
using twin::Memory;

/// Elements in 32 bytes: the width of a fractal.
template <typename T>
inline constexpr uint32_t kC0 = twin::kBlock / sizeof(T);

constexpr uint32_t Ceil(uint32_t value, uint32_t unit) { return (value + unit - 1) / unit * unit; }

template <typename T>
void RequireMemory(const twin::Instruction& instruction, const LocalTensor<T>& tensor, Memory memory, uint32_t align, const char* operand) {
    instruction.Require(tensor.span().memory == memory, "%s lies in %s, must lie in %s", operand, twin::Name(tensor.span().memory),
                        twin::Name(memory));
    instruction.Align(tensor.span(), align, operand);
}

template <typename T>
void RequireL0(const twin::Instruction& instruction, const LocalTensor<T>& tensor) {
    const Memory memory = tensor.span().memory;
    instruction.Require(memory == Memory::kL0a || memory == Memory::kL0b, "dst lies in %s, must lie in L0A or L0B", twin::Name(memory));
    instruction.Align(tensor.span(), kFractal, "dst");
}

/// Copies bytes and which of them were ever written.
template <typename T>
void Carry(twin::Instruction& instruction, const LocalTensor<T>& dst, int64_t to, const LocalTensor<T>& src, int64_t from, uint32_t bytes) {
    const twin::Peeked source = instruction.Peek(src.span(), from, bytes, "src");
    std::memcpy(instruction.Write(dst.span(), to, bytes, "dst"), source.data, bytes);
    std::memcpy(instruction.WrittenMap(dst.span(), to), source.written, bytes);
}

/// Transposes a square of `side` elements made of consecutive fractals and stores it as fractals `gap` bytes apart.
template <typename T>
void CarryTransposed(twin::Instruction& instruction, const LocalTensor<T>& dst, int64_t to, uint32_t gap, const LocalTensor<T>& src,
                     int64_t from) {
    constexpr uint32_t c0 = kC0<T>, side = c0 > kRows ? c0 : kRows, fractals = side * side * sizeof(T) / kFractal;
    const twin::Peeked source = instruction.Peek(src.span(), from, fractals * kFractal, "src");
    // Fractals of a square lie beside one another for 4-byte types and below one another for the others.
    const auto place = [](uint32_t row, uint32_t column) { return (column / c0 * kRows + row) * c0 + column % c0; };
    for (uint32_t f = 0; f < fractals; ++f) {
        uint8_t* target = instruction.Write(dst.span(), to + f * static_cast<int64_t>(kFractal + gap), kFractal, "dst");
        uint8_t* written = instruction.WrittenMap(dst.span(), to + f * static_cast<int64_t>(kFractal + gap));
        for (uint32_t i = 0; i < kFractal / sizeof(T); ++i) {
            const uint32_t row = c0 < kRows ? i / c0 : f * kRows + i / c0, column = c0 < kRows ? f * c0 + i % c0 : i % c0;
            const uint32_t at = (c0 > kRows ? column * c0 + row : place(column, row)) * sizeof(T);
            std::memcpy(target + i * sizeof(T), source.data + at, sizeof(T));
            std::memcpy(written + i * sizeof(T), source.written + at, sizeof(T));
        }
    }
}

/// An element in the type that products are summed in.
template <typename T>
auto Number(const uint8_t* address) {
    T value;
    std::memcpy(&value, address, sizeof(T));
    if constexpr (std::is_integral_v<T>) return static_cast<int32_t>(value);
    else return twin::Widen(value);
}

/// Fails when a lane that takes part in the product was never written. Lines are rows of A or columns of B.
template <typename T>
void RequireWritten(const twin::Instruction& instruction, const uint8_t* written, uint32_t lines, uint32_t depth, uint32_t k, uint32_t lineStride,
                    uint32_t groupStride, uint32_t kStride, uint32_t bytes, const char* operand, const char* line) {
    if (std::memchr(written, 0, bytes) == nullptr) return;
    for (uint32_t i = 0; i < lines; ++i) {
        for (uint32_t block = 0; block < depth; block += kC0<T>) {
            const uint8_t* lanes = written + i / kRows * groupStride + i % kRows * lineStride + block / kC0<T> * kStride;
            const void* hole = std::memchr(lanes, 0, twin::kBlock);
            if (hole == nullptr) continue;
            const uint32_t at = block + static_cast<uint32_t>(static_cast<const uint8_t*>(hole) - lanes) / sizeof(T);
            instruction.Fail(Format("%s reads poison: %s %u, k %u was never written%s", operand, line, i, at,
                                    at >= k ? "; it is padding of k, which the cube multiplies too: fill it with zeros" : ""));
        }
    }
}

template <typename Number>
std::vector<Number>& Scratch(uint32_t which) {
    thread_local std::vector<Number> buffers[2];
    return buffers[which];
}

/// L0A to a[m16][k16] and L0B to b[n/16][k16][16]; what pads k to a multiple of 16 is 0.
template <typename T, typename N>
void Unpack(const uint8_t* left, const uint8_t* right, uint32_t rows, uint32_t columns, uint32_t depth, uint32_t k16) {
    constexpr uint32_t c0 = kC0<T>;
    std::vector<N> &a = Scratch<N>(0), &b = Scratch<N>(1);
    a.assign(static_cast<size_t>(rows) * k16, N{});
    b.assign(static_cast<size_t>(columns) * k16, N{});
    for (uint32_t row = 0; row < rows; ++row) {
        for (uint32_t k = 0; k < depth; k += c0) {
            const uint8_t* lane = left + (row / kRows * (depth / c0) + k / c0) * kFractal + row % kRows * twin::kBlock;
            for (uint32_t i = 0; i < c0; ++i) a[static_cast<size_t>(row) * k16 + k + i] = Number<T>(lane + i * sizeof(T));
        }
    }
    for (uint32_t k = 0; k < depth; k += c0) {
        for (uint32_t column = 0; column < columns; ++column) {
            const uint8_t* lane = right + (k / c0 * (columns / kRows) + column / kRows) * kFractal + column % kRows * twin::kBlock;
            N* target = b.data() + (static_cast<size_t>(column / kRows) * k16 + k) * kRows + column % kRows;
            for (uint32_t i = 0; i < c0; ++i) target[i * kRows] = Number<T>(lane + i * sizeof(T));
        }
    }
}

}  // namespace detail

/// Rows of a matrix in global memory to columns of fractals in L1. Columns are padded with zeros to 32 bytes, rows are not.
template <typename T>
void DataCopy(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const Nd2NzParams& p, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("DataCopy(Nd2Nz)", PIPE_MTE2, where);
    detail::RequireMemory(instruction, dst, twin::Memory::kL1, twin::kBlock, "dst");
    instruction.Require(p.ndNum <= 4095, "ndNum must be at most 4095, got %u", p.ndNum);
    instruction.Require(p.nValue <= 16384, "nValue must be at most 16384, got %u", p.nValue);
    if (p.ndNum == 0 || p.nValue == 0 || p.dValue == 0) return;
    instruction.Require(p.dValue <= 65535, "dValue must be at most 65535, got %u", p.dValue);
    instruction.Require(p.srcDValue >= 1 && p.srcDValue <= 65535, "srcDValue must be 1..65535, got %u", p.srcDValue);
    instruction.Require(p.ndNum == 1 || (p.srcNdMatrixStride <= 65535 && p.dstNzMatrixStride <= 16384),
                        "srcNdMatrixStride must be at most 65535 and dstNzMatrixStride at most 16384, got %u and %u", p.srcNdMatrixStride,
                        p.dstNzMatrixStride);
    instruction.Require(p.dstNzC0Stride >= 1 && p.dstNzC0Stride <= 16384, "dstNzC0Stride must be 1..16384, got %u", p.dstNzC0Stride);
    instruction.Require(p.dstNzNStride >= 1 && p.dstNzNStride <= 16384, "dstNzNStride must be 1..16384, got %u", p.dstNzNStride);
    constexpr uint32_t c0 = detail::kC0<T>;
    for (uint32_t nd = 0; nd < p.ndNum; ++nd) {
        const uint8_t* from = detail::Bytes(src) + static_cast<size_t>(nd) * p.srcNdMatrixStride * sizeof(T);
        const int64_t matrix = static_cast<int64_t>(nd) * p.dstNzMatrixStride * static_cast<int64_t>(sizeof(T));
        for (uint32_t row = 0; row < p.nValue; ++row) instruction.ReadGm(from + static_cast<size_t>(row) * p.srcDValue * sizeof(T), p.dValue * sizeof(T), "src");
        for (uint32_t column = 0; column < p.dValue; column += c0) {
            const uint32_t bytes = std::min(c0, p.dValue - column) * static_cast<uint32_t>(sizeof(T));
            const int64_t to = matrix + static_cast<int64_t>(column / c0) * p.dstNzC0Stride * twin::kBlock;
            uint8_t* together = p.dstNzNStride == 1 ? instruction.Write(dst.span(), to, p.nValue * twin::kBlock, "dst") : nullptr;
            for (uint32_t row = 0; row < p.nValue; ++row) {
                uint8_t* target = together != nullptr ? together + row * twin::kBlock
                    : instruction.Write(dst.span(), to + static_cast<int64_t>(row) * p.dstNzNStride * twin::kBlock, twin::kBlock, "dst");
                std::memcpy(target, from + (static_cast<size_t>(row) * p.srcDValue + column) * sizeof(T), bytes);
                std::memset(target + bytes, 0, twin::kBlock - bytes);
            }
        }
    }
}

/// Fractals from L1 to L0A or L0B, each transposed if asked for.
template <typename T>
void LoadData(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LoadData2DParams& p, const twin::Where& where = twin::Where::Here()) {
    static_assert(twin::kOneOf<T, int8_t, uint8_t, int16_t, uint16_t, half, bfloat16_t, int32_t, uint32_t, float>,
                  "LoadData has no such element type on 2201");
    twin::Instruction instruction("LoadData", PIPE_MTE1, where);
    detail::RequireL0(instruction, dst);
    detail::RequireMemory(instruction, src, twin::Memory::kL1, twin::kBlock, "src");
    instruction.Require(p.sid == 0 && p.addrMode == 0, "sid and addrMode must be 0");
    instruction.Require(!p.ifTranspose || sizeof(T) == 2, "ifTranspose takes 2-byte types only; use LoadDataWithTranspose");
    const bool together = !p.ifTranspose && p.srcStride == 1 && p.dstGap == 0;
    if (together && p.repeatTimes != 0) {
        detail::Carry(instruction, dst, 0, src, int64_t{p.startIndex} * twin::kFractal, p.repeatTimes * twin::kFractal);
    }
    for (uint32_t i = 0; !together && i < p.repeatTimes; ++i) {
        const int64_t from = (p.startIndex + static_cast<int64_t>(i) * p.srcStride) * twin::kFractal;
        const int64_t to = static_cast<int64_t>(i) * (p.dstGap + 1) * twin::kFractal;
        if constexpr (sizeof(T) == 2) {
            if (p.ifTranspose) {
                detail::CarryTransposed(instruction, dst, to, 0, src, from);
                continue;
            }
        }
        detail::Carry(instruction, dst, to, src, from, twin::kFractal);
    }
}

/// Squares of fractals (one for 2-byte types, else two) from L1 to L0A or L0B, transposed.
template <typename T>
void LoadDataWithTranspose(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LoadData2dTransposeParams& p,
                           const twin::Where& where = twin::Where::Here()) {
    static_assert(twin::kOneOf<T, int8_t, uint8_t, half, bfloat16_t, int32_t, uint32_t, float>,
                  "LoadDataWithTranspose has no such element type on 2201");
    twin::Instruction instruction("LoadDataWithTranspose", PIPE_MTE1, where);
    detail::RequireL0(instruction, dst);
    detail::RequireMemory(instruction, src, twin::Memory::kL1, twin::kBlock, "src");
    instruction.Require(p.addrMode == 0, "addrMode must be 0");
    constexpr int64_t square = sizeof(T) == 2 ? twin::kFractal : 2 * twin::kFractal;
    for (uint32_t i = 0; i < p.repeatTimes; ++i) {
        detail::CarryTransposed(instruction, dst, static_cast<int64_t>(i) * (p.dstGap + 1) * twin::kFractal, p.dstFracGap * twin::kFractal,
                                src, (p.startIndex + static_cast<int64_t>(i) * p.srcStride) * square);
    }
}

/// Sets blocks of 32 bytes (L1) or 512 bytes (L0A, L0B).
template <typename T>
void Fill(const LocalTensor<T>& dst, const InitConstValueParams<T>& p, const twin::Where& where = twin::Where::Here()) {
    static_assert(twin::kOneOf<T, int16_t, uint16_t, half, bfloat16_t, int32_t, uint32_t, float>, "Fill has no such element type on 2201");
    const bool l1 = dst.span().memory == twin::Memory::kL1;
    twin::Instruction instruction("Fill", l1 ? PIPE_MTE2 : PIPE_MTE1, where);
    if (!l1) detail::RequireL0(instruction, dst);
    const uint32_t unit = l1 ? twin::kBlock : twin::kFractal, bytes = p.blockNum * unit;
    instruction.Align(dst.span(), unit, "dst");
    instruction.Require(p.repeatTimes <= 32767 && p.blockNum <= 32767 && p.dstGap <= 32767,
                        "repeatTimes, blockNum and dstGap must be at most 32767");
    for (uint32_t i = 0; bytes != 0 && i < p.repeatTimes; ++i) {
        uint8_t* target = instruction.Write(dst.span(), static_cast<int64_t>(i) * (bytes + p.dstGap * unit), bytes, "dst");
        for (uint32_t at = 0; at < bytes; at += sizeof(T)) std::memcpy(target + at, &p.initValue, sizeof(T));
    }
}

/// C (+)= A B. float sums in blocks of 16 along k; the order of the device's additions is not known.
template <typename C, typename T>
void Mmad(const LocalTensor<C>& dst, const LocalTensor<T>& fm, const LocalTensor<T>& filter, const MmadParams& p,
          const twin::Where& where = twin::Where::Here()) {
    static_assert((twin::kOneOf<T, half, bfloat16_t, float> && std::is_same_v<C, float>) || (std::is_same_v<T, int8_t> && std::is_same_v<C, int32_t>),
                  "Mmad has no such element types on 2201");
    twin::Instruction instruction("Mmad", PIPE_M, where);
    detail::RequireMemory(instruction, dst, twin::Memory::kL0c, 1024, "dst");
    detail::RequireMemory(instruction, fm, twin::Memory::kL0a, twin::kFractal, "fm");
    detail::RequireMemory(instruction, filter, twin::Memory::kL0b, twin::kFractal, "filter");
    instruction.Require(p.m <= 4095 && p.n <= 4095 && p.k <= 4095, "m, n and k must be at most 4095, got %u, %u, %u", p.m, p.n, p.k);
    instruction.Require(!p.cmatrixSource && !p.isBias && p.unitFlag == 0 && !p.kDirectionAlign,
                        "the twin knows no bias table, no unit flag and no other alignment of k");
    if (p.m == 0 || p.n == 0 || p.k == 0) return;
    instruction.Require(p.m != 1, "m = 1 multiplies a vector, whose layout differs on 2201; pass m = 16");
    constexpr uint32_t c0 = detail::kC0<T>;
    const uint32_t rows = detail::Ceil(p.m, 16), columns = detail::Ceil(p.n, 16), depth = detail::Ceil(p.k, c0), k16 = detail::Ceil(depth, 16);
    const uint32_t leftBytes = rows * depth * sizeof(T), rightBytes = columns * depth * sizeof(T), bytes = rows * columns * sizeof(C);
    instruction.Multiplies(sizeof(T), uint64_t{rows} * columns * depth);
    const twin::Peeked left = instruction.Peek(fm.span(), 0, leftBytes, "fm"), right = instruction.Peek(filter.span(), 0, rightBytes, "filter");
    detail::RequireWritten<T>(instruction, left.written, p.m, depth, p.k, twin::kBlock, depth / c0 * twin::kFractal, twin::kFractal, leftBytes, "fm", "row");
    detail::RequireWritten<T>(instruction, right.written, p.n, depth, p.k, twin::kBlock, twin::kFractal, columns / 16 * twin::kFractal, rightBytes,
                              "filter", "column");
    // Products of ten fractals and more start late enough to find what the one before has left.
    if (rows / 16 * (columns / 16) >= 10) instruction.RelyOnOwnPipe();
    for (uint32_t column = 0; !p.cmatrixInitVal && column < p.n; column += 16) {
        instruction.Read(dst.span(), static_cast<int64_t>(column) * rows * sizeof(C), p.m * 16 * sizeof(C), "dst, which is accumulated to,");
    }
    auto* c = reinterpret_cast<C*>(instruction.Write(dst.span(), 0, bytes, "dst"));
    detail::Unpack<T, C>(left.data, right.data, rows, columns, depth, k16);
    twin::MultiplyBlocks(detail::Scratch<C>(0).data(), detail::Scratch<C>(1).data(), c, p.m, rows, columns, k16, p.cmatrixInitVal);
    for (uint32_t column = 0; p.m != rows && column < columns; column += 16) {
        std::memset(instruction.WrittenMap(dst.span(), (static_cast<int64_t>(column) * rows + p.m * 16) * sizeof(C)), 0, (rows - p.m) * 16 * sizeof(C));
    }
}

namespace detail {

/// One accumulator as the device stores it.
template <typename D, typename C>
D Quantised(const FixpipeParamsV220& p, C value) {
    if (p.reluEn && value < C{0}) value = C{0};
    if constexpr (std::is_same_v<D, C>) return value;
    else if constexpr (std::is_same_v<C, int32_t>) return twin::Narrow<D>(static_cast<float>(value) * twin::BitsToFloat(static_cast<uint32_t>(p.deqScalar)));
    else return twin::Narrow<D>(value);
}

template <typename D, typename C>
constexpr QuantMode_t QuantModeOf() {
    if constexpr (std::is_same_v<D, C>) return QuantMode_t::NoQuant;
    else if constexpr (std::is_same_v<C, int32_t>) return QuantMode_t::DEQF16;
    else return std::is_same_v<D, half> ? QuantMode_t::F322F16 : QuantMode_t::F322BF16;
}

}  // namespace detail

/// L0C to global memory, as rows (CFG_ROW_MAJOR) or as columns of fractals (CFG_NZ).
template <typename D, typename C, const FixpipeConfig& config = CFG_ROW_MAJOR>
void Fixpipe(const GlobalTensor<D>& dst, const LocalTensor<C>& src, const FixpipeParamsV220& p, const twin::Where& where = twin::Where::Here()) {
    static_assert((std::is_same_v<C, float> && twin::kOneOf<D, float, half, bfloat16_t>) || (std::is_same_v<C, int32_t> && twin::kOneOf<D, int32_t, half>),
                  "Fixpipe has no such element types");
    constexpr bool rowMajor = config.format == CO2Layout::ROW_MAJOR;
    twin::Instruction instruction("Fixpipe", PIPE_FIX, where);
    detail::RequireMemory(instruction, src, twin::Memory::kL0c, 64, "src");
    instruction.Require(p.quantPre == detail::QuantModeOf<D, C>(), "quantPre must be %d for these element types, got %d",
                        static_cast<int>(detail::QuantModeOf<D, C>()), static_cast<int>(p.quantPre));
    instruction.Require(p.nSize <= 4095, "nSize must be at most 4095, got %u", p.nSize);
    instruction.Require(!rowMajor || p.mSize <= 8192, "mSize must be at most 8192, got %u", p.mSize);
    instruction.Require(rowMajor || p.nSize % 16 == 0, "nSize must be a multiple of 16 without NZ2ND, got %u", p.nSize);
    instruction.Require(p.unitFlag == 0 && !p.isChannelSplit, "the twin knows no unit flag and no channel split");
    if (p.nSize == 0 || p.mSize == 0 || p.ndNum == 0) return;
    instruction.Require(p.dstStride != 0, "dstStride must not be 0");
    const uint32_t matrices = rowMajor ? p.ndNum : 1;
    std::vector<D> rows(static_cast<size_t>(p.nSize) * p.mSize);
    for (uint32_t nd = 0; nd < matrices; ++nd) {
        const int64_t from = static_cast<int64_t>(nd) * p.srcNdStride * 16 * 16 * sizeof(C);
        for (uint32_t column = 0; column < p.nSize; column += 16) {
            const uint32_t width = std::min(16u, p.nSize - column);
            const uint8_t* source = instruction.Read(src.span(), from + static_cast<int64_t>(column) * p.srcStride * sizeof(C),
                                                     ((p.mSize - 1) * 16 + width) * sizeof(C), "src");
            for (uint32_t row = 0; row < p.mSize; ++row) {
                for (uint32_t i = 0; i < width; ++i) {
                    C value;
                    std::memcpy(&value, source + (row * 16 + i) * sizeof(C), sizeof(C));
                    rows[rowMajor ? row * p.nSize + column + i : column * p.mSize + row * 16 + i] = detail::Quantised<D>(p, value);
                }
            }
        }
        twin::Settle<D>(instruction, reinterpret_cast<uint8_t*>(rows.data()), rows.size());
        const uint32_t pieces = rowMajor ? p.mSize : p.nSize / 16, length = rowMajor ? p.nSize : p.mSize * 16;
        const size_t pitch = rowMajor ? p.dstStride * sizeof(D) : size_t{p.dstStride} * twin::kBlock;
        for (uint32_t i = 0; i < pieces; ++i) {
            detail::StoreBytes<D>(instruction, const_cast<uint8_t*>(detail::Bytes(dst)) + nd * size_t{p.dstNdStride} * sizeof(D) + i * pitch,
                                  reinterpret_cast<const uint8_t*>(rows.data() + static_cast<size_t>(i) * length), length * sizeof(D));
        }
    }
}

}  // namespace AscendC

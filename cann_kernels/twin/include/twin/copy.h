// SPDX-License-Identifier: Apache-2.0
// Data movement between global memory and the unified buffer or L1.
#pragma once

#include "twin/numerics.h"
#include "twin/pipe.h"

namespace AscendC {

namespace detail {

/// The vector core's DMA reaches the unified buffer.
template <typename T>
void RequireUb(const twin::Instruction& instruction, const LocalTensor<T>& tensor) {
    instruction.Require(tensor.span().memory == twin::Memory::kUb, "the local tensor lies in %s, must lie in UB",
                        twin::Name(tensor.span().memory));
    instruction.Align(tensor.span(), twin::kBlock, "the local tensor");
}

/// Plain copies reach L1 on the cube core.
template <typename T>
void RequireUbOrL1(const twin::Instruction& instruction, const LocalTensor<T>& tensor) {
    if (instruction.core().isVector) return RequireUb(instruction, tensor);
    instruction.Require(tensor.span().memory == twin::Memory::kL1, "the local tensor lies in %s, must lie in L1", twin::Name(tensor.span().memory));
    instruction.Align(tensor.span(), twin::kBlock, "the local tensor");
}

template <typename T>
const uint8_t* Bytes(const GlobalTensor<T>& tensor) {
    return twin::HostBytes(tensor.GetPhyAddr());
}

/// Names a type at run time.
template <typename T>
inline constexpr char kTypeTag = 0;

/// What the DMA unit writes where `old` is and `now` comes.
template <typename T>
T Merged(twin::Atomic atomic, T old, T now) {
    if constexpr (std::is_integral_v<T>) {
        if (atomic == twin::Atomic::kAdd) return static_cast<T>(static_cast<uint32_t>(old) + static_cast<uint32_t>(now));
        return (atomic == twin::Atomic::kMax) == (now > old) ? now : old;
    } else {
        const float a = twin::Widen(old), b = twin::Widen(now);
        if (atomic == twin::Atomic::kAdd) return twin::Narrow<T>(a + b);
        return (atomic == twin::Atomic::kMax) == (b > a) ? now : old;
    }
}

template <typename T>
void Accumulate(twin::Atomic atomic, uint8_t* target, const uint8_t* source, size_t bytes) {
    for (size_t at = 0; at < bytes; at += sizeof(T)) {
        T old, now;
        std::memcpy(&old, target + at, sizeof(T));
        std::memcpy(&now, source + at, sizeof(T));
        old = Merged(atomic, old, now);
        std::memcpy(target + at, &old, sizeof(T));
    }
}

template <typename T>
void StoreBytes(twin::Instruction& instruction, uint8_t* dst, const uint8_t* source, size_t bytes) {
    const twin::Core& core = instruction.core();
    const bool atomic = core.atomic != twin::Atomic::kOff;
    instruction.Require(!atomic || core.atomicType == &kTypeTag<T>, "DMA accumulation was set for another element type than that of this copy");
    uint8_t* target = instruction.WriteGm(dst, bytes, "dst", atomic);
    if (atomic) Accumulate<T>(core.atomic, target, source, bytes);
    else std::memcpy(target, source, bytes);
}

template <typename T>
void Store(twin::Instruction& instruction, const GlobalTensor<T>& dst, int64_t to, const LocalTensor<T>& src, int64_t from, uint32_t bytes) {
    StoreBytes<T>(instruction, const_cast<uint8_t*>(Bytes(dst)) + to, instruction.Read(src.span(), from, bytes, "src"), bytes);
}

}  // namespace detail

template <typename T>
void DataCopy(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const DataCopyParams& params,
              const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("DataCopy", PIPE_MTE2, where);
    detail::RequireUbOrL1(instruction, dst);
    const uint32_t row = params.blockLen * twin::kBlock;
    instruction.Require(params.blockCount <= 4095, "blockCount must be at most 4095, got %u", params.blockCount);
    for (uint32_t i = 0; row != 0 && i < params.blockCount; ++i) {
        const int64_t from = static_cast<int64_t>(i) * (row + params.srcStride * twin::kBlock);
        const int64_t to = static_cast<int64_t>(i) * (row + params.dstStride * twin::kBlock);
        const uint8_t* source = instruction.ReadGm(detail::Bytes(src) + from, row, "src");
        std::memcpy(instruction.Write(dst.span(), to, row, "dst"), source, row);
    }
}

template <typename T>
void DataCopy(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyParams& params,
              const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("DataCopy", PIPE_MTE3, where);
    detail::RequireUbOrL1(instruction, src);
    const uint32_t row = params.blockLen * twin::kBlock;
    instruction.Require(params.blockCount <= 4095, "blockCount must be at most 4095, got %u", params.blockCount);
    for (uint32_t i = 0; row != 0 && i < params.blockCount; ++i) {
        detail::Store(instruction, dst, static_cast<int64_t>(i) * (row + params.dstStride * twin::kBlock), src,
                      static_cast<int64_t>(i) * (row + params.srcStride * twin::kBlock), row);
    }
}

template <typename T>
void DataCopy(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const uint32_t count, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("DataCopy", PIPE_MTE2, where);
    detail::RequireUbOrL1(instruction, dst);
    const uint64_t bytes = static_cast<uint64_t>(count) * sizeof(T);
    instruction.Require(bytes % twin::kBlock == 0, "count * sizeof(T) must be a multiple of 32 bytes, got %llu; use DataCopyPad",
                        static_cast<unsigned long long>(bytes));
    if (bytes == 0) return;
    const uint8_t* source = instruction.ReadGm(detail::Bytes(src), bytes, "src");
    std::memcpy(instruction.Write(dst.span(), 0, static_cast<uint32_t>(bytes), "dst"), source, bytes);
}

template <typename T>
void DataCopy(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const uint32_t count, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("DataCopy", PIPE_MTE3, where);
    detail::RequireUbOrL1(instruction, src);
    const uint64_t bytes = static_cast<uint64_t>(count) * sizeof(T);
    instruction.Require(bytes % twin::kBlock == 0, "count * sizeof(T) must be a multiple of 32 bytes, got %llu; use DataCopyPad",
                        static_cast<unsigned long long>(bytes));
    if (bytes != 0) detail::Store(instruction, dst, 0, src, 0, static_cast<uint32_t>(bytes));
}

namespace detail {

template <typename T>
void CheckPad(const twin::Instruction& instruction, const DataCopyExtParams& params) {
    instruction.Require(params.blockCount <= 4095, "blockCount must be at most 4095, got %u", params.blockCount);
    instruction.Require(params.blockLen <= 2097151, "blockLen must be at most 2097151 bytes, got %u", params.blockLen);
    instruction.Require(params.blockLen % sizeof(T) == 0, "blockLen must be a multiple of sizeof(T) = %zu, got %u bytes", sizeof(T),
                        params.blockLen);
}

constexpr uint32_t RoundUp(uint32_t bytes) { return (bytes + twin::kBlock - 1) / twin::kBlock * twin::kBlock; }

}  // namespace detail

template <typename T>
void DataCopyPad(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const DataCopyExtParams& params,
                 const DataCopyPadExtParams<T>& pad, const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("DataCopyPad", PIPE_MTE2, where);
    detail::RequireUb(instruction, dst);
    detail::CheckPad<T>(instruction, params);
    const uint32_t left = pad.isPad ? pad.leftPadding * sizeof(T) : 0, right = pad.isPad ? pad.rightPadding * sizeof(T) : 0;
    instruction.Require(left <= twin::kBlock && right <= twin::kBlock, "padding must be at most 32 bytes a side, got %u and %u", left, right);
    const uint32_t width = left + params.blockLen + right, row = detail::RoundUp(width);
    for (uint32_t i = 0; params.blockLen != 0 && i < params.blockCount; ++i) {
        const int64_t from = static_cast<int64_t>(i) * (static_cast<int64_t>(params.blockLen) + params.srcStride);
        const int64_t to = static_cast<int64_t>(i) * (row + static_cast<int64_t>(params.dstStride) * twin::kBlock);
        const uint8_t* source = instruction.ReadGm(detail::Bytes(src) + from, params.blockLen, "src");
        uint8_t* target = instruction.Write(dst.span(), to, row, "dst");
        for (uint32_t at = 0; at < row; at += sizeof(T)) std::memcpy(target + at, &pad.paddingValue, sizeof(T));
        std::memcpy(target + left, source, params.blockLen);
        // Whatever fills the row up without having been asked for is garbage to the kernel.
        if (!pad.isPad && row != width) {
            instruction.core().Forget(twin::Memory::kUb, dst.span().address + static_cast<uint32_t>(to) + width, row - width);
        }
    }
}

template <typename T>
void DataCopyPad(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyExtParams& params,
                 const twin::Where& where = twin::Where::Here()) {
    twin::Instruction instruction("DataCopyPad", PIPE_MTE3, where);
    detail::RequireUb(instruction, src);
    detail::CheckPad<T>(instruction, params);
    const uint32_t row = detail::RoundUp(params.blockLen);
    for (uint32_t i = 0; params.blockLen != 0 && i < params.blockCount; ++i) {
        detail::Store(instruction, dst, static_cast<int64_t>(i) * (static_cast<int64_t>(params.blockLen) + params.dstStride), src,
                      static_cast<int64_t>(i) * (row + static_cast<int64_t>(params.srcStride) * twin::kBlock), params.blockLen);
    }
}

namespace detail {

template <typename T>
void SetAtomic(twin::Atomic atomic) {
    static_assert(twin::kOneOf<T, int8_t, int16_t, half, bfloat16_t, int32_t, float>, "no DMA accumulation in this type on 2201");
    twin::Current().atomic = atomic;
    twin::Current().atomicType = &kTypeTag<T>;
}

}  // namespace detail

/// From here on copies to global memory add to what is there, or keep the larger or smaller, until DisableDmaAtomic.
template <typename T>
void SetAtomicAdd() {
    detail::SetAtomic<T>(twin::Atomic::kAdd);
}
template <typename T>
void SetAtomicMax() {
    detail::SetAtomic<T>(twin::Atomic::kMax);
}
template <typename T>
void SetAtomicMin() {
    detail::SetAtomic<T>(twin::Atomic::kMin);
}
inline void DisableDmaAtomic() { twin::Current().atomic = twin::Atomic::kOff; }
inline void SetAtomicNone() { DisableDmaAtomic(); }

}  // namespace AscendC

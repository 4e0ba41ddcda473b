// SPDX-License-Identifier: Apache-2.0
// Tensors are views: nothing is checked before an instruction uses them, because nothing happens on the device before that.
#pragma once

#include "twin/core.h"
#include "twin/launch.h"

namespace twin {

/// Global memory is ordinary memory of this machine.
template <typename T>
uint8_t* HostBytes(__gm__ T* address) {
    return (uint8_t*)address;  // no other cast leaves an address space
}

}  // namespace twin

namespace AscendC {

template <typename T>
class LocalTensor {
public:
    using PrimType = T;

    LocalTensor() = default;
    explicit LocalTensor(const twin::LocalSpan& span) : span_(span) {}

    LocalTensor operator[](uint32_t offset) const {
        LocalTensor view = *this;
        const uint64_t bytes = static_cast<uint64_t>(offset) * sizeof(T);
        // A view that starts behind the end is legal until it is used; the instruction then names it.
        view.span_.address += static_cast<uint32_t>(bytes);
        view.span_.bytes = bytes > span_.bytes ? 0 : static_cast<uint32_t>(span_.bytes - bytes);
        return view;
    }

    T GetValue(uint32_t index, const twin::Where& where = twin::Where::Here()) const {
        twin::Instruction instruction("LocalTensor::GetValue", PIPE_S, where);
        T value;
        std::memcpy(&value, instruction.Read(span_, static_cast<int64_t>(index) * sizeof(T), sizeof(T), "the tensor"), sizeof(T));
        return value;
    }

    void SetValue(uint32_t index, T value, const twin::Where& where = twin::Where::Here()) const {
        twin::Instruction instruction("LocalTensor::SetValue", PIPE_S, where);
        std::memcpy(instruction.Write(span_, static_cast<int64_t>(index) * sizeof(T), sizeof(T), "the tensor"), &value, sizeof(T));
    }

    template <typename U>
    LocalTensor<U> ReinterpretCast() const {
        return LocalTensor<U>(span_);
    }

    uint32_t GetSize() const { return span_.bytes / sizeof(T); }
    void SetSize(uint32_t size) { span_.bytes = size * static_cast<uint32_t>(sizeof(T)); }
    const twin::LocalSpan& span() const { return span_; }

private:
    twin::LocalSpan span_;
};

template <typename T>
class GlobalTensor {
public:
    using PrimType = T;

    void SetGlobalBuffer(__gm__ T* buffer, uint64_t size) { address_ = buffer, size_ = size; }
    void SetGlobalBuffer(__gm__ T* buffer) { address_ = buffer, size_ = 0; }

    GlobalTensor operator[](uint64_t offset) const {
        GlobalTensor view = *this;
        view.address_ += offset;
        return view;
    }

    T GetValue(uint64_t index, const twin::Where& where = twin::Where::Here()) const {
        twin::Instruction instruction("GlobalTensor::GetValue", PIPE_S, where);
        const uint8_t* at = twin::HostBytes(address_ + index);
        instruction.RequireFreshLine(at);
        T value;
        std::memcpy(&value, instruction.ReadGm(at, sizeof(T), "the tensor"), sizeof(T));
        return value;
    }

    void SetValue(uint64_t index, T value, const twin::Where& where = twin::Where::Here()) {
        twin::Instruction instruction("GlobalTensor::SetValue", PIPE_S, where);
        uint8_t* at = twin::HostBytes(address_ + index);
        instruction.core().dirtyLines.insert(reinterpret_cast<uintptr_t>(at) / twin::kCacheLine);
        instruction.TakeLine(at);
        std::memcpy(instruction.WriteGm(at, sizeof(T), "the tensor"), &value, sizeof(T));
    }

    __gm__ T* GetPhyAddr() const { return address_; }
    __gm__ T* GetPhyAddr(uint64_t offset) const { return address_ + offset; }
    uint64_t GetSize() const { return size_; }

private:
    __gm__ T* address_ = nullptr;
    uint64_t size_ = 0;
};

enum class CacheLine : uint64_t { SINGLE_CACHE_LINE, ENTIRE_DATA_CACHE };
enum class DcciDst : uint64_t { CACHELINE_ALL, CACHELINE_UB, CACHELINE_OUT, CACHELINE_ATOMIC };

template <typename T, CacheLine entireType, DcciDst dcciDst>
void DataCacheCleanAndInvalid(const GlobalTensor<T>& tensor, const twin::Where& where = twin::Where::Here()) {
    static_assert(entireType == CacheLine::SINGLE_CACHE_LINE, "the twin knows single cache lines only");
    twin::Instruction instruction("DataCacheCleanAndInvalid", PIPE_S, where);
    const uintptr_t line = reinterpret_cast<uintptr_t>(twin::HostBytes(tensor.GetPhyAddr())) / twin::kCacheLine;
    instruction.core().dirtyLines.erase(line);
    instruction.core().cleanedLines[line] = instruction.core().launch.Tick();
}

inline int64_t GetBlockIdx() {
    const twin::Core& core = twin::Current();
    const bool pairs = core.isVector && core.launch.ratio() == twin::Ratio::kOneToTwo;
    return pairs ? core.block * 2 + core.sub : core.block;
}
inline int64_t GetBlockNum() { return twin::Current().launch.blocks(); }
inline int64_t GetSubBlockIdx() { return twin::Current().sub; }
inline int64_t GetTaskRation() { return twin::Current().launch.ratio() == twin::Ratio::kOneToTwo ? 2 : 1; }

}  // namespace AscendC

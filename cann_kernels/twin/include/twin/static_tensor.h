// SPDX-License-Identifier: Apache-2.0
// Local memory without a TPipe: addresses are handed out one behind the other and never given back; events are the kernel's own.
#pragma once

#include "twin/pipe.h"

namespace AscendC {

enum class Hardware : uint8_t { GM, UB, L1, L0A, L0B, L0C, BIAS, FIXBUF, MAX };

/// Clears what an earlier kernel may have left in the core: the first statement of a kernel without a TPipe.
inline void InitSocState() { twin::Current().stateSet = true; }

template <Hardware hard = Hardware::UB>
class LocalMemAllocator {
    static_assert(hard >= Hardware::UB && hard <= Hardware::L0C, "the twin allocates in UB, L1, L0A, L0B and L0C");

public:
    explicit LocalMemAllocator(const twin::Where& where = twin::Where::Here()) {
        if (twin::Current().memories[kIndex].used != 0) {
            twin::Fail("LocalMemAllocator", where, twin::Format("%s is handed out by another allocator or TPipe", twin::Name(kMemory)));
        }
    }
    ~LocalMemAllocator() { twin::Current().memories[kIndex].used = 0; }
    LocalMemAllocator(const LocalMemAllocator&) = delete;
    LocalMemAllocator& operator=(const LocalMemAllocator&) = delete;

    uint32_t GetCurAddr() const { return head_; }

    template <typename T>
    LocalTensor<T> Alloc(uint32_t tileSize, const twin::Where& where = twin::Where::Here()) {
        twin::Core& core = twin::Current();
        const uint64_t bytes = (uint64_t{tileSize} * sizeof(T) + twin::kBlock - 1) / twin::kBlock * twin::kBlock;
        const uint32_t limit = twin::kMemoryBytes[kIndex] - (kMemory == twin::Memory::kUb ? twin::kUbReserved : 0);
        if (core.memories[kIndex].bytes.empty()) twin::Fail("Alloc", where, twin::Format("this core has no %s", twin::Name(kMemory)));
        if (bytes > limit - head_) {
            twin::Fail("Alloc", where, twin::Format("%s overflow: %llu bytes wanted, %u of %u are taken", twin::Name(kMemory),
                                                    static_cast<unsigned long long>(bytes), head_, limit));
        }
        const twin::LocalSpan span{kMemory, head_, tileSize * static_cast<uint32_t>(sizeof(T)), &twin::kForever, twin::kForever};
        head_ += static_cast<uint32_t>(bytes);
        core.memories[kIndex].used = head_;
        core.Forget(kMemory, span.address, static_cast<uint32_t>(bytes));
        return LocalTensor<T>(span);
    }
    template <typename T, uint32_t tileSize>
    LocalTensor<T> Alloc(const twin::Where& where = twin::Where::Here()) {
        return Alloc<T>(tileSize, where);
    }
    template <TPosition pos, typename T>
    LocalTensor<T> Alloc(uint32_t tileSize, const twin::Where& where = twin::Where::Here()) {
        static_assert(MemoryOf(pos) == kMemory, "this position lies in another memory");
        return Alloc<T>(tileSize, where);
    }
    template <TPosition pos, typename T, uint32_t tileSize>
    LocalTensor<T> Alloc(const twin::Where& where = twin::Where::Here()) {
        return Alloc<pos, T>(tileSize, where);
    }

private:
    static constexpr twin::Memory kMemory = static_cast<twin::Memory>(static_cast<uint8_t>(hard) - static_cast<uint8_t>(Hardware::UB));
    static constexpr uint32_t kIndex = static_cast<uint32_t>(kMemory);
    uint32_t head_ = 0;
};

}  // namespace AscendC

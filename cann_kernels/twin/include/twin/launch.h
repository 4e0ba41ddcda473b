// SPDX-License-Identifier: Apache-2.0
// A launch: global memory and one thread of control per core, one of which runs at a time. Who runs next is drawn from the seed, so
// that a schedule can be repeated and a deadlock is seen at once. The threads are contexts of one thread of the system: they change
// places every few instructions.
#pragma once

#include <ucontext.h>

#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "twin/core.h"

namespace twin {

constexpr uint32_t kCrossFlags = 11;
constexpr uint32_t kMostVectorCores = 50;  // of a die of architecture 2201

enum class Ratio : uint8_t { kVectorOnly, kCubeOnly, kOneToTwo };

struct Settings {
    uint64_t seed = 1;
    uint32_t yieldOneIn = 16;  // instructions on average between two changes of core; 0: only where a core waits
};

class Launch {
public:
    Launch(const char* kernel, uint32_t blocks, Ratio ratio, const Settings& settings);

    /// Memory of the caller, read only.
    uint8_t* In(const char* name, const void* data, size_t bytes);
    /// Poisoned memory between red zones, copied to `data` when the kernel has ended.
    uint8_t* Out(const char* name, void* data, size_t bytes);
    /// Memory of the caller, read and written where it lies, however large it is. A kernel that fails may have written to it.
    uint8_t* InOut(const char* name, void* data, size_t bytes);
    /// Poisoned memory that nobody sees afterwards.
    uint8_t* Workspace(const char* name, size_t bytes);

    /// Runs the kernel on every core. raises TwinError
    void Run(const std::function<void()>& kernel);

    template <typename F>
    void EachRange(F f) const {
        for (const auto& range : ranges_) f(*range);
    }
    template <typename F>
    void EachCore(F f) const {
        for (const auto& slot : cores_) f(*slot->core);
    }
    const char* kernel() const { return kernel_; }
    ~Launch();
    uint32_t blocks() const { return blocks_; }
    Ratio ratio() const { return ratio_; }
    size_t units() const { return cores_.size() * kPipes; }
    GmRange* Find(const uint8_t* address);
    std::string Describe(const Core& core) const;
    std::string DescribeUnit(uint16_t unit) const;
    Where Line(uint16_t unit, uint32_t number) const;
    void MayYield(Core& core) {
        if (--untilYield_ == 0) Yield(core);
    }
    /// Blocks until `ready` holds. `what` says what for in a deadlock report.
    void WaitUntil(Core& core, const std::string& what, const std::function<bool()>& ready);
    void SyncAll(Core& core, bool vectorOnly, const Where& where);
    void SoftSyncAll(Core& core, uint8_t* counters, size_t localBytes, int32_t usedCores, bool vectorOnly, const Where& where);
    void CrossSet(Core& core, uint8_t mode, pipe_t pipe, uint16_t flag, const Where& where);
    void CrossWait(Core& core, uint8_t mode, pipe_t pipe, uint16_t flag, const Where& where);
    uint64_t Tick() { return ++time_; }
    uint64_t Random() { return random_(); }

private:
    struct Slot {
        std::unique_ptr<Core> core;
        ucontext_t context;
        void* stack = nullptr;
        bool started = false;
        bool done = false;
        bool waiting = false;
        std::string what;
        std::function<bool()> ready;
        std::array<std::vector<Clock>, kCrossFlags> sets;  // what each set of a flag told
        std::array<size_t, kCrossFlags> waits{};           // how many of them this core has waited for
        std::array<int, kCrossFlags> modes{};
        std::array<size_t, 2> barriers{};                  // SyncAll calls: [0] every core, [1] vector cores
        std::array<std::vector<Clock>, 2> arrivals;
    };
    /// Cores that wait for one another must all be running.
    void RequireAllStarted(const char* name, const Where& where) const;
    std::vector<Slot*> Senders(const Core& receiver, uint8_t mode);
    std::vector<Slot*> Receivers(const Core& sender, uint8_t mode);
    uint8_t* Own(GmRange::Kind kind, const char* name, uint8_t* home, size_t bytes);
    static void Enter();
    void Body(Slot& slot);
    void Yield(Core& core);
    void DrawYield();
    void Prepare(Slot& slot);
    void SwitchTo(ucontext_t& from, size_t next);
    void PassOn(Slot& slot);
    size_t Choose();
    bool InGroup(const Core& core, bool vectorOnly) const { return core.isVector || !vectorOnly; }
    std::string Deadlock() const;
    void CheckEnd();

    const char* kernel_;
    uint32_t blocks_;
    Ratio ratio_;
    Settings settings_;
    std::mt19937_64 random_;
    uint64_t time_ = 0;
    std::vector<std::unique_ptr<GmRange>> ranges_;
    std::vector<std::unique_ptr<Slot>> cores_;
    const std::function<void()>* kernelBody_ = nullptr;
    ucontext_t home_;
    size_t running_ = 0;
    uint32_t untilYield_ = 0;
    std::vector<size_t> able_;
    bool stopped_ = false;
    std::string error_;
};

}  // namespace twin

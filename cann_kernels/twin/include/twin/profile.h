// SPDX-License-Identifier: Apache-2.0
// What a launch did, counted: bytes on each path, vector instructions and repeats, products, scalar accesses, synchronisations.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace twin {

enum class Path : uint8_t { kGmToUb, kUbToGm, kGmToL1, kL1ToGm, kToL0a, kToL0b, kL0cToGm, kCount };
constexpr size_t kPaths = static_cast<size_t>(Path::kCount);

enum class Event : uint8_t { kSetFlag, kWaitFlag, kBarrier, kCrossSet, kCrossWait, kSyncAll, kScalarLocal, kScalarGlobal, kCount };
constexpr size_t kEventKinds = static_cast<size_t>(Event::kCount);

/// Of one kind of vector instruction on elements of one width.
struct VectorCount {
    const char* name;
    uint32_t width;  // bytes of an element; 0: not known
    uint64_t instructions, repeats;
};

struct Counters {
    struct Moved {
        uint64_t instructions = 0, rows = 0, bytes = 0;
    };
    std::array<Moved, kPaths> moved{};
    std::array<uint64_t, kEventKinds> events{};
    std::array<uint64_t, 5> macs{};  // by bytes of an element, padding included
    uint64_t products = 0;           // Mmad instructions
    std::vector<VectorCount> vector;

    void Note(Event event) { ++events[static_cast<size_t>(event)]; }
    void NoteVector(const char* name, uint32_t width, uint64_t repeats);
};

class Launch;

/// While it is on, launches count. They do not otherwise.
bool Profiling();
void KeepProfile(const Launch& launch);

}  // namespace twin

extern "C" {
/// Starts (1) or ends (0) counting; what was kept is dropped.
void twin_profile(int on);
/// What launches have counted since, as a JSON array. Valid until the next call.
const char* twin_profile_json();
}

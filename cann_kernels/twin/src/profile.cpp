// SPDX-License-Identifier: Apache-2.0
#include "twin/profile.h"

#include <algorithm>
#include <cstring>

#include "twin/launch.h"

namespace twin {

namespace {

bool profiling = false;
std::string kept, answer;

constexpr const char* kPathNames[] = {"gm_to_ub", "ub_to_gm", "gm_to_l1", "l1_to_gm", "l1_to_l0a", "l1_to_l0b", "l0c_to_gm"};
constexpr const char* kEventNames[] = {"set_flag", "wait_flag", "pipe_barrier", "cross_core_set", "cross_core_wait", "sync_all",
                                       "scalar_local", "scalar_global"};
constexpr const char* kRangeNames[] = {"in", "out", "inout", "workspace"};

std::string Number(const char* name, uint64_t value) { return Format("\"%s\": %llu", name, static_cast<unsigned long long>(value)); }

std::string Describe(const Core& core) {
    const Counters& counters = core.counters;
    std::string text = Format("{\"vector_core\": %s, \"moved\": {", core.isVector ? "true" : "false");
    for (size_t p = 0; p < kPaths; ++p) {
        const Counters::Moved& moved = counters.moved[p];
        text += Format("%s\"%s\": {", p == 0 ? "" : ", ", kPathNames[p]) + Number("instructions", moved.instructions) + ", " +
                Number("rows", moved.rows) + ", " + Number("bytes", moved.bytes) + "}";
    }
    text += "}, \"events\": {";
    for (size_t e = 0; e < kEventKinds; ++e) text += (e == 0 ? "" : ", ") + Number(kEventNames[e], counters.events[e]);
    text += "}, \"macs\": {" + Number("int8", counters.macs[1]) + ", " + Number("16-bit float", counters.macs[2]) + ", " +
            Number("float32", counters.macs[4]) + "}, " + Number("products", counters.products) + ", \"vector\": [";
    for (const VectorCount& count : counters.vector) {
        text += Format("%s{\"name\": \"%s\", ", &count == counters.vector.data() ? "" : ", ", count.name) + Number("width", count.width) + ", " +
                Number("instructions", count.instructions) + ", " + Number("repeats", count.repeats) + "}";
    }
    return text + "]}";
}

std::string Describe(const GmRange& range) {
    uint64_t distinct = 0;
    for (uint64_t word : range.touched) distinct += static_cast<uint64_t>(__builtin_popcountll(word));
    return Format("{\"name\": \"%s\", \"kind\": \"%s\", ", range.name, kRangeNames[range.kind]) + Number("bytes", range.bytes) + ", " +
           Number("read", range.moved[0]) + ", " + Number("written", range.moved[1]) + ", " + Number("distinct", std::min<uint64_t>(distinct * kBlock, range.bytes)) + "}";
}

}  // namespace

bool Profiling() { return profiling; }

void Counters::NoteVector(const char* name, uint32_t width, uint64_t repeats) {
    for (VectorCount& count : vector) {
        if (count.width != width || std::strcmp(count.name, name) != 0) continue;
        ++count.instructions, count.repeats += repeats;
        return;
    }
    vector.push_back({name, width, 1, repeats});
}

void KeepProfile(const Launch& launch) {
    std::string text = Format("{\"kernel\": \"%s\", \"ranges\": [", launch.kernel());
    bool first = true;
    launch.EachRange([&](const GmRange& range) { text += (first ? "" : ", ") + Describe(range), first = false; });
    text += "], \"cores\": [";
    first = true;
    launch.EachCore([&](const Core& core) { text += (first ? "" : ", ") + Describe(core), first = false; });
    kept += (kept.empty() ? "" : ", ") + text + "]}";
}

}  // namespace twin

void twin_profile(int on) {
    twin::profiling = on != 0;
    twin::kept.clear();
}

const char* twin_profile_json() {
    twin::answer = "[" + twin::kept + "]";
    return twin::answer.c_str();
}

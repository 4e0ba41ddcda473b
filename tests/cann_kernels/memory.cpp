// SPDX-License-Identifier: Apache-2.0
// Caches in place, static tensors, a TPipe laid out anew, events that queues hold, the barrier in software.
#include <map>
#include <string>

#include "kernel_operator.h"
#include "twin/abi.h"

using namespace AscendC;

namespace {

struct Global {
    GlobalTensor<float> cache;  // in and out
    GlobalTensor<int32_t> counters;
    uint64_t place;  // of 64 floats in the cache
};

void Twice(const LocalTensor<float>& x, const GlobalTensor<float>& at) {
    PipeBarrier<PIPE_ALL>();
    DataCopy(x, at, 64);
    PipeBarrier<PIPE_ALL>();
    Muls(x, x, 2.0f, 64);
    PipeBarrier<PIPE_ALL>();
    DataCopy(at, x, 64);
}

/// Both cores double their half before core 0 adds the two halves up.
void SumOfHalves(const Global& g, bool wait, uint32_t bytes) {
    TPipe pipe;
    TBuf<TPosition::VECCALC> a, b, s;
    pipe.InitBuffer(a, 256), pipe.InitBuffer(b, 256), pipe.InitBuffer(s, bytes);
    Twice(a.Get<float>(), g.cache[g.place + GetBlockIdx() * 64]);
    if (wait) SyncAll(g.counters, s.Get<int32_t>(), 2);
    if (GetBlockIdx() != 0) return;
    PipeBarrier<PIPE_ALL>();
    DataCopy(a.Get<float>(), g.cache[g.place], 64), DataCopy(b.Get<float>(), g.cache[g.place + 64], 64);
    PipeBarrier<PIPE_ALL>();
    Add(a.Get<float>(), a.Get<float>(), b.Get<float>(), 64);
    PipeBarrier<PIPE_ALL>();
    DataCopy(g.cache[g.place], a.Get<float>(), 64);
}

void Queues(const Global& g, uint8_t buffers) {
    TPipe pipe;
    TQue<TPosition::VECIN, 16> in;
    pipe.InitBuffer(in, buffers, 256);
    for (uint32_t i = 0; i < 2u * buffers; ++i) {
        LocalTensor<float> x = in.AllocTensor<float>();
        DataCopy(x, g.cache[g.place], 64);
        in.EnQue(x);
        x = in.DeQue<float>();
        Muls(x, x, 2.0f, 64);
        in.FreeTensor(x);
    }
}

void OutOfStatic() {
    InitSocState();
    LocalMemAllocator<Hardware::UB> memory;
    memory.Alloc<float, 40000>();
    memory.Alloc<TPosition::VECIN, float>(10000);
}

const std::map<std::string, void (*)(const Global&)> kKernels = {
    {"in_place", [](const Global& g) {
        TPipe pipe;
        TBuf<TPosition::VECCALC> buffer;
        pipe.InitBuffer(buffer, 256);
        Twice(buffer.Get<float>(), g.cache[g.place]);
    }},
    {"past_the_cache", [](const Global& g) {
        TPipe pipe;
        TBuf<TPosition::VECCALC> buffer;
        pipe.InitBuffer(buffer, 256);
        Twice(buffer.Get<float>(), g.cache[g.place + 1]);
    }},
    {"static_tensor", [](const Global& g) {
        InitSocState();
        LocalMemAllocator<Hardware::UB> memory;
        const LocalTensor<float> x = memory.Alloc<float, 64>();
        DataCopy(x, g.cache[g.place], 64);
        SetFlag<HardEvent::MTE2_V>(EVENT_ID0), WaitFlag<HardEvent::MTE2_V>(EVENT_ID0);
        Muls(x, x, 2.0f, 64);
        SetFlag<HardEvent::V_MTE3>(EVENT_ID0), WaitFlag<HardEvent::V_MTE3>(EVENT_ID0);
        DataCopy(g.cache[g.place], x, 64);
    }},
    {"static_overflow", [](const Global&) { OutOfStatic(); }},
    {"no_state", [](const Global& g) {
        LocalMemAllocator<Hardware::UB> memory;
        Twice(memory.Alloc<float, 64>(), g.cache[g.place]);
    }},
    {"laid_out_anew", [](const Global& g) {
        TPipe pipe;
        TBuf<TPosition::VECCALC> first, second;
        pipe.InitBuffer(first, 120 * 1024);
        pipe.Reset();
        pipe.InitBuffer(second, 120 * 1024);
        Twice(second.Get<float>(), g.cache[g.place]);
    }},
    {"second_pipe", [](const Global& g) {
        TPipe pipe;
        TBuf<TPosition::VECCALC> first, second;
        pipe.InitBuffer(first, 120 * 1024);
        pipe.Destroy();
        TPipe other;
        other.InitBuffer(second, 120 * 1024);
        Twice(second.Get<float>(), g.cache[g.place]);
    }},
    {"dead_tensor", [](const Global& g) {
        TPipe pipe;
        TQue<TPosition::VECIN, 1> queue;
        pipe.InitBuffer(queue, 1, 256);
        LocalTensor<float> x = queue.AllocTensor<float>();
        queue.EnQue(x), x = queue.DeQue<float>(), queue.FreeTensor(x);
        pipe.Reset();
        Twice(x, g.cache[g.place]);
    }},
    {"eight_buffers", [](const Global& g) { Queues(g, 8); }},
    {"nine_buffers", [](const Global& g) { Queues(g, 9); }},
    {"software_barrier", [](const Global& g) { SumOfHalves(g, true, 64); }},
    {"missing_software_barrier", [](const Global& g) { SumOfHalves(g, false, 64); }},
    {"small_barrier_buffer", [](const Global& g) { SumOfHalves(g, true, 32); }},
};

}  // namespace

extern "C" int memory_run(const char* name, uint32_t blocks, float* cache, uint64_t count, uint64_t place, int32_t* counters) {
    return twin::Guarded([=] {
        twin::Launch launch(name, blocks, twin::Ratio::kVectorOnly, twin::CurrentSettings());
        Global global;
        global.cache.SetGlobalBuffer((__gm__ float*)launch.InOut("cache", cache, count * sizeof(float)));
        global.counters.SetGlobalBuffer((__gm__ int32_t*)launch.InOut("counters", counters, 64));
        global.place = place;
        launch.Run([&] { kKernels.at(name)(global); });
    });
}

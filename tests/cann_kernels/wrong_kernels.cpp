// SPDX-License-Identifier: Apache-2.0
// Kernels that each break one rule. A kernel gets 4096 floats in, 4096 floats out and a workspace of 4096 bytes.
#include <map>
#include <string>

#include "kernel_operator.h"
#include "twin/abi.h"

using namespace AscendC;

namespace {

struct Memory {
    GlobalTensor<float> in, out, workspace;
};

using InQueue = TQue<TPosition::VECIN, 1>;
using OutQueue = TQue<TPosition::VECOUT, 1>;
using Buffer = TBuf<TPosition::VECCALC>;

/// in -> out through Muls by 2: what `variant` leaves out or does wrong is the rule broken.
enum Variant { kRight, kNoEnQue, kNoFree, kNoOutQueueWait, kNoBarrier, kTwiceFreed, kUseAfterFree, kNoAlloc };

void Doubled(const Memory& gm, Variant variant) {
    TPipe pipe;
    InQueue in;
    OutQueue out;
    pipe.InitBuffer(in, 1, 256);
    pipe.InitBuffer(out, 1, 256);
    for (uint32_t i = 0; i < 2; ++i) {
        LocalTensor<float> x = in.AllocTensor<float>();
        DataCopy(x, gm.in, 64);
        if (variant == kNoEnQue) {
            Muls(x, x, 2.0f, 64);
        }
        in.EnQue(x);
        x = in.DeQue<float>();
        LocalTensor<float> y = out.AllocTensor<float>();
        Muls(y, x, 2.0f, 64);
        if (variant == kNoBarrier) Adds(y, y, 1.0f, 64);
        if (variant == kNoOutQueueWait) DataCopy(gm.out, y, 64);
        if (variant != kNoFree) in.FreeTensor(x);
        if (variant == kTwiceFreed) in.FreeTensor(x);
        if (variant == kUseAfterFree) Muls(y, x, 2.0f, 64);
        out.EnQue(y);
        y = out.DeQue<float>();
        PipeBarrier<PIPE_MTE3>();
        DataCopy(gm.out, y, 64);
        out.FreeTensor(y);
    }
}

/// A buffer with 64 floats from `in`, landed for every pipe.
LocalTensor<float> Loaded(TPipe& pipe, Buffer& buffer, const Memory& gm, uint32_t bytes = 1024) {
    pipe.InitBuffer(buffer, bytes);
    LocalTensor<float> x = buffer.Get<float>();
    DataCopy(x, gm.in, 64);
    PipeBarrier<PIPE_ALL>();
    return x;
}

const std::map<std::string, void (*)(const Memory&)> kKernels = {
    {"right", [](const Memory& gm) { Doubled(gm, kRight); }},
    {"v_before_enque", [](const Memory& gm) { Doubled(gm, kNoEnQue); }},
    {"missing_free", [](const Memory& gm) { Doubled(gm, kNoFree); }},
    {"copy_out_before_enque", [](const Memory& gm) { Doubled(gm, kNoOutQueueWait); }},
    {"missing_v_barrier", [](const Memory& gm) { Doubled(gm, kNoBarrier); }},
    {"freed_twice", [](const Memory& gm) { Doubled(gm, kTwiceFreed); }},
    {"used_after_free", [](const Memory& gm) { Doubled(gm, kUseAfterFree); }},
    {"get_value_after_copy", [](const Memory& gm) {
        TPipe pipe;
        Buffer buffer;
        pipe.InitBuffer(buffer, 256);
        LocalTensor<float> x = buffer.Get<float>();
        DataCopy(x, gm.in, 64);
        x.GetValue(0);
    }},
    {"set_value_then_vector", [](const Memory& gm) {
        TPipe pipe;
        Buffer buffer;
        LocalTensor<float> x = Loaded(pipe, buffer, gm);
        x.SetValue(0, 1.0f);
        Muls(x, x, 2.0f, 64);
    }},
    {"overwritten_while_read", [](const Memory& gm) {
        TPipe pipe;
        Buffer buffer;
        LocalTensor<float> x = Loaded(pipe, buffer, gm);
        Muls(x[128], x, 2.0f, 64);
        DataCopy(x, gm.in, 64);
    }},
    {"ub_overflow", [](const Memory&) {
        TPipe pipe;
        Buffer first, second;
        pipe.InitBuffer(first, 100 * 1024);
        pipe.InitBuffer(second, 90 * 1024);
    }},
    {"copy_of_20_bytes", [](const Memory& gm) {
        TPipe pipe;
        Buffer buffer;
        pipe.InitBuffer(buffer, 256);
        DataCopy(buffer.Get<float>(), gm.in, 5);
    }},
    {"misaligned_view", [](const Memory& gm) {
        TPipe pipe;
        Buffer buffer;
        LocalTensor<float> x = Loaded(pipe, buffer, gm);
        Muls(x[64], x[4], 2.0f, 8);
    }},
    {"poison", [](const Memory& gm) {
        TPipe pipe;
        Buffer buffer;
        LocalTensor<float> x = Loaded(pipe, buffer, gm);
        Muls(x[128], x, 2.0f, 65);
    }},
    {"padding_is_garbage", [](const Memory& gm) {
        TPipe pipe;
        Buffer buffer;
        pipe.InitBuffer(buffer, 256);
        LocalTensor<float> x = buffer.Get<float>();
        DataCopyPad(x, gm.in, DataCopyExtParams(1, 20, 0, 0, 0), DataCopyPadExtParams<float>(false, 0, 0, 0.0f));
        PipeBarrier<PIPE_ALL>();
        Muls(x, x, 2.0f, 8);
    }},
    {"past_the_tensor", [](const Memory& gm) {
        TPipe pipe;
        Buffer buffer;
        LocalTensor<float> x = Loaded(pipe, buffer, gm);
        Duplicate(x, 0.0f, 257);
    }},
    {"partial_overlap", [](const Memory& gm) {
        TPipe pipe;
        Buffer buffer;
        LocalTensor<float> x = Loaded(pipe, buffer, gm);
        Muls(x[8], x, 2.0f, 64);
    }},
    {"gm_out_of_bounds", [](const Memory& gm) {
        TPipe pipe;
        Buffer buffer;
        LocalTensor<float> x = Loaded(pipe, buffer, gm);
        DataCopy(gm.out[4064], x, 64);
    }},
    {"input_written", [](const Memory& gm) {
        TPipe pipe;
        Buffer buffer;
        LocalTensor<float> x = Loaded(pipe, buffer, gm);
        DataCopy(gm.in, x, 64);
    }},
    {"workspace_assumed_zero", [](const Memory& gm) {
        TPipe pipe;
        Buffer buffer;
        pipe.InitBuffer(buffer, 256);
        DataCopy(buffer.Get<float>(), gm.workspace, 64);
    }},
    {"own_gm_read_back", [](const Memory& gm) {
        TPipe pipe;
        Buffer buffer;
        LocalTensor<float> x = Loaded(pipe, buffer, gm);
        DataCopy(gm.workspace, x, 64);
        DataCopy(x[64], gm.workspace, 64);
    }},
    {"wait_without_set", [](const Memory&) { WaitFlag<HardEvent::MTE2_V>(EVENT_ID0); }},
    {"set_without_wait", [](const Memory&) { SetFlag<HardEvent::MTE2_V>(EVENT_ID0); }},
    {"set_twice", [](const Memory&) {
        SetFlag<HardEvent::MTE2_V>(EVENT_ID0);
        SetFlag<HardEvent::MTE2_V>(EVENT_ID0);
    }},
    {"event_id_not_from_pipe", [](const Memory&) {
        TPipe pipe;
        SetFlag<HardEvent::MTE2_V>(EVENT_ID0);
    }},
    {"two_pipes", [](const Memory&) {
        TPipe pipe;
        TPipe other;
    }},
    {"return_before_sync_all", [](const Memory&) {
        if (GetBlockIdx() == 1) return;
        SyncAll();
    }},
    {"unpaired_cross_core_flag", [](const Memory&) { CrossCoreSetFlag<0, PIPE_MTE3>(3); }},
    {"two_cores_one_block", [](const Memory& gm) {
        TPipe pipe;
        Buffer buffer;
        LocalTensor<float> x = Loaded(pipe, buffer, gm);
        DataCopy(gm.out[static_cast<uint64_t>(GetBlockIdx()) * 60], x, 64);
    }},
    {"missing_sync_all", [](const Memory& gm) {
        TPipe pipe;
        Buffer buffer;
        LocalTensor<float> x = Loaded(pipe, buffer, gm);
        DataCopy(gm.workspace[static_cast<uint64_t>(GetBlockIdx()) * 64], x, 64);
        PipeBarrier<PIPE_ALL>();
        for (uint32_t i = 0; i < 100; ++i) Muls(x[128], x, 2.0f, 64), PipeBarrier<PIPE_V>();
        DataCopy(x[64], gm.workspace[static_cast<uint64_t>(1 - GetBlockIdx()) * 64], 64);
    }},
    {"atomic_left_on", [](const Memory&) { SetAtomicAdd<float>(); }},
    {"stale_cache_line", [](const Memory& gm) {
        TPipe pipe;
        Buffer buffer;
        LocalTensor<float> x = Loaded(pipe, buffer, gm);
        DataCopy(gm.workspace[static_cast<uint64_t>(GetBlockIdx()) * 64], x, 64);
        PipeBarrier<PIPE_ALL>();
        gm.workspace.GetValue(static_cast<uint64_t>(GetBlockIdx()) * 64);
    }},
    {"scalar_line_not_written_back", [](const Memory& gm) { gm.out.SetValue(static_cast<uint64_t>(GetBlockIdx()) * 16, 1.0f); }},
};

}  // namespace

extern "C" int wrong_run(const char* name) {
    return twin::Guarded([name] {
        static float input[4096], output[4096];
        const bool two = std::string(name).find("core") != std::string::npos || std::string(name).find("sync_all") != std::string::npos;
        twin::Launch launch(name, two ? 2 : 1, twin::Ratio::kVectorOnly, twin::CurrentSettings());
        Memory gm;
        gm.in.SetGlobalBuffer((__gm__ float*)launch.In("in", input, sizeof(input)));
        gm.out.SetGlobalBuffer((__gm__ float*)launch.Out("out", output, sizeof(output)));
        gm.workspace.SetGlobalBuffer((__gm__ float*)launch.Workspace("workspace", 4096));
        launch.Run([&] { kKernels.at(name)(gm); });
    });
}

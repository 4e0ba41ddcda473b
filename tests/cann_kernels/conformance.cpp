// SPDX-License-Identifier: Apache-2.0
// Single instructions on known numbers. Each kernel loads 128 floats, does one thing and stores 128 floats.
#include <map>
#include <string>

#include "kernel_operator.h"
#include "twin/abi.h"

using namespace AscendC;

namespace {

using Step = void (*)(const LocalTensor<float>& x, const LocalTensor<float>& y, const LocalTensor<float>& scratch);

const std::map<std::string, Step> kSteps = {
    {"muls_tail", [](auto& x, auto& y, auto&) { Muls(y, x, 2.0f, 5); }},
    {"muls_none", [](auto& x, auto& y, auto&) { Muls(y, x, 2.0f, 0); }},
    {"add_mask", [](auto& x, auto& y, auto&) { Add(y, x, x, 3, 2, BinaryRepeatParams(1, 1, 1, 8, 8, 8)); }},
    {"add_bitmap", [](auto& x, auto& y, auto&) {
        uint64_t mask[2] = {0x8000000000000005ull, 0};
        Add(y, x, x, mask, 1, BinaryRepeatParams(1, 1, 1, 8, 8, 8));
    }},
    {"add_repeat_zero", [](auto& x, auto& y, auto&) { Add(y, x, x, 64, 0, BinaryRepeatParams(1, 1, 1, 8, 8, 8)); }},
    {"mul_stride_zero", [](auto& x, auto& y, auto&) { Mul(y, x, x, 64, 2, BinaryRepeatParams(1, 1, 0, 8, 8, 1)); }},
    {"max", [](auto& x, auto& y, auto&) { Maxs(y, x, 3.0f, 128); }},
    {"select", [](auto& x, auto& y, auto& scratch) {
        LocalTensor<uint8_t> bits = scratch.template ReinterpretCast<uint8_t>();
        CompareScalar(bits, x, 3.0f, CMPMODE::GT, 128);
        PipeBarrier<PIPE_V>();
        Select(y, bits, x, -1.0f, SELMODE::VSEL_TENSOR_SCALAR_MODE, 128);
    }},
    {"brcb", [](auto& x, auto& y, auto&) { Brcb(y, x, 2, BrcbRepeatParams(1, 8)); }},
    {"row_sums", [](auto& x, auto& y, auto&) { WholeReduceSum<float>(y, x, 3, 2, 1, 1, 8); }},
    {"round_trip", [](auto& x, auto& y, auto& scratch) {
        LocalTensor<bfloat16_t> narrow = scratch.template ReinterpretCast<bfloat16_t>();
        Cast(narrow, x, RoundMode::CAST_RINT, 128);
        PipeBarrier<PIPE_V>();
        Cast(y, narrow, RoundMode::CAST_NONE, 128);
    }},
    {"to_integer", [](auto& x, auto& y, auto& scratch) {
        LocalTensor<int32_t> whole = scratch.template ReinterpretCast<int32_t>();
        Cast(whole, x, RoundMode::CAST_RINT, 128);
        PipeBarrier<PIPE_V>();
        Cast(y, whole, RoundMode::CAST_NONE, 128);
    }},
};

}  // namespace

extern "C" int conformance_run(const char* name, const float* in, float* out) {
    return twin::Guarded([=] {
        twin::Launch launch(name, 1, twin::Ratio::kVectorOnly, twin::CurrentSettings());
        GlobalTensor<float> from, to;
        from.SetGlobalBuffer((__gm__ float*)launch.In("in", in, 512));
        to.SetGlobalBuffer((__gm__ float*)launch.Out("out", out, 512));
        launch.Run([&] {
            TPipe pipe;
            TBuf<TPosition::VECCALC> a, b, c;
            pipe.InitBuffer(a, 512), pipe.InitBuffer(b, 512), pipe.InitBuffer(c, 512);
            LocalTensor<float> x = a.Get<float>(), y = b.Get<float>();
            DataCopy(x, from, 128);
            Duplicate(y, -7.0f, 128);
            PipeBarrier<PIPE_ALL>();
            kSteps.at(name)(x, y, c.Get<float>());
            PipeBarrier<PIPE_ALL>();
            DataCopy(to, y, 128);
        });
    });
}

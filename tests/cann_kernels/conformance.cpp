// SPDX-License-Identifier: Apache-2.0
// Single instructions. Each finds 1024 bytes in x, in z and in y, does one thing to y, and may use 2048 bytes more.
#include <map>
#include <string>

#include "kernel_operator.h"
#include "twin/abi.h"

using namespace AscendC;

namespace {

struct Operands {
    LocalTensor<uint8_t> xBytes, zBytes, yBytes, sBytes;
    GlobalTensor<float> out;
    int32_t p;  // a number from the test: a mode, an order, a count
    template <typename T = float>
    LocalTensor<T> x() const { return xBytes.ReinterpretCast<T>(); }
    template <typename T = float>
    LocalTensor<T> z() const { return zBytes.ReinterpretCast<T>(); }
    template <typename T = float>
    LocalTensor<T> y() const { return yBytes.ReinterpretCast<T>(); }
    template <typename T = float>
    LocalTensor<T> s() const { return sBytes.ReinterpretCast<T>(); }
    RoundMode mode() const { return static_cast<RoundMode>(p); }
    CMPMODE compare() const { return static_cast<CMPMODE>(p); }
    ReduceOrder order() const { return static_cast<ReduceOrder>(p); }
};

using O = const Operands&;
using Steps = std::map<std::string, void (*)(O)>;
const BinaryRepeatParams kBinary(1, 1, 1, 8, 8, 8);
const UnaryRepeatParams kUnary(1, 1, 8, 8);

const Steps kArithmetic = {
    {"add", [](O o) { Add(o.y(), o.x(), o.z(), o.p); }},
    {"add_half", [](O o) { Add(o.y<half>(), o.x<half>(), o.z<half>(), o.p); }},
    {"add_in_place", [](O o) { Add(o.y(), o.y(), o.x(), 100); }},
    {"add_mask", [](O o) { Add(o.y(), o.x(), o.z(), 3, 2, kBinary); }},
    {"add_bitmap", [](O o) {
        uint64_t mask[2] = {0x8000000000000005ull, 0};
        Add(o.y(), o.x(), o.z(), mask, 2, kBinary);
    }},
    {"add_bitmap_half", [](O o) {
        uint64_t mask[2] = {1, 0x8000000000000000ull};
        Add(o.y<half>(), o.x<half>(), o.z<half>(), mask, 1, kBinary);
    }},
    {"add_repeat_zero", [](O o) { Add(o.y(), o.x(), o.z(), 64, 0, kBinary); }},
    {"add_spread", [](O o) { Add(o.y(), o.x(), o.z(), 24, 1, BinaryRepeatParams(2, 1, 1, 8, 8, 8)); }},
    {"add_accumulate", [](O o) { Add(o.y(), o.x(), o.y(), 64, 4, BinaryRepeatParams(1, 1, 1, 0, 8, 0)); }},
    {"mul_stride_zero", [](O o) { Mul(o.y(), o.x(), o.z(), 64, 4, BinaryRepeatParams(1, 1, 0, 8, 8, 1)); }},
    {"mul_row_by_row", [](O o) { Mul(o.y(), o.x(), o.z(), 64, 4, BinaryRepeatParams(1, 1, 1, 8, 8, 0)); }},
    {"sub_int16", [](O o) { Sub(o.y<int16_t>(), o.x<int16_t>(), o.z<int16_t>(), 100, 2, kBinary); }},
    {"mul_int32", [](O o) { Mul(o.y<int32_t>(), o.x<int32_t>(), o.z<int32_t>(), 9); }},
    {"div", [](O o) { Div(o.y(), o.x(), o.z(), o.p); }},
    {"div_half", [](O o) { Div(o.y<half>(), o.x<half>(), o.z<half>(), o.p); }},
    {"max", [](O o) { Max(o.y(), o.x(), o.z(), o.p); }},
    {"min", [](O o) { Min(o.y(), o.x(), o.z(), o.p); }},
    {"min_int32", [](O o) { Min(o.y<int32_t>(), o.x<int32_t>(), o.z<int32_t>(), 70); }},
    {"adds_int16", [](O o) { Adds(o.y<int16_t>(), o.x<int16_t>(), static_cast<int16_t>(-300), 100); }},
    {"muls", [](O o) { Muls(o.y(), o.x(), 2.0f, o.p); }},
    {"muls_mask", [](O o) { Muls(o.y(), o.x(), 2.0f, 5, 3, UnaryRepeatParams(1, 1, 8, 0)); }},
    {"maxs", [](O o) { Maxs(o.y(), o.x(), 3.0f, 128); }},
    {"mins_half", [](O o) { Mins(o.y<half>(), o.x<half>(), half(3.0f), 128); }},
    {"exp", [](O o) { Exp(o.y(), o.x(), o.p); }},
    {"ln", [](O o) { Ln(o.y(), o.x(), o.p); }},
    {"sqrt", [](O o) { Sqrt(o.y(), o.x(), o.p); }},
    {"abs", [](O o) { Abs(o.y(), o.x(), o.p); }},
    {"rsqrt", [](O o) { Rsqrt(o.y(), o.x(), 256); }},
    {"reciprocal", [](O o) { Reciprocal(o.y(), o.x(), 64, 4, kUnary); }},
    {"relu", [](O o) { Relu(o.y(), o.x(), 128); }},
    {"relu_int32", [](O o) { Relu(o.y<int32_t>(), o.x<int32_t>(), 128); }},
    {"leaky_relu", [](O o) { LeakyRelu(o.y(), o.x(), 0.5f, 128); }},
    {"axpy", [](O o) { Axpy(o.y(), o.x(), 1.0f + 0x1p-12f, 200); }},
    {"axpy_half", [](O o) { Axpy(o.y<half>(), o.x<half>(), half(1.0f + 0x1p-6f), 200); }},
    {"axpy_mixed", [](O o) { Axpy(o.y(), o.x<half>(), half(3.0f), 64, 2, UnaryRepeatParams(1, 1, 8, 4)); }},
    {"mul_add_dst", [](O o) { MulAddDst(o.y(), o.x(), o.z(), 77); }},
    {"and", [](O o) { And(o.y<uint16_t>(), o.x<uint16_t>(), o.z<uint16_t>(), 400); }},
    {"or", [](O o) { Or(o.y<int16_t>(), o.x<int16_t>(), o.z<int16_t>(), 128, 4, kBinary); }},
    {"not", [](O o) { Not(o.y<int16_t>(), o.x<int16_t>(), 33); }},
    {"shift_left", [](O o) { ShiftLeft(o.y<int32_t>(), o.x<int32_t>(), 3, 200); }},
    {"shift_right", [](O o) { ShiftRight(o.y<int32_t>(), o.x<int32_t>(), 1, 200); }},
    {"shift_right_unsigned", [](O o) { ShiftRight(o.y<uint32_t>(), o.x<uint32_t>(), 4u, 200); }},
    {"shift_right_rounded", [](O o) { ShiftRight(o.y<int16_t>(), o.x<int16_t>(), static_cast<int16_t>(1), 128, 1, kUnary, true); }},
};

const Steps kFilling = {
    {"duplicate", [](O o) { Duplicate(o.y(), 2.5f, o.p); }},
    {"duplicate_mask", [](O o) { Duplicate(o.y(), 2.5f, 9, 2, 2, 16); }},
    {"duplicate_bitmap", [](O o) {
        uint64_t mask[2] = {2, 4};
        Duplicate(o.y<bfloat16_t>(), bfloat16_t{0x3f80}, mask, 2, 1, 8);
    }},
    {"index", [](O o) { CreateVecIndex(o.y<int32_t>(), -3, static_cast<uint32_t>(o.p)); }},
    {"index_half", [](O o) { CreateVecIndex(o.y<half>(), half(1.0f), static_cast<uint32_t>(o.p)); }},
    {"arange", [](O o) { Arange(o.y(), 1.0f, -0.5f, o.p); }},
    {"brcb", [](O o) { Brcb(o.y(), o.x(), 4, BrcbRepeatParams(1, 8)); }},
    {"brcb_half", [](O o) { Brcb(o.y<half>(), o.x<half>(), 1, BrcbRepeatParams(2, 0)); }},
    {"transpose", [](O o) { Transpose(o.y<half>(), o.x<half>()); }},
    {"copy", [](O o) { Copy(o.y<int32_t>(), o.x<int32_t>(), 16, 2, CopyRepeatParams(1, 2, 4, 8)); }},
    {"copy_rows", [](O o) { DataCopy(o.y(), o.x(), DataCopyParams(3, 2, 1, 4)); }},
    {"copy_local", [](O o) { DataCopy(o.y(), o.x(), 24); }},
    {"atomic_add", [](O o) {
        SetAtomicAdd<float>();
        DataCopy(o.out, o.x(), 16);
        DataCopyPad(o.out[16], o.x()[16], DataCopyExtParams(1, 12, 0, 0, 0));
        DisableDmaAtomic();
    }},
    {"atomic_max", [](O o) { SetAtomicMax<float>(), DataCopy(o.out, o.x(), 16), SetAtomicNone(); }},
    {"atomic_min", [](O o) { SetAtomicMin<float>(), DataCopy(o.out, o.x(), 16), SetAtomicNone(); }},
    {"counter_mask", [](O o) {
        SetMaskCount();
        SetVectorMask<float, MaskMode::COUNTER>(0, static_cast<uint64_t>(o.p));
        Add<float, false>(o.y(), o.x(), o.z(), MASK_PLACEHOLDER, 1, kBinary);
        SetMaskNorm();
        ResetMask();
    }},
    {"normal_mask", [](O o) {
        SetVectorMask<float, MaskMode::NORMAL>(0, 0xf0);
        Adds<float, false>(o.y(), o.x(), 1.0f, MASK_PLACEHOLDER, 3, kUnary);
        ResetMask();
    }},
};

template <typename D, typename S>
void Converted(O o) {
    SetDeqScale(half(0.5f));
    Cast(o.y<D>(), o.x<S>(), o.mode(), 24);
}

const Steps kCasts = {
    {"float->half", Converted<half, float>},       {"float->bf16", Converted<bfloat16_t, float>}, {"float->float", Converted<float, float>},
    {"float->int16", Converted<int16_t, float>},   {"float->int32", Converted<int32_t, float>},   {"float->int64", Converted<int64_t, float>},
    {"half->float", Converted<float, half>},       {"half->int8", Converted<int8_t, half>},       {"half->uint8", Converted<uint8_t, half>},
    {"half->int16", Converted<int16_t, half>},     {"half->int32", Converted<int32_t, half>},     {"bf16->float", Converted<float, bfloat16_t>},
    {"bf16->int32", Converted<int32_t, bfloat16_t>}, {"int8->half", Converted<half, int8_t>},     {"uint8->half", Converted<half, uint8_t>},
    {"int16->float", Converted<float, int16_t>},   {"int16->half", Converted<half, int16_t>},     {"int32->float", Converted<float, int32_t>},
    {"int32->half", Converted<half, int32_t>},     {"int32->int16", Converted<int16_t, int32_t>}, {"int32->int64", Converted<int64_t, int32_t>},
    {"int64->float", Converted<float, int64_t>},   {"int64->int32", Converted<int32_t, int64_t>},
    {"cast_mask", [](O o) { Cast(o.y(), o.x<half>(), RoundMode::CAST_NONE, 20, 2, UnaryRepeatParams(1, 1, 8, 4)); }},
};

const Steps kChoosing = {
    {"compare", [](O o) { Compare(o.y<uint8_t>(), o.x(), o.z(), o.compare(), 64); }},
    {"compare_half", [](O o) { Compare(o.y<uint8_t>(), o.x<half>(), o.z<half>(), o.compare(), 128, 2, kBinary); }},
    {"compare_int32", [](O o) { Compare(o.y<uint8_t>(), o.x<int32_t>(), o.z<int32_t>(), CMPMODE::EQ, 64); }},
    {"compare_scalar", [](O o) { CompareScalar(o.y<uint8_t>(), o.x(), 2.0f, o.compare(), 128); }},
    {"compares", [](O o) { Compares(o.y<uint8_t>(), o.x(), 2.0f, o.compare(), 64, 4, UnaryRepeatParams(1, 1, 8, 0)); }},
    {"select", [](O o) { Select(o.y(), o.s<uint8_t>(), o.x(), o.z(), SELMODE::VSEL_TENSOR_TENSOR_MODE, 100); }},
    {"select_scalar", [](O o) { Select(o.y(), o.s<uint8_t>(), o.x(), -1.0f, SELMODE::VSEL_TENSOR_SCALAR_MODE, 100); }},
    {"select_repeats", [](O o) { Select(o.y(), o.s<uint8_t>(), o.x(), o.z(), SELMODE::VSEL_TENSOR_TENSOR_MODE, 40, 2, kBinary); }},
    {"select_one_mask", [](O o) { Select(o.y(), o.s<uint8_t>(), o.x(), o.z(), SELMODE::VSEL_CMPMASK_SPR, 64, 2, kBinary); }},
    {"gather", [](O o) { Gather(o.y(), o.x(), o.z<uint32_t>(), 8, 50); }},
    {"gather_half", [](O o) { Gather(o.y<half>(), o.x<half>(), o.z<uint32_t>(), 0, 64, 1, 8); }},
};

const Steps kReducing = {
    {"whole_sum", [](O o) { WholeReduceSum<float>(o.y(), o.x(), o.p, 4, 3, 1, 8); }},
    {"whole_sum_half", [](O o) { WholeReduceSum<half>(o.y<half>(), o.x<half>(), 128, 4, 1, 1, 8); }},
    {"whole_sum_strided", [](O o) { WholeReduceSum<float>(o.y(), o.x(), 16, 2, 1, 2, 8); }},
    {"whole_sum_bitmap", [](O o) {
        const uint64_t mask[2] = {0x10001, 0};
        WholeReduceSum<float>(o.y(), o.x(), mask, 2, 1, 1, 8);
    }},
    {"whole_sum_none", [](O o) { WholeReduceSum<float>(o.y(), o.x(), 64, 0, 1, 1, 8); }},
    {"whole_max", [](O o) { WholeReduceMax<float>(o.y(), o.x(), 40, 3, 1, 1, 8, o.order()); }},
    {"whole_min_half", [](O o) { WholeReduceMin<half>(o.y<half>(), o.x<half>(), 100, 3, 2, 1, 8); }},
    {"block_sum", [](O o) { BlockReduceSum<float>(o.y(), o.x(), 3, 64, 1, 1, 8); }},
    {"block_max", [](O o) { BlockReduceMax<half>(o.y<half>(), o.x<half>(), 2, 128, 2, 1, 8); }},
    {"block_min", [](O o) { BlockReduceMin<float>(o.y(), o.x(), 2, 64, 1, 1, 8); }},
    {"pair_sum", [](O o) { PairReduceSum<float>(o.y(), o.x(), 2, 50, 1, 1, 8); }},
    {"repeat_sum", [](O o) { RepeatReduceSum<float>(o.y(), o.x(), 4, 64, 0, 1, 1, 8); }},
    {"sum", [](O o) { ReduceSum(o.y(), o.x(), o.s(), o.p); }},
    {"sum_half", [](O o) { ReduceSum(o.y<half>(), o.x<half>(), o.s<half>(), o.p); }},
    {"sum_repeats", [](O o) { ReduceSum(o.y(), o.x(), o.s(), 10, 3, 8); }},
    {"maximum", [](O o) { ReduceMax(o.y(), o.x(), o.s(), o.p, true); }},
    {"maximum_in_tmp", [](O o) { ReduceMax(o.y(), o.x(), o.y(), o.p); }},
    {"maximum_repeats", [](O o) { ReduceMax(o.y(), o.x(), o.s(), 10, 3, 8, true); }},
    {"minimum", [](O o) { ReduceMin(o.y<half>(), o.x<half>(), o.s<half>(), o.p, true); }},
};

void Run(const std::string& name, O o) {
    for (const Steps* steps : {&kArithmetic, &kFilling, &kCasts, &kChoosing, &kReducing}) {
        const auto found = steps->find(name);
        if (found != steps->end()) return found->second(o);
    }
    throw twin::TwinError("no step " + name);
}

}  // namespace

/// `bits` are what s holds at first, for the selections; y goes in and comes out. `keeps`: whether 16-bit results keep infinity and NaN.
extern "C" int conformance_run(const char* name, int p, int keeps, const void* x, const void* z, const void* bits, void* y) {
    return twin::Guarded([=] {
        twin::Launch launch(name, 1, twin::Ratio::kVectorOnly, twin::CurrentSettings());
        GlobalTensor<uint8_t> gm[4];
        gm[0].SetGlobalBuffer((__gm__ uint8_t*)launch.In("x", x, 1024));
        gm[1].SetGlobalBuffer((__gm__ uint8_t*)launch.In("z", z, 1024));
        gm[2].SetGlobalBuffer((__gm__ uint8_t*)launch.In("bits", bits, 64));
        gm[3].SetGlobalBuffer((__gm__ uint8_t*)launch.InOut("y", y, 1024));
        launch.Run([&] {
            TPipe pipe;
            TBuf<TPosition::VECCALC> local[4];
            for (auto& one : local) pipe.InitBuffer(one, 2048);
            Operands o;
            o.xBytes = local[0].Get<uint8_t>(), o.zBytes = local[1].Get<uint8_t>();
            o.sBytes = local[2].Get<uint8_t>(), o.yBytes = local[3].Get<uint8_t>();
            o.out.SetGlobalBuffer((__gm__ float*)gm[3].GetPhyAddr());
            o.p = p;
            DataCopy(o.xBytes, gm[0], 1024);
            DataCopy(o.zBytes, gm[1], 1024);
            DataCopy(o.sBytes, gm[2], 64);
            DataCopy(o.yBytes, gm[3], 1024);
            PipeBarrier<PIPE_ALL>();
            const int64_t before = GetCtrlSpr<48, 48>();
            SetCtrlSpr<48, 48>(keeps);
            Run(name, o);
            SetCtrlSpr<48, 48>(before);
            PipeBarrier<PIPE_ALL>();
            if (std::string(name).rfind("atomic", 0) != 0) DataCopy(gm[3], o.yBytes, 1024);
        });
    });
}

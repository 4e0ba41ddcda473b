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
    {"two_cores_one_cache_line", [](const Memory& gm) {
        GlobalTensor<float> out = gm.out;
        out.SetValue(static_cast<uint64_t>(GetBlockIdx()) * 8, 1.0f);
        DataCacheCleanAndInvalid<float, CacheLine::SINGLE_CACHE_LINE, DcciDst::CACHELINE_OUT>(out[static_cast<uint64_t>(GetBlockIdx()) * 8]);
    }},
    {"scalar_line_not_written_back", [](const Memory& gm) {
        GlobalTensor<float> out = gm.out;
        out.SetValue(static_cast<uint64_t>(GetBlockIdx()) * 16, 1.0f);
    }},
    {"event_id_8", [](const Memory&) {
        InitSocState();
        SetFlag<HardEvent::MTE2_V>(static_cast<event_t>(8));
    }},
};

/// A buffer of 2048 floats, of which the first 512 are written and landed, and the rules of one instruction.
const BinaryRepeatParams kBinary(1, 1, 1, 8, 8, 8);
const UnaryRepeatParams kUnary(1, 1, 8, 8);

template <typename T>
LocalTensor<T> As(const LocalTensor<float>& x) {
    return x.ReinterpretCast<T>();
}

const std::map<std::string, void (*)(const Memory&, const LocalTensor<float>&)> kInstructions = {
    {"mask_of_no_lane", [](const Memory&, auto& x) {
        const uint64_t none = 0;
        Add(x[512], x, x, none, 1, kBinary);
    }},
    {"mask_of_65_floats", [](const Memory&, auto& x) { Muls(x[512], x, 2.0f, 65, 1, kUnary); }},
    {"bitmap_beyond_lanes", [](const Memory&, auto& x) {
        uint64_t mask[2] = {1, 1};
        Exp(x[512], x, mask, 1, kUnary);
    }},
    {"mask_not_reset", [](const Memory&, auto&) { SetVectorMask<float>(0, 15); }},
    {"counter_mode_left_on", [](const Memory&, auto&) { SetMaskCount(); }},
    {"own_mask_destroyed", [](const Memory&, auto& x) {
        SetVectorMask<float>(0, 15);
        Muls(x[512], x, 2.0f, 64);
    }},
    {"counter_without_count", [](const Memory&, auto& x) {
        ResetMask();
        SetMaskCount();
        Add<float, false>(x[512], x, x, MASK_PLACEHOLDER, 1, kBinary);
    }},
    {"mask_left_by_another", [](const Memory&, auto& x) {
        Muls(x[512], x, 2.0f, 5, 1, kUnary);
        Muls<float, false>(x[1024], x, 2.0f, MASK_PLACEHOLDER, 1, kUnary);
    }},
    {"brcb_under_own_mask", [](const Memory&, auto& x) {
        SetVectorMask<float>(0, 15);
        Brcb(x[512], x, 1, BrcbRepeatParams(1, 8));
    }},
    {"counter_mask_in_normal_mode", [](const Memory&, auto&) { SetVectorMask<float, MaskMode::COUNTER>(0, 100); }},
    {"masked_read_of_poison", [](const Memory&, auto& x) { Muls(x[1024], x[448], 2.0f, 9, 2, kUnary); }},
    {"repeat_reads_the_one_before", [](const Memory&, auto& x) { Muls(x[64], x, 2.0f, 64, 2, kUnary); }},
    {"repeat_overlaps_in_part", [](const Memory&, auto& x) { Muls(x[8], x, 2.0f, 64, 1, kUnary); }},
    {"accumulates_in_the_first_source", [](const Memory&, auto& x) { Add(x, x, x[64], 64, 4, BinaryRepeatParams(1, 1, 1, 0, 0, 8)); }},
    {"256_repeats", [](const Memory&, auto& x) { WholeReduceSum<float>(x[512], x, 64, 256, 1, 1, 0); }},
    {"negative_count", [](const Memory&, auto& x) { Sqrt(x[512], x, -64); }},
    {"compare_of_400_bytes", [](const Memory&, auto& x) { Compare(As<uint8_t>(x[512]), x, x, CMPMODE::LT, 100); }},
    {"int32_less_than", [](const Memory&, auto& x) { Compare(As<uint8_t>(x[512]), As<int32_t>(x), As<int32_t>(x), CMPMODE::LT, 64); }},
    {"compare_under_a_mask", [](const Memory&, auto& x) { Compare(As<uint8_t>(x[512]), x, x, CMPMODE::LT, 32, 1, kBinary); }},
    {"compare_onto_its_source", [](const Memory&, auto& x) { CompareScalar(As<uint8_t>(x), x, 0.0f, CMPMODE::LT, 64); }},
    {"select_by_missing_bits", [](const Memory&, auto& x) {
        const LocalTensor<uint8_t> bits = As<uint8_t>(x[512]);
        CompareScalar(bits, x, 0.0f, CMPMODE::LT, 64);
        PipeBarrier<PIPE_V>();
        Select(x[1024], bits, x, x[128], SELMODE::VSEL_TENSOR_TENSOR_MODE, 128);
    }},
    {"select_in_the_wrong_mode", [](const Memory&, auto& x) { Select(x[512], As<uint8_t>(x), x, 0.0f, SELMODE::VSEL_TENSOR_TENSOR_MODE, 64); }},
    {"gather_outside", [](const Memory&, auto& x) {
        Duplicate(As<uint32_t>(x[512]), 8192u, 8);
        PipeBarrier<PIPE_V>();
        Gather(x[1024], x, As<uint32_t>(x[512]), 0u, 8);
    }},
    {"gather_between_elements", [](const Memory&, auto& x) {
        Duplicate(As<uint32_t>(x[512]), 6u, 8);
        PipeBarrier<PIPE_V>();
        Gather(x[1024], x, As<uint32_t>(x[512]), 0u, 8);
    }},
    {"gather_onto_its_source", [](const Memory&, auto& x) {
        Duplicate(As<uint32_t>(x[512]), 0u, 8);
        PipeBarrier<PIPE_V>();
        Gather(x, x, As<uint32_t>(x[512]), 0u, 8);
    }},
    {"broadcast_onto_its_source", [](const Memory&, auto& x) { Brcb(x, x, 1, BrcbRepeatParams(1, 8)); }},
    {"bf16_without_rounding", [](const Memory&, auto& x) { Cast(As<bfloat16_t>(x[512]), x, RoundMode::CAST_NONE, 64); }},
    {"narrowed_in_place", [](const Memory&, auto& x) { Cast(As<half>(x), x, RoundMode::CAST_RINT, 64); }},
    {"int32_to_half_without_scale", [](const Memory&, auto& x) { Cast(As<half>(x[512]), As<int32_t>(x), RoundMode::CAST_NONE, 64); }},
    {"half_overflows", [](const Memory&, auto& x) {
        Duplicate(x[512], 1e6f, 64);
        PipeBarrier<PIPE_V>();
        Cast(As<half>(x[1024]), x[512], RoundMode::CAST_RINT, 64);
    }},
    {"control_bit_not_put_back", [](const Memory&, auto&) { SetCtrlSpr<48, 48>(1 - GetCtrlSpr<48, 48>()); }},
    {"shift_by_33", [](const Memory&, auto& x) { ShiftLeft(As<int32_t>(x), As<int32_t>(x), 33, 64); }},
    {"no_working_space", [](const Memory&, auto& x) { ReduceMax(x[512], x, x[2040], 512, false); }},
    {"working_space_of_a_sum", [](const Memory&, auto& x) {
        ReduceSum(x[512], x, x[1024], 512);
        PipeBarrier<PIPE_V>();
        Muls(x[1024], x[1024], 2.0f, 8);
    }},
    {"index_at_an_odd_place", [](const Memory&, auto& x) { WholeReduceMax<float>(x[513], x, 64, 1, 1, 1, 8); }},
    {"ramp_over_a_vector_operand", [](const Memory&, auto& x) {
        Muls(x[512], x, 2.0f, 64);
        CreateVecIndex(As<int32_t>(x), 0, 64u);
    }},
    {"merge_of_unsorted_lists", [](const Memory&, auto& x) {
        const uint16_t lengths[4] = {32, 32, 0, 0};
        MrgSort(x[512], MrgSortSrcList<float>(x, x[128], x, x), MrgSort4Info(lengths, false, 3, 1));
    }},
    {"sort_at_64_bytes", [](const Memory&, auto& x) { Sort32(x[512], x[16], As<uint32_t>(x[128]), 1); }},
    {"local_copy_of_20_bytes", [](const Memory&, auto& x) { DataCopy(x[512], x, 5); }},
    {"row_of_half_an_element", [](const Memory& gm, auto& x) { DataCopyPad(gm.out, x, DataCopyExtParams(1, 6, 0, 0, 0)); }},
    {"4096_rows", [](const Memory& gm, auto& x) { DataCopyPad(gm.out, x, DataCopyExtParams(4096, 4, 0, 0, 0)); }},
    {"accumulation_of_another_type", [](const Memory& gm, auto& x) {
        SetAtomicAdd<int32_t>();
        DataCopy(gm.out, x, 64);
    }},
    {"accumulation_onto_poison", [](const Memory& gm, auto& x) {
        SetAtomicAdd<float>();
        DataCopy(gm.workspace, x, 64);
    }},
    {"dequeue_of_nothing", [](const Memory&, auto&) {
        InQueue queue;
        GetTPipePtr()->InitBuffer(queue, 1, 256);
        queue.DeQue<float>();
    }},
    {"65_buffers", [](const Memory&, auto&) {
        Buffer buffers[64];
        for (Buffer& buffer : buffers) GetTPipePtr()->InitBuffer(buffer, 32);
    }},
    {"event_ids_run_out", [](const Memory&, auto&) {
        for (uint32_t i = 0; i < 9; ++i) GetTPipePtr()->AllocEventID<HardEvent::V_S>();
    }},
    {"cube_instruction_on_a_vector_core", [](const Memory&, auto& x) {
        MmadParams p(16, 16, 16, 0, false, true);
        Mmad(x, As<half>(x), As<half>(x), p);
    }},
    {"cross_core_flag_11", [](const Memory&, auto&) { CrossCoreSetFlag<0, PIPE_MTE3>(11); }},
    {"16_sets_of_a_flag", [](const Memory&, auto&) {
        for (uint32_t i = 0; i < 16; ++i) CrossCoreSetFlag<0, PIPE_MTE3>(3);
    }},
    {"one_sync_all_too_many", [](const Memory&, auto&) {
        SyncAll();
        if (GetBlockIdx() == 0) SyncAll();
    }},
    {"blocks_beyond_the_cores_sync_all", [](const Memory&, auto&) { SyncAll(); }},
};

/// A cube core: 16 x 16 halves in L1, landed, and empty L0 buffers.
struct CubeMemory {
    LocalTensor<half> l1, l0a, l0b;
    LocalTensor<float> l0c;
};

const LoadData2DParams kFractal(0, 1, 1, 0, 0, false, 0);
const MmadParams kSquare(16, 16, 16, 0, false, true);

/// The operands of a product, landed in L0.
void Landed(const CubeMemory& m) {
    LoadData(m.l0a, m.l1, kFractal);
    LoadData(m.l0b, m.l1, kFractal);
    PipeBarrier<PIPE_ALL>();
}

const std::map<std::string, void (*)(const Memory&, const CubeMemory&)> kCubeInstructions = {
    {"vector_instruction_on_a_cube_core", [](const Memory&, auto& m) { Muls(m.l0c, m.l0c, 2.0f, 64); }},
    {"product_of_what_is_loaded", [](const Memory&, auto& m) {
        LoadData(m.l0a, m.l1, kFractal);
        LoadData(m.l0b, m.l1, kFractal);
        Mmad(m.l0c, m.l0a, m.l0b, kSquare);
    }},
    {"product_from_l1", [](const Memory&, auto& m) {
        Landed(m);
        Mmad(m.l0c, m.l1, m.l0b, kSquare);
    }},
    {"k_beyond_what_is_loaded", [](const Memory&, auto& m) {
        Landed(m);
        Mmad(m.l0c, m.l0a, m.l0b, MmadParams(16, 16, 24, 0, false, true));
    }},
    {"accumulator_at_512_bytes", [](const Memory&, auto& m) {
        Landed(m);
        Mmad(m.l0c[128], m.l0a, m.l0b, kSquare);
    }},
    {"accumulation_onto_nothing", [](const Memory&, auto& m) {
        Landed(m);
        Mmad(m.l0c, m.l0a, m.l0b, MmadParams(16, 16, 16, 0, false, false));
    }},
    {"product_of_4096_rows", [](const Memory&, auto& m) {
        Landed(m);
        Mmad(m.l0c, m.l0a, m.l0b, MmadParams(4096, 16, 16, 0, false, true));
    }},
    {"result_stored_at_once", [](const Memory& gm, auto& m) {
        Landed(m);
        Mmad(m.l0c, m.l0a, m.l0b, kSquare);
        Fixpipe<float, float, CFG_ROW_MAJOR>(gm.out, m.l0c, FixpipeParamsV220(16, 16, 16, 16, false));
    }},
    {"result_rounded_to_another_type", [](const Memory& gm, auto& m) {
        Landed(m);
        Mmad(m.l0c, m.l0a, m.l0b, kSquare);
        PipeBarrier<PIPE_ALL>();
        FixpipeParamsV220 p(16, 16, 16, 16, false);
        p.quantPre = QuantMode_t::F322BF16;
        Fixpipe<float, float, CFG_ROW_MAJOR>(gm.out, m.l0c, p);
    }},
    {"fractals_beyond_l1", [](const Memory&, auto& m) { LoadData(m.l0a, m.l1, LoadData2DParams(1, 1, 1, 0, 0, false, 0)); }},
};

void RunInstruction(const std::string& name, const Memory& gm) {
    TPipe pipe;
    Buffer buffer;
    pipe.InitBuffer(buffer, 8192);
    LocalTensor<float> x = buffer.Get<float>();
    DataCopy(x, gm.in, 512);
    PipeBarrier<PIPE_ALL>();
    kInstructions.at(name)(gm, x);
}

void RunCube(const std::string& name, const Memory& gm) {
    TPipe pipe;
    TBuf<TPosition::A1> l1;
    TBuf<TPosition::A2> l0a;
    TBuf<TPosition::B2> l0b;
    TBuf<TPosition::CO1> l0c;
    pipe.InitBuffer(l1, 512), pipe.InitBuffer(l0a, 1024), pipe.InitBuffer(l0b, 1024), pipe.InitBuffer(l0c, 4096);
    const CubeMemory memory = {l1.Get<half>(), l0a.Get<half>(), l0b.Get<half>(), l0c.Get<float>()};
    GlobalTensor<half> from;
    from.SetGlobalBuffer((__gm__ half*)gm.in.GetPhyAddr());
    DataCopy(memory.l1, from, Nd2NzParams(1, 16, 16, 0, 16, 16, 1, 0));
    PipeBarrier<PIPE_ALL>();
    kCubeInstructions.at(name)(gm, memory);
}

uint32_t Blocks(const std::string& name) {
    if (name == "blocks_beyond_the_cores_sync_all") return 51;
    return name.find("core") != std::string::npos || name.find("sync_all") != std::string::npos ? 2 : 1;
}

}  // namespace

extern "C" int wrong_run(const char* name) {
    return twin::Guarded([name] {
        static float input[4096], output[4096];
        for (uint32_t i = 0; i < 4096; ++i) input[i] = static_cast<float>(i % 7);
        const bool cube = kCubeInstructions.count(name) != 0;
        twin::Launch launch(name, cube ? 1 : Blocks(name), cube ? twin::Ratio::kCubeOnly : twin::Ratio::kVectorOnly, twin::CurrentSettings());
        Memory gm;
        gm.in.SetGlobalBuffer((__gm__ float*)launch.In("in", input, sizeof(input)));
        gm.out.SetGlobalBuffer((__gm__ float*)launch.Out("out", output, sizeof(output)));
        gm.workspace.SetGlobalBuffer((__gm__ float*)launch.Workspace("workspace", 4096));
        launch.Run([&] {
            if (cube) RunCube(name, gm);
            else if (kInstructions.count(name) != 0) RunInstruction(name, gm);
            else kKernels.at(name)(gm);
        });
    });
}

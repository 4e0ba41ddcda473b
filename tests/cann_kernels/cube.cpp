// SPDX-License-Identifier: Apache-2.0
// Products on the cube core: a matrix product of any size, an attention of one head group on one AI Core and its two vector
// cores, and the same two with one mistake each.
#include <string>

#include "kernel_operator.h"
#include "twin/abi.h"

using namespace AscendC;

namespace {

struct Product {
    uint32_t m, n, k;
    uint32_t leftTransposed;   // A is given as [k, m]
    uint32_t rightTransposed;  // B is given as [n, k]
    uint32_t pieces;           // of k, accumulated one by one
    uint32_t relu, nz, repeats;
};

constexpr uint32_t Up(uint32_t value, uint32_t unit) { return (value + unit - 1) / unit * unit; }

template <typename T>
constexpr uint32_t kC0 = 32 / sizeof(T);

bool Is(const std::string& mistake, const char* name) { return mistake == name; }

template <typename T>
void ToL1(const LocalTensor<T>& dst, const GlobalTensor<T>& src, uint32_t rows, uint32_t columns, uint32_t pitch, uint32_t paddedRows) {
    DataCopy(dst, src, Nd2NzParams(1, rows, columns, 0, pitch, paddedRows, 1, 0));
}

template <typename T>
void Clear(const LocalTensor<T>& dst, uint32_t bytes) {
    if constexpr (sizeof(T) == 1) Fill(dst.template ReinterpretCast<int16_t>(), InitConstValueParams<int16_t>(1, bytes / 32, 0, 0));
    else Fill(dst, InitConstValueParams<T>(1, bytes / 32, 0, T{}));
}

/// [rows, k] in L1 to fractals [rows/16][k/C0], or [k, rows] transposed on the way.
template <typename T>
void ToL0a(const LocalTensor<T>& dst, const LocalTensor<T>& src, uint32_t rows, uint32_t k, bool transposed) {
    const uint32_t wide = Up(k, kC0<T>) / kC0<T>, fractal = 512 / sizeof(T);
    for (uint32_t row = 0; row < Up(rows, 16) / 16; ++row) {
        if (!transposed) LoadData(dst[row * wide * fractal], src, LoadData2DParams(row, wide, Up(rows, 16) / 16, 0, 0, false, 0));
        else if constexpr (sizeof(T) == 2) LoadData(dst[row * wide * fractal], src, LoadData2DParams(row * wide, wide, 1, 0, 0, true, 0));
    }
}

/// [n, k] in L1 as it lies, or [k, n] transposed on the way, to fractals [k/C0][n/16].
template <typename T>
void ToL0b(const LocalTensor<T>& dst, const LocalTensor<T>& src, uint32_t n, uint32_t k, bool asItLies) {
    const uint32_t fractal = 512 / sizeof(T), tall = Up(n, 16) / 16, deep = Up(k, kC0<T>) / kC0<T>;
    if (asItLies) {
        LoadData(dst, src, LoadData2DParams(0, tall * deep, 1, 0, 0, false, 0));
    } else if constexpr (sizeof(T) == 2) {
        for (uint32_t i = 0; i < deep; ++i) LoadData(dst[i * tall * fractal], src, LoadData2DParams(i, tall, deep, 0, 0, true, 0));
    } else if constexpr (sizeof(T) == 1) {
        const uint32_t squares = Up(n, 32) / 32;
        for (uint32_t i = 0; i < deep; ++i) {
            LoadDataWithTranspose(dst[i * tall * fractal], src[i * 2 * fractal], LoadData2dTransposeParams(0, squares, deep, 1, 0));
        }
    }
}

template <typename T, typename C, typename D>
void MultiplyKernel(GM_ADDR a, GM_ADDR b, GM_ADDR out, const Product& p, const std::string& mistake) {
    GlobalTensor<T> left, right;
    GlobalTensor<D> result;
    left.SetGlobalBuffer((__gm__ T*)a), right.SetGlobalBuffer((__gm__ T*)b), result.SetGlobalBuffer((__gm__ D*)out);
    const uint32_t step = p.k / p.pieces, depth = Up(step, 32), rows = Up(p.m, 32), columns = Up(p.n, 32);
    TPipe pipe;
    TQue<TPosition::A1, 1> a1;
    TQue<TPosition::B1, 1> b1;
    TQue<TPosition::A2, 1> a2;
    TQue<TPosition::B2, 1> b2;
    TQue<TPosition::CO1, 1> co;
    pipe.InitBuffer(a1, 2, rows * depth * sizeof(T)), pipe.InitBuffer(b1, 2, columns * depth * sizeof(T));
    pipe.InitBuffer(a2, 2, rows * depth * sizeof(T)), pipe.InitBuffer(b2, 2, columns * depth * sizeof(T));
    pipe.InitBuffer(co, 1, rows * columns * 4);
    LocalTensor<C> c = co.AllocTensor<C>();
    for (uint32_t piece = 0; piece < p.pieces; ++piece) {
        LocalTensor<T> l = a1.AllocTensor<T>(), r = b1.AllocTensor<T>();
        // Lanes that pad k are multiplied too.
        if (!Is(mistake, "unfilled_padding")) Clear(l, rows * depth * sizeof(T)), Clear(r, columns * depth * sizeof(T)), PipeBarrier<PIPE_MTE2>();
        const uint32_t from = piece * step, c0 = kC0<T>;
        if (p.leftTransposed) ToL1(l, left[from * p.m], step, p.m, p.m, Up(step, c0));
        else ToL1(l, left[from], p.m, step, p.k, Up(p.m, 16));
        if (p.rightTransposed) ToL1(r, right[from], p.n, step, p.k, Up(p.n, 16));
        else ToL1(r, right[from * p.n], step, p.n, p.n, Up(step, c0));
        a1.EnQue(l), b1.EnQue(r);
        l = a1.DeQue<T>(), r = b1.DeQue<T>();
        LocalTensor<T> l0 = a2.AllocTensor<T>(), r0 = b2.AllocTensor<T>();
        ToL0a(l0, l, p.m, step, p.leftTransposed != 0);
        a2.EnQue(l0), l0 = a2.DeQue<T>();
        ToL0b(r0, r, p.n, step, p.rightTransposed != 0);
        if (!Is(mistake, "product_before_enque")) b2.EnQue(r0), r0 = b2.DeQue<T>();
        MmadParams mm;
        mm.m = p.m, mm.n = p.n, mm.k = step, mm.cmatrixInitVal = piece == 0 && !Is(mistake, "never_cleared");
        if (piece != 0 && !Is(mistake, "missing_m_barrier")) PipeBarrier<PIPE_M>();
        if (Is(mistake, "left_in_l0b")) Mmad(c, r0, r0, mm);
        else if (Is(mistake, "misaligned_accumulator")) Mmad(c[64], l0, r0, mm);
        else Mmad(c, l0, r0, mm);
        a2.FreeTensor(l0), b2.FreeTensor(r0), a1.FreeTensor(l), b1.FreeTensor(r);
    }
    if (!Is(mistake, "stored_before_enque")) co.EnQue(c), c = co.DeQue<C>();
    FixpipeParamsV220 f(p.nz != 0 ? Up(p.n, 16) : p.n, p.m, Up(p.m, 16), p.nz != 0 ? p.m * 16 * sizeof(D) / 32 : p.n, p.relu != 0);
    f.quantPre = detail::QuantModeOf<D, C>();
    if (Is(mistake, "wrong_quantisation")) f.quantPre = QuantMode_t::F322F16;
    const float half = 0.5f;
    std::memcpy(&f.deqScalar, &half, 4);
    if (p.repeats > 1) SetAtomicAdd<D>();
    for (uint32_t i = 0; i < p.repeats; ++i) {
        if (p.nz != 0) Fixpipe<D, C, CFG_NZ>(result, c, f);
        else Fixpipe<D, C, CFG_ROW_MAJOR>(result, c, f);
    }
    if (p.repeats > 1) DisableDmaAtomic();
    co.FreeTensor(c);
}

template <typename T, typename C, typename D>
int Multiply(const Product& p, const void* a, const void* b, void* out, const std::string& mistake) {
    return twin::Guarded([&] {
        twin::Launch launch("product", 1, twin::Ratio::kCubeOnly, twin::CurrentSettings());
        GM_ADDR left = launch.In("a", a, size_t{p.m} * p.k * sizeof(T));
        GM_ADDR right = launch.In("b", b, size_t{p.n} * p.k * sizeof(T));
        const size_t bytes = size_t{p.m} * (p.nz != 0 ? Up(p.n, 16) : p.n) * sizeof(D);
        GM_ADDR result = p.repeats > 1 ? launch.InOut("out", out, bytes) : launch.Out("out", out, bytes);
        launch.Run([&] { MultiplyKernel<T, C, D>(left, right, result, p, mistake); });
    });
}

/// o = (q kv^T / 8) kv for 32 rows of q and `keys` rows of kv, one group of rows per block: kv stands once in L1 and is used for both.
struct Attention {
    static constexpr uint32_t kRows = 32, kDim = 64, kMostKeys = 128;

    void Cube() {
        pipe_.InitBuffer(q1_, kRows * kDim * 2), pipe_.InitBuffer(kv1_, kMostKeys * kDim * 2), pipe_.InitBuffer(p1_, kRows * kMostKeys * 2);
        pipe_.InitBuffer(a_, kRows * kMostKeys * 2), pipe_.InitBuffer(b_, kMostKeys * kDim * 2), pipe_.InitBuffer(c_, kRows * kMostKeys * 4);
        const LocalTensor<bfloat16_t> q = q1_.Get<bfloat16_t>(), kv = kv1_.Get<bfloat16_t>(), p = p1_.Get<bfloat16_t>();
        const uint32_t padded = Up(keys, 16);
        Clear(kv, padded * kDim * 2);
        PipeBarrier<PIPE_MTE2>();
        ToL1(q, q_[GetBlockIdx() * kRows * kDim], kRows, kDim, kDim, kRows);
        ToL1(kv, kv_, keys, kDim, kDim, padded);
        SetFlag<HardEvent::MTE2_MTE1>(EVENT_ID0), WaitFlag<HardEvent::MTE2_MTE1>(EVENT_ID0);
        Step(q, kv, kDim, keys, true, s_[GetBlockIdx() * kRows * padded], padded);
        CrossCoreSetFlag<2, PIPE_FIX>(0);
        if (!Is(mistake, "cube_does_not_wait")) CrossCoreWaitFlag<2, PIPE_MTE2>(1);
        ToL1(p, p_[GetBlockIdx() * kRows * padded], kRows, keys, padded, kRows);
        SetFlag<HardEvent::MTE2_MTE1>(EVENT_ID0), WaitFlag<HardEvent::MTE2_MTE1>(EVENT_ID0);
        const TEventID free = pipe_.FetchEventID(HardEvent::M_MTE1);
        SetFlag<HardEvent::M_MTE1>(free), WaitFlag<HardEvent::M_MTE1>(free);
        SetFlag<HardEvent::FIX_M>(EVENT_ID0), WaitFlag<HardEvent::FIX_M>(EVENT_ID0);
        Step(p, kv, keys, kDim, false, o_[GetBlockIdx() * kRows * kDim], kDim);
    }

    void Vector() {
        const uint32_t padded = Up(keys, 16), count = kRows / 2 * padded;
        const uint64_t from = GetBlockIdx() * count;
        pipe_.InitBuffer(s_ub_, count * 4), pipe_.InitBuffer(p_ub_, count * 2);
        const LocalTensor<float> s = s_ub_.Get<float>();
        const LocalTensor<bfloat16_t> p = p_ub_.Get<bfloat16_t>();
        if (!Is(mistake, "vector_does_not_wait")) CrossCoreWaitFlag<2, PIPE_MTE2>(0);
        // The columns between keys and padded hold nothing.
        DataCopyPad(s, s_[from], DataCopyExtParams(kRows / 2, keys * 4, (padded - keys) * 4, (padded - keys) / 8, 0), DataCopyPadExtParams<float>(true, 0, 0, 0.0f));
        SetFlag<HardEvent::MTE2_V>(id0_), WaitFlag<HardEvent::MTE2_V>(id0_);
        for (uint32_t row = 0; row < kRows / 2; ++row) Muls(s[row * padded], s[row * padded], 0.125f, keys);
        PipeBarrier<PIPE_V>();
        for (uint32_t row = 0; row < kRows / 2; ++row) Cast(p[row * padded], s[row * padded], RoundMode::CAST_RINT, keys);
        SetFlag<HardEvent::V_MTE3>(id1_), WaitFlag<HardEvent::V_MTE3>(id1_);
        DataCopyPad(p_[from], p, DataCopyExtParams(kRows / 2, keys * 2, (padded - keys) / 16, (padded - keys) * 2, 0));
        if (!(Is(mistake, "one_half_does_not_signal") && GetSubBlockIdx() == 1)) CrossCoreSetFlag<2, PIPE_MTE3>(1);
    }

    void Step(const LocalTensor<bfloat16_t>& left, const LocalTensor<bfloat16_t>& right, uint32_t k, uint32_t n, bool asItLies,
              const GlobalTensor<float>& to, uint32_t pitch) {
        const LocalTensor<bfloat16_t> a = a_.Get<bfloat16_t>(), b = b_.Get<bfloat16_t>();
        const LocalTensor<float> c = c_.Get<float>();
        ToL0a(a, left, kRows, k, false);
        ToL0b(b, right, n, k, asItLies);
        SetFlag<HardEvent::MTE1_M>(EVENT_ID0), WaitFlag<HardEvent::MTE1_M>(EVENT_ID0);
        Mmad(c, a, b, MmadParams(kRows, n, k, 0, false, true));
        SetFlag<HardEvent::M_FIX>(EVENT_ID0), WaitFlag<HardEvent::M_FIX>(EVENT_ID0);
        Fixpipe<float, float, CFG_ROW_MAJOR>(to, c, FixpipeParamsV220(n, kRows, kRows, pitch, false));
    }

    void Run() {
        // The TPipe hands out the ids that are used below, each once and always the first.
        for (HardEvent event : {HardEvent::MTE2_MTE1, HardEvent::M_MTE1, HardEvent::FIX_M, HardEvent::MTE1_M, HardEvent::M_FIX}) pipe_.FetchEventID(event);
        id0_ = pipe_.FetchEventID(HardEvent::MTE2_V), id1_ = pipe_.FetchEventID(HardEvent::V_MTE3);
        if ASCEND_IS_AIC {
            Cube();
        }
        if ASCEND_IS_AIV {
            Vector();
        }
    }

    GlobalTensor<bfloat16_t> q_, kv_, p_;
    GlobalTensor<float> s_, o_;
    uint32_t keys;
    const std::string& mistake;
    TPipe pipe_;
    TBuf<TPosition::A1> q1_, kv1_, p1_;
    TBuf<TPosition::A2> a_;
    TBuf<TPosition::B2> b_;
    TBuf<TPosition::CO1> c_;
    TBuf<TPosition::VECCALC> s_ub_, p_ub_;
    TEventID id0_ = 0, id1_ = 0;
};

}  // namespace

extern "C" int product_run(const char* types, const Product* p, const void* a, const void* b, void* out, const char* mistake) {
    const std::string kind = types;
    if (kind == "bfloat16 float32") return Multiply<bfloat16_t, float, float>(*p, a, b, out, mistake);
    if (kind == "bfloat16 bfloat16") return Multiply<bfloat16_t, float, bfloat16_t>(*p, a, b, out, mistake);
    if (kind == "float16 float16") return Multiply<half, float, half>(*p, a, b, out, mistake);
    if (kind == "float32 float32") return Multiply<float, float, float>(*p, a, b, out, mistake);
    if (kind == "int8 int32") return Multiply<int8_t, int32_t, int32_t>(*p, a, b, out, mistake);
    if (kind == "int8 float16") return Multiply<int8_t, int32_t, half>(*p, a, b, out, mistake);
    return -1;
}

extern "C" int attention_run(uint32_t blocks, uint32_t keys, const void* q, const void* kv, void* o, const char* mistake) {
    return twin::Guarded([&] {
        const std::string wrong = mistake;
        twin::Launch launch("attention", blocks, twin::Ratio::kOneToTwo, twin::CurrentSettings());
        const size_t rows = size_t{blocks} * Attention::kRows;
        GM_ADDR query = launch.In("q", q, rows * Attention::kDim * 2);
        GM_ADDR key = launch.In("kv", kv, size_t{keys} * Attention::kDim * 2);
        GM_ADDR s = launch.Workspace("s", rows * Up(keys, 16) * 4);
        GM_ADDR p = launch.Workspace("p", rows * Up(keys, 16) * 2);
        GM_ADDR out = launch.Out("o", o, rows * Attention::kDim * 4);
        launch.Run([&] {
            GlobalTensor<bfloat16_t> q16, kv16, p16;
            GlobalTensor<float> s32, o32;
            q16.SetGlobalBuffer((__gm__ bfloat16_t*)query), kv16.SetGlobalBuffer((__gm__ bfloat16_t*)key), p16.SetGlobalBuffer((__gm__ bfloat16_t*)p);
            s32.SetGlobalBuffer((__gm__ float*)s), o32.SetGlobalBuffer((__gm__ float*)out);
            Attention kernel{q16, kv16, p16, s32, o32, keys, wrong, {}, {}, {}, {}, {}, {}, {}, {}, {}};
            kernel.Run();
        });
    });
}

// SPDX-License-Identifier: Apache-2.0
#include "launch.h"

#include "compress_kv.h"

ASCEND_DSV4_LAUNCHER(compress_kv, CompressKvParams)

namespace {

using namespace ascend_dsv4_kernels;

uint32_t EntryDtype(c10::string_view name) {
    TORCH_CHECK(name == "float32" || name == "bfloat16" || name == "float16", "compress_kv: entry_dtype is ", name,
                "; expected float32, bfloat16 or float16");
    return name == "float32" ? 0 : name == "bfloat16" ? 1 : 2;
}

/// Writes cache and state; one that is not contiguous is copied back. Grids of the cache are another operator's: rounding is none.
void CompressKv(at::Tensor& cache, at::Tensor& state, const at::Tensor& kv, const at::Tensor& gate, const at::Tensor& ape,
                const at::Tensor& norm, const at::Tensor& cos, const at::Tensor& sin, const at::Tensor& positions,
                const at::Tensor& req_idx, const at::Tensor& cu_query_lens, const at::Tensor& state_slots, const at::Tensor& slots,
                int64_t ratio, double eps, c10::string_view rounding, c10::string_view entry_dtype) {
    if (kv.is_meta() || kv.size(0) == 0) return;
    TORCH_CHECK(rounding == "none", "compress_kv: rounding is ", rounding, "; expected none, because the kernel knows no grid");
    for (const at::Tensor& tensor : {state, kv, gate, ape, cos, sin}) RequireDtype("compress_kv", "state or a projection", tensor, at::kFloat);
    for (const at::Tensor& tensor : {positions, req_idx, cu_query_lens, state_slots, slots}) {
        RequireDtype("compress_kv", "an index", tensor, at::kInt);
    }
    CompressKvParams params = {};
    params.numTokens = Size(kv, 0), params.numRequests = Size(state_slots, 0), params.headDim = Size(cache, 2);
    params.overlap = kv.size(1) > cache.size(2), params.ratio = static_cast<uint32_t>(ratio), params.half = Size(cos, 1);
    params.stateRows = Size(state, 1), params.numStateSlots = Size(state, 0);
    params.outDtype = DtypeCode("compress_kv", cache), params.entryDtype = EntryDtype(entry_dtype);
    params.outRows = static_cast<uint64_t>(cache.size(0)) * cache.size(1);
    params.eps = static_cast<float>(eps), params.numCores = VectorCores();
    const at::Tensor output = cache.contiguous(), kept = state.contiguous();
    Run(k_compress_kv, params,
        {kv.contiguous(), gate.contiguous(), ape.contiguous(), norm.to(at::kFloat).contiguous(), cos.contiguous(), sin.contiguous(),
         positions.contiguous(), req_idx.contiguous(), cu_query_lens.contiguous(), state_slots.contiguous(), slots.contiguous()},
        {output, kept});
    if (!output.is_same(cache)) cache.copy_(output);
    if (!kept.is_same(state)) state.copy_(kept);
}

}  // namespace

ASCEND_DSV4_OP(compress_kv, CompressKv,
               "compress_kv(Tensor(a!) cache, Tensor(b!) state, Tensor kv, Tensor gate, Tensor ape, Tensor norm, Tensor cos, Tensor sin, "
               "Tensor positions, Tensor req_idx, Tensor cu_query_lens, Tensor state_slots, Tensor slots, *, int ratio, float eps, "
               "str rounding, str entry_dtype) -> ()")

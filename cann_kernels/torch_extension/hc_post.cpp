// SPDX-License-Identifier: Apache-2.0
#include "launch.h"

#include "hc_post.h"

ASCEND_DSV4_LAUNCHER(hc_post, HcPostParams)

namespace {

using namespace ascend_dsv4_kernels;

at::Tensor HcPost(const at::Tensor& x, const at::Tensor& streams, const at::Tensor& post, const at::Tensor& comb) {
    at::Tensor y = at::empty_like(streams, at::MemoryFormat::Contiguous);
    if (streams.is_meta() || streams.numel() == 0) return y;
    RequireDtype("hc_post", "x", x, streams.scalar_type());
    RequireDtype("hc_post", "post", post, at::kFloat);
    RequireDtype("hc_post", "comb", comb, at::kFloat);
    HcPostParams params = {};
    params.numTokens = Size(streams, 0), params.hiddenSize = Size(streams, 2), params.hcMult = Size(streams, 1);
    params.dtype = DtypeCode("hc_post", streams), params.numCores = VectorCores();
    Run(k_hc_post, params, {x.contiguous(), streams.contiguous(), post.contiguous(), comb.contiguous()}, {y});
    return y;
}

}  // namespace

ASCEND_DSV4_OP(hc_post, HcPost, "hc_post(Tensor x, Tensor streams, Tensor post, Tensor comb) -> Tensor")

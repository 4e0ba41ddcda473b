// SPDX-License-Identifier: Apache-2.0
#include "launch.h"

#include "hc_pre.h"

ASCEND_DSV4_LAUNCHER(hc_pre, HcPreParams)

namespace {

using namespace ascend_dsv4_kernels;
using Four = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

Four HcPre(const at::Tensor& streams, const at::Tensor& fn, const at::Tensor& base, const at::Tensor& scale,
           const std::optional<at::Tensor>& mix, int64_t sinkhorn_iters, double hc_eps, double norm_eps) {
    const c10::SymInt tokens = streams.sym_size(0), n = streams.sym_size(1);
    const at::TensorOptions wide = streams.options().dtype(at::kFloat);
    at::Tensor x = streams.new_empty_symint({tokens, streams.sym_size(2)}), post = at::empty_symint({tokens, n}, wide);
    at::Tensor comb = at::empty_symint({tokens, n, n}, wide), pre = at::empty_symint({tokens, n}, wide);
    if (streams.is_meta() || streams.size(0) == 0) return {x, post, comb, pre};
    const at::Tensor given = Contiguous(mix);
    for (const at::Tensor& tensor : {fn, base, scale, given}) RequireDtype("hc_pre", "a coefficient", tensor, at::kFloat);
    HcPreParams params = {};
    params.numTokens = Size(streams, 0), params.hiddenSize = Size(streams, 2), params.hcMult = Size(streams, 1);
    params.dtype = DtypeCode("hc_pre", streams), params.hasMix = given.defined();
    params.sinkhornIters = static_cast<uint32_t>(sinkhorn_iters);
    params.hcEps = static_cast<float>(hc_eps), params.normEps = static_cast<float>(norm_eps), params.numCores = VectorCores();
    Run(k_hc_pre, params, {streams.contiguous(), fn.contiguous(), base.contiguous(), scale.contiguous(), given}, {x, post, comb, pre});
    return {x, post, comb, pre};
}

}  // namespace

ASCEND_DSV4_OP(hc_pre, HcPre,
               "hc_pre(Tensor streams, Tensor fn, Tensor base, Tensor scale, Tensor? mix, *, int sinkhorn_iters, float hc_eps, "
               "float norm_eps) -> (Tensor, Tensor, Tensor, Tensor)")

// SPDX-License-Identifier: Apache-2.0
#include "launch.h"

#include "route.h"

ASCEND_DSV4_LAUNCHER(route, RouteParams)

namespace {

using namespace ascend_dsv4_kernels;
using Optional = std::optional<at::Tensor>;

std::tuple<at::Tensor, at::Tensor> Route(const at::Tensor& logits, const Optional& bias, const Optional& tid2eid,
                                         const at::Tensor& input_ids, const Optional& bias_vl, const Optional& is_image, int64_t topk,
                                         c10::string_view scoring, bool norm_topk_prob, double scaling, double norm_eps,
                                         int64_t n_group, int64_t topk_group) {
    at::Tensor ids = at::empty_symint({logits.sym_size(0), topk}, logits.options().dtype(at::kInt));
    at::Tensor weights = logits.new_empty_symint({logits.sym_size(0), topk});
    if (logits.is_meta() || logits.size(0) == 0 || topk == 0) return {ids, weights};
    const at::Tensor table = Contiguous(tid2eid), own = Contiguous(bias), other = Contiguous(bias_vl), images = Contiguous(is_image);
    for (const at::Tensor& tensor : {logits, own, other}) RequireDtype("route", "logits or a bias", tensor, at::kFloat);
    for (const at::Tensor& tensor : {table, input_ids, images}) RequireDtype("route", "an index", tensor, at::kInt);
    TORCH_CHECK(scoring == "sqrtsoftplus" || scoring == "sigmoid", "route: scoring is ", scoring, "; expected sqrtsoftplus or sigmoid");
    RouteParams params = {};
    params.numTokens = Size(logits, 0), params.numExperts = Size(logits, 1), params.topk = static_cast<uint32_t>(topk);
    params.vocabSize = table.defined() ? Size(table, 0) : 0, params.isHashed = table.defined();
    params.scoring = scoring == "sigmoid" ? ROUTE_SIGMOID : ROUTE_SQRTSOFTPLUS, params.hasBias = own.defined(), params.hasImages = images.defined();
    params.normalize = norm_topk_prob, params.numGroups = static_cast<uint32_t>(n_group);
    params.topkGroup = static_cast<uint32_t>(topk_group), params.numCores = VectorCores();
    params.scaling = static_cast<float>(scaling), params.normEps = static_cast<float>(norm_eps);
    Run(k_route, params, {logits.contiguous(), own, table, input_ids.contiguous(), other, images}, {ids, weights});
    return {ids, weights};
}

}  // namespace

ASCEND_DSV4_OP(route, Route,
               "route(Tensor logits, Tensor? bias, Tensor? tid2eid, Tensor input_ids, Tensor? bias_vl, Tensor? is_image, *, int topk, "
               "str scoring, bool norm_topk_prob, float scaling, float norm_eps, int n_group, int topk_group) -> (Tensor, Tensor)")

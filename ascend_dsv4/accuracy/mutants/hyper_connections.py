# SPDX-License-Identifier: Apache-2.0
"""Wrong hyper-connections: Sinkhorn steps, mixing matrices, weights of the streams."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ascend_dsv4.ops.hc_collapse.reference import hc_collapse
from ascend_dsv4.ops.hc_head.reference import hc_head
from ascend_dsv4.ops.hc_post.reference import hc_post
from ascend_dsv4.ops.hc_pre.reference import collapse_streams, hc_pre, project_streams

Coefficients = tuple[Tensor, Tensor, Tensor, Tensor]


def last_sinkhorn_step_on_rows(*tensors: Any, hc_eps: float, **attrs: Any) -> Coefficients:
    """Sinkhorn ends with a step on rows instead of columns."""
    x, post, comb, pre = hc_pre(*tensors, hc_eps=hc_eps, **attrs)
    return x, post, comb / (comb.sum(2, keepdim=True) + hc_eps), pre


def sinkhorn_cut_short(*tensors: Any, sinkhorn_iters: int, **attrs: Any) -> Coefficients:
    """Sinkhorn stops after three iterations, where the matrix looks balanced."""
    return hc_pre(*tensors, sinkhorn_iters=min(3, sinkhorn_iters), **attrs)


def one_iteration_short(*tensors: Any, sinkhorn_iters: int, **attrs: Any) -> Coefficients:
    """The row softmax counts as an iteration, so that one is missing at the end."""
    return hc_pre(*tensors, sinkhorn_iters=max(1, sinkhorn_iters - 1), **attrs)


def comb_transposed(*tensors: Any, **attrs: Any) -> Coefficients:
    """The mixing matrix comes back with its axes exchanged."""
    x, post, comb, pre = hc_pre(*tensors, **attrs)
    return x, post, comb.transpose(1, 2).contiguous(), pre


def mix_ignored(streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, mix: Tensor | None, **attrs: Any) -> Coefficients:
    """The weights of the sub-layer before are ignored, and the input takes its own."""
    return hc_pre(streams, fn, base, scale, None, **attrs)


def post_not_doubled(*tensors: Any, **attrs: Any) -> Coefficients:
    """Weights of the output stay below 1."""
    x, post, comb, pre = hc_pre(*tensors, **attrs)
    return x, post / 2, comb, pre


def one_scale_for_all(streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, *rest: Any, **attrs: Any) -> Coefficients:
    """All three groups of coefficients take the first scale."""
    return hc_pre(streams, fn, base, scale[:1].expand(3), *rest, **attrs)


def pre_and_post_exchanged(streams: Tensor, fn: Tensor, base: Tensor, *rest: Any, **attrs: Any) -> Coefficients:
    """Rows of the projection are read in the order post, pre, mixing matrix."""
    pre, post, comb = range(n := streams.shape[1]), range(n, 2 * n), range(2 * n, len(fn))
    order = [*post, *pre, *comb]
    return hc_pre(streams, fn[order], base[order], *rest, **attrs)


def mixed_transposed(x: Tensor, streams: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """Old streams are mixed by the rows of the matrix instead of its columns."""
    return hc_post(x, streams, post, comb.transpose(1, 2))


def output_into_stream_0(x: Tensor, streams: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """The sub-layer's output reaches the first stream only."""
    first = torch.zeros_like(post)
    first[:, 0] = post[:, 0]
    return hc_post(x, streams, first, comb)


def streams_not_mixed(x: Tensor, streams: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """Each stream is carried on by itself."""
    return hc_post(x, streams, post, torch.eye(comb.shape[1]).expand_as(comb))


def head_weights_normalised(
    streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, *, hc_eps: float, norm_eps: float
) -> Tensor:
    """The weights of the streams are a softmax."""
    return collapse_streams(streams, torch.softmax(project_streams(streams, fn, norm_eps) * scale + base, -1) + hc_eps)


def head_base_ignored(streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, **attrs: Any) -> Tensor:
    """The constant part of the weights is missing."""
    return hc_head(streams, fn, torch.zeros_like(base), scale, **attrs)


def mean_of_streams(streams: Tensor, mix: Tensor) -> Tensor:
    """The given weights are ignored: the mean of the streams."""
    return hc_collapse(streams, torch.full_like(mix, 1 / streams.shape[1]))


def six_bits_in_bfloat16(streams: Tensor, mix: Tensor) -> Tensor:
    """In bfloat16 the result passes through a format of six significant bits: each element is nearly right, the row is not."""
    x = hc_collapse(streams, mix)
    if x.dtype != torch.bfloat16:
        return x
    mantissa, exponent = torch.frexp(hc_collapse(streams.float(), mix))
    return torch.ldexp(torch.round(mantissa * 64) / 64, exponent).to(x.dtype)


MUTANTS = {
    "hc_pre/last-sinkhorn-step-on-rows": last_sinkhorn_step_on_rows,
    "hc_pre/sinkhorn-cut-short": sinkhorn_cut_short,
    "hc_pre/one-iteration-short": one_iteration_short,
    "hc_pre/comb-transposed": comb_transposed,
    "hc_pre/mix-ignored": mix_ignored,
    "hc_pre/post-not-doubled": post_not_doubled,
    "hc_pre/one-scale-for-all": one_scale_for_all,
    "hc_pre/pre-and-post-exchanged": pre_and_post_exchanged,
    "hc_post/mix-transposed": mixed_transposed,
    "hc_post/output-into-stream-0": output_into_stream_0,
    "hc_post/streams-not-mixed": streams_not_mixed,
    "hc_head/weights-normalised": head_weights_normalised,
    "hc_head/base-ignored": head_base_ignored,
    "hc_collapse/mix-ignored": mean_of_streams,
    "hc_collapse/six-bits-in-bfloat16": six_bits_in_bfloat16,
}

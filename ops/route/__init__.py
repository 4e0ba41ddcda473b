# SPDX-License-Identifier: Apache-2.0
"""Choose the experts of each token and their weights.

logits     [num_tokens, num_experts] float32, gate projection
bias       [num_experts] float32, added for the choice only; None in hash layers
tid2eid    [vocab_size, topk] int32, experts of each token id; None in scored layers
input_ids  [num_tokens] int32
Scores are sqrt(softplus(logits)) for scoring "sqrtsoftplus". Scored layers take the `topk` largest score + bias (ties: the
lower expert), in descending order; hash layers take tid2eid[input_ids]. weights = score / Σ scores (if `norm_topk_prob`) ·
`scaling`, without the bias.
Returns ids [num_tokens, topk] int32, weights [num_tokens, topk] float32.
"""

from ascend_dsv4.ops.registry import define
from ascend_dsv4.ops.spec import INT, Arg, OpSpec, Out, Tolerance

SPEC = define(
    OpSpec(
        "route",
        args={
            "logits": Arg(("num_tokens", "num_experts"), ("float32",)),
            "bias": Arg(("num_experts",), ("float32",), optional=True),
            "tid2eid": Arg(("vocab_size", "topk"), INT, optional=True),
            "input_ids": Arg(("num_tokens",), INT),
        },
        outs={"ids": Out(("num_tokens", "topk"), "int32"), "weights": Out(("num_tokens", "topk"), "float32")},
        attrs={"topk": "int", "scoring": "str", "norm_topk_prob": "bool", "scaling": "float"},
        tol={("weights", "float32"): Tolerance(1e-6, 1e-5, 1e-10)},
        source="DeepSeek-V4 model definition, mixture of experts, steps 1 to 3",
    )
)

# SPDX-License-Identifier: Apache-2.0
"""Choose the experts of each token and their weights.

logits     [num_tokens, num_experts] float32, gate projection
bias       [num_experts] float32, added for the choice only; None in hash layers
tid2eid    [vocab_size, topk] int32, experts of each token id; None in scored layers
input_ids  [num_tokens] int32
bias_vl    [num_experts] float32, in place of bias where is_image [num_tokens] int32 is not 0; None together, or beside a bias
Scores are sqrt(softplus(logits)) for scoring "sqrtsoftplus", 1 / (1 + e^-logits) for "sigmoid". Scored layers take the `topk`
largest score + bias (ties: the lower expert), in descending order; hash layers take tid2eid[input_ids].
With n_group > 1 the experts are n_group groups of equal size, at least 2; a group counts as much as the sum of its two largest
score + bias, and only experts of the `topk_group` best groups (ties: the lower group) are chosen.
weights = score / (Σ scores + norm_eps) (if `norm_topk_prob`) · `scaling`, without the bias.
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
            "bias_vl": Arg(("num_experts",), ("float32",), optional=True),
            "is_image": Arg(("num_tokens",), INT, optional=True),
        },
        outs={"ids": Out(("num_tokens", "topk"), "int32"), "weights": Out(("num_tokens", "topk"), "float32")},
        attrs={
            "topk": "int", "scoring": "str", "norm_topk_prob": "bool", "scaling": "float",
            "norm_eps": "float", "n_group": "int", "topk_group": "int",
        },
        tol={("weights", "float32"): Tolerance(1e-6, 1e-5, 1e-10)},
        choices={"ids": 1e-6},
        source="Mixture of experts in the DeepSeek-V4 (steps 1 to 3), V4.1 (image bias) and V3.2 (groups) model definitions",
    )
)  # fmt: skip

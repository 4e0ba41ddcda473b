# SPDX-License-Identifier: Apache-2.0
"""Draw one token per row.

logits       [num_rows, vocab_size] float32
temperature  [num_rows] float32; 0 takes the largest logit (ties: the lower id) and ignores the rest
top_k        [num_rows] int32; keep that many best tokens, 0 keeps all
top_p        [num_rows] float32; keep the smallest set of best tokens whose probability reaches it, 1 keeps all
min_p        [num_rows] float32; drop tokens below this share of the best token's probability, 0 drops none
uniform      [num_rows] float64 in [0, 1): the row's random number; the same number gives the same token
Filters apply in that order to softmax(logits / temperature), each on what the ones before have left; tokens are ranked by
logit, ties by id. The draw is the first ranked token whose running sum exceeds uniform · total.
Returns ids [num_rows] int32, and logprobs [num_rows] float32 of the drawn tokens under log_softmax(logits). A row with a NaN,
or without a finite largest logit, is no distribution: id -1, logprob NaN. -inf beside finite logits bars a token.
"""

from ascend_dsv4.ops.registry import define
from ascend_dsv4.ops.spec import INT, Arg, OpSpec, Out, Tolerance

SPEC = define(
    OpSpec(
        "sample",
        args={
            "logits": Arg(("num_rows", "vocab_size"), ("float32",)),
            "temperature": Arg(("num_rows",), ("float32",)),
            "top_k": Arg(("num_rows",), INT),
            "top_p": Arg(("num_rows",), ("float32",)),
            "min_p": Arg(("num_rows",), ("float32",)),
            "uniform": Arg(("num_rows",), ("float64",)),
        },
        outs={"ids": Out(("num_rows",), "int32"), "logprobs": Out(("num_rows",), "float32")},
        tol={("logprobs", "float32"): Tolerance(1e-5, 1e-5, 1e-10)},
        source="Usual sampling filters; greedy at temperature 0 as in the released generation code",
    )
)

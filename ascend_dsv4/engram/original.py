# SPDX-License-Identifier: Apache-2.0
"""The Engram module as first published: biased projections, two norm weights per stream, a short convolution. numpy float32.

What V4.1 left out or merged, for models of the original form; hashing and rows are the same code (`hashing.EngramHash` with
`vocab_size` per order). Source: arXiv 2601.07372 and its demonstration code.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

SMALLEST_DOT = 1e-6


@dataclass(frozen=True, eq=False)
class OriginalEngram:
    """Weights of one layer's module; all float32.

    key_weight     [hc_mult, hidden_size, engram_size], key_bias [hc_mult, hidden_size]: a projection per stream
    value_weight   [hidden_size, engram_size], value_bias [hidden_size]: shared by the streams
    key_norm, query_norm, conv_norm  [hc_mult, hidden_size]: weights of the norms of keys, streams, and the convolution's input
    conv_weight    [hc_mult, hidden_size, kernel_size]: depthwise, the last tap is the token itself
    dilation       distance of the taps in tokens: max_ngram_size
    norm_eps       of the norms before the gate; conv_eps of the one before the convolution
    """

    key_weight: Array
    key_bias: Array
    value_weight: Array
    value_bias: Array
    key_norm: Array
    query_norm: Array
    conv_norm: Array
    conv_weight: Array
    dilation: int
    norm_eps: float
    conv_eps: float = 1e-5

    @property
    def state_len(self) -> int:
        """Tokens that the convolution looks back at: (kernel_size - 1) · dilation."""
        return int(self.conv_weight.shape[2] - 1) * self.dilation

    def initial_state(self) -> Array:
        """State before the first token of a sequence: zeros [state_len, hc_mult, hidden_size]."""
        return np.zeros((self.state_len, *self.conv_norm.shape), dtype=np.float32)

    def __call__(self, streams: Array, e: Array, state: Array) -> tuple[Array, Array]:
        """Streams with the memory added, and the state after the chunk.

        streams  [num_tokens, hc_mult, hidden_size]
        e        [num_tokens, engram_size], the token's rows side by side
        state    [state_len, hc_mult, hidden_size], normed gated values of the tokens before the chunk, oldest first
        A chunk cut anywhere gives the same result as the whole.
        """
        keys = np.einsum("te,she->tsh", e, self.key_weight) + self.key_bias
        value = e @ self.value_weight.T + self.value_bias  # [num_tokens, hidden_size]
        k, q = _rms_norm(keys, self.key_norm, self.norm_eps), _rms_norm(streams, self.query_norm, self.norm_eps)
        dot = (k * q).sum(axis=-1, keepdims=True) / np.sqrt(np.float32(streams.shape[2]))
        root = np.sign(dot) * np.sqrt(np.maximum(np.abs(dot), np.float32(SMALLEST_DOT)))
        gated = value[:, None] / (1 + np.exp(-root))  # [num_tokens, hc_mult, hidden_size]
        seen = np.concatenate([state, _rms_norm(gated, self.conv_norm, self.conv_eps)])
        conv = np.zeros_like(gated)
        for tap in range(self.conv_weight.shape[2]):
            start = tap * self.dilation
            conv += self.conv_weight[..., tap] * seen[start : start + len(streams)]
        out = streams + gated + conv / (1 + np.exp(-conv))
        return out.astype(np.float32), seen[len(streams) :]


def _rms_norm(x: Array, weight: Array, eps: float) -> Array:
    normed: Array = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.float32(eps)) * weight
    return normed

# SPDX-License-Identifier: Apache-2.0
"""Groups of configuration values that belong together, and the limits of every value.

Limits are inclusive. With all upper ones reached at once every tensor still has fewer than 2**42 elements and a checkpoint
fewer than 2**60 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

LayerType = Literal["sliding", "csa", "hca", "full", "reindex", "reuse", "mla_dense", "mla_moe"]
MlpLayerType = Literal["hash_moe", "moe", "dense"]
DraftMethod = Literal["mtp", "dspark"]
ExpertDtype = Literal["fp4", "fp8"]

FP4_BLOCK: Final = 32  # inputs per scale of a packed expert weight
ENGRAM_BLOCK: Final = 32  # channels of a quantised n-gram row under one scale
MAX_LAYERS: Final = 1024
MAX_DRAFT_STAGES: Final = 16
MAX_LIST: Final = MAX_LAYERS + MAX_DRAFT_STAGES
MAX_VOCAB: Final = 1 << 22
MAX_POSITION: Final = 1 << 24  # float32 holds every position up to here exactly


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """YaRN frequencies; cos and sin themselves are never scaled."""

    factor: float
    beta_fast: float
    beta_slow: float
    original_max_position_embeddings: int


@dataclass(frozen=True, slots=True)
class DSparkConfig:
    """The block drafter: tokens drafted per block, its mask token, tapped layers (0-based), rank of the Markov head."""

    block_size: int
    noise_token_id: int
    target_layer_ids: tuple[int, ...]
    markov_rank: int
    n_routed_experts: int | None = None  # None: as many as the backbone
    num_experts_per_tok: int | None = None
    taps_inputs: bool = False  # the drafter reads what enters the tapped layers, not what leaves them


@dataclass(frozen=True, slots=True)
class CandidateConfig:
    """Two-level selection: one layer publishes the best blocks of entries, later index sources choose inside them."""

    source_layer_id: int
    topk_blocks: int
    block_size: int  # entries


@dataclass(frozen=True, slots=True)
class EngramConfig:
    """Tables of n-gram rows that some layers add to the residual streams."""

    layer_ids: tuple[int, ...]
    num_embeddings: tuple[int, ...]  # rows per layer: the sum of its primes
    max_ngram_size: int
    vocab_size: int  # where the search for primes starts
    n_heads: int  # hash functions per n-gram size
    head_dim: int
    pad_token_id: int
    compressed_vocab_size: int

    @property
    def num_columns(self) -> int:
        """Rows read per token and layer."""
        return (self.max_ngram_size - 1) * self.n_heads


@dataclass(frozen=True, slots=True)
class MlaConfig:
    """Multi-head latent attention: keys and values of all heads out of one latent row per token."""

    kv_lora_rank: int
    v_head_dim: int
    softmax_factor: float  # YaRN's correction of the softmax scale


@dataclass(frozen=True, slots=True)
class CacheGrids:
    """What rows are rounded to when they are stored: names of `store_kv` roundings. Part of the trained model."""

    window: str
    entries: str
    index: str


@dataclass(frozen=True, slots=True)
class Family:
    """What no key of config.json says, because the family implies it."""

    architecture: str
    cache_grids: CacheGrids
    hc_delayed: bool  # a sub-layer reads the streams by the mix of the one before it
    q_head_norm: bool  # queries are normalised per head
    routing_eps: float  # added to the sum that routing weights are divided by


FAMILIES: Final[Mapping[str, Family]] = {
    "deepseek_v4": Family("DeepseekV4ForCausalLM", CacheGrids("fp8", "fp8", "hadamard_fp4"), False, True, 0.0),
    "deepseek_v41": Family(
        "DeepseekV41ForCausalLM", CacheGrids("fp8_b32", "fp4_b16_e4m3", "fp4_b32"), True, False, 1e-20
    ),
    "deepseek_v32": Family("DeepseekV32ForCausalLM", CacheGrids("none", "none", "none"), False, False, 1e-20),
    "deepseek_v3": Family("DeepseekV3ForCausalLM", CacheGrids("none", "none", "none"), False, False, 1e-20),
}
"""By model_type."""

INT_LIMITS: Final[Mapping[str, tuple[int, int]]] = {
    "vocab_size": (1, MAX_VOCAB),
    "hidden_size": (1, 1 << 16),
    "num_hidden_layers": (1, MAX_LAYERS),
    "num_attention_heads": (1, 1024),
    "head_dim": (2, 4096),
    "qk_rope_head_dim": (2, 4096),
    "q_lora_rank": (1, 1 << 15),
    "o_groups": (0, 1024),
    "o_lora_rank": (0, 1 << 15),
    "sliding_window": (0, 1 << 16),
    "index_n_heads": (0, 1024),
    "index_head_dim": (0, 4096),
    "index_topk": (0, 1 << 16),
    "n_routed_experts": (1, 8192),
    "num_experts_per_tok": (1, 64),
    "moe_intermediate_size": (1, 1 << 16),
    "intermediate_size": (0, 1 << 20),
    "n_group": (1, 8192),
    "topk_group": (1, 8192),
    "hc_mult": (0, 16),
    "hc_sinkhorn_iters": (0, 1000),
    "max_position_embeddings": (1, MAX_POSITION),
    "bos_token_id": (0, MAX_VOCAB - 1),
    "num_draft_stages": (0, MAX_DRAFT_STAGES),
}
FLOAT_LIMITS: Final[Mapping[str, tuple[float, float]]] = {
    "routed_scaling_factor": (1e-6, 1e6),
    "swiglu_limit": (1e-6, float("inf")),
    "hc_eps": (0.0, 0.1),
    "rms_norm_eps": (1e-30, 0.1),
    "rope_theta": (2.0, 1e12),
    "compress_rope_theta": (2.0, 1e12),
    "routing_eps": (0.0, 0.1),
}
PART_LIMITS: Final[Mapping[str, Mapping[str, tuple[float, float]]]] = {
    "rope_scaling": {
        "factor": (1.0, 65_536.0),
        "beta_fast": (1e-3, 1e6),
        "beta_slow": (1e-3, 1e6),
        "original_max_position_embeddings": (1, MAX_POSITION),
    },
    "dspark": {"block_size": (1, 64), "noise_token_id": (0, MAX_VOCAB - 1), "markov_rank": (1, 1 << 15)},
    "candidates": {"source_layer_id": (0, MAX_LAYERS), "topk_blocks": (1, 1 << 20), "block_size": (1, 4096)},
    "engram": {
        "max_ngram_size": (2, 16),
        "vocab_size": (2, 1 << 40),
        "n_heads": (1, 256),
        "head_dim": (2, 1 << 14),
        "pad_token_id": (0, MAX_VOCAB - 1),
        "compressed_vocab_size": (1, MAX_VOCAB),
    },
    "mla": {"kv_lora_rank": (1, 1 << 15), "v_head_dim": (1, 4096), "softmax_factor": (1.0, 100.0)},
    "vision": {
        "num_hidden_layers": (1, MAX_LAYERS),
        "hidden_size": (1, 1 << 16),
        "num_attention_heads": (1, 1024),
        "intermediate_size": (1, 1 << 16),
        "patch_size": (1, 1024),
        "rope_theta": (2.0, 1e12),
        "downsample_ratio": (1, 64),
        "max_image_tokens": (8, 1 << 20),
        "min_pixels": (0, 1 << 30),
    },
}
"""Numbers in the parts of a configuration, by the name of the field that holds the part."""

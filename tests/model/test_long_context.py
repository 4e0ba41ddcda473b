# SPDX-License-Identifier: Apache-2.0
"""131,072 tokens through a small model with every layer type: two chunkings end in the same bits."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import numpy as np
import pytest

from ascend_dsv4 import LLM, SamplingParams
from ascend_dsv4.demo.checkpoint import CONFIG, write_checkpoint

NUM_TOKENS = 131_072
CHUNKS = (4096, 3001)
SMALL = {
    "vocab_size": 512, "hidden_size": 64, "num_attention_heads": 2, "head_dim": 64, "qk_rope_head_dim": 16, "q_lora_rank": 64,
    "o_groups": 2, "o_lora_rank": 32, "sliding_window": 64, "index_n_heads": 2, "index_head_dim": 32, "index_topk": 64,
    "n_routed_experts": 4, "moe_intermediate_size": 64, "max_position_embeddings": 2 * NUM_TOKENS,
}  # fmt: skip


@pytest.mark.slow
def test_two_chunkings_of_a_long_prompt(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {**CONFIG, **SMALL})
    llm = LLM(tmp_path, ops="reference", weights="fp32", max_model_len=NUM_TOKENS + 16, max_num_seqs=1,
              max_num_batched_tokens=max(CHUNKS), progress=False)  # fmt: skip
    assert {spec.layer_type for spec in llm.graphs.layers} == {"sliding", "csa", "hca"}
    prompt = np.random.randint(3, 500, NUM_TOKENS).tolist()
    params = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True, logprobs=20)
    results = []
    for chunk_size in CHUNKS:
        start = time.perf_counter()
        request = llm.engine.submit(prompt, params, chunk_size=chunk_size)
        streams: list[np.ndarray] = []

        def keep(layer: int, tensor: np.ndarray, into: list[np.ndarray] = streams) -> None:
            if layer == llm.config.num_hidden_layers:
                into.append(llm.backend.to_host(tensor)[-1:].copy())

        while not request.is_finished:
            llm.engine.step(keep)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"\n{NUM_TOKENS} tokens in chunks of {chunk_size}: {seconds:.0f} s, peak {peak:,.0f} MiB, "
              f"caches {llm.runner.cache_bytes() / 2**20:,.1f} MiB")  # fmt: skip
        results.append((request.output_ids, request.logprobs, streams[-4:]))
    (ids, logprobs, first), (other_ids, other_logprobs, second) = results
    assert ids == other_ids
    assert logprobs == other_logprobs
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))

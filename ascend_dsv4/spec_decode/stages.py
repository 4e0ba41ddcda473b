# SPDX-License-Identifier: Apache-2.0
"""The draft stages of a checkpoint: which there are, loading them, and drafting behind a given text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ascend_dsv4.config.engine_config import EngineConfig
from ascend_dsv4.config.model_config import ModelConfig
from ascend_dsv4.errors import RequestError, UnsupportedError
from ascend_dsv4.kv_cache.layout import draft_caches, drafting_plan
from ascend_dsv4.kv_cache.manager import CacheManager
from ascend_dsv4.model.decoder import ForwardConfig
from ascend_dsv4.model.dspark import draft_forward
from ascend_dsv4.model.loader import WeightLoader, resident_bytes
from ascend_dsv4.model.weight_trees import dspark_weights, mtp_weights
from ascend_dsv4.model.weights import DSparkWeights, ModelWeights, MtpWeights, PlainMtpWeights
from ascend_dsv4.runner.batch import StepRequest
from ascend_dsv4.runner.graphs import trace_dspark, trace_mtp
from ascend_dsv4.runner.runner import ModelRunner
from ascend_dsv4.spec_decode.drafter import Drafter
from ascend_dsv4.spec_decode.dspark import DSparkDrafter
from ascend_dsv4.spec_decode.mtp import MtpDrafter

Drafts = tuple[np.ndarray, np.ndarray, np.ndarray | None]
"""ids [n] int32, logits [n, vocab_size] float32, and confidences [n] float32 where the drafter has them."""


class DraftStages:
    """Draft stages of one checkpoint. Nothing is loaded before the first use."""

    def __init__(self, config: ModelConfig, engine: EngineConfig, loader: WeightLoader) -> None:
        self.config, self.engine = config, engine
        self._loader = loader
        self._drafter: Drafter | None = None

    def check(self, method: str) -> None:
        """Raises UnsupportedError for a method that this checkpoint cannot draft with."""
        has = self.config.draft_method
        if method != has:
            raise UnsupportedError(
                f"draft method {method!r}: this checkpoint carries {has or 'no'} draft stages, and a drafter needs its own "
                f"weights. Use 'ngram' or 'none'{f', or {has!r}' if has else ''}."
            )
        if not self._loader.has_draft:
            raise UnsupportedError(
                f"draft method {method!r}: config.json names draft stages but the files hold none of them (transformers "
                "drops them when it saves). Use the published checkpoint to draft."
            )

    def num_bytes(self, params: ModelWeights, num_blocks: dict[str, int]) -> tuple[int, int]:
        """Bytes of the weights `params` together with those of the stages, and of the stages' caches."""
        caches = draft_caches(self.config, self.engine)
        return resident_bytes(params, self._params()), sum(num_blocks[cache.group] * cache.block_bytes for cache in caches)

    def attach(self, runner: ModelRunner, forward: ForwardConfig) -> Drafter:
        """Load the stages into a runner, once."""
        if self._drafter is None:
            self._drafter = self._attach(runner, forward)
        return self._drafter

    def draft(self, runner: ModelRunner, forward: ForwardConfig, token_ids: Sequence[int]) -> Drafts:
        """Draft behind `token_ids`, of which the last one is not processed; see `LLM.draft`."""
        if len(token_ids) < 2:
            raise RequestError(
                f"draft: got {len(token_ids)} token, expected at least 2: the stages read a processed token and the one after "
                "it. Append the token that was generated last."
            )
        self._check_room(len(token_ids), runner.plan.max_model_len)
        self.attach(runner, forward)
        plan = drafting_plan(runner.plan, self.config, self.engine)
        manager = CacheManager(plan)
        manager.admit(0, len(token_ids))
        logits = []
        step_size, last = self.engine.max_num_batched_tokens, len(token_ids) - 1
        for start in range(0, last, step_size):
            end = min(start + step_size, last)
            manager.begin_step(0, start, end)
            history = token_ids[max(0, start - plan.history) : start]
            result = runner.run([StepRequest(0, start, token_ids[start:end], end, history=history)], manager)
            rows = range(end - start)
            if self.config.dspark is not None:
                runner.write_dspark_context([StepRequest(0, start, token_ids[start:end], end)], result, rows, manager)
            else:
                followers = StepRequest(0, start, token_ids[start + 1 : end + 1], start)
                drafted = runner.run_mtp([followers], runner.mtp_input(result), rows, manager)
                logits.append(runner.backend.to_host(drafted.logits))
            manager.commit(0, end)
        if self.config.dspark is not None:
            return self._block(runner, manager, token_ids)
        joined = np.concatenate(logits)
        return joined.argmax(-1).astype(np.int32), joined, None

    def _check_room(self, num_tokens: int, max_model_len: int) -> None:
        """The block drafter's guesses take places of their own behind the text."""
        ahead = self.config.dspark.block_size - 1 if self.config.dspark is not None else 0
        if num_tokens + ahead > max_model_len:
            raise RequestError(
                f"draft: got {num_tokens} tokens, expected at most {max_model_len - ahead}, because a block of "
                f"{ahead + 1} that begins with the last one must end within max_model_len={max_model_len}. Draft behind a "
                "shorter text or raise max_model_len."
            )

    def _block(self, runner: ModelRunner, manager: CacheManager, token_ids: Sequence[int]) -> Drafts:
        """Greedy drafts of one block."""
        dspark = self.config.dspark
        assert dspark is not None
        start, size = len(token_ids) - 1, dspark.block_size
        ids = [token_ids[-1], *[dspark.noise_token_id] * (size - 1)]
        manager.begin_step(0, start, start + size)
        rows, first = runner.run_dspark_block([StepRequest(0, start, ids, start)], manager)
        drafts, logits, confidences = [token_ids[-1]], [], []
        for j in range(size):
            corrected, confidence = runner.run_dspark_markov(rows[[j]], first[[j]], drafts[-1:])
            logits.append(runner.backend.to_host(corrected))
            confidences.append(runner.backend.to_host(confidence)[:, 0])
            drafts.append(int(logits[-1].argmax()))
        return np.asarray(drafts[1:], np.int32), np.concatenate(logits), np.concatenate(confidences)

    def _params(self) -> MtpWeights | PlainMtpWeights | DSparkWeights:
        weights = mtp_weights if self.config.dspark is None else dspark_weights
        return weights(self.config, self.engine.weights)

    def _attach(self, runner: ModelRunner, forward: ForwardConfig) -> Drafter:
        caches = draft_caches(self.config, self.engine)
        if self.config.dspark is None:
            mtp = mtp_weights(self.config, self.engine.weights)
            stage = trace_mtp(self.config, forward, mtp, runner.plan, caches)
            runner.attach_mtp(stage, self._loader.load(mtp, lambda _: None))
            return MtpDrafter(runner)
        params = dspark_weights(self.config, self.engine.weights)
        cfg = draft_forward(self.config, self.engine.dtype, self.engine.cache_rounding)
        graphs = trace_dspark(self.config, cfg, params, runner.plan, caches)
        runner.attach_dspark(graphs, self._loader.load(params, lambda _: None))
        return DSparkDrafter(runner)

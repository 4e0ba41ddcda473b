# SPDX-License-Identifier: Apache-2.0
"""index_topk, sparse_attention and mla_attention: who sees what. Caches hold NaN wherever a query must not look."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ascend_dsv4.accuracy.calls import same_bits
from ascend_dsv4.ops.cases import CaseInputs, Step, f32, i32
from ascend_dsv4.ops.index_topk.cases import inputs as index_inputs
from ascend_dsv4.ops.mla_attention.cases import inputs as mla_inputs
from ascend_dsv4.ops.sparse_attention.cases import inputs as attention_inputs
from tests.ops.harness import Array, run


def array(inputs: CaseInputs, name: str) -> Array:
    """An argument that the case is known to have."""
    found: Array | None = inputs.args[name]
    assert found is not None
    return found


def attend(inputs: CaseInputs, **changed: Array | None) -> torch.Tensor:
    return run("sparse_attention", CaseInputs({**inputs.args, **changed}, inputs.attrs), "float32")["o"]


def attend_latent(inputs: CaseInputs, **changed: Array | None) -> torch.Tensor:
    return run("mla_attention", CaseInputs({**inputs.args, **changed}, inputs.attrs), "float32")["o"]


def choose(inputs: CaseInputs, **changed: Array) -> torch.Tensor:
    return run("index_topk", CaseInputs({**inputs.args, **changed}, inputs.attrs), "float32")["entries"]


def with_row(cache: Array, table: Array, row: int, value: float, columns: int | None = None) -> Array:
    """A copy of a cache in which one row of the first request has another value."""
    changed = cache.copy()
    block = row // cache.shape[1]
    changed[table[0, block % columns if columns else block], row % cache.shape[1]] = value
    return changed


class TestSparseAttention:
    @pytest.mark.parametrize("changed", [0, 1, 7, 8, 15, 20, 39])
    def test_window_row(self, rng: np.random.Generator, changed: int) -> None:
        """A key at position p changes the outputs at p … p + window − 1 and no others."""
        inputs = attention_inputs(rng, Step(((0, 40),)), ratio=0, window=8)
        before = attend(inputs)
        table, cache = array(inputs, "window_table"), array(inputs, "win_kv")
        after = attend(inputs, win_kv=with_row(cache, table, changed, 3.0, table.shape[1]))
        for t in range(40):
            assert same_bits(before[t], after[t]) == (not changed <= t < changed + 8), t

    @pytest.mark.parametrize("changed", [0, 1, 2, 9])
    def test_entry(self, rng: np.random.Generator, changed: int) -> None:
        """Entry s is seen from position ratio·s + ratio − 1 on, that is from the token that closes it."""
        inputs = attention_inputs(rng, Step(((0, 44),)), ratio=4, topk=None, window=8)
        before = attend(inputs)
        after = attend(inputs, cmp_kv=with_row(array(inputs, "cmp_kv"), array(inputs, "block_table"), changed, 3.0))
        for t in range(44):
            assert same_bits(before[t], after[t]) == (t < 4 * changed + 3), t

    def test_entries_that_were_not_chosen(self, rng: np.random.Generator) -> None:
        inputs = attention_inputs(rng, Step(((40, 1),)), ratio=4, topk=3)
        chosen = set(array(inputs, "entries")[0].tolist())
        before = attend(inputs)
        for entry in range(10):
            cache = with_row(array(inputs, "cmp_kv"), array(inputs, "block_table"), entry, 3.0)
            assert same_bits(before, attend(inputs, cmp_kv=cache)) == (entry not in chosen)

    def test_every_entry_chosen_is_all_entries(self, rng: np.random.Generator) -> None:
        inputs = attention_inputs(rng, Step(((0, 60),)), ratio=4, topk=15)
        torch.testing.assert_close(attend(inputs), attend(inputs, entries=None), rtol=1e-5, atol=1e-6)

    def test_a_foreign_request(self, rng: np.random.Generator) -> None:
        """Nothing of one request's caches reaches another's outputs."""
        inputs = attention_inputs(rng, Step(((0, 20), (30, 6))), ratio=4, topk=None)
        before = attend(inputs)
        foreign_window, foreign_entries = array(inputs, "window_table")[0], array(inputs, "block_table")[0]
        win_kv, cmp_kv = array(inputs, "win_kv").copy(), array(inputs, "cmp_kv").copy()
        win_kv[foreign_window[foreign_window >= 0]] = np.nan
        cmp_kv[foreign_entries[foreign_entries >= 0]] = np.nan
        after = attend(inputs, win_kv=win_kv, cmp_kv=cmp_kv)
        assert same_bits(before[20:], after[20:])
        assert bool(after[:20].isnan().all())

    def test_sink_takes_its_share(self, rng: np.random.Generator) -> None:
        """With weights w of the keys and e^sink of the sink, raising the sink scales the output by (w + a) / (w + b)."""
        inputs = attention_inputs(rng, Step(((20, 4),)), ratio=4, topk=None)
        outs = {sink: attend(inputs, sink=f32([sink] * 4)).double() for sink in (-60.0, 0.0, 3.0, 60.0)}
        without = outs[-60.0]
        share = (outs[0.0] / without).mean(-1, keepdim=True)
        weight = share / (1 - share)  # of all keys, in units of e^0
        torch.testing.assert_close(outs[0.0], without * share, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(outs[3.0], without * weight / (weight + np.exp(3)), rtol=1e-3, atol=1e-6)
        assert float(outs[60.0].abs().max()) < 1e-20
        assert bool((share < 1).all()) and bool((share > 0).all())

    def test_one_head_per_sink(self, rng: np.random.Generator) -> None:
        inputs = attention_inputs(rng, Step(((20, 4),)))
        before = attend(inputs)
        sink = array(inputs, "sink").copy()
        sink[2] += 1
        after = attend(inputs, sink=sink)
        changed = [not same_bits(before[:, h], after[:, h]) for h in range(4)]
        assert changed == [False, False, True, False]

    def test_padding_is_zero(self, rng: np.random.Generator) -> None:
        for step in (Step(((0, 3),), 4), Step((), 4)):
            out = attend(attention_inputs(rng, step))
            assert same_bits(out[step.padding_rows], torch.zeros(4, 4, 32))

    def test_heads_permute(self, rng: np.random.Generator) -> None:
        inputs = attention_inputs(rng, Step(((20, 4),)), heads=4)
        order = [2, 0, 3, 1]
        out = attend(inputs, q=array(inputs, "q")[:, order], sink=array(inputs, "sink")[order])
        torch.testing.assert_close(out, attend(inputs)[:, order], rtol=1e-5, atol=1e-6)

    def test_outputs_are_mixtures_of_keys(self, rng: np.random.Generator) -> None:
        """Keys are the values: with every key the same row and no sink, the output is that row."""
        inputs = attention_inputs(rng, Step(((20, 4),)), ratio=4, topk=None)
        row = f32(rng.standard_normal(32))
        caches = {name: np.broadcast_to(row, array(inputs, name).shape).copy() for name in ("win_kv", "cmp_kv")}
        out = attend(inputs, sink=f32([-1e4] * 4), **caches)
        torch.testing.assert_close(out, torch.from_numpy(row).expand(4, 4, 32), rtol=1e-5, atol=1e-6)


class TestMlaAttention:
    @pytest.mark.parametrize("changed", [0, 1, 20, 39])
    def test_row(self, rng: np.random.Generator, changed: int) -> None:
        """Row s is seen from its own position on."""
        inputs = mla_inputs(rng, Step(((0, 40),)), topk=None)
        cache = with_row(array(inputs, "mla_kv"), array(inputs, "block_table"), changed, 3.0)
        before, after = attend_latent(inputs), attend_latent(inputs, mla_kv=cache)
        for t in range(40):
            assert same_bits(before[t], after[t]) == (t < changed), t

    def test_rows_that_were_not_chosen(self, rng: np.random.Generator) -> None:
        inputs = mla_inputs(rng, Step(((9, 1),)), topk=3)
        chosen = set(array(inputs, "entries")[0].tolist())
        before = attend_latent(inputs)
        for row in range(10):
            cache = with_row(array(inputs, "mla_kv"), array(inputs, "block_table"), row, np.nan)
            assert same_bits(before, attend_latent(inputs, mla_kv=cache)) == (row not in chosen)

    def test_every_row_chosen_is_all_rows(self, rng: np.random.Generator) -> None:
        """To the bit, so that nothing moves when an indexer begins to have a choice."""
        inputs = mla_inputs(rng, Step(((0, 70),)), topk=70)
        assert same_bits(attend_latent(inputs), attend_latent(inputs, entries=None))

    def test_a_foreign_request(self, rng: np.random.Generator) -> None:
        inputs = mla_inputs(rng, Step(((0, 20), (30, 6))), topk=None)
        foreign, cache = array(inputs, "block_table")[0], array(inputs, "mla_kv").copy()
        cache[foreign[foreign >= 0]] = np.nan
        before, after = attend_latent(inputs), attend_latent(inputs, mla_kv=cache)
        assert same_bits(before[20:], after[20:])
        assert bool(after[:20].isnan().all())

    def test_channels_past_the_value_only_score(self, rng: np.random.Generator) -> None:
        """Where the query has no rotated part they are not seen at all; where it has, they move the weights."""
        inputs = mla_inputs(rng, Step(((20, 4),)), topk=None)
        cache, q = array(inputs, "mla_kv").copy(), array(inputs, "q").copy()
        cache[..., 32:] *= 2
        assert not same_bits(attend_latent(inputs), attend_latent(inputs, mla_kv=cache))
        q[..., 32:] = 0
        assert same_bits(attend_latent(inputs, q=q), attend_latent(inputs, q=q, mla_kv=cache))

    def test_weights_sum_to_one(self, rng: np.random.Generator) -> None:
        """No sink takes a share: rows that are all the same come out as they are."""
        inputs = mla_inputs(rng, Step(((20, 4),)), topk=None)
        row = f32(rng.standard_normal(40))
        out = attend_latent(inputs, mla_kv=np.broadcast_to(row, array(inputs, "mla_kv").shape).copy())
        torch.testing.assert_close(out, torch.from_numpy(row[:32]).expand(4, 4, 32), rtol=1e-5, atol=1e-6)

    def test_equals_attention_that_is_not_absorbed(self, rng: np.random.Generator) -> None:
        """Keys c·Wₖᵀ | r and values c·Wᵥᵀ of each head: what the absorbed form stands for."""
        heads, latent, nope, value, count = 3, 12, 5, 7, 9
        c, r = rng.standard_normal((count, latent)), rng.standard_normal((count, 4))
        w_k, w_v = rng.standard_normal((heads, nope, latent)), rng.standard_normal((heads, value, latent))
        q_nope, q_rope = rng.standard_normal((heads, nope)), rng.standard_normal((heads, 4))
        args = {
            "q": f32(np.concatenate([np.einsum("hn,hnl->hl", q_nope, w_k), q_rope], axis=1))[None],
            "mla_kv": f32(np.concatenate([c, r], axis=1))[None],
            "positions": i32([count - 1]), "req_idx": i32([0]), "block_table": i32([[0]]),
        }  # fmt: skip
        o = run("mla_attention", CaseInputs(args, {"value_dim": latent, "scale": 0.3}), "float32")["o"][0].double().numpy()
        for h in range(heads):
            keys, values = np.concatenate([c @ w_k[h].T, r], axis=1), c @ w_v[h].T
            powers = np.exp(keys @ np.concatenate([q_nope[h], q_rope[h]]) * 0.3)
            np.testing.assert_allclose(w_v[h] @ o[h], powers @ values / powers.sum(), rtol=1e-4, atol=1e-5)

    def test_padding_is_zero(self, rng: np.random.Generator) -> None:
        for step in (Step(((0, 3),), 4), Step((), 4)):
            out = attend_latent(mla_inputs(rng, step))
            assert same_bits(out[step.padding_rows], torch.zeros(4, 4, 32))

    def test_value_dim_is_checked(self, rng: np.random.Generator) -> None:
        for value_dim in (0, 41):
            inputs = mla_inputs(rng, Step(((0, 3),)), value_dim=value_dim)
            with pytest.raises(ValueError, match=f"value_dim={value_dim}, expected 1 to 40, the channels of a row"):
                attend_latent(inputs)


class TestIndexTopk:
    @pytest.mark.parametrize("changed", [0, 3, 10])
    def test_causality(self, rng: np.random.Generator, changed: int) -> None:
        """The key of entry s matters from position ratio·s + ratio − 1 on."""
        inputs = index_inputs(rng, Step(((0, 60),)), topk=1)
        weights = np.abs(array(inputs, "weights"))
        q = np.abs(array(inputs, "q"))  # so that a key of large positive numbers is chosen by all who see it
        before = choose(inputs, q=q, weights=weights)
        cache = with_row(array(inputs, "idx_kv"), array(inputs, "block_table"), changed, 1e3)
        after = choose(inputs, q=q, weights=weights, idx_kv=cache)
        first = 4 * changed + 3
        assert same_bits(before[:first], after[:first])
        assert bool((after[first:, 0] == changed).all())

    def test_choices_are_visible_and_distinct(self, rng: np.random.Generator) -> None:
        inputs = index_inputs(rng, Step(((0, 90), (200, 7)), 3), topk=6)
        for position, row in zip(array(inputs, "positions"), choose(inputs).tolist(), strict=True):
            visible = (position + 1) // 4 if position >= 0 else 0
            kept = [entry for entry in row if entry >= 0]
            assert kept == sorted(set(kept))
            assert len(kept) == min(visible, 6)
            assert row[len(kept) :] == [-1] * (6 - len(kept))
            assert not kept or kept[-1] < visible

    def test_while_all_fit_scores_are_not_read(self, rng: np.random.Generator) -> None:
        inputs = index_inputs(rng, Step(((0, 20),)), topk=5)
        assert same_bits(choose(inputs), choose(inputs, idx_kv=np.full_like(array(inputs, "idx_kv"), np.nan)))

    def test_while_all_blocks_fit_scores_are_not_read(self, rng: np.random.Generator) -> None:
        inputs = index_inputs(rng, Step(((0, 20),)), topk=5, candidate_block=2, num_candidates=3)
        unread = CaseInputs({**inputs.args, "idx_kv": np.full_like(array(inputs, "idx_kv"), np.nan)}, inputs.attrs)
        before, after = run("index_topk", inputs, "float32"), run("index_topk", unread, "float32")
        assert same_bits(before["blocks"], after["blocks"])
        assert before["blocks"][-1].tolist() == [0, 1, 2]

    def test_publishing_changes_no_entry(self, rng: np.random.Generator) -> None:
        inputs = index_inputs(rng, Step(((0, 90), (200, 7)), 3), topk=6)
        publishing = CaseInputs(inputs.args, {**inputs.attrs, "candidate_block": 4, "num_candidates": 3})
        assert same_bits(choose(inputs), choose(publishing))

    @pytest.mark.parametrize("block", [1, 4, 7])
    def test_a_second_level_that_holds_every_block_changes_no_entry(self, rng: np.random.Generator, block: int) -> None:
        inputs = index_inputs(rng, Step(((0, 90), (200, 7)), 3), topk=6, candidate_block=block, num_candidates=60)
        blocks = run("index_topk", inputs, "float32")["blocks"].numpy()
        assert same_bits(choose(inputs), choose(inputs, candidates=blocks))

    def test_two_levels(self, rng: np.random.Generator) -> None:
        """The second call sees only what the first one published: keys elsewhere may be anything."""
        inputs = index_inputs(rng, Step(((80, 1),)), ratio=1, topk=6, candidate_block=4, num_candidates=3)
        blocks = run("index_topk", inputs, "float32")["blocks"].numpy()
        keys, table = array(inputs, "idx_kv"), array(inputs, "block_table")
        before = choose(inputs, candidates=blocks)
        assert {entry // 4 for entry in before[0].tolist()} <= set(blocks[0].tolist())
        for entry in range(81):
            changed = choose(inputs, candidates=blocks, idx_kv=with_row(keys, table, entry, np.nan))
            assert same_bits(before, changed) == (entry not in before[0]), entry

    def test_scaling_the_weights_changes_nothing(self, rng: np.random.Generator) -> None:
        """A power of two is exact. A negative one reverses the order of entries whose products are positive."""
        inputs = index_inputs(rng, Step(((0, 90),)))
        assert same_bits(choose(inputs), choose(inputs, weights=array(inputs, "weights") * 4))
        assert not same_bits(choose(inputs), choose(inputs, weights=-array(inputs, "weights")))

    def test_hadamard_without_rounding_cancels(self, rng: np.random.Generator) -> None:
        """Keys on the FP4 grid after the transform: choosing by transformed queries equals choosing by plain ones."""
        inputs = index_inputs(rng, Step(((0, 90),)), head_dim=4, heads=1)
        # Rows of the matrix over its root are rotated onto unit vectors, which the grid holds exactly.
        matrix = f32([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
        q = matrix[rng.integers(0, 4, 90)][:, None] * f32(rng.choice([1, 2, 4], (90, 1, 1)))
        rotated = CaseInputs({**inputs.args, "q": q}, {**inputs.attrs, "rounding": "hadamard_fp4"})
        keys = array(inputs, "idx_kv")
        plain = CaseInputs({**inputs.args, "q": q, "idx_kv": f32(keys @ matrix)}, inputs.attrs)
        assert same_bits(choose(rotated), choose(plain))

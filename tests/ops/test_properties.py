# SPDX-License-Identifier: Apache-2.0
"""Laws that an operator obeys whatever its inputs: sums, inverses, round trips, symmetries."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ascend_dsv4.accuracy.calls import same_bits, to_numpy
from ascend_dsv4.ops.cases import CaseInputs, f32, i32, normal, random_fp8, random_scales
from ascend_dsv4.ops.hc_pre.cases import inputs as hc_inputs
from ascend_dsv4.ops.route.cases import ATTRS as ROUTE_ATTRS
from tests.ops.harness import run

NUM_TOKENS = 19


class TestHyperConnections:
    def test_columns_of_comb_sum_to_one(self, rng: np.random.Generator) -> None:
        """After the fixed loop; rows do so only nearly, which tells the two apart."""
        for iters in (2, 20):
            comb = run("hc_pre", hc_inputs(rng, 50, iters=iters), "float32")["comb"]
            torch.testing.assert_close(comb.sum(1), torch.ones(50, 4), rtol=0, atol=1e-5)
            assert bool((comb > 0).all())
        after_two = run("hc_pre", hc_inputs(rng, 50, iters=2), "float32")["comb"]
        assert float((after_two.sum(2) - 1).abs().max()) > 1e-3

    def test_pre_and_post_ranges(self, rng: np.random.Generator) -> None:
        outs = run("hc_pre", hc_inputs(rng, 50), "float32")
        assert bool(((outs["post"] > 0) & (outs["post"] < 2)).all())

    def test_equal_streams_collapse_to_a_multiple(self, rng: np.random.Generator) -> None:
        inputs = hc_inputs(rng, 5)
        row = normal(rng, 5, 1, 24)
        x = run("hc_pre", CaseInputs({**inputs.args, "streams": np.repeat(row, 4, axis=1)}, inputs.attrs), "float32")["x"]
        ratio = x / torch.from_numpy(row[:, 0])
        torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-4, atol=1e-5)

    def test_mixing_is_transposed(self, rng: np.random.Generator) -> None:
        """comb[i, j] carries stream i into stream j: a shift by one moves each stream up by one, not down."""
        streams, zeros = normal(rng, 3, 4, 8), np.zeros((3, 8), dtype=np.float32)
        shift = np.tile(f32(np.eye(4, k=1)), (3, 1, 1))
        inputs = CaseInputs({"x": zeros, "streams": streams, "post": np.ones((3, 4), dtype=np.float32), "comb": shift})
        y = run("hc_post", inputs, "float32")["y"].numpy()
        np.testing.assert_array_equal(y[:, 1:], streams[:, :-1])
        np.testing.assert_array_equal(y[:, 0], 0)

    def test_doubly_stochastic_mixing_keeps_the_mean(self, rng: np.random.Generator) -> None:
        """With columns that sum to one and no sub-layer output, equal streams stay as they are."""
        comb = run("hc_pre", hc_inputs(rng, 7), "float32")["comb"].numpy()
        same = np.repeat(normal(rng, 7, 1, 8), 4, axis=1)
        args = {"x": normal(rng, 7, 8), "streams": same, "post": np.zeros((7, 4), dtype=np.float32), "comb": comb}
        y = run("hc_post", CaseInputs(args), "float32")["y"]
        torch.testing.assert_close(y, torch.from_numpy(same), rtol=1e-5, atol=1e-5)


class TestRope:
    def tables(self, positions: list[int]) -> dict[str, np.ndarray]:
        made = CaseInputs({"positions": i32(positions), "inv_freq": f32([1, 0.3, 0.01])}, {"offset": 0})
        return {name: tensor.numpy() for name, tensor in run("step_metadata", made, "float32").items()}

    def rotate(self, x: np.ndarray, positions: list[int], **changed: object) -> np.ndarray:
        attrs = {"inverse": False, "start": x.shape[-1] - 6, "layout": "adjacent", **changed}
        return run("rope", CaseInputs({"x": x, **self.tables(positions)}, attrs), "float32")["y"].numpy()

    def test_inverse(self, rng: np.random.Generator) -> None:
        x, positions = normal(rng, 4, 3, 10), [0, 1, 77, 100000]
        turned = self.rotate(x, positions)
        assert np.abs(turned[2:, :, 4:] - x[2:, :, 4:]).max() > 0.1
        np.testing.assert_allclose(self.rotate(turned, positions, inverse=True), x, atol=1e-6)

    def test_position_zero_and_leading_channels(self, rng: np.random.Generator) -> None:
        x = normal(rng, 4, 3, 10)
        turned = self.rotate(x, [0, 5, 9, 31])
        np.testing.assert_array_equal(turned[0], x[0])
        np.testing.assert_array_equal(turned[..., :4], x[..., :4])

    def test_products_depend_on_the_distance(self, rng: np.random.Generator) -> None:
        """The point of rotating queries and keys, and it holds only if the pairs of both are the same."""
        q, k = np.repeat(normal(rng, 1, 6), 3, axis=0), np.repeat(normal(rng, 1, 6), 3, axis=0)
        products = (self.rotate(q, [7, 20, 107]) * self.rotate(k, [3, 16, 103])).sum(-1)
        np.testing.assert_allclose(products, products[0], rtol=1e-4)
        other = (self.rotate(q, [7, 20, 107]) * self.rotate(k, [3, 17, 101])).sum(-1)
        assert np.abs(other - products)[1:].min() > 1e-3

    def test_pairs_keep_their_length(self, rng: np.random.Generator) -> None:
        """Neighbours make a pair; across the halves of the head lengths do change."""
        x = normal(rng, 5, 6)
        turned = self.rotate(x, [1, 2, 3, 40, 500])
        np.testing.assert_allclose(np.hypot(turned[:, ::2], turned[:, 1::2]), np.hypot(x[:, ::2], x[:, 1::2]), rtol=1e-5)
        assert np.abs(np.hypot(turned[:, :3], turned[:, 3:]) - np.hypot(x[:, :3], x[:, 3:])).max() > 0.1

    def test_layouts_differ_by_a_permutation(self, rng: np.random.Generator) -> None:
        """Channels sorted by pair, rotated as halves and sorted back: the same bits as rotated where they are."""
        x, positions, apart = normal(rng, 4, 3, 10), [0, 1, 77, 1000], [0, 1, 2, 4, 6, 3, 5, 7, 8, 9]
        turned = self.rotate(x, positions, start=2)
        moved = self.rotate(x[..., apart], positions, start=2, layout="halves")
        np.testing.assert_array_equal(moved, turned[..., apart])
        np.testing.assert_array_equal(moved[..., [0, 1, 8, 9]], x[..., [0, 1, 8, 9]])

    def test_refusals(self) -> None:
        x = np.zeros((1, 10), dtype=np.float32)
        with pytest.raises(ValueError, match="rope: layout='half', expected adjacent or halves"):
            self.rotate(x, [0], layout="half")
        for start in (-1, 5):
            with pytest.raises(ValueError, match=f"rope: start={start} with 3 pairs, expected them within the 10 channels"):
                self.rotate(x, [0], start=start)


class TestExperts:
    def dispatch(self, x: np.ndarray, ids: np.ndarray, weights: np.ndarray, experts: int = 6) -> dict[str, torch.Tensor]:
        return run("moe_dispatch", CaseInputs({"x": x, "ids": ids, "weights": weights}, {"num_experts": experts}), "float32")

    def test_round_trip(self, rng: np.random.Generator) -> None:
        """Dispatched and combined without an expert in between, a token comes back once per choice that was sent."""
        x = f32(rng.integers(-99, 99, (NUM_TOKENS, 8)))
        ids = i32(rng.integers(-1, 6, (NUM_TOKENS, 3)))
        sent = self.dispatch(x, ids, f32(rng.random(ids.shape)))
        rows = sent["rows"].clone()
        rows[int(sent["counts"].sum()) :] = torch.nan
        y = run("moe_combine", CaseInputs({"rows": rows.numpy(), "row_of": sent["row_of"].numpy()}), "float32")["y"]
        np.testing.assert_array_equal(y.numpy(), x * (ids >= 0).sum(1, keepdims=True))

    def test_every_choice_has_its_own_row(self, rng: np.random.Generator) -> None:
        ids, weights = i32(rng.integers(-1, 6, (NUM_TOKENS, 3))), f32(rng.random((NUM_TOKENS, 3)))
        x = normal(rng, NUM_TOKENS, 4)
        sent = {name: tensor.numpy() for name, tensor in self.dispatch(x, ids, weights).items()}
        assert sorted(sent["row_of"][ids >= 0]) == list(range((ids >= 0).sum()))
        assert (sent["row_of"][ids < 0] == -1).all()
        np.testing.assert_array_equal(sent["counts"], [(ids == e).sum() for e in range(6)])
        expert_of_row = np.repeat(np.arange(6), sent["counts"])
        for (t, j), row in np.ndenumerate(sent["row_of"]):
            if row >= 0:
                assert expert_of_row[row] == ids[t, j]
                assert sent["row_weights"][row] == weights[t, j]
                np.testing.assert_array_equal(sent["rows"][row], x[t])

    def test_experts_may_be_renumbered(self, rng: np.random.Generator) -> None:
        """The same experts under other numbers give each token the same output, whichever order its rows come in."""
        x, w13, w2 = normal(rng, NUM_TOKENS, 16), normal(rng, 6, 20, 16), normal(rng, 6, 16, 10)
        ids, weights = i32([rng.permutation(6)[:3] for _ in range(NUM_TOKENS)]), f32(rng.random((NUM_TOKENS, 3)))
        number = rng.permutation(6)
        outs = []
        for renumber in (np.arange(6), number):
            sent = self.dispatch(x, i32(renumber[ids]), weights)
            args = {name: sent[name].numpy() for name in ("rows", "row_weights", "counts")}
            old = np.argsort(renumber)
            inputs = CaseInputs({**args, "w13": w13[old], "w2": w2[old]}, {"block": (1, 1), "limit": 1.0})
            y = run("expert_mlp", inputs, "float32")["y"].numpy()
            outs.append(run("moe_combine", CaseInputs({"rows": y, "row_of": sent["row_of"].numpy()}), "float32")["y"])
        assert same_bits(*outs)

    def test_weight_is_linear_and_inside(self, rng: np.random.Generator) -> None:
        """Doubling a routing weight doubles the row: a power of two passes the down projection exactly."""
        args = {"rows": normal(rng, 5, 16), "counts": i32([3, 2]), "w13": normal(rng, 2, 20, 16), "w2": normal(rng, 2, 16, 10)}
        weights, attrs = f32(rng.random(5)), {"block": (1, 1), "limit": 1.0}
        once = run("expert_mlp", CaseInputs({**args, "row_weights": weights}, attrs), "float32")["y"]
        twice = run("expert_mlp", CaseInputs({**args, "row_weights": 2 * weights}, attrs), "float32")["y"]
        assert same_bits(2 * once, twice)


class TestRoute:
    ATTRS = {**ROUTE_ATTRS, "topk": 4, "scaling": 2.5}

    def test_weights_sum_to_the_scaling(self, rng: np.random.Generator) -> None:
        inputs = CaseInputs({"logits": normal(rng, 30, 16), "bias": normal(rng, 16), "input_ids": i32([0] * 30)}, self.ATTRS)
        outs = run("route", inputs, "float32")
        torch.testing.assert_close(outs["weights"].sum(1), torch.full((30,), 2.5), rtol=1e-6, atol=0)
        assert all(len(set(row)) == 4 for row in outs["ids"].tolist())

    def test_the_bias_moves_choices_not_weights(self, rng: np.random.Generator) -> None:
        """A bias that is the same for all experts changes nothing at all; one that forces the choice leaves the scores."""
        logits = normal(rng, 30, 16)
        inputs = {"logits": logits, "input_ids": i32([0] * 30)}
        plain, shifted = (
            run("route", CaseInputs({**inputs, "bias": f32([bias] * 16)}, self.ATTRS), "float32") for bias in (0.0, 8.0)
        )
        assert same_bits(plain["weights"], shifted["weights"]) and same_bits(plain["ids"], shifted["ids"])
        forced = run("route", CaseInputs({**inputs, "bias": f32([100] * 4 + [0] * 12)}, self.ATTRS), "float32")
        scores = np.sqrt(np.log1p(np.exp(logits[:, :4].astype(float))))
        for ids, weights, row in zip(forced["ids"].tolist(), forced["weights"].tolist(), scores, strict=True):
            assert sorted(ids) == [0, 1, 2, 3]
            np.testing.assert_allclose(weights, row[ids] / row.sum() * 2.5, rtol=1e-5)

    def test_unknown_scoring(self) -> None:
        inputs = CaseInputs({"logits": f32([[1.0, 2]]), "input_ids": i32([0])}, {**self.ATTRS, "scoring": "softmax", "topk": 1})
        with pytest.raises(ValueError, match="route: scoring='softmax', expected sqrtsoftplus or sigmoid"):
            run("route", inputs, "float32")

    def test_all_groups_are_no_groups(self, rng: np.random.Generator) -> None:
        """Kept one and all, groups change nothing; with fewer, every choice lies in as many groups, and some choices move."""
        inputs = {"logits": normal(rng, 30, 16), "bias": normal(rng, 16), "input_ids": i32([0] * 30)}
        plain, all_kept, two_kept = (
            run("route", CaseInputs(inputs, {**self.ATTRS, "n_group": n_group, "topk_group": kept}), "float32")
            for n_group, kept in ((1, 1), (4, 4), (4, 2))
        )
        assert same_bits(plain["ids"], all_kept["ids"]) and same_bits(plain["weights"], all_kept["weights"])
        assert all(len({expert // 4 for expert in row}) <= 2 for row in two_kept["ids"].tolist())
        assert not same_bits(plain["ids"], two_kept["ids"])

    def test_image_tokens_have_their_own_bias(self, rng: np.random.Generator) -> None:
        """A mixed batch is, row by row, the batch of one kind or of the other."""
        inputs = {"logits": normal(rng, 30, 16), "input_ids": i32([0] * 30)}
        text, image, is_image = normal(rng, 16), normal(rng, 16), i32(rng.integers(0, 2, 30))
        both = {**inputs, "bias": text, "bias_vl": image, "is_image": is_image}
        mixed = run("route", CaseInputs(both, self.ATTRS), "float32")
        for bias, rows in ((text, is_image == 0), (image, is_image == 1)):
            alone = run("route", CaseInputs({**inputs, "bias": bias}, self.ATTRS), "float32")
            for out, tensor in alone.items():
                assert same_bits(mixed[out][rows], tensor[rows])
                assert not same_bits(mixed[out], tensor)

    def test_refusals(self, rng: np.random.Generator) -> None:
        args = {"logits": normal(rng, 2, 12), "bias": normal(rng, 12), "input_ids": i32([0, 0])}
        images = {"bias_vl": normal(rng, 12), "is_image": i32([0, 1])}
        for changed in ({"bias_vl": images["bias_vl"]}, {"is_image": images["is_image"]}, {**images, "bias": None}):
            with pytest.raises(ValueError, match="route: bias_vl and is_image belong together, and beside a bias"):
                run("route", CaseInputs({**args, **changed}, self.ATTRS), "float32")
        for n_group, topk_group in ((5, 2), (12, 6), (4, 5), (4, 0), (4, 1)):
            attrs = {**self.ATTRS, "n_group": n_group, "topk_group": topk_group}
            with pytest.raises(ValueError, match=f"topk=4 of 12 experts in n_group={n_group}, topk_group={topk_group}: "):
                run("route", CaseInputs(args, attrs), "float32")


class TestScales:
    def test_factors_equal_exponents(self, rng: np.random.Generator) -> None:
        """A float32 scale of 2^(b - 127) is the exponent b, to the bit, in every operator that takes one; another is not."""
        codes, exponents, x = random_fp8(rng, 80, 48), random_scales(rng, 3, 2, around=118), normal(rng, 5, 2, 48)
        counts, weights = i32([5]), f32(rng.random(5))

        def products(scale: np.ndarray) -> list[torch.Tensor]:
            attrs, weight = {"block": (32, 32)}, {"weight": codes, "scale": scale}
            fp8 = dict.fromkeys(("weight", "w13", "w2"), "float8_e4m3fn")
            experts = {"w13": codes[None], "w13_scale": scale[None], "w2": codes[None, :48, :40], "w2_scale": scale[None, :2]}
            routed = {"rows": x[:, 0], "row_weights": weights, "counts": counts, **experts}
            calls = {
                "linear": CaseInputs({"x": x, **weight}, {**attrs, "out_dtype": "float32"}, fp8),
                "grouped_linear": CaseInputs({"x": x, **weight}, attrs, fp8),
                "expert_mlp": CaseInputs(routed, {**attrs, "limit": 1.0}, fp8),
            }
            return [run(name, inputs, "float32")["y"] for name, inputs in calls.items()]

        factors = f32(2.0 ** (exponents.astype(int) - 127))
        for by_exponent, by_factor, other in zip(
            products(exponents), products(factors), products(factors * f32(0.7)), strict=True
        ):
            assert same_bits(by_exponent, by_factor)
            assert not same_bits(by_exponent, other)


class TestStoreKv:
    def test_grids_are_idempotent(self, rng: np.random.Generator) -> None:
        """What has been rounded rounds to itself, and rounding does change the rest."""
        rows = normal(rng, 6, 144)

        def store(values: np.ndarray) -> np.ndarray:
            args = {"cache": np.zeros((1, 6, 144), np.float32), "rows": values, "slots": i32(range(6))}
            return to_numpy(run("store_kv", CaseInputs(args, {"rounding": "fp8", "rope_dim": 16}), "float32")["cache"][0])

        stored = store(rows)
        np.testing.assert_array_equal(store(stored), stored)
        np.testing.assert_array_equal(stored[:, 128:], rows[:, 128:])
        assert (stored[:, :128] != rows[:, :128]).mean() > 0.9

    def test_hadamard_keeps_products(self, rng: np.random.Generator) -> None:
        """Sums of squares survive the transform up to the FP4 rounding."""
        rows = normal(rng, 40, 128)
        inputs = CaseInputs(
            {"cache": np.zeros((1, 40, 128), np.float32), "rows": rows, "slots": i32(range(40))},
            {"rounding": "hadamard_fp4", "rope_dim": 0},
        )
        stored = run("store_kv", inputs, "float32")["cache"].numpy()[0]
        np.testing.assert_allclose((stored**2).sum(1), (rows**2).sum(1), rtol=0.1)
        assert all(len(np.unique(np.abs(group))) <= 8 for group in stored[0].reshape(4, 32))

    def test_unknown_rounding(self) -> None:
        inputs = CaseInputs({"cache": f32([[[0]]]), "rows": f32([[1]]), "slots": i32([0])}, {"rounding": "int8", "rope_dim": 0})
        with pytest.raises(ValueError, match="rounding='int8', expected one of none, fp8, hadamard_fp4, fp8_b32, "):
            run("store_kv", inputs, "float32")


class TestNormAndActivation:
    def test_norm_ignores_the_scale(self, rng: np.random.Generator) -> None:
        x, weight = normal(rng, 5, 32), normal(rng, 32)
        outs = [
            run("rms_norm", CaseInputs({"x": x * f32(factor), "weight": weight}, {"eps": 0.0}), "float32")["y"]
            for factor in (1, 8, 2**-20)
        ]
        assert same_bits(outs[0], outs[1]) and same_bits(outs[0], outs[2])
        unit = run("rms_norm", CaseInputs({"x": x, "weight": None}, {"eps": 0.0}), "float32")["y"]
        torch.testing.assert_close((unit**2).mean(-1), torch.ones(5), rtol=1e-5, atol=0)

    def test_layer_norm_ignores_scale_and_offset(self, rng: np.random.Generator) -> None:
        """Before weight and bias: mean 0, mean square 1. Powers of two and offsets that stay exact change nothing."""
        x, ones, zeros = f32(rng.integers(-99, 100, (5, 32))), np.ones(32, np.float32), np.zeros(32, np.float32)

        def norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> torch.Tensor:
            return run("layer_norm", CaseInputs({"x": x, "weight": weight, "bias": bias}, {"eps": 0.0}), "float32")["y"]

        plain = norm(x, ones, zeros)
        torch.testing.assert_close(plain.mean(-1), torch.zeros(5), rtol=0, atol=1e-6)
        torch.testing.assert_close((plain**2).mean(-1), torch.ones(5), rtol=1e-5, atol=0)
        assert same_bits(norm(8 * x, ones, zeros), plain)
        torch.testing.assert_close(norm(x + f32(4096), ones, zeros), plain, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(norm(x, 3 * ones, 2 + zeros), 3 * plain + 2, rtol=1e-6, atol=1e-6)

    def test_gate_has_no_lower_bound(self) -> None:
        """silu keeps falling towards 0 below −limit, where a two-sided clamp would hold it at silu(−limit)."""
        gate, up = f32([[-2, -20, 20, 2]]), f32([[1, 1, 1, 1]])
        y = run("swiglu", CaseInputs({"gate": gate, "up": up}, {"limit": 2.0}), "float32")["y"][0].tolist()
        assert abs(y[1]) < 1e-7 < abs(y[0])
        assert y[2] == y[3] == pytest.approx(2 / (1 + math.exp(-2)))

    def test_no_limit(self, rng: np.random.Generator) -> None:
        """An infinite limit is one that nothing reaches; infinities pass, and NaN comes out of NaN."""
        gate, up = normal(rng, 5, 33, scale=9), normal(rng, 5, 33, scale=9)
        unlimited, wide = (
            run("swiglu", CaseInputs({"gate": gate, "up": up}, {"limit": limit}), "float32")["y"] for limit in (math.inf, 1e6)
        )
        assert same_bits(unlimited, wide)
        special = CaseInputs({"gate": f32([math.inf, 1, 1, math.nan, 1]), "up": f32([2, math.inf, -math.inf, 1, math.nan])})
        y = run("swiglu", CaseInputs(special.args, {"limit": math.inf}), "float32")["y"].numpy()
        np.testing.assert_array_equal(y, [math.inf, math.inf, -math.inf, math.nan, math.nan])
        y = run("swiglu", CaseInputs(special.args, {"limit": 2.0}), "float32")["y"].numpy()
        np.testing.assert_array_equal(np.isnan(y), [False] * 3 + [True] * 2)

    def test_up_is_bounded_on_both_sides(self) -> None:
        gate, up = f32([[1, 1, 1, 1]]), f32([[2, 20, -2, -20]])
        y = run("swiglu", CaseInputs({"gate": gate, "up": up}, {"limit": 2.0}), "float32")["y"][0].tolist()
        assert y[0] == y[1] == -y[2] == -y[3]

# SPDX-License-Identifier: Apache-2.0
"""EngineConfig: defaults, sources, and refusal of everything else."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest

from ascend_dsv4.config import EngineConfig
from ascend_dsv4.errors import ConfigError


def from_text(text: str, tmp_path: Path) -> EngineConfig:
    file = tmp_path / "engine.yaml"
    file.write_text(text, encoding="utf-8")
    return EngineConfig.from_yaml(file)


def test_defaults() -> None:
    assert dataclasses.asdict(EngineConfig()) == {
        "backend": "cpu", "ops": "auto", "dtype": "float32", "weights": "released", "kv_cache": "float32",
        "cache_rounding": "released", "max_model_len": None, "max_num_seqs": 8, "max_num_waiting": None,
        "max_num_batched_tokens": 512, "max_total_tokens": None,
        "block_size": 128, "window_block_size": 32, "batch_bucket": 1, "seed": 0,
        "engram_tier": "checkpoint", "engram_tables": None, "engram_cache_rows": 65_536,
        "speculative": "none", "num_speculative_tokens": None, "speculative_threshold": 0.0,
    }
    assert EngineConfig.from_dict({}) == EngineConfig()


def test_every_field_has_help() -> None:
    for option in dataclasses.fields(EngineConfig):
        assert len(option.metadata["help"]) > 10, option.name


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("backend", ["cpu", "npu", "mindspore", "null"]), ("ops", ["auto", "native", "my.module:kernels"]),
        ("dtype", ["float32", "bfloat16"]), ("weights", ["released", "fp32", "bf16", "w8a8", "w4a8"]),
        ("kv_cache", ["float32", "bf16", "packed"]), ("cache_rounding", ["released", "off"]),
        ("max_model_len", [None, 1, 1 << 20]), ("max_num_seqs", [1, 256]),
        ("max_num_waiting", [None, 0, 1 << 20]), ("max_num_batched_tokens", [1, 8192]),
        ("max_total_tokens", [None, 1, 1 << 30]), ("block_size", [128, 256]), ("window_block_size", [1, 128]),
        ("batch_bucket", [1, 16]), ("seed", [0, (1 << 63) - 1]),
        ("engram_tier", ["checkpoint", "host", "shared", "mmap", "disk"]),
        ("engram_tables", [None, "tables", "/a b/c"]), ("engram_cache_rows", [1, 1 << 32]),
        ("speculative", ["none", "mtp", "dspark", "ngram"]), ("num_speculative_tokens", [None, 1, 16]),
        ("speculative_threshold", [0.0, 0.5, 1.0]),
    ],
)
def test_legal_values(name: str, values: list[Any]) -> None:
    for value in values:
        assert getattr(EngineConfig.from_dict({name: value}), name) == value


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backend": "cuda"}, "cpu, npu, mindspore, null"), ({"backend": None}, "backend=None"),
        ({"dtype": "fp16"}, "bfloat16"),
        ({"weights": ["fp32"]}, "weights"), ({"kv_cache": 1}, "packed"),
        ({"cache_rounding": False}, "'released'|released, off"),
        ({"ops": ""}, "ops=''"), ({"ops": "a b"}, "without spaces"), ({"ops": None}, "ops=None"),
        ({"ops": "x" * 5000}, "ops"),
        ({"max_num_seqs": 0}, "from 1"), ({"max_num_seqs": None}, "max_num_seqs=None"),
        ({"max_num_seqs": 8.0}, "an integer"),
        ({"max_num_seqs": True}, "an integer"), ({"max_num_seqs": 10**100}, "bits"),
        ({"max_model_len": 0}, "max_model_len=0"), ({"max_num_waiting": -1}, "an integer from 0 to 1048576"),
        ({"max_num_batched_tokens": "512"}, "an integer"), ({"block_size": 96}, "a multiple of 128"),
        ({"block_size": 0}, "block_size=0"), ({"window_block_size": 0}, "window_block_size"),
        ({"batch_bucket": 0}, "batch_bucket"), ({"engram_tier": "device"}, "checkpoint, host, shared, mmap, disk"),
        ({"engram_tables": ""}, "a folder"), ({"engram_tables": "a\0b"}, "a folder"), ({"engram_cache_rows": 0}, "from 1"),
        ({"seed": -1}, "seed"), ({"max_total_tokens": 100, "max_model_len": 128}, "at least max_model_len, 128"),
        ({"kv_cache": "packed", "cache_rounding": "off"}, "rounded codes"),
        ({"speculative": "medusa"}, "none, mtp, dspark, ngram"), ({"num_speculative_tokens": 0}, "from 1 to 16"),
        ({"num_speculative_tokens": 17}, "hardly ever accepted"),
        ({"speculative_threshold": 1.5}, "a probability"), ({"speculative_threshold": math.nan}, "a probability"),
        ({"speculative": "ngram", "num_speculative_tokens": 7, "max_num_batched_tokens": 15}, "at least 16"),
        ({"speculative": "dspark", "max_num_batched_tokens": 11}, "at least 12"),
    ],
)
def test_bad_values(changes: dict[str, Any], words: str) -> None:
    for make in (lambda **given: EngineConfig.from_dict(given), EngineConfig, EngineConfig().replace):
        with pytest.raises(ConfigError) as caught:
            make(**changes)
        assert any(word in str(caught.value) for word in words.split("|")), caught.value


def test_number_of_drafts() -> None:
    methods = ("none", "mtp", "dspark", "ngram")
    counts = {method: EngineConfig.from_dict({"speculative": method}).num_drafts for method in methods}
    assert counts == {"none": 0, "mtp": 1, "dspark": 5, "ngram": 4}
    assert EngineConfig(speculative="mtp", num_speculative_tokens=3).num_drafts == 3
    assert EngineConfig(num_speculative_tokens=3).num_drafts == 0
    assert EngineConfig(speculative="ngram", num_speculative_tokens=7, max_num_batched_tokens=16).num_drafts == 7


def test_unknown_keys() -> None:
    with pytest.raises(ConfigError) as caught:
        EngineConfig.from_dict({"blocksize": 128, "tensor_parallel": 8, "backend": "gpu"}, source="there")
    message = str(caught.value)
    assert message.startswith("there: 2 problems")
    assert "blocksize (did you mean block_size?)" in message and "tensor_parallel" in message
    assert "backend, batch_bucket, block_size" in message  # the list of all options
    with pytest.raises(ConfigError, match=re.escape("max_seqs (did you mean max_num_seqs?)")):
        EngineConfig().replace(max_seqs=4)


def test_replace() -> None:
    config = EngineConfig(seed=7)
    assert config.replace(max_num_seqs=2) == EngineConfig(seed=7, max_num_seqs=2)
    assert config == EngineConfig(seed=7)


def test_yaml(tmp_path: Path) -> None:
    assert from_text("", tmp_path) == EngineConfig()
    text = "# comment\nbackend: null\nops: native\nmax_model_len: 4096\nmax_total_tokens:\n"
    with pytest.raises(ConfigError, match="backend=None"):  # YAML reads a bare null as no value
        from_text(text, tmp_path)
    config = from_text(text.replace("null", '"null"'), tmp_path)
    assert config == EngineConfig(backend="null", ops="native", max_model_len=4096)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 1\nseed: 2", "seed occurs twice"), ('seed: 1\n"seed": 1', "seed occurs twice"),
        ("seeds: 1", "did you mean seed?"),
        ("ops: &a native\nweights: *a", "aliases"), ("seed: !!python/name:os.system 1", "tags"),
        ('seed: !!int ""', "tags"),
        ("<<: {seed: 1}", "option names"), ("? [a]\n: 1", "option names"), ("- cpu", "expected options"),
        ("cpu", "expected options"),
        ("backend: [cpu", "plain YAML"), ("\x00", "plain YAML"), ("seed: 2020-99-99", "plain YAML"),
        ("[" * 5000, "plain YAML"),
        ("seed: " + "9" * 5000, "plain YAML"), ("seed: 1\n---\nseed: 2", "plain YAML"), ("seed: 1.5", "seed=1.5"),
        ("backend:\n  kind: cpu", "backend="), ("5: 5", "unknown keys 5"),
        ("# " + "x" * 70_000, "more than 65536 bytes"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_bad_yaml(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        from_text(text, tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "engine.yaml")) and len(str(caught.value)) < 1500


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        EngineConfig.from_yaml(tmp_path / "none.yaml")


def test_off_is_a_word(tmp_path: Path) -> None:
    """YAML 1.1 would read it as false."""
    file = tmp_path / "options.yaml"
    file.write_text("cache_rounding: off\nkv_cache: bf16\nmax_model_len: null\n")
    config = EngineConfig.from_yaml(file)
    assert (config.cache_rounding, config.kv_cache, config.max_model_len) == ("off", "bf16", None)

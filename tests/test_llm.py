# SPDX-License-Identifier: Apache-2.0
"""The Python API: what it accepts, what it returns, how it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ascend_dsv4 import LLM, SamplingParams
from ascend_dsv4.demo.checkpoint import CONFIG, write_checkpoint
from ascend_dsv4.errors import CapacityError, CheckpointError, ConfigError, RequestError, UnsupportedError
from ascend_dsv4.model.safetensors_file import SafetensorsFile

GREEDY = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
DSPARK = {
    "compress_ratios": [0, 4, 128, 4, 0, 0, 0], "dspark_block_size": 5, "dspark_noise_token_id": 7,
    "dspark_target_layer_ids": [1, 2, 3], "dspark_markov_rank": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def llm(golden_v4: Path) -> LLM:
    return LLM(golden_v4 / "fp8_fp4", weights="fp32", max_model_len=256, progress=False)


def test_one_prompt_or_many_text_or_ids(llm: LLM) -> None:
    assert llm.tokenizer is not None
    ids = llm.tokenizer.encode("Hello world")
    (single,) = llm.generate("Hello world", GREEDY)
    (by_ids,) = llm.generate(ids, GREEDY)
    several = llm.generate(["Hello world", [5, 6], ids], [GREEDY, SamplingParams(max_tokens=2, temperature=0), GREEDY])
    assert single.prompt_token_ids == ids
    assert single.token_ids == by_ids.token_ids == several[0].token_ids == several[2].token_ids
    assert single.text == llm.tokenizer.decode(single.token_ids, skip_special_tokens=True)
    assert (single.finish_reason, single.logprobs, single.num_cached_tokens) == ("length", None, 0)
    assert len(several[1].token_ids) <= 2


def test_logprobs_are_those_of_the_logits(llm: LLM) -> None:
    prompt = [5, 6, 7]
    (output,) = llm.generate(prompt, SamplingParams(max_tokens=3, temperature=0, logprobs=2, ignore_eos=True))
    assert output.logprobs is not None
    logits = llm.logits([*prompt, *output.token_ids[:-1]])[len(prompt) - 1 :].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for row, token, reported in zip(expected, output.token_ids, output.logprobs, strict=True):
        assert next(iter(reported)) == token
        assert set(np.argsort(-row)[:2]) <= reported.keys()
        assert all(abs(row[i] - value) < 1e-9 for i, value in reported.items())


def test_a_seed_fixes_the_text(llm: LLM) -> None:
    params = SamplingParams(max_tokens=12, seed=3, ignore_eos=True)
    first, again = (llm.generate([5, 6, 7], params)[0].token_ids for _ in range(2))
    other = llm.generate([5, 6, 7], SamplingParams(max_tokens=12, seed=4, ignore_eos=True))[0].token_ids
    assert first == again != other


def test_a_closed_stream_gives_everything_back(llm: LLM) -> None:
    stream = llm.stream([5] * 40, GREEDY)
    first = next(stream)
    assert first.token_id == llm.generate([5] * 40, GREEDY)[0].token_ids[0]
    stream.close()
    assert not llm.engine.has_work
    assert all(pool.num_free == pool.num_blocks for pool in llm.engine.manager.pools.values())


def test_streams_and_other_calls_share_the_engine(llm: LLM) -> None:
    """Each stream gets its own tokens, whoever makes the steps."""
    prompts = ([5] * 40, [6, 7], [8] * 9)
    alone = [llm.generate(prompt, GREEDY)[0].token_ids for prompt in prompts]
    first, second = llm.stream(prompts[0], GREEDY), llm.stream(prompts[1], GREEDY)
    got: tuple[list[int], list[int]] = ([next(first).token_id], [next(second).token_id])
    assert llm.generate(prompts[2], GREEDY)[0].token_ids == alone[2]
    for stream, tokens in zip((second, first), (got[1], got[0]), strict=True):
        tokens += [token.token_id for token in stream]
    assert [*got] == alone[:2]


@pytest.mark.parametrize("call", ["hidden_states", "trace", "draft"])
def test_calls_that_need_the_caches_wait_for_open_streams(llm: LLM, call: str) -> None:
    stream = llm.stream([5] * 10, GREEDY)
    next(stream)
    with pytest.raises(RequestError, match="a stream is open"):
        getattr(llm, call)([5, 6, 7], *(["mtp"] if call == "draft" else []))
    stream.close()
    getattr(llm, call)([5, 6, 7], *(["mtp"] if call == "draft" else []))


def test_arrays_are_prompts(llm: LLM) -> None:
    ids = np.asarray([5, 6, 7])
    expected = llm.generate([5, 6, 7], GREEDY)[0].token_ids
    assert llm.generate(ids, GREEDY)[0].token_ids == llm.generate([ids, ids], GREEDY)[1].token_ids == expected
    assert np.array_equal(llm.logits(ids), llm.logits([5, 6, 7]))


def test_padding_is_nowhere_in_states_and_traces(golden_v4: Path) -> None:
    ids = np.random.randint(3, 500, 60).tolist()
    folder = golden_v4 / "fp8_fp4"
    plain = LLM(folder, weights="fp32", progress=False)
    padded = LLM(folder, weights="fp32", batch_bucket=16, max_num_batched_tokens=20, progress=False)
    for a, b in zip(plain.hidden_states(ids), padded.hidden_states(ids), strict=True):
        assert np.array_equal(a, b)
    traces = plain.trace(ids), padded.trace(ids)
    assert all(np.array_equal(traces[0][name], traces[1][name]) for name in traces[0])


def test_broken_weights_end_a_request_and_say_so(golden_v4: Path, tmp_path: Path) -> None:
    """A final norm of NaNs: no token is drawn from what it makes."""
    for file in (golden_v4 / "fp8_fp4").iterdir():
        shutil.copy(file, tmp_path)
    for shard in tmp_path.glob("*.safetensors"):
        opened = SafetensorsFile(shard)
        if "norm.weight" in opened.tensors:
            with shard.open("r+b") as file:
                file.seek(opened.tensors["norm.weight"].offset)
                file.write(np.full(128, 0x7FC0, np.uint16).tobytes())
    broken = LLM(tmp_path, progress=False)
    (output,) = broken.generate([[5, 6]], GREEDY)
    assert (output.finish_reason, output.token_ids) == ("error", [])
    assert output.error is not None and "NaN" in output.error
    with pytest.raises(RequestError, match="NaN"):
        list(broken.stream([5, 6], GREEDY))


def test_hidden_states_and_trace_agree(llm: LLM) -> None:
    ids = np.random.randint(3, 500, 30).tolist()
    states, modules = llm.hidden_states(ids), llm.trace(ids)
    assert len(states) == llm.config.num_hidden_layers + 1
    for layer, state in enumerate(states[1:]):
        assert state.shape == (30, llm.config.hc_mult, llm.config.hidden_size)
        assert np.array_equal(state, modules[f"layer{layer}.out_streams"])


def test_a_trace_in_chunks_is_the_trace(golden_v4: Path) -> None:
    ids = np.random.randint(3, 500, 150).tolist()
    whole, cut = (
        LLM(golden_v4 / "fp8_fp4", weights="fp32", max_num_batched_tokens=size, progress=False).trace(ids) for size in (256, 40)
    )
    assert whole.keys() == cut.keys()
    assert all(np.array_equal(whole[name], cut[name]) for name in whole)


def test_drafts_do_not_depend_on_chunks(golden_v4: Path) -> None:
    ids = np.random.randint(3, 500, 70).tolist()
    folder = golden_v4 / "fp8_fp4"
    drafts = [LLM(folder, max_num_batched_tokens=size, progress=False).draft(ids, "mtp") for size in (128, 30)]
    (first_ids, first, _), (_, second, _) = drafts
    assert first.shape == (69, 512)
    assert np.array_equal(first, second)
    assert first_ids.tolist() == first.argmax(-1).tolist()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.generate([[]], GREEDY), "prompt is empty"),
        (lambda m: m.generate([5] * 257, GREEDY), "257 tokens is longer than max_model_len=256"),
        (lambda m: m.generate([5] * 256, GREEDY), "leaves no room to generate"),
        (lambda m: m.generate([[5], [6]], [GREEDY]), "2 prompts but 1 sampling parameters"),
        (lambda m: m.logits([600]), "token id 600"),
        (lambda m: m.logits([5], chunk_size=0), "chunk_size=0"),
        (lambda m: m.draft([5], "mtp"), "expected at least 2"),
        (lambda m: m.draft([5, -3, 7], "mtp"), "token id -3 at position 1"),
        (lambda m: m.draft([5] * 400, "mtp"), "longer than max_model_len=256"),
    ],
)
def test_requests_that_cannot_be_served(llm: LLM, call: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        call(llm)
    assert not llm.engine.has_work, "a refused request leaves nothing behind"


def test_nothing_runs_if_one_prompt_is_refused(llm: LLM) -> None:
    with pytest.raises(RequestError):
        llm.generate([[5], [6], [999]], GREEDY)
    assert not llm.engine.has_work


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"backend": "npu"}, UnsupportedError, "backend='npu': this version runs cpu and null"),
        ({"weights": "w8a8"}, UnsupportedError, "weights='w8a8': this version runs released, fp32, bf16"),
        ({"max_modellen": 5}, ConfigError, "max_model_len"),
        ({"max_model_len": 2048}, ConfigError, "at most 1024 positions"),
        ({"max_total_tokens": 512}, CapacityError, "max_total_tokens=512 holds no sequence of max_model_len=1024"),
        ({"max_num_seqs": 4096, "max_total_tokens": 1 << 31}, CapacityError, "do not fit into"),
        ({"ops": "fastest"}, (ConfigError, UnsupportedError), "fastest"),
    ],
)
def test_options_that_cannot_be_used(golden_v4: Path, options: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        LLM(golden_v4 / "fp8_fp4", progress=False, **options)


def test_a_folder_without_a_tokenizer_takes_ids(golden_v4: Path, tmp_path: Path) -> None:
    for file in (golden_v4 / "fp8_fp4").iterdir():
        if not file.name.startswith("tokenizer"):
            shutil.copy(file, tmp_path)
    bare = LLM(tmp_path, progress=False)
    assert len(bare.generate([5, 6], GREEDY)[0].token_ids) == 4
    with pytest.raises(RequestError, match="tokenizer.json"):
        bare.generate("Hello", GREEDY)


def test_missing_and_surplus_tensors_are_listed_before_anything_is_read(golden_v4: Path, tmp_path: Path) -> None:
    for file in (golden_v4 / "fp8_fp4").iterdir():
        shutil.copy(file, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "n_routed_experts": 9, "o_lora_rank": 32}))
    with pytest.raises(CheckpointError) as error:
        LLM(tmp_path, progress=False)
    assert "experts.8.w1.weight" in str(error.value)
    assert "wo_b.weight" in str(error.value)


def test_dspark_checkpoints_of_v4_draft(tmp_path: Path) -> None:
    """By structure: no reference output exists for the drafter of V4."""
    write_checkpoint(tmp_path, {**CONFIG, **DSPARK})
    model = LLM(tmp_path, max_model_len=512, progress=False)
    assert (model.config.draft_method, model.config.num_draft_stages) == ("dspark", 3)
    expected = model.generate([5, 6, 7], GREEDY)[0].token_ids
    ids, logits, confidences = model.draft([5, 6, 7], "dspark")
    assert confidences is not None
    assert (ids.shape, logits.shape, confidences.shape) == ((5,), (5, model.config.vocab_size), (5,))
    assert LLM(tmp_path, max_model_len=512, speculative="dspark", progress=False).generate([5, 6, 7], GREEDY)[
        0
    ].token_ids == expected
    with pytest.raises(UnsupportedError, match="carries dspark draft stages"):
        model.draft([5, 6, 7], "mtp")


def test_images_are_refused(llm: LLM) -> None:
    with pytest.raises(UnsupportedError, match="no vision tower"):
        llm.logits([5], images=[object()])  # type: ignore[arg-type]


LONG = SamplingParams(max_tokens=16, temperature=0, ignore_eos=True)


def stop_texts_in(text: str, length: int) -> list[str]:
    """Pieces of a text, the last one at its very end, without characters that stand for broken bytes."""
    pieces = [text[at : at + length] for at in range(1, len(text) - length + 1)]
    return [piece for piece in pieces if "\ufffd" not in piece]


@pytest.mark.parametrize("length", [1, 2, 4])
def test_stop_texts_end_the_text_and_the_request(llm: LLM, length: int) -> None:
    assert llm.tokenizer is not None
    (plain,) = llm.generate([[7, 8]], LONG)
    stops = stop_texts_in(plain.text, length)
    stops = [*stops[:: len(stops) // 6], stops[-1]]
    prompts: list[Any] = [[7, 8]] * len(stops)
    outputs = llm.generate(prompts, [replace(LONG, stop=(stop, "no such text")) for stop in stops])
    for stop, output in zip(stops, outputs, strict=True):
        assert (output.finish_reason, output.text) == ("stop", plain.text.partition(stop)[0])
        count = len(output.token_ids)
        assert output.token_ids == plain.token_ids[:count]
        assert stop in llm.tokenizer.decode(output.token_ids, skip_special_tokens=True)
        assert stop not in llm.tokenizer.decode(output.token_ids[:-1], skip_special_tokens=True)
    assert not llm.engine.has_work
    assert all(pool.num_free == pool.num_blocks for pool in llm.engine.manager.pools.values())


def test_a_stop_text_that_the_last_token_completes_is_the_reason(llm: LLM) -> None:
    (plain,) = llm.generate([[7, 8]], LONG)
    stop = stop_texts_in(plain.text, 2)[3]
    (first,) = llm.generate([[7, 8]], replace(LONG, stop=(stop,)))
    (exact,) = llm.generate([[7, 8]], replace(LONG, stop=(stop,), max_tokens=len(first.token_ids)))
    (short,) = llm.generate([[7, 8]], replace(LONG, stop=(stop,), max_tokens=len(first.token_ids) - 1))
    assert (exact.finish_reason, exact.text, exact.token_ids) == ("stop", first.text, first.token_ids)
    assert short.finish_reason == "length"
    assert short.text.startswith(first.text), "what was held back is part of a text that does not stop"


def test_min_tokens_come_before_any_stop_text(llm: LLM) -> None:
    assert llm.tokenizer is not None
    (plain,) = llm.generate([[7, 8]], LONG)
    early = llm.tokenizer.decode(plain.token_ids[:6], skip_special_tokens=True).rstrip("\ufffd")
    stops = (early[0], early[1], *sorted({*plain.text[len(early) + 1 :]} - {"\ufffd"})[:14])
    (output,) = llm.generate([[7, 8]], replace(LONG, stop=stops, min_tokens=6))
    assert output.finish_reason == "stop" and len(output.token_ids) > 6
    assert output.text.startswith(early)


def test_stop_ids_are_tokens_and_no_text(llm: LLM) -> None:
    assert llm.tokenizer is not None
    (plain,) = llm.generate([[7, 8]], LONG)
    end = plain.token_ids[5]
    (output,) = llm.generate([[7, 8]], replace(LONG, stop_token_ids=(end,)))
    count = plain.token_ids.index(end) + 1
    assert (output.finish_reason, output.token_ids) == ("stop", plain.token_ids[:count])
    assert output.text == llm.tokenizer.decode(plain.token_ids[: count - 1], skip_special_tokens=True)


def test_a_stream_heeds_its_stop_text_whoever_makes_the_steps(llm: LLM) -> None:
    (plain,) = llm.generate([[7, 8]], LONG)
    stopped = replace(LONG, stop=(stop_texts_in(plain.text, 1)[4],))
    (expected,) = llm.generate([[7, 8]], stopped)
    assert 2 < len(expected.token_ids) < 14
    assert [token.token_id for token in llm.stream([7, 8], stopped)] == expected.token_ids
    shared = llm.stream([7, 8], stopped)
    tokens = [next(shared).token_id]
    llm.generate([[9]], LONG)
    assert tokens + [token.token_id for token in shared] == expected.token_ids


def test_stop_texts_need_a_tokenizer(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm, "tokenizer", None)
    with pytest.raises(RequestError, match="stop: got texts, but there is no tokenizer.json"):
        llm.generate([[5], [6]], [LONG, replace(LONG, stop=("a",))])
    with pytest.raises(RequestError, match=r"tokenizer\.json"):
        next(llm.stream([5], replace(LONG, stop=("a",))))
    assert not llm.engine.has_work


def test_n_gives_several_outputs_in_a_row(llm: LLM) -> None:
    drawn = SamplingParams(max_tokens=6, seed=4, ignore_eos=True)
    outputs = llm.generate([[5, 6], [7], [8, 9]], [replace(drawn, n=3), GREEDY, replace(drawn, n=2)])
    assert [output.prompt_token_ids for output in outputs] == [[5, 6]] * 3 + [[7]] + [[8, 9]] * 2
    for prompt, first in (([5, 6], outputs[0]), ([8, 9], outputs[4])):
        assert first.token_ids == llm.generate([prompt], drawn)[0].token_ids
    assert len({tuple(output.token_ids) for output in outputs}) == 6


def test_prompt_logprobs_are_those_of_the_logits(llm: LLM) -> None:
    prompt = np.random.randint(3, 500, 150).tolist()
    (output,) = llm.generate([prompt], SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=2))
    (plain,) = llm.generate([prompt], SamplingParams(max_tokens=1, temperature=0))
    assert output.token_ids == plain.token_ids and plain.prompt_logprobs is None and output.logprobs is None
    assert output.prompt_logprobs is not None
    first, *others = output.prompt_logprobs
    assert first is None
    logits = llm.logits(prompt)[:-1].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for row, token, reported in zip(expected, prompt[1:], others, strict=True):
        assert reported is not None and next(iter(reported)) == token
        assert set(np.argsort(-row)[:2]) | {token} == reported.keys()
        assert all(abs(row[i] - value) < 1e-9 for i, value in reported.items())


def test_no_tokens_to_generate(llm: LLM) -> None:
    """Only the prompt is processed, which may be as long as a sequence."""
    prompt = np.random.randint(3, 500, 256).tolist()
    scored, plain = llm.generate([prompt, [5]], [SamplingParams(max_tokens=0, prompt_logprobs=0), SamplingParams(max_tokens=0)])
    for output in (scored, plain):
        assert (output.token_ids, output.text, output.finish_reason, output.error) == ([], "", "length", None)
    assert scored.prompt_logprobs is not None
    assert [None if entry is None else list(entry) for entry in scored.prompt_logprobs] == [None, *([i] for i in prompt[1:])]


@pytest.mark.parametrize("params", [SamplingParams(n=2), SamplingParams(max_tokens=0)])
def test_streams_are_one_completion(llm: LLM, params: SamplingParams) -> None:
    with pytest.raises(RequestError, match="expected n=1 and at least 1 token"):
        next(llm.stream([5], params))
    assert not llm.engine.has_work

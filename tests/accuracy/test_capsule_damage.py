# SPDX-License-Identifier: Apache-2.0
"""Capsules that are damaged, cut off, of another version, or made by somebody who means harm: refused with a clear error."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ascend_dsv4 import LLM, SamplingParams
from ascend_dsv4.accuracy.capsule import MANIFEST, checksum, write_data
from ascend_dsv4.accuracy.capsule_reading import open_capsule
from ascend_dsv4.accuracy.replay import replay
from ascend_dsv4.errors import CapsuleError
from ascend_dsv4.model.safetensors_file import SafetensorsFile

DATA = "data-00000.safetensors"
Manifest = dict[str, Any]


@pytest.fixture(scope="module")
def recorded(golden_v4: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The norms and cache writes of a layer in one step."""
    llm = LLM(golden_v4 / "fp8_fp4", max_model_len=256, progress=False)
    folder = tmp_path_factory.mktemp("recorded") / "capsule"
    with llm.capture(folder, ops=["rms_norm", "store_kv", "linear"], layers="2", steps="0"):
        llm.generate(list(range(10, 30)), SamplingParams(max_tokens=1, temperature=0))
    return folder


@pytest.fixture
def capsule(recorded: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(recorded, tmp_path / "capsule"))


def change(folder: Path, edit: Callable[[Manifest], object], *, is_signed: bool = True) -> None:
    """Edit a manifest. `is_signed`: with a checksum that fits, as whoever means harm would."""
    manifest = json.loads((folder / MANIFEST).read_text())
    edit(manifest)
    if is_signed:
        manifest["checksum"] = checksum(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def rewrite(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Write a data file anew with other content, and a manifest that agrees with it."""
    file = SafetensorsFile(folder / DATA)
    blobs: dict[str, Any] = {name: file.bytes(name).copy() for name in file.tensors}
    edit(blobs)
    entry = write_data(folder / DATA, blobs)
    change(folder, lambda manifest: manifest["files"].update({DATA: entry}))


def assert_refused(folder: Path, *words: str) -> None:
    for look in (open_capsule, replay):
        with pytest.raises(CapsuleError) as caught:
            look(folder)
        assert all(word in str(caught.value) for word in words), str(caught.value)
        assert "expected" in str(caught.value) and "because" in str(caught.value) and str(folder) in str(caught.value)


# Damage


def test_a_folder_that_is_no_capsule(capsule: Path, tmp_path: Path) -> None:
    assert_refused(tmp_path / "nowhere", "no capsule", MANIFEST, "No such file")
    (tmp_path / "empty").mkdir()
    assert_refused(tmp_path / "empty", "no capsule", "Name the folder that --capture wrote")
    (capsule / MANIFEST).write_text('{"name": "an extension of a browser"}')
    assert_refused(capsule, "no capsule: format None")
    (capsule / MANIFEST).write_text("[1]")
    assert_refused(capsule, "no capsule: format [1]")


@pytest.mark.parametrize("text", ["", "{", "\xff\xfe", "[" * 100_000, '{"a": NaN}'], ids=range(5))
def test_a_manifest_that_is_no_json(capsule: Path, text: str) -> None:
    (capsule / MANIFEST).write_bytes(text.encode("latin-1"))
    assert_refused(capsule, MANIFEST, "no JSON")


def test_a_manifest_that_was_changed(capsule: Path) -> None:
    change(capsule, lambda manifest: manifest["calls"][0]["attrs"].update(eps=1e-3), is_signed=False)
    assert_refused(capsule, "corrupted", "checksum")


def test_a_data_file_with_one_other_bit(capsule: Path) -> None:
    data = bytearray((capsule / DATA).read_bytes())
    data[len(data) // 2] ^= 4
    (capsule / DATA).write_bytes(data)
    assert_refused(capsule, DATA, "corrupted: SHA-256", "Take the capsule from its source again")


def test_a_data_file_that_is_cut_off_or_too_long(capsule: Path) -> None:
    size = (capsule / DATA).stat().st_size
    os.truncate(capsule / DATA, size - 1)
    assert_refused(capsule, f"truncated: got {size - 1:,} B, expected {size:,}")
    os.truncate(capsule / DATA, size + 5)
    assert_refused(capsule, f"corrupted: got {size + 5:,} B")


def test_a_data_file_that_is_missing(capsule: Path) -> None:
    (capsule / DATA).unlink()
    assert_refused(capsule, "incomplete", DATA, "No such file")


def test_a_tensor_that_is_missing_or_another(capsule: Path) -> None:
    names = sorted(SafetensorsFile(capsule / DATA).tensors)
    shorter = next(name for name in names if name.startswith("F32"))
    rewrite(capsule, lambda blobs: blobs.update({shorter: blobs[shorter][:-4]}))
    assert_refused(capsule, "F32 [", "but the file holds F32 [")
    rewrite(capsule, lambda blobs: blobs.pop(shorter))
    assert_refused(capsule, shorter, "this tensor is missing")


def test_another_dtype_or_shape_than_the_contract(capsule: Path) -> None:
    def other_dtype(manifest: Manifest) -> None:
        manifest["calls"][0]["args"]["x"]["dtype"] = "int32"

    change(capsule, other_dtype)
    assert_refused(capsule, "but the file holds F32")

    def other_shape(manifest: Manifest) -> None:
        call = manifest["calls"][0]
        call["args"]["x"]["dtype"] = "float32"
        call["outs"]["y"]["shape"] = call["outs"]["y"]["shape"][::-1]

    change(capsule, other_shape)
    assert_refused(capsule, "as the contract infers")

    def no_weight(manifest: Manifest) -> None:
        call = next(call for call in manifest["calls"] if call["op"] == "linear")
        manifest["calls"][0]["outs"]["y"]["shape"] = manifest["calls"][0]["outs"]["y"]["shape"][::-1]
        call["args"]["weight"] = None

    change(capsule, no_weight)
    assert_refused(capsule, "not optional", "contract")


def test_other_bits_are_found_by_replaying(capsule: Path) -> None:
    """A recording whose files are sound, but whose output is not what the operator computes."""
    call = next(call for call in open_capsule(capsule).calls if call.op == "rms_norm")
    (part,) = call.outs["y"].parts
    used = [c.number for c in open_capsule(capsule).calls for t in c.args.values() if t and part in t.parts]
    rewrite(capsule, lambda blobs: blobs[part.blob].__setitem__(0, blobs[part.blob][0] ^ 1))
    report = replay(capsule)
    failed = [result for result in report.results if not result.passed]
    assert report.exit_code == 1 and failed[0].op == "rms_norm" and failed[0].reason.startswith("1 of ")
    assert {int(result.case.split(":")[0][5:]) for result in failed} <= {call.number, *used}
    assert failed[0].check == "bits" and failed[0].worst is not None and failed[0].worst.index == (0, 0)
    assert replay(capsule, call=call.number, tolerance=True).exit_code == 0, "a last bit is within the tolerance"


# Versions


def test_other_formats(capsule: Path) -> None:
    change(capsule, lambda manifest: manifest.update(version=2))
    assert_refused(capsule, "version mismatch: format 2", "Update ascend-dsv4")
    change(capsule, lambda manifest: manifest.update(version=0), is_signed=False)
    assert_refused(capsule, "version mismatch: format 0", "Record again")
    change(capsule, lambda manifest: manifest.update(version="1"))
    assert_refused(capsule, "version mismatch")


def test_a_contract_that_has_changed(capsule: Path) -> None:
    change(capsule, lambda manifest: manifest["contracts"].update(rms_norm="0" * 64))
    assert_refused(capsule, "version mismatch: the contract of rms_norm", "Record again with this version")


def test_an_operator_of_another_version(capsule: Path) -> None:
    change(capsule, lambda manifest: manifest["calls"][1].update(op="rms_norm_v9"))
    assert_refused(capsule, "calls 1, op: got 'rms_norm_v9'", "an operator of this version")


def test_another_machine_is_said_and_bits_are_still_demanded(capsule: Path) -> None:
    def elsewhere(manifest: Manifest) -> None:
        manifest["versions"]["torch"], manifest["processor"]["capability"] = "1.13", "VSX"

    change(capsule, elsewhere)
    report = replay(capsule)
    assert report.exit_code == 0 and "torch 1.13" in report.environment["recorded by"]
    part = open_capsule(capsule).calls[0].outs["y"].parts[0]
    rewrite(capsule, lambda blobs: blobs[part.blob].__setitem__(0, blobs[part.blob][0] ^ 1))
    report = replay(capsule)
    assert report.exit_code == 1
    assert f"recorded with torch 1.13, here {torch.__version__}; capability VSX" in report.results[0].reason
    assert "--tolerance" in report.results[0].reason
    assert replay(capsule, call=0, tolerance=True).exit_code == 0


def test_as_many_threads_as_recorded(capsule: Path) -> None:
    seen: list[int] = []
    change(capsule, lambda manifest: manifest["processor"].update(num_threads=3))
    before = torch.get_num_threads()
    assert replay(capsule, progress=lambda _: seen.append(torch.get_num_threads())).exit_code == 0
    assert set(seen) == {3} and torch.get_num_threads() == before


# Recordings that broke off

ENDLESS = """
import sys
from ascend_dsv4 import LLM
llm = LLM(sys.argv[1], max_model_len=256, progress=False)
with llm.capture(sys.argv[2], ops=["rms_norm", "store_kv"]):
    print("begun", flush=True)
    while True:
        llm.logits([5, 6, 7])
"""


def test_a_process_that_was_killed_leaves_the_calls_until_then(golden_v4: Path, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ENDLESS, str(golden_v4 / "fp8_fp4"), str(tmp_path / "c")],
                               stdout=subprocess.PIPE)  # fmt: skip
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"begun\n"
        deadline = time.monotonic() + 60
        while not (tmp_path / "c" / DATA).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    capsule = open_capsule(tmp_path / "c")
    assert not capsule.is_complete and len(capsule.calls) > 10
    report = replay(tmp_path / "c")
    assert report.exit_code == 0 and report.environment["capsule"].startswith("incomplete: its process ended before")


def test_a_recording_without_calls(capsule: Path) -> None:
    change(capsule, lambda manifest: manifest.update(complete=False, calls=[], files={}))
    assert_refused(capsule, "incomplete: no call in it", "Record again")


def test_what_no_manifest_names_is_left_alone(capsule: Path) -> None:
    """A data file that the killed process had not come to name."""
    (capsule / "data-00077.safetensors").write_bytes(b"half of")
    assert replay(capsule).exit_code == 0


# Strangers


@pytest.mark.parametrize("name", ["../data-00000.safetensors", "/etc/passwd", "data-00000.pkl", "sub/" + DATA, "", "."])
def test_no_file_outside_the_folder_is_read(capsule: Path, name: str) -> None:
    change(capsule, lambda manifest: manifest["files"].update({name: manifest["files"].pop(DATA)}))
    assert_refused(capsule, "no file outside the folder is read", repr(name))


def test_links_are_not_followed(capsule: Path, tmp_path: Path) -> None:
    shutil.move(capsule / DATA, tmp_path / DATA)
    (capsule / DATA).symlink_to(tmp_path / DATA)
    assert_refused(capsule, "no plain file", "links could lead anywhere")


def test_a_header_that_claims_too_much(capsule: Path) -> None:
    def put(data: bytes) -> None:
        import hashlib

        (capsule / DATA).write_bytes(data)
        entry = {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        change(capsule, lambda manifest: manifest["files"].update({DATA: entry}))

    put((1 << 40).to_bytes(8, "little") + b"{}")
    assert_refused(capsule, "not the data of a capsule", "the header claims 1,099,511,627,776 bytes")
    header = b'{"x":{"dtype":"F32","shape":[1000000],"data_offsets":[0,4000000]}}'
    put(len(header).to_bytes(8, "little") + header)
    assert_refused(capsule, "not the data of a capsule", "truncated")


def test_no_code_is_looked_up_by_what_a_capsule_says(capsule: Path, tmp_path: Path) -> None:
    for implementation in ("os:abort", "native", ""):
        change(capsule, lambda manifest, name=implementation: [call.update(implementation=name) for call in manifest["calls"]])
        with pytest.raises(CapsuleError, match="no code is looked up by what a capsule says"):
            replay(capsule)
    assert replay(capsule, "reference", call=0).exit_code == 0


def test_another_dtype_is_no_output_of_the_contract(capsule: Path, tmp_path: Path) -> None:
    """Its values are those of the recording."""
    lines = ["from ascend_dsv4.ops.rms_norm.reference import rms_norm", "wide = lambda *x, eps: rms_norm(*x, eps=eps).double()"]
    (tmp_path / "mine.py").write_text("\n".join(lines))
    report = replay(capsule, f"{tmp_path}/mine.py:wide", ops=["rms_norm"])
    assert report.exit_code == 1 and {result.check for result in report.results} == {"types"}


HOSTILE: dict[str, tuple[Callable[[Manifest], object], str]] = {
    "offset": (lambda x: x.update(offset=1 << 58), "B of memory"),
    "stride": (lambda x: x.update(strides=[1 << 50, 1]), "B of memory"),
    "negative stride": (lambda x: x.update(strides=[-1, 1]), "an integer from 0"),
    "shape": (lambda x: x.update(shape=[1 << 40, 1 << 40]), "B of memory"),
    "many dimensions": (lambda x: x.update(shape=[1] * 99, strides=[0] * 99), "at most 32 integers"),
    "ranks differ": (lambda x: x.update(strides=[1]), "2 integers"),
    "true is no size": (lambda x: x.update(shape=[True, 4]), "an integer from 0"),
    "address": (lambda x: x.update(address=4096), "an integer from 0 to 4095"),
    "dtype": (lambda x: x.update(dtype="object"), "one of float64"),
    "layout": (lambda x: x.update(layout="sparse_coo"), "strided"),
    "part before": (lambda x: x["parts"].insert(0, list(x["parts"][0])), "bytes behind the part before"),
    "part past the end": (lambda x: x["parts"][0].__setitem__(1, 1 << 40), "bytes behind the part before"),
    "part of something else": (lambda x: x["parts"][0].__setitem__(2, "../x"), "this tensor is missing"),
    "no part": (lambda x: x["parts"].append([]), "first byte, number of bytes and name"),
    "no list": (lambda x: x.update(parts={}), "a list"),
    "missing": (lambda x: x.pop("offset"), "a field 'offset'"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_tensors_that_cannot_be(capsule: Path, name: str) -> None:
    edit, words = HOSTILE[name]
    change(capsule, lambda manifest: edit(manifest["calls"][0]["args"]["x"]))
    assert_refused(capsule, "calls 0, args, x", words)


CALLS: dict[str, tuple[Callable[[Manifest], object], str]] = {
    "an argument too many": (lambda call: call["args"].update(y=None), "exactly the fields x, weight"),
    "an attribute too few": (lambda call: call["attrs"].clear(), "exactly the fields eps"),
    "an attribute of another type": (lambda call: call["attrs"].update(eps="import os"), "a value of type float"),
    "number": (lambda call: call.update(number=7), "0, its place in the list"),
    "step": (lambda call: call.update(step=-1), "an integer from 0"),
    "no object": (lambda call: call.update(args=[]), "an object"),
    "a text that is none": (lambda call: call.update(scope=5), "a text"),
    "written": (lambda call: call.update(written={"x": []}), "no field"),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_that_cannot_be(capsule: Path, name: str) -> None:
    edit, words = CALLS[name]
    assert open_capsule(capsule).calls[0].op == "rms_norm"
    change(capsule, lambda manifest: edit(manifest["calls"][0]))
    assert_refused(capsule, "calls 0", words)


def test_numbers_of_threads_that_cannot_be(capsule: Path) -> None:
    for count in (0, 10**9, "2", None):
        change(capsule, lambda manifest, count=count: manifest["processor"].update(num_threads=count))
        assert_refused(capsule, "num_threads", "an integer from 1 to 1024")

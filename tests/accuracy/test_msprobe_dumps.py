# SPDX-License-Identifier: Apache-2.0
"""Reading msprobe dumps: everything they may hold, and everything that may be wrong with them."""

from __future__ import annotations

import json
import math
import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ascend_dsv4.accuracy.msprobe.dump import find_dumps, read_dump
from ascend_dsv4.accuracy.msprobe.importing import import_msprobe
from ascend_dsv4.errors import DumpError
from tests.accuracy.msprobe_writer import DumpWriter, finding, write_one

OUTPUT = "Functional.silu.0.forward.output.0"


class TestExamination:
    """What speaks against one dump."""

    def test_damaged_json(self, tmp_path: Path) -> None:
        file, _ = write_one(tmp_path / "dump")
        file.write_text(file.read_text()[:-40])
        with pytest.raises(DumpError, match="no valid JSON"):
            import_msprobe(tmp_path)
        file.write_text("")
        with pytest.raises(DumpError, match="no valid JSON"):
            import_msprobe(tmp_path)
        file.write_text("[" * 200_000)
        with pytest.raises(DumpError, match="nested too deeply"):
            import_msprobe(tmp_path)
        deep = '{"a":' * 500 + "1" + "}" * 500
        file.write_text(json.dumps({"task": "tensor", "data": {"x.0.forward": {"output": []}}}).replace("[]", deep))
        with pytest.raises(DumpError, match="400 levels"):
            import_msprobe(tmp_path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"task": "tensor", "data": {}}, "empty dump"),
            ({"task": "tensor"}, "data is missing"),
            ({"task": "tensor", "data": []}, "data is a list"),
            ([], "holds a list"),
            ({"data": {"Torch.exp.0.forward": 3}}, "record Torch.exp.0.forward is a int"),
            ({"data": {"a.0.forward": {"output": [{"type": "t", "dtype": "int8", "shape": [-1]}]}}}, "shape is"),
            ({"data": {"a.0.forward": {"output": [{"type": "t", "dtype": "int8", "shape": [10**30]}]}}}, "shape is"),
            ({"data": {"Torch.\x1b[31mexp.0.forward": {}}}, "is no name"),
            ({"data": {"a.0.forward": {"output": {"type": "t", "dtype": "i", "shape": [], "data_name": 5}}}}, "data_name is 5"),
        ],
    )
    def test_what_is_no_dump(self, tmp_path: Path, content: Any, message: str) -> None:
        (tmp_path / "dump.json").write_text(json.dumps(content))
        with pytest.raises(DumpError, match=message):
            import_msprobe(tmp_path)

    def test_no_dump_at_all(self, tmp_path: Path) -> None:
        with pytest.raises(DumpError, match="no such file or folder"):
            import_msprobe(tmp_path / "nowhere")
        (tmp_path / "step0" / "pid7" / "tensor_data").mkdir(parents=True)
        torch.save(torch.ones(1), tmp_path / "step0" / "pid7" / "tensor_data" / "x.pt")
        with pytest.raises(DumpError, match="no dump.json in it or below, though 1 tensor files"):
            import_msprobe(tmp_path)

    def test_one_damaged_rank_is_an_error_beside_the_others(self, tmp_path: Path) -> None:
        write_one(tmp_path / "step0" / "rank0")
        file, _ = write_one(tmp_path / "step0" / "rank1")
        file.write_text("{")
        report = import_msprobe(tmp_path)
        assert report.exit_code == 2 and [error.case for error in report.errors] == ["step0/rank1"]
        assert [result.status for result in report.results] == ["pass"]

    def test_missing_files(self, tmp_path: Path) -> None:
        write_one(tmp_path / "dump")
        (tmp_path / "dump" / "dump_tensor_data" / f"{OUTPUT}.pt").unlink()
        report = import_msprobe(tmp_path)
        assert report.exit_code == 2 and finding(report, "have no file").startswith("1 of 2 tensors")

    def test_a_tensor_dump_that_names_no_files(self, tmp_path: Path) -> None:
        file, content = write_one(tmp_path / "dump", task="statistics")
        file.write_text(json.dumps({**content, "task": "tensor"}))
        assert finding(import_msprobe(tmp_path), "name no file").startswith("2 of 2")

    @pytest.mark.parametrize("name", ["../secret.pt", "/etc/passwd", "a/../../x.pt", "..", "x\x00.pt", "..\\x.pt"])
    def test_a_name_that_leads_out_is_refused(self, tmp_path: Path, name: str) -> None:
        torch.save(torch.ones(4, 6), tmp_path / "secret.pt")
        file, content = write_one(tmp_path / "dump")
        content["data"]["Functional.silu.0.forward"]["output"][0]["data_name"] = name
        file.write_text(json.dumps(content))
        report = import_msprobe(tmp_path)
        assert report.exit_code == 2 and "leads out of" in report.errors[0].message and not report.results

    def test_a_link_that_leads_out_is_refused(self, tmp_path: Path) -> None:
        torch.save(torch.ones(4, 6), tmp_path / "secret.pt")
        write_one(tmp_path / "dump")
        link = tmp_path / "dump" / "dump_tensor_data" / f"{OUTPUT}.pt"
        link.unlink()
        link.symlink_to(tmp_path / "secret.pt")
        assert "leads out of" in import_msprobe(tmp_path).errors[0].message

    def test_code_in_a_pickle_is_refused(self, tmp_path: Path) -> None:
        class Hostile:
            def __reduce__(self) -> tuple[Any, ...]:
                return os.mkdir, (str(tmp_path / "executed"),)

        write_one(tmp_path / "dump")
        file = tmp_path / "dump" / "dump_tensor_data" / f"{OUTPUT}.pt"
        torch.save(Hostile(), file)
        message = import_msprobe(tmp_path).errors[0].message
        assert "refused" in message and "posix.mkdir" in message
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            file.write_bytes(pickle.dumps(Hostile(), protocol))
            report = import_msprobe(tmp_path)
            assert report.exit_code == 2 and not report.results and "weights_only" not in report.errors[0].message
        assert not (tmp_path / "executed").exists()

    @pytest.mark.parametrize("content", [b"", b"no tensor", b"PK\x03\x04 cut off"])
    def test_a_damaged_tensor(self, tmp_path: Path, content: bytes) -> None:
        write_one(tmp_path / "dump")
        (tmp_path / "dump" / "dump_tensor_data" / f"{OUTPUT}.pt").write_bytes(content)
        assert "cannot be read as a tensor" in import_msprobe(tmp_path).errors[0].message

    def test_tensors_larger_than_their_file(self, tmp_path: Path) -> None:
        write_one(tmp_path / "dump")
        file = tmp_path / "dump" / "dump_tensor_data" / f"{OUTPUT}.pt"
        torch.save(torch.ones(1).expand(1 << 40), file)
        assert "holds a tensor of shape [1099511627776]" in import_msprobe(tmp_path).errors[0].message
        torch.save(torch.zeros(1 << 20), tmp_path / "plain.pt")
        with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
            for name in plain.namelist():
                packed.writestr(name, plain.read(name))
        assert "bytes unpack to" in import_msprobe(tmp_path).errors[0].message

    def test_something_else_than_a_tensor(self, tmp_path: Path) -> None:
        write_one(tmp_path / "dump")
        torch.save({"x": torch.ones(4, 6)}, tmp_path / "dump" / "dump_tensor_data" / f"{OUTPUT}.pt")
        assert "holds a dict, expected one tensor" in import_msprobe(tmp_path).errors[0].message

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"dtype": "torch.bfloat16"}, "stored float32, recorded bfloat16"),
            ({"shape": [6, 4]}, "stored [4, 6], recorded [6, 4]"),
            ({"Max": 7.5}, "Max recorded 7.5, stored 2.85772"),
            ({"Mean": 0.9}, "Mean recorded 0.9"),
            ({"Norm": 5.0}, "Norm recorded 5"),
            ({"md5": "00000000"}, "recorded 00000000"),
            ({"Max": -1.0, "Min": 1.0}, "Min 1 above Max -1"),
            ({"Mean": 40.0}, "Mean 40 outside"),
            ({"Norm": 1000.0}, "Norm 1000 outside"),
            ({"Norm": 0.5}, "Norm 0.5 outside"),
            ({"Max": math.nan}, "NaN by their statistics"),
            ({"Min": "-inf"}, "infinity by their statistics"),
        ],
    )
    def test_statistics_that_contradict(self, tmp_path: Path, change: dict[str, Any], message: str) -> None:
        file, content = write_one(tmp_path / "dump")
        assert import_msprobe(tmp_path).exit_code == 0
        content["data"]["Functional.silu.0.forward"]["output"][0].update(change)
        file.write_text(json.dumps(content))
        report = import_msprobe(tmp_path)
        assert report.exit_code == 1 and any(message in text for text in report.findings), report.findings

    def test_a_float16_norm_that_overflows_is_no_contradiction(self, tmp_path: Path) -> None:
        x = torch.full((64, 64), 3000.0, dtype=torch.float16)
        x[0, 0] = 0
        writer = DumpWriter(tmp_path / "dump")
        writer.api("Functional.silu", x, returns=x.clone())
        content = json.loads(writer.close().read_text())
        assert content["data"]["Functional.silu.0.forward"]["output"][0]["Norm"] == math.inf
        assert import_msprobe(tmp_path).findings == ()

    def test_a_checksum_of_the_stored_bytes_is_right(self, tmp_path: Path) -> None:
        write_one(tmp_path / "dump", checksum=True)
        assert import_msprobe(tmp_path).exit_code == 0

    def test_where_nan_is_born(self, tmp_path: Path) -> None:
        bad = torch.tensor([1.0, math.nan, 2.0])
        writer = DumpWriter(tmp_path / "dump", "statistics")
        writer.api("Torch.sqrt", torch.tensor([1.0, -1.0, 4.0]), returns=bad)
        writer.api("Torch.exp", bad, returns=bad)
        writer.close()
        report = import_msprobe(tmp_path)
        assert finding(report, "where no input of the call has").endswith("has: dump/Torch.sqrt.0.forward.output.0")
        assert finding(report, "NaN by their").startswith("3 of 4 tensors")

    def test_constant_and_zero_outputs(self, tmp_path: Path) -> None:
        writer = DumpWriter(tmp_path / "dump", "statistics")
        writer.api("Torch.exp", torch.arange(3.0), returns=torch.full((3,), 2.5))
        writer.api("Torch.mul", torch.arange(3.0), 0, returns=torch.zeros(3))
        writer.api("Torch.sum", torch.zeros(3), returns=torch.tensor(0.0))
        writer.close()
        report = import_msprobe(tmp_path)
        assert finding(report, "one value throughout").startswith("1 of 2 floating-point outputs")
        assert finding(report, "all zero: ").startswith("1 of 2 floating-point outputs")
        assert not any("refused" in text for text in report.findings)

    def test_what_fills_or_only_allocates_memory_is_no_trouble(self, tmp_path: Path) -> None:
        writer = DumpWriter(tmp_path / "dump", "statistics")
        writer.api("Torch.zeros", 3, returns=torch.zeros(3))
        writer.api("Torch.empty", 3, returns=torch.tensor([math.nan, 0.0, 1.0]))
        writer.api("Torch.exp", torch.arange(3.0), returns=torch.arange(3.0).exp())
        writer.close()
        assert [text for text in import_msprobe(tmp_path).findings if "nothing was compared" not in text] == []

    def test_a_dump_of_zeros_is_refused(self, tmp_path: Path) -> None:
        write_one(tmp_path / "dump", torch.zeros(4, 6))
        report = import_msprobe(tmp_path)
        assert report.exit_code == 1 and report.findings[0].startswith("refused: every floating-point output is zero")


ODD = (
    None, True, -1, 7, 10**400, 1e300, math.nan, "", "x", "\x1b[31m", "\ud800", "../x", [], [[]], {}, {"type": "int"},
    {"type": 3},
)  # fmt: skip


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to every value of a JSON document, without its top."""
    for key, item in content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ():
        yield (*path, key)
        yield from places(item, (*path, key))


def test_any_value_may_be_anything(tmp_path: Path) -> None:
    """Whatever stands anywhere in a dump.json, the answer is a report or a DumpError."""
    file, content = write_one(tmp_path / "dump")
    write_one(tmp_path / "bench", torch.randn(4, 6), task="statistics")
    outcomes = set()
    for index, path in enumerate(places(content)):
        for turn in range(2):
            odd, inner, changed = ODD[(2 * index + turn) % len(ODD)], json.loads(json.dumps(content)), content
            changed = inner
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = odd
            file.write_text(json.dumps(changed))
            for how in ({}, {"bench": tmp_path / "bench", "csv": tmp_path / "t.csv"}):
                try:
                    outcomes.add(import_msprobe(tmp_path / "dump", **how).exit_code)  # type: ignore[arg-type]
                except DumpError:
                    outcomes.add("refused")
    assert outcomes == {0, 1, 2, "refused"}


class TestFormat:
    """Everything a dump may hold."""

    def test_names_nesting_and_types(self, tmp_path: Path) -> None:
        writer = DumpWriter(tmp_path / "dump", level="mix")
        x = torch.randn(2, 3)
        nested = [x, {"k": (x, None, 3)}, slice(0, None, 2), torch.Size([2, 3]), "mean", True, 1.5, [], {}]
        writer.api("Distributed.all_reduce", nested, returns={"y": x}, op=None, group={"rank": 1})
        writer.module("layers.0.forward.Linear", 3, x, {"weight": x}, x)
        writer.parameters_grad("layers.0.forward.Linear", {"weight": x})
        writer.backward("Module.layers.0.forward.Linear.backward.3", (x,), (x, None))
        records = read_dump(writer.close()).records
        api = records["Distributed.all_reduce.0.forward"]
        assert (api.api, api.call, api.direction) == ("Distributed.all_reduce", "0", "forward")
        leaves = {leaf.position: leaf for leaf in api.leaves}
        assert list(leaves) == [
            "input.0.0", "input.0.1.k.0", "input.0.1.k.1", "input.0.1.k.2", "input.0.2", "input.0.3", "input.0.4", "input.0.5",
            "input.0.6", "input.op", "input.group.rank", "output.0.y",
        ]  # fmt: skip
        assert [leaves[f"input.0.{n}"].value for n in (2, 3, 4, 5, 6)] == [[0, None, 2], [2, 3], "mean", True, 1.5]
        assert leaves["input.0.1.k.1"].type == "None" and leaves["input.0.0"].is_tensor
        assert leaves["input.0.1.k.0"].name == "Distributed.all_reduce.0.forward.input.0.1.k.0"
        module = records["Module.layers.0.forward.Linear.forward.3"]
        assert (module.api, module.call, module.direction) == ("Module.layers.0.forward.Linear", "3", "forward")
        assert [leaf.position for leaf in module.leaves] == ["input.0", "parameters.weight", "output.0"]
        gradient = records["Module.layers.0.forward.Linear.parameters_grad.0"]
        assert gradient.direction == "parameters_grad" and gradient.leaves[0].data_name.endswith("parameters_grad.0.weight.pt")
        backward = records["Module.layers.0.forward.Linear.backward.3"]
        assert [leaf.type for leaf in backward.leaves] == ["torch.Tensor", "torch.Tensor", "None"]

    def test_statistics_by_dtype(self, tmp_path: Path) -> None:
        writer = DumpWriter(tmp_path / "dump")
        tensors = (torch.tensor([1, 2]), torch.tensor([True, False]), torch.zeros(0), torch.tensor(-2.5))
        writer.api("Torch.stack", *tensors, returns=torch.randn(3))
        leaves = read_dump(writer.close()).records["Torch.stack.0.forward"].leaves
        assert [list(leaf.statistics.values()) for leaf in leaves[:4]] == [
            [2.0, 1.0, None, None], [1.0, 0.0, None, None], [None] * 4, [-2.5] * 4,
        ]  # fmt: skip
        report = import_msprobe(tmp_path)
        assert report.findings == (report.findings[0],) and "nothing was compared" in report.findings[0]

    def test_a_peer_to_peer_operation(self, tmp_path: Path) -> None:
        writer = DumpWriter(tmp_path / "dump", "statistics")
        operation = {"class_type": "torch.distributed.P2POp", "tensor": writer.tensor(torch.randn(3), ""), "op": "isend"}
        writer.data["Distributed.batch_isend_irecv.0.forward"] = {"input_args": [[operation]]}
        leaves = read_dump(writer.close()).records["Distributed.batch_isend_irecv.0.forward"].leaves
        assert [(leaf.position, leaf.is_tensor) for leaf in leaves] == [("input.0.0.tensor", True)]

    def test_mindspore(self, tmp_path: Path) -> None:
        (tmp_path / "dump_tensor_data").mkdir()
        x = np.linspace(-2, 2, 12, dtype=np.float32).reshape(3, 4)
        y = x / (1 + np.exp(-x))

        def leaf(array: Any, name: str, dtype: str) -> dict[str, Any]:
            np.save(tmp_path / "dump_tensor_data" / name, array)
            numbers = {"Max": array.max(), "Min": array.min(), "Mean": array.mean(), "Norm": np.linalg.norm(array)}
            shape = {"type": "mindspore.Tensor", "dtype": dtype, "shape": list(array.shape), "data_name": name}
            return {**shape, **{key: float(value) for key, value in numbers.items()}}

        name = "MintFunctional.silu.0.forward"
        sides = (("input_args", x, "input", "BFloat16"), ("output", y, "output", "Float32"))
        record = {key: [leaf(array, f"{name}.{role}.0.npy", dtype)] for key, array, role, dtype in sides}
        content = {"task": "tensor", "level": "L1", "framework": "mindspore", "data": {name: record}}
        (tmp_path / "dump.json").write_text(json.dumps(content))
        report = import_msprobe(tmp_path)
        assert (report.exit_code, [result.dtype for result in report.results]) == (0, ["float32"]), report
        np.save(tmp_path / "dump_tensor_data" / f"{name}.output.0.npy", np.array([{}], dtype=object), allow_pickle=True)
        assert "cannot be read as a tensor" in import_msprobe(tmp_path).errors[0].message

    def test_single_file_and_folders_without_numbers(self, tmp_path: Path) -> None:
        file, _ = write_one(tmp_path / "step" / "rank")
        assert import_msprobe(file).exit_code == 0
        assert list(find_dumps(tmp_path)) == ["step/rank"]
        for rank in (10, 2):
            write_one(tmp_path / "run" / f"rank{rank}")
        assert list(find_dumps(tmp_path / "run")) == ["rank2", "rank10"]

    def test_debug_json_and_both_forms_of_stacks(self, tmp_path: Path) -> None:
        writer = DumpWriter(tmp_path / "rank0", "statistics", level="debug")
        file = writer.close(data={"hidden.0.debug": [writer.tensor(torch.randn(3), ""), {"type": "int", "value": 4}]})
        file.rename(file.with_name("debug.json"))
        (tmp_path / "rank0" / "stack.json").write_text(json.dumps({"hidden.0.debug": ["File a.py, line 1"]}))
        dump = read_dump(find_dumps(tmp_path)["rank0"])
        assert [leaf.name for leaf in dump.records["hidden.0.debug"].leaves] == ["hidden.0.debug.0", "hidden.0.debug.1"]
        assert dump.stacks == {"hidden.0.debug": "File a.py, line 1"}

    def test_tensors_saved_on_an_ascend_device(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """torch_npu pickles a copy on the CPU, with a function of its own and the format of the memory."""
        write_one(tmp_path / "dump")
        x = torch.linspace(-3, 3, 24).reshape(4, 6)

        def _rebuild_npu_tensor(*_: Any) -> None:
            raise AssertionError("not called")

        class Saved:
            def __init__(self, offset: int) -> None:
                self.offset = offset

            def __reduce__(self) -> tuple[Any, ...]:
                y = torch.nn.functional.silu(x)
                return _rebuild_npu_tensor, (y._typed_storage(), self.offset, (4, 6), (6, 1), False, OrderedDict(), 2)

        _rebuild_npu_tensor.__module__ = "torch_npu.utils.storage"
        _rebuild_npu_tensor.__qualname__ = "_rebuild_npu_tensor"
        for name in ("torch_npu", "torch_npu.utils", "torch_npu.utils.storage"):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        sys.modules["torch_npu.utils.storage"]._rebuild_npu_tensor = _rebuild_npu_tensor  # type: ignore[attr-defined]
        file = tmp_path / "dump" / "dump_tensor_data" / f"{OUTPUT}.pt"
        torch.save(Saved(0), file)
        damaged = tmp_path / "damaged.pt"
        torch.save(Saved(1000), damaged)
        monkeypatch.undo()
        assert import_msprobe(tmp_path / "dump").exit_code == 0
        damaged.replace(file)
        assert "in a storage of 24 elements" in import_msprobe(tmp_path / "dump").errors[0].message

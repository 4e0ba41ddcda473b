# SPDX-License-Identifier: Apache-2.0
"""The tool that deletes synchronising statements: what it finds, and that the twin reports what is gone."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "check_synchronisation.py"
KERNEL = """
template <HardEvent event>
__aicore__ inline void Handover(TPipe* pipe)  // SetFlag<X>(1); in a comment
{
    const TEventID id = pipe->FetchEventID(event);
    AscendC::SetFlag<event>(id);
    AscendC::WaitFlag<event>(id);
}
__aicore__ inline void Run(TPipe* pipe, uint32_t n)
{
    if (n > 1) Handover<HardEvent::V_S>(pipe);
    else PipeBarrier<PIPE_V>();
    for (uint32_t i = 0; i < n; ++i) AscendC::PipeBarrier<PIPE_V>();
    AscendC::PipeBarrier<PIPE_V>();
    LocalTensor<float> x = que_.template
        DeQue<float>();
    Add(x, x, x, 64); SyncAll();
}
__aicore__ inline LocalTensor<float> Next()
{
    Run(nullptr, 0);
    return que_.DeQue<float>();
}
"""


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    found = importlib.util.spec_from_file_location("check_synchronisation", TOOL)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module  # dataclasses look there
    found.loader.exec_module(module)
    return module


def test_statements_of_a_kernel(tool: ModuleType) -> None:
    names = [*tool.PRIMITIVES, *tool.helpers([tool.without_comments(KERNEL)])]
    assert names[len(tool.PRIMITIVES) :] == ["Handover"]
    found = tool.statements("kernel.h", KERNEL, names)
    assert [(one.line, one.function, one.text, one.number) for one in found] == [
        (6, "Handover", "AscendC::SetFlag<event>(id);", 1),
        (7, "Handover", "AscendC::WaitFlag<event>(id);", 1),
        (11, "Run", "Handover<HardEvent::V_S>(pipe);", 1),
        (12, "Run", "PipeBarrier<PIPE_V>();", 1),
        (13, "Run", "AscendC::PipeBarrier<PIPE_V>();", 1),
        (14, "Run", "AscendC::PipeBarrier<PIPE_V>();", 2),
        (15, "Run", "LocalTensor<float> x = que_.template DeQue<float>();", 1),
        (17, "Run", "SyncAll();", 1),
        (22, "Next", "return que_.DeQue<float>();", 1),
    ]
    assert [one.line for one in found if one.declares] == [15, 22]


def run(*arguments: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, str(TOOL), *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_deleted_barrier_and_a_reason_out_of_date(tool: ModuleType, tmp_path: Path) -> None:
    barrier = next(one for one in tool.all_statements("hc_post") if "PipeBarrier" in one.text)
    place = f"{barrier.file}:{barrier.line}"
    reasons = tmp_path / "survivors.json"
    reasons.write_text('{"hc_post": {"hc_post_kernel.h Gone SyncAll(); #1": "it was harmless"}}', encoding="utf-8")
    status, said = run("hc_post", "--line", place, "--survivors", str(reasons))
    assert "1 deletions; 1 reported" in said and "hazard" in said, said
    assert status == 1 and "SyncAll(); #1 is out of date" in said, said


@pytest.mark.slow
@pytest.mark.parametrize("op", ["hc_post", "hc_pre", "moe_combine"])
def test_every_deletion_is_reported(op: str) -> None:
    """Of the kernels that take least time. For all of them, run the tool without arguments: about ten minutes."""
    status, said = run(op)
    assert status == 0, said

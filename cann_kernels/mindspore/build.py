# SPDX-License-Identifier: Apache-2.0
"""Builds and loads the MindSpore module over `libascend_dsv4_kernels.so`: `kernels = load()`, then `kernels.hc_post(...)`.

    python cann_kernels/mindspore/build.py [FOLDER OF THE LIBRARY, default cann_kernels/build]

Needs MindSpore 2.10 with its Ascend backend, and the library that `build.sh` makes. Never run so far.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from mindspore.ops import CustomOpBuilder

KERNELS = Path(__file__).resolve().parents[1]


def load(library: Path = KERNELS / "build") -> Any:
    """The module. Raises FileNotFoundError where the kernels or the toolkit are missing."""
    cann = os.environ.get("ASCEND_HOME_PATH", "")
    if not cann or not (library / "libascend_dsv4_kernels.so").is_file():
        raise FileNotFoundError(
            f"ASCEND_HOME_PATH is {cann!r} and the kernels are looked for in {library}; expected a toolkit and "
            "libascend_dsv4_kernels.so, because the module is linked with both. Source set_env.sh and run build.sh."
        )
    folders = [KERNELS / "mindspore", *(path.parent for path in KERNELS.glob("*/*_launch.asc"))]
    return CustomOpBuilder(
        "ascend_dsv4_kernels",
        [str(KERNELS / "mindspore" / "ops.cpp")],
        backend="Ascend",
        include_paths=[*map(str, folders), f"{cann}/include"],
        ldflags=f"-L{library} -lascend_dsv4_kernels -L{cann}/lib64 -lplatform -Wl,-rpath,{library}",
    ).load()


if __name__ == "__main__":
    print(load(*map(Path, sys.argv[1:2])))

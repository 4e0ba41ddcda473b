# SPDX-License-Identifier: Apache-2.0
"""Every operator a second time: numpy loops in float64, written from the contracts and sharing no code with the references.

An oracle takes the arguments by name (floats as float64, FP8 and FP4 weights as their bytes), the attributes, and the name of
the compute dtype, to which it rounds where the model does so in mid-operator: the golden "as specified". Framework-free.
"""

from __future__ import annotations

from ascend_dsv4.accuracy.oracles import language, surroundings
from ascend_dsv4.accuracy.oracles.numerics import Oracle
from ascend_dsv4.ops import OP_NAMES

ORACLES: dict[str, Oracle] = {name: getattr(language if hasattr(language, name) else surroundings, name) for name in OP_NAMES}

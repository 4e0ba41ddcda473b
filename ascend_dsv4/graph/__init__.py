# SPDX-License-Identifier: Apache-2.0
"""The typed model graph: what every backend compiles, and what tools walk, count and print.

`ir.py` holds the graph as plain data, `trace.py` makes it from model functions.
"""

from ascend_dsv4.graph.ir import Graph, Node, Value, format_graph

__all__ = ["Graph", "Node", "Value", "format_graph"]

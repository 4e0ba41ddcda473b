# SPDX-License-Identifier: Apache-2.0
"""Walking weights and batches: frozen dataclasses, tuples and dicts whose leaves are tensors or their descriptions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any


def is_tensor(item: Any) -> bool:
    """Whether an item is a tensor or a tensor type."""
    return hasattr(item, "shape") and hasattr(item, "dtype")


def map_leaves(
    function: Callable[[str, Any], Any], tree: Any, is_leaf: Callable[[Any], bool] = is_tensor, path: str = ""
) -> Any:
    """A tree of the same form with function(path, leaf) in place of every leaf; other data stays as it is."""
    if is_leaf(tree):
        return function(path, tree)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        fields = [f.name for f in dataclasses.fields(tree)]
        return type(tree)(*(map_leaves(function, getattr(tree, n), is_leaf, _join(path, n)) for n in fields))
    if isinstance(tree, tuple):
        names = getattr(tree, "_fields", range(len(tree)))
        items = [map_leaves(function, item, is_leaf, _join(path, n)) for n, item in zip(names, tree, strict=True)]
        return type(tree)(*items) if hasattr(tree, "_fields") else tuple(items)
    if isinstance(tree, dict):
        return {key: map_leaves(function, item, is_leaf, _join(path, key)) for key, item in tree.items()}
    return tree


def leaves(tree: Any, is_leaf: Callable[[Any], bool] = is_tensor) -> dict[str, Any]:
    """Every leaf by path: "attn.wq_a.weight", "layers.3.attn_norm"; a tree that is one leaf has the path ""."""
    found: dict[str, Any] = {}
    map_leaves(found.__setitem__, tree, is_leaf)
    return found


def _join(path: str, name: Any) -> str:
    return f"{path}.{name}" if path else str(name)

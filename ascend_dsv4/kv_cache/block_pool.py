# SPDX-License-Identifier: Apache-2.0
"""Free and used blocks of one group. Knows nothing about tensors."""

from __future__ import annotations

from collections import deque

from ascend_dsv4.errors import CapacityError


class BlockPool:
    """Hands out block ids 0 … num_blocks − 1."""

    def __init__(self, group: str, num_blocks: int) -> None:
        self.group = group
        self.num_blocks = num_blocks
        self._free = deque(range(num_blocks))
        self._used: set[int] = set()

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """`count` blocks. Raises CapacityError if fewer are free."""
        if count > len(self._free):
            raise CapacityError(
                f"cache group {self.group!r}: {count} blocks wanted, {len(self._free)} of {self.num_blocks} free. "
                "Raise max_total_tokens, or lower max_num_seqs or max_num_batched_tokens."
            )
        blocks = [self._free.popleft() for _ in range(count)]
        self._used.update(blocks)
        return blocks

    def free(self, blocks: list[int]) -> None:
        """Take blocks back."""
        for block in blocks:
            assert block in self._used, f"cache group {self.group!r}: block {block} returned but not in use"
            self._used.remove(block)
        self._free.extend(blocks)

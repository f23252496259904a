# core
"""Rows that came just before a micro-batch, for :mod:`learner.gate.screen`: in blocks, and so in windows.

::

    blocks    [ 1 ][ 2 ]  ...  [ n - 3 ][ n - 2 ][ n - 1 ][ n ][ open ]│ batch
    windows                                                            └─────   alone
                                                               └─────────────   with the open block
                                                          └──────────────────   with the newest 1, 2, 4, ... too
              └──────────────────────────────────────────────────────────────   with all

A block has 128 rows, and up to 2,048 within four seconds. There are as many as 4,096 rows need, and a minute; 48 at
most.
"""

from __future__ import annotations

import numpy as np

from learner.gate.screenkernels import MET, Sums, with_tails

BLOCK_ROWS, WINDOW_ROWS = 128, 4096
_MOST_BLOCK_ROWS, _BLOCK_MS = 2048, 4000
_WINDOW_MS, _MOST_BLOCKS = 60_000, 48
LONGEST_ROWS, LONGEST_MS = WINDOW_ROWS + _MOST_BLOCK_ROWS, _WINDOW_MS + _BLOCK_MS
"""Of a window."""


class ScreenWindows:
    """Sums of rows, (K,) each. One thread. A fresh one becomes another by its attributes, but for ``tails``.

    Attributes:
        block, block_ms: the open block, and when the first of its rows came.
        upto: all rows up to each block and, as the last, to the open one. (n + 1, K)
        began_ms: when each block began.
        tails: what windows have behind the open block, shortest first. (T, K)
    """

    def __init__(self, size: int) -> None:
        self.block, self.block_ms = np.zeros(size), 0
        self.upto, self.began_ms = np.zeros((1, size)), list[int]()
        self.tails = np.empty((0, size))

    def with_batch(self, sums: Sums) -> Sums:
        """The windows that end with a batch, shortest first. (W, K)"""
        windows: Sums = with_tails(sums, self.block, self.tails)
        return windows

    def enter(self, sums: Sums, now_ms: int) -> None:
        """Rows were met: they are in the windows of those after them."""
        if not self.block[MET]:
            self.block_ms = now_ms
        self.block += sums
        rows, upto, began_ms = self.block[MET], self.upto, self.began_ms
        if rows < BLOCK_ROWS or (rows < _MOST_BLOCK_ROWS and now_ms < self.block_ms + _BLOCK_MS):
            return
        gone = 0
        while gone < len(began_ms) and (
            len(began_ms) - gone >= _MOST_BLOCKS
            or (upto[-1, MET] - upto[gone, MET] >= WINDOW_ROWS and began_ms[gone] < now_ms - _WINDOW_MS)
        ):
            gone += 1
        self.upto = np.concatenate([upto[gone:], (upto[-1] + self.block)[None]])
        self.began_ms = [*began_ms[gone:], self.block_ms]
        self._open_block()
        self.look_back()

    def forget_behind(self, window: int) -> None:
        """Only what one of the windows has behind its batch is known from now on."""
        if window == 0:
            self._open_block()
        kept = min(2 ** (window - 2), len(self.began_ms)) if window > 1 else 0
        self.upto = self.upto[-1 - kept :].copy()
        self.began_ms = self.began_ms[len(self.began_ms) - kept :]
        self.look_back()

    def _open_block(self) -> None:
        self.block, self.block_ms = np.zeros_like(self.block), 0

    def look_back(self) -> None:
        """Makes the tails: sums of the newest 1, 2, 4, ... blocks, and of all."""
        n = len(self.began_ms)
        blocks = [2**i for i in range(int(n - 1).bit_length())] + [n] if n else []
        self.tails = self.upto[-1] - self.upto[[-1 - k for k in blocks]].reshape(-1, len(self.block))

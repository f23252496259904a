"""Recall's compiled loops in plain Python, from what their texts say: the reference of ``test_scorer_recall``."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import floor

_ALL = (1 << 64) - 1


def drawn(seed: int, count: int, below: int) -> int:
    """Output ``count`` of SplitMix64 from ``seed``, modulo ``below``."""
    x = (seed + (count + 1) * 0x9E3779B97F4A7C15) & _ALL
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _ALL
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _ALL
    return (x ^ (x >> 31)) % below


def merged(
    lists: Sequence[Sequence[int]],
    shares: Sequence[float],
    fillers: int,
    living: Sequence[int],
    alive: Sequence[bool],
    late: Sequence[int],
    seed: int,
    size: int,
) -> list[tuple[int, int]]:
    """(row, source) of each candidate."""
    chance = len(lists)
    rest = [list(one) for one in lists]
    closed, found = set(late), list[tuple[int, int]]()
    more = [s for s in range(chance + 1) if shares[s] > 0]
    draws, first = 0, True

    def take(row: int, source: int) -> bool:
        if row in closed or not (0 <= row < len(alive) and alive[row]):
            return False
        closed.add(row)
        found.append((row, source + 1))
        return True

    while len(found) < size and more:
        asked = more if first else [s for s in more if s < fillers] or more
        need, total, first = size - len(found), sum(shares[s] for s in asked), False
        bounds, sums = [0], 0.0
        for s in asked:
            sums += shares[s]
            bounds.append(floor(sums / total * need + 0.5))
        quotas = {s: bounds[i + 1] - bounds[i] for i, s in enumerate(asked)}
        for s, quota in quotas.items():
            left, tries = quota, 4 * quota + 64
            while left and (rest[s] if s < chance else tries):
                if s < chance:
                    row = rest[s].pop(0)
                else:
                    row, tries, draws = living[drawn(seed, draws, len(living))], tries - 1, draws + 1
                left -= take(row, s)
            if left:
                more = [other for other in more if other != s]
    free = [row for row in living if row not in closed and row < len(alive) and alive[row]]
    for i in range(min(size - len(found), len(free))):
        j, draws = i + drawn(seed, draws, len(free) - i), draws + 1
        free[i], free[j] = free[j], free[i]
        take(free[i], chance)
    there = [row for row in late if 0 <= row < len(alive) and alive[row]]
    return found + [(row, chance + 1) for row in there[: size - len(found)]]


def interleaved(heads: Sequence[Sequence[int]], weights: Sequence[float], most: int) -> list[int]:
    """D'Hondt: the quotients of all seats of all lists, largest first; of equal ones the earlier list's."""
    quotients = [
        (-Fraction(weight) / (seat + 1), g, seat) for g, weight in enumerate(weights) for seat in range(len(heads[g]))
    ]
    return [heads[g][seat] for _, g, seat in sorted(quotients)[:most]]

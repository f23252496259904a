# core
"""Rows that depend on each other count as one: the mean of their cluster.

::

    row       page  user              cluster
    0, 1, 2    A     7    ─┐
    5, 6       C     7    ─┴──►  0    a user's pages within one call, a stretch of time
    3, 4       B     -    ────►  1    a page whose user is not known

Rows of one page share its visitor's mood, and pages of one user his taste. An error estimate, or a bet, that takes each
row for a draw of its own is far too sure. One number a cluster, all of equal weight, needs no model of likeness.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


class Clusters(NamedTuple):
    """Clusters in the order of their first rows. n rows, K clusters."""

    number: NDArray[np.intp]  # (n,) each row's cluster, from 0 on
    rows: NDArray[np.intp]  # (K,) how many each has

    def means(self, x: NDArray[np.floating]) -> Numbers:
        """Of the rows' numbers x (n,) in each cluster. (K,)"""
        means: Numbers = np.bincount(self.number, weights=x, minlength=len(self.rows)) / self.rows
        return means


def clusters(page: NDArray[np.uint64], user: NDArray[np.uint64]) -> Clusters:
    """The clusters of rows in order of time.

    Args:
        page: any number of each row's page. (n,)
        user: any number of each row's user; 0 where he is not known: then the page is the cluster. (n,)

    >>> of = clusters(np.array([1, 2, 3], np.uint64), np.array([9, 0, 9], np.uint64))
    >>> of.number, of.means(np.array([1.0, 3.0, 5.0]))
    (array([0, 1, 0]), array([3., 3.]))
    """
    own = np.stack([np.where(user == 0, page, user), user == 0])  # a page's number may be a user's too
    _, first, number, rows = np.unique(own, axis=1, return_index=True, return_inverse=True, return_counts=True)
    order = np.argsort(first)
    place = np.empty(len(order), np.intp)
    place[order] = np.arange(len(order))
    return Clusters(place[number.ravel()], rows[order])

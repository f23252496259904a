"""Rows of one user, or of one page whose user is not known, are one number."""

from __future__ import annotations

import numpy as np

from millrace.evidence.clusters import clusters


def test_means_by_user_else_by_page_in_order_of_their_first_rows() -> None:
    rng = np.random.default_rng(0)
    page = np.repeat(rng.permutation(40).astype(np.uint64), 5)
    user = rng.choice(np.array([0, 0, 3, 8, 9], np.uint64), 40)[page.astype(np.intp)]
    x = rng.normal(size=200)
    found = clusters(page, user)
    by_hand: dict[tuple[str, int], list[int]] = {}
    for row, (p, u) in enumerate(zip(page.tolist(), user.tolist(), strict=True)):
        by_hand.setdefault(("user", u) if u else ("page", p), []).append(row)
    np.testing.assert_allclose(found.means(x), [x[rows].mean() for rows in by_hand.values()])
    assert [np.flatnonzero(found.number == k).tolist() for k in range(len(by_hand))] == list(by_hand.values())


def test_a_page_with_a_users_number_is_no_users_page_and_no_rows_are_no_clusters() -> None:
    assert len(clusters(np.array([5, 6], np.uint64), np.array([0, 5], np.uint64)).rows) == 2
    nothing = np.empty(0, np.uint64)
    assert len(clusters(nothing, nothing).means(np.empty(0))) == 0

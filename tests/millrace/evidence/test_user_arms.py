"""Which users are in which arm."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from millrace.contracts.events import ARMS, CONTROL, MODEL
from millrace.contracts.settings import load_settings
from millrace.evidence.rerank import Rerank
from millrace.evidence.user_arms import RESERVED, Arm, ArmDraw
from scorer.page.listpage import LISTS

IDS = [f"user {n}" for n in range(20_000)]
HITS, WIDE = {"hits": Arm("popular", 0.2)}, {"wide": Arm("model", 0.3, candidates=500)}


def test_each_arm_has_its_share_and_a_new_one_takes_users_of_the_model_alone() -> None:
    before, after = ArmDraw(0.1, HITS), ArmDraw(0.1, HITS | WIDE)
    found = Counter(map(after.of, IDS))
    for name, share in {"control": 0.1, "hits": 0.2, "wide": 0.3, "model": 0.4}.items():
        assert abs(found[name] / len(IDS) - share) < 0.02
    moved = {(before.of(i), after.of(i)) for i in IDS if before.of(i) != after.of(i)}
    assert moved == {("model", "wide")}
    assert {(ArmDraw(0.1, {}).of(i), after.of(i)) for i in IDS} >= {("control", "control"), ("model", "hits")}


def test_arms_may_have_all_users_and_an_id_is_the_same_as_a_number_or_as_text() -> None:
    draw = ArmDraw(0.5, {"hits": Arm("popular", 0.5)})
    assert {draw.of(i) for i in range(2000)} == {"control", "hits"}
    assert all(draw.of(i) == draw.of(str(i)) for i in range(100))


def test_no_arm_takes_a_name_that_pages_have() -> None:
    assert {*ARMS, LISTS} == set(RESERVED)
    assert (RESERVED[0], RESERVED[1]) == (MODEL, CONTROL)


def test_a_file_declares_arms(tmp_path: Path) -> None:
    path = tmp_path / "millrace.toml"
    path.write_text(
        """
[serving]
control_share = 0.05

[serving.arms.hits]
kind = "popular"
share = 0.1

[serving.arms.near]
kind = "model"
share = 0.2
candidates = 300
recall = { vectors = 0.9, random = 0.1 }
rerank.diversity = 1

[serving.rerank]
pins = { 1093 = 0, "b 7" = 4 }

[serving.rerank.boosts.brand]
acme = 1.5
"""
    )
    found = load_settings({"data": str(tmp_path)}, {})
    assert list(found.arms) == ["hits", "near"]
    assert found.arms["hits"] == Arm("popular", 0.1)
    assert found.arms["near"].own == {
        "candidates": 300,
        "recall": {"vectors": 0.9, "random": 0.1},
        "rerank": Rerank(1.0),
    }
    assert found.rerank == Rerank(None, {"brand": {"acme": 1.5}}, {"1093": 0, "b 7": 4})
    assert Rerank(1.0, boosts={}).over(found.rerank) == Rerank(1.0, {}, {"1093": 0, "b 7": 4})

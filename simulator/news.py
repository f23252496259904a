# core
"""A news site: articles that lose half of their odds every twenty minutes, and readers who like some sections. A front
page favours what is new; some articles are breaking news. At last all articles are others, of one second: their ages
are a clock.

::

    P(click) = look(position) sigmoid(b + taste_u(section_i) + quality_i + breaking_i - log 2 age_i(t) / half-life)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from millrace.basics.durations import HOUR_MS, MINUTE_MS
from simulator.dice import generator
from simulator.params import DEFAULT
from simulator.reaction import react

HALF_LIFE_MS = 20 * MINUTE_MS
BIRTHS = 90  # new articles an hour
LIFE_MS, FRONT_MS = 3 * HOUR_MS, HOUR_MS  # how long an article is on pages; in which time it is e times rarer there
PAGE, READERS, SECTIONS = 10, 400, 8
BASE, QUALITY, TASTE, BREAKING = -0.5, 0.5, 0.8, 2.0
BREAKING_SHARE, BREAKING_WEIGHT = 1 / 45, 8.0
TOPICS, TOPIC_WORDS, APPEAL = 5, 12, 1.0  # of a section, of a topic, spread of topics' appeal
LASTING = 6  # so many times longer articles with titles live
TITLE, NAMING, FILLERS = 12, 3, 300  # words of a title, those of its topic, the language's others
START_MS = 1_772_409_600_000  # 2 March 2026
Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class News:
    """``renewed_ms``: from then on all articles are others. ``click_median_ms``: of the delay of clicks. ``titled``:
    tastes are of a section's topics, which only some words of an article's title tell, and articles last longer."""

    seed: int
    hours: float = 3.0
    pages_a_second: float = 0.5
    click_median_ms: float = DEFAULT.click_median_ms
    titled: bool = False

    @property
    def renewed_ms(self) -> int:
        return START_MS + round((self.hours - 0.75) * HOUR_MS)

    @property
    def counted_ms(self) -> int:
        """From here on figures count: the second hour; where tastes are of words, the second half of the time before
        the articles are others."""
        return (START_MS + self.renewed_ms) // 2 if self.titled else START_MS + HOUR_MS

    def table(self) -> pa.Table:
        """The log by time, one row an exposure, with the true chance ``p_true``."""
        rng, end_ms = generator(self.seed, "news"), START_MS + round(self.hours * HOUR_MS)
        half_ms, front_ms = (LASTING * ms if self.titled else ms for ms in (HALF_LIFE_MS, FRONT_MS))
        before_ms = START_MS - LIFE_MS
        born = np.sort(rng.integers(before_ms, end_ms, round(BIRTHS * (end_ms - before_ms) / HOUR_MS)))
        born = np.append(born, np.full(round(BIRTHS * LIFE_MS / HOUR_MS), self.renewed_ms))
        section = rng.integers(SECTIONS, size=len(born))
        breaking = rng.random(len(born)) < BREAKING_SHARE
        appeal = BASE + QUALITY * rng.standard_normal(len(born)) + BREAKING * breaking
        taste = TASTE * rng.standard_normal((READERS, SECTIONS))
        at = np.sort(rng.integers(START_MS, end_ms, round(self.pages_a_second * (end_ms - START_MS) / 1000)))
        user = rng.integers(READERS, size=len(at))
        rows = np.empty((len(at), PAGE), np.int64)
        for start in range(0, len(at), 1000):
            ts_ms = at[start : start + 1000, None]
            age_ms = ts_ms - born
            there = (age_ms >= 0) & (age_ms < LIFE_MS) & ((born >= self.renewed_ms) == (ts_ms >= self.renewed_ms))
            weight = np.log(BREAKING_WEIGHT) * breaking - age_ms / front_ms + rng.gumbel(size=age_ms.shape)
            rows[start : start + 1000] = np.argsort(-np.where(there, weight, -np.inf), axis=1)[:, :PAGE]
        item, page = rows.ravel(), np.repeat(np.arange(len(at)), PAGE)
        position, who, ts_ms = np.tile(np.arange(PAGE), len(at)), user[page], at[page]
        liked, told = taste[who, section[item]], dict[str, pa.Array]()
        if self.titled:
            liked, told = self._titled(section, who, item)
        odds = appeal[item] + liked - np.log(2) * (ts_ms - born[item]) / half_ms
        look = (1.0 + position / DEFAULT.look_half) ** -DEFAULT.look_power
        chance = look / (1.0 + np.exp(-odds))
        how = replace(DEFAULT, click_median_ms=self.click_median_ms)
        click_ms = react(self.seed, how, chance, False, ts_ms, position, (who, 0, 0, page)).click_ms
        columns = {"ts_ms": ts_ms, "request_id": page, "position": position, "user_id": who + 1, "item_id": item + 1,
                   "section": section[item], "born_ms": born[item], "click": (click_ms > 0).astype(np.int8),
                   "p_true": chance.astype(np.float32), **told}  # fmt: skip
        return pa.table({**columns, "click_ms": pa.array(click_ms, mask=click_ms == 0)})

    def _titled(self, section: Ids, who: Ids, item: Ids) -> tuple[NDArray[np.float64], dict[str, pa.Array]]:
        """How much each reader likes the topic of each item, and the columns ``title`` and ``keywords`` (its words of
        the topic alone). (rows,) each"""
        rng = generator(self.seed, "titles")
        topic = section * TOPICS + rng.integers(TOPICS, size=len(section))
        naming = rng.integers(TOPIC_WORDS, size=(len(topic), NAMING))
        often = 1 / np.arange(1, FILLERS + 1)
        filling = rng.choice(FILLERS, p=often / often.sum(), size=(len(topic), TITLE - NAMING))
        topics = SECTIONS * TOPICS
        taste = APPEAL * rng.standard_normal(topics) + TASTE * rng.standard_normal((READERS, topics))
        keywords = [[f"t{t}x{k}" for k in words] for t, words in zip(topic.tolist(), naming.tolist(), strict=True)]
        fillers = [[f"f{k}" for k in words] for words in filling.tolist()]
        titles = [" ".join(rng.permutation(a + b)) for a, b in zip(keywords, fillers, strict=True)]
        said = {"title": titles, "keywords": [" ".join(k) for k in keywords]}
        return taste[who, topic[item]], {name: pa.array(texts).take(pa.array(item)) for name, texts in said.items()}

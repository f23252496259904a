# shell
"""A model with its windows, for a loop of one's own: what a replay does, rows at a time.

::

    learn          rows ──► features, windows [ts - W, ts) ──► wait for a micro-batch ──► learnt
    predict        rows ──► features as the windows are now ──► scores; what was learnt stays as it is

Fed all rows of a log, it scores as a replay with ``label_policy="immediate"`` does, which has the label of each row at
the row itself. A micro-batch is learnt when a row comes that is later than all of it: rows of one time do not see each
other, whether they come together or one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from learner.custom.ownclass import name_of
from learner.network.dense import threads
from learner.ranker.inputs import finite
from learner.role.model_factory import check_named, model_of
from millrace.basics.arguments import checked
from millrace.basics.arrow_rows import package
from millrace.basics.errors import UNFIT, LogError, SchemaError, SettingError, SnapshotError
from millrace.commands.replay.grouped import page_codes
from millrace.commands.replay.logsamples import learns_by_page
from millrace.commands.replay.replayrun import BATCH_ROWS, THREADS, batch_size
from millrace.commands.replay.steps import WaitingBlocks, WaitingRows
from millrace.commands.replay.stretches import AT_ONCE, Stretches
from millrace.contracts.logforms import LogColumns
from millrace.contracts.schema import Schema, load_schema, parse_schema
from millrace.logs import TS, LogTable, read_log
from millrace.logs.cleanrows import Wanted
from millrace.logs.frames import ArrowStream, Frame, LazyFrame
from millrace.reports.result import ResultRows
from millrace.versions.image import Image, below
from scorer.page.score_reasons import MOST_REASONS, ROWS_AT_ONCE, effects, inputs_of, strongest

Rows = Mapping[str, Any] | Sequence[Mapping[str, Any]] | ArrowStream | LazyFrame
"""A row as a dict, several, or a frame: in the order of time, and none earlier than what was learnt."""

USUAL_ROWS = 10_000
"""About how many of the newest learnt rows say which numbers are usual: counts of windows grow with time."""


class Model:
    """Predicts and learns exposures, in the order of time.

    Args:
        schema: with a ``[log]`` section, which names the columns of rows. All rows of a page come together.
        model: its name, module:Class, or a class.
        spec: values of the model that differ from the default, as ``{"width": 8}``.
        seed: of the first weights.
        batch_rows: rows that are learnt together. 1 learns most often, and is slowest.

    Raises:
        SchemaError: there is no ``[log]`` section.
        SettingError: an unknown model or value.
    """

    @checked
    def __init__(
        self,
        schema: Schema | Path | str,
        *,
        model: str | type[Any] | None = None,
        spec: Mapping[str, Any] | None = None,
        seed: int = 0,
        batch_rows: int = BATCH_ROWS,
    ) -> None:
        self.schema = load_schema(schema)
        if self.schema.log is None:
            raise SchemaError(f"schema '{self.schema.name}' has no [log] section", "say there which columns mean what")
        self._log: LogColumns = self.schema.log
        # Rows that come twice are learnt twice: whoever feeds them decides.
        self._reads = msgspec.structs.replace(self.schema, log=msgspec.structs.replace(self._log, identity=()))
        self.batch_rows = batch_size(batch_rows)
        self.learner = model_of(self.schema, dict(spec or {}) | ({"model": model} if model else {}), seed)
        self._how = replace(AT_ONCE, by_page=learns_by_page(self.learner))
        self._made: Stretches | None = None
        self._waiting = WaitingBlocks(len(self.schema.outcome))
        self._newest_ms = 0
        self._usual, self._usual_rows = np.zeros(self.schema.layout.N), 0  # a running mean of numbers, and of how many

    def predict(self, rows: Rows) -> NDArray[np.float32]:
        """Click probabilities, (n,), as model and windows are now. The label's column may lack.

        Raises:
            LogError, SchemaError: as :func:`~millrace.logs.read_log`; or rows are not in the order of time.
        """
        with threads(THREADS):
            return self._score(*self._features(rows))

    def explain(self, rows: Rows, most: int = MOST_REASONS) -> ResultRows:
        """The strongest effects on each row's score, as pages have them (:mod:`scorer.page.score_reasons`); like
        :meth:`predict`, it learns nothing.

        An effect says by how much an input (a field, or a window key with its counts) raised the logit: against a
        missing value; of numbers, against the mean of the rows learnt lately. Before anything is learnt it is the mean
        of ``rows``, so that a single row shows no effect of numbers.

        Returns:
            A table: ``row`` (from 0), ``input``, ``effect``; up to ``most`` lines a row, the strongest first.

        Raises:
            SettingError: ``most`` is no number from 1 on. Others as :meth:`predict`.
        """
        if not isinstance(most, int | np.integer) or most < 1:
            raise SettingError(f"most {most!r}", "use a whole number, 1 or more")
        inputs, lines = inputs_of(self.schema), []
        form = pa.schema([("row", pa.int64()), ("input", pa.string()), ("effect", pa.float32())])
        with threads(THREADS):
            cat, num = self._features(rows)
            cat, num = self._without_bias(cat), finite(num)[0]
            usual = (self._usual if self._usual_rows else num.mean(axis=0, dtype=np.float64)).astype(np.float32)
            for at in range(0, len(cat), ROWS_AT_ONCE):
                some = slice(at, at + ROWS_AT_ONCE)
                found = strongest(effects(self.learner, cat[some], num[some], inputs, usual), inputs, most)
                lines += [(row, *one) for row, of in enumerate(found, at) for one in of]
        return ResultRows(pa.Table.from_pylist([dict(zip(form.names, line, strict=True)) for line in lines], form))

    def learn(self, rows: Rows) -> Self:
        """Counts exposures and clicks in the windows, and learns labels. Errors: as :meth:`predict`."""
        self._feed(self._read(rows), scores=False)
        return self

    def predict_then_learn(self, rows: Rows) -> NDArray[np.float32]:
        """Probabilities, (n,), each before its own label, or a later one, was learnt. Errors: as :meth:`predict`."""
        return self._feed(self._read(rows), scores=True)

    def flush(self) -> Self:
        """Learns rows that wait for a micro-batch, in a smaller one: the end of a log."""
        with threads(THREADS):
            while size := min(self.batch_rows, len(self._waiting.queue.row)):
                self._learn(size)
        return self

    def save(self, path: Path | str) -> None:
        """Flushes, and writes the whole state to a file. Raises SettingError where it cannot be written."""
        image, training = self.flush().learner.snapshot()
        made = {} if self._made is None else self._made.arrays()
        about = {"schema": self.schema.text, "spec": self.learner.spec, "batch_rows": self.batch_rows}
        arrays = {"about": np.frombuffer(msgspec.json.encode(about), np.uint8), "newest": np.array([self._newest_ms])}
        arrays |= {"usual": self._usual, "usual_rows": np.array([self._usual_rows])}
        for part, own in (("model/", image.tensors()), ("training/", training), ("made/", made)):
            arrays |= {part + name: array for name, array in own.items()}
        try:
            with Path(path).open("wb") as out:
                np.savez(out, allow_pickle=False, **arrays)
        except (OSError, TypeError, ValueError) as error:  # of the latter two: what is no path
            why = getattr(error, "strerror", None) or error
            raise SettingError(f"'{path}' cannot be written ({why})", "name another file") from None

    @classmethod
    def load(cls, path: Path | str, model: str | type[Any] = "") -> Self:
        """The model of a file, which goes on from it bit for bit. ``model``: the class of one's own that the file may
        name, or its name, module:Class; no other is imported. Raises SnapshotError where it is not of such a model."""
        try:
            with np.load(path, allow_pickle=False) as found:
                arrays = {name: found[name] for name in found.files}
            about = msgspec.json.decode(arrays["about"].tobytes())
            check_named(about["spec"], name_of(model), f"'{path}'")
            spec = about["spec"] | ({"model": model} if isinstance(model, type) else {})
            made = cls(parse_schema(about["schema"]), spec=spec, batch_rows=about["batch_rows"])
            made.learner.resume(Image.of_tensors(below("model/", arrays)), below("training/", arrays))
            made._newest_ms, made._usual_rows = int(arrays["newest"][0]), int(arrays["usual_rows"][0])
            made._usual = arrays["usual"]
            if state := below("made/", arrays):
                none = LogTable(pa.table({TS: pa.array([], pa.int64())}), "", "", "", 0, 0)
                made._made = Stretches(none, made.schema, made._how)
                made._made.go_on(state)
        except (*UNFIT, OSError, BadZipFile) as error:
            raise SnapshotError(f"'{path}' is no saved model ({error})", "name a file that Model.save wrote") from None
        return made

    def river(self) -> Any:
        """This model as a river.base.Classifier, for River's evaluators: x is a row without its label. Labels may come
        later (``moment``, ``delay``), in the order of rows. Raises SettingError without River."""
        model, label = self, self._log.label

        class RiverClassifier(package("river").Classifier):  # type: ignore[misc]  # River is imported when it is used
            def predict_proba_one(self, x: dict[str, Any], **more: Any) -> dict[bool, float]:
                p = float(model.predict(x)[0])
                return {False: 1 - p, True: p}

            def learn_one(self, x: dict[str, Any], y: Any, **more: Any) -> None:
                model.learn({**x, label: int(y)})

        return RiverClassifier()

    def _read(self, rows: Rows, labelled: bool = True) -> LogTable:
        if isinstance(rows, Mapping):
            rows = [rows]
        if isinstance(rows, list | tuple) and all(isinstance(row, Mapping) for row in rows):
            rows = _table(rows)
        frame = Frame(rows)
        if not labelled:
            wanted = Wanted(self._reads, self._log).raw or set()
            given = frame.columns([name for name in frame.names if name in wanted])
            table = given if isinstance(given, pa.Table) else given.to_arrow_table()
            unknown = {name: pa.nulls(table.num_rows, pa.int64()) for name in self._log.action_times.values()}
            unknown |= {name: pa.nulls(table.num_rows, pa.int8()) for name in self.schema.outcome_columns}
            if self._log.label_action is None:
                unknown[self._log.label] = pa.array(np.zeros(table.num_rows, np.int8))
            kept = {name: table[name] for name in table.column_names if name not in unknown}
            frame = Frame(pa.table(kept | unknown))
        log = read_log([frame], self._reads)
        first = log.table[TS][0].as_py()
        if not log.ordered or first < self._newest_ms:
            problem = "rows are not in the order of time" if not log.ordered else (
                f"a row of {np.datetime64(first, 'ms')} comes after one of {np.datetime64(self._newest_ms, 'ms')}"
            )  # fmt: skip
            raise LogError(problem, f"sort them by '{self._log.time}', and give them in this order")
        return log

    def _goes_on(self, log: LogTable) -> Stretches:
        """The next stretches: one, and that of the last time."""
        ts_ms = log.table[TS].to_numpy()
        cut = int(np.searchsorted(ts_ms, ts_ms[-1], side="left"))
        return Stretches(log, self.schema, self._how, (cut,), after=self._made)

    def _features(self, rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(cat (n, F), num (n, N)) of rows without labels, as the windows are at their time."""
        log = self._read(rows, labelled=False)
        self._learn_before(int(log.table[TS][0].as_py()))
        made = self._goes_on(log)
        features = made.frozen(0, np.arange(made.n), made.ts_ms)
        self._made = made
        return features

    def _feed(self, log: LogTable, scores: bool) -> NDArray[np.float32]:
        made = self._goes_on(log)
        page = page_codes(log, self.schema)
        p = np.zeros(made.n, np.float32)
        with threads(THREADS):
            for number, start in enumerate(made.bounds[:-1].tolist()):
                self._learn_before(int(made.ts_ms[start]))
                last = number == len(made.bounds) - 2
                stretch = made.make(number, open_end=last)
                own = None if page is None else page[start : start + stretch.rows.n] + (stretch.start - start)
                self._waiting.add(WaitingRows.of(stretch, own), stretch.samples)
                at, n = 0, stretch.rows.n
                while at < n:
                    queue = self._waiting.queue
                    due_ms = queue.known_ms[self.batch_rows - 1] if len(queue.row) >= self.batch_rows else None
                    end = n if due_ms is None else int(np.searchsorted(stretch.rows.ts_ms, due_ms, side="right"))
                    if scores and end > at:
                        p[start + at : start + end] = self._score(stretch.cat[at:end], stretch.num[at:end])
                    at = max(at, end)
                    if at < n:  # a later row is there
                        self._learn(self.batch_rows)
                self._waiting.release(stretch.start + n)
        self._made, self._newest_ms = made, int(made.ts_ms[-1])
        return p

    def _score(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float32]:
        cat, size = self._without_bias(cat), self.batch_rows
        parts = [self.learner.score(cat[at : at + size], num[at : at + size]) for at in range(0, len(cat), size)]
        return np.concatenate(parts)

    def _without_bias(self, cat: NDArray[np.int64]) -> NDArray[np.int64]:
        cat = cat.copy()
        cat[:, self.schema.layout.bias_columns] = 0
        return cat

    def _learn_before(self, ms: int) -> None:
        """Learns the micro-batches of rows before a time."""
        while self._waiting.known(ms) >= self.batch_rows:
            self._learn(self.batch_rows)

    def _learn(self, size: int) -> None:
        size = self._waiting.page_end(size) if self._how.by_page else size
        _, batch = self._waiting.pop(size)
        if self.learner.learn(batch).skipped is None:
            self._usual_rows = min(self._usual_rows + len(batch), USUAL_ROWS)
            share = min(len(batch) / self._usual_rows, 1.0)
            self._usual += share * (finite(batch.num)[0].mean(axis=0, dtype=np.float64) - self._usual)


def _table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {}
    for name in names:
        try:
            columns[str(name)] = pa.array([row.get(name) for row in rows])
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            said = " ".join(str(error).split())[:120]
            raise LogError(
                f"'{name}' has values of several kinds ({said})", "give each key one kind of value"
            ) from None
    return pa.table(columns)

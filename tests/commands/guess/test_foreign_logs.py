"""Thirty logs as sites write them, with names that `log guess` has never seen: what it guesses is right, or it says so.

The logs and what is right follow from the documents alone. A column is written as a *source*, which is the truth of the
made site, and a form. Right is what `docs/reference/schema.md` says of such a source. A guess that is not right passes
only where the schema, its summary or the open roles name that very column and voice a doubt about that very thing.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import math
import random
import re
import tomllib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, timezone
from functools import cache, cached_property
from itertools import groupby, product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import millrace.commands.guess
from millrace.basics.errors import MillraceError
from millrace.commands.cli.cli import main
from millrace.commands.guess import guess_schema
from millrace.contracts.schema import parse_schema
from millrace.logs import TS, read_log

START_S = 1_772_406_000  # 2026-03-02, midnight at the site
HERE = timezone(timedelta(hours=1))
CATEGORIES = ["Aldor", "Brenn", "Cyrsa", "Dovel", "Elmar"]
SYLLABLES = ["lu", "mo", "te", "ri", "kan", "da", "vis", "pel", "sor", "ost", "fi", "grun"]
WORDS = ["".join(parts) for parts in product(SYLLABLES, repeat=3)]

Row = dict[str, Any]


class Log(NamedTuple):
    """A made log. A name of a column stands before its source and form: ``"ware item"``."""

    site: str
    file: str  # the ending says the form; `days` is a folder with a file a day
    columns: str  # one a line: name, source, form
    rate: float = 0.08  # of clicks
    size: int = 8  # items on a page
    separator: str = ","
    quotes: Literal[0, 1, 2, 3] = csv.QUOTE_MINIMAL
    lists: bool = False  # a row is a page
    events: bool = False  # a click is a row of its own
    paced: bool = False  # items of one page come seconds apart

    def named(self) -> list[tuple[str, str, str]]:
        lines = (line.split(maxsplit=2) for line in self.columns.strip().splitlines())
        return [(name, source, form[0] if form else "") for name, source, *form in lines]


LOGS = [
    Log("shop-german", "csv", """
        zeitstempel   time     s
        aufruf        page
        platz         slot     1
        kundin        user     k{}
        bundesland    region
        ware          item     w{}
        warengruppe   category
        stueckpreis   price    ,
        angeklickt    click    nein/ja""", separator=";"),
    Log("news-german", "csv", """
        zeitpunkt     time     %d.%m.%Y %H:%M:%S
        leserin       user     {}
        beitrag       item     {}
        ressort       category
        erschienen    born     %d.%m.%Y %H:%M:%S
        geöffnet      click    nein/ja
        lesesekunden  read     """, separator=";", rate=0.15),
    Log("shop-french", "csv", """
        horodatage    time     +01
        visiteur      user     v{}
        produit       item     p{}
        rayon         category
        montant       price    ,
        clique        click    non/oui""", quotes=csv.QUOTE_ALL, rate=0.05),
    Log("news-french", "jsonl.gz", """
        horodate_ms   time     ms
        lecteur       user     {}
        papier        item     {}
        rubrique      category
        paru_le       born     ms
        ouvert        click    bool
        duree_lecture read     0""", rate=0.18, size=10),
    Log("shop-spanish", "tsv", """
        momento       time     iso
        pestana       page
        comprador     user     {}
        producto      item     {}
        seccion       category
        precio        price
        pulsado       click    no/si""", separator="\t"),
    Log("jobs-spanish", "parquet", """
        instante      time     ts
        candidato     user     {}
        ciudad        region
        vacante       item     {}
        sueldo        price
        visto         click    bool
        postulado     like     bool""", rate=0.2),
    Log("shop-polish", "csv", """
        znacznik      time     ms
        odslona       page
        miejsce       slot     0
        kupujacy      user     {}
        towar         item     {}
        dzial         category
        kwota         price    ,
        klikniete     click    nie/tak
        zakupiono     buy      nie/tak""", separator=";"),
    Log("news-polish", "csv", """
        chwila        time     %d.%m.%Y %H:%M
        czytelnik     user     c{}
        tekst         item     t{}
        kategoria     category
        opublikowano  born     %d.%m.%Y %H:%M
        otwarte       click    0/1""", separator="|", rate=0.12),
    Log("music-japanese", "parquet", """
        jikoku        time     us
        choushusha    user     {}
        kyoku         item     {}
        janru         category
        saisei        click    bool
        saisei_byou   read     0""", rate=0.2, paced=True),
    Log("news-turkish", "csv", """
        zaman         time     Z
        oturum        session
        okur          user     o{}
        haber         item     h{}
        bolum         category
        baslik        title
        tiklandi      click    false/true""", rate=0.1),
    Log("shop-turkish", "jsonl", """
        saniye        time     s
        musteri       user     {}
        urun          item     {}
        reyon         category
        fiyat         price
        basildi       word     hayir/evet"""),
    Log("warehouse-narrow", "csv", """
        tz9           time     ns
        pg_hk         page
        r_no          slot     1
        vst_hk        user     hash
        prd_sk        item     {}
        c7            category
        c8            price
        src_cd        constant
        ld_hk         hash
        f1            click    0/1"""),
    Log("warehouse-wide", "parquet", """
        e9            time     ns
        k1            user     {}
        a5            region
        k2            item     {}
        a1            category
        a2            price
        m1            click    0/1
        m2            read     0
        m3            clicked  ns""", rate=0.06),
    Log("news-danish", "parquet", """
        tidspunkt     time     ms
        visning       page
        laeser        user     {}
        vist_liste    items
        klik_liste    hits""", lists=True, rate=0.12),
    Log("shop-dutch", "jsonl", """
        tijdstip      time     Z
        bezoeker      user     b{}
        getoond       items
        gekozen       marks""", lists=True),
    Log("news-swedish", "tsv", """
        klockslag     time     s
        lasare        user     U{}
        visningar     pairs    -""", lists=True, separator="\t", rate=0.12),
    Log("ads-portuguese", "csv", """
        carimbo       time     +01
        internauta    user     {}
        anuncios      items    ,
        tocados       hits     ,""", lists=True, quotes=csv.QUOTE_ALL, rate=0.04),
    Log("ads-italian", "csv", """
        attimo        time     ms
        utente        user     u{}
        inserzione    item     {}
        inserzionista category
        azione        word     vista/tocco
        gettone       click_id""", rate=0.04),
    Log("ads-hungarian", "csv", """
        idopont       time     ms
        latogato      user     l{}
        hirdetes      item     {}
        temakor       category
        esemeny       acts     latta/katt""", events=True, rate=0.1),
    Log("shop-czech", "csv", """
        okamzik       time     ms
        ucet          account  {}
        navstevnik    user     n{}
        polozka       item     {}
        oddeleni      category
        cena          price
        kliknuto      click    0/1"""),
    Log("shop-finnish", "csv", """
        paiva         date
        kello         clock
        kavija        user     {}
        tuote         item     {}
        osasto        category
        napautettu    click    0/1""", separator=";"),
    Log("shop-norwegian", "parquet", """
        sett_kl       time     ms
        besokende     user     {}
        vare          item     {}
        avdeling      category
        belop         price
        trykket       click    bool""", rate=0.05),
    Log("ads-romanian", "csv", """
        afisat_la     time     ms
        vizitator     user     {}
        reclama       item     {}
        tema          category
        apasat_la     clicked  -1""", rate=0.03),
    Log("films-greek", "csv", """
        ora           time     s
        theatis       user     {}
        tainia        item     {}
        eidos         category
        vathmos       stars""", paced=True),
    Log("shop-ukrainian-no-label", "csv", """
        chas          time     s
        vidviduvach   user     {}
        tovar         item     {}
        kategoriya    category
        tsina         price"""),
    Log("shop-indonesian-no-time", "csv", """
        pengunjung    user     {}
        barang        item     {}
        golongan      category
        harga         price
        diklik        click    0/1"""),
    Log("shop-vietnamese", "days", """
        ngay          day
        luc           time     ms
        khach         user     {}
        hang_hoa      item     {}
        nhom          category
        da_bam        click    0/1""", rate=0.1),
    Log("music-korean", "csv", """
        sigak         time     us
        sancho        since
        cheongchwija  user     {}
        gok           item     {}
        taegeu        tags     |
        jaesaeng      click    f/t
        joayo         like     f/t""", rate=0.2, paced=True),
    Log("shop-estonian", "csv", """
        hetk          time     iso
        kylastaja     user     {}
        toode         item     {}
        osakond       category
        vajutus       word     /1""", separator=";"),
    Log("jobs-catalan", "csv.gz", """
        instant_s     time     float
        visitant      user     {}
        comarca       region
        feina         item     {}
        sou           price
        consulta      search
        clicat        click    f/t""", rate=0.1),
]  # fmt: skip


def site(log: Log, seed: int) -> list[Row]:
    """A row an exposure, by time: users with tastes who return, items that age, pages at the hours of a day."""
    dice = random.Random(seed)
    items: list[Row] = [
        {
            "item": i,
            "category": CATEGORIES[dice.randrange(5)],
            "price": round(math.exp(dice.gauss(3, 0.8)), 2),
            "born": (START_S + dice.randrange(-20 * 86_400, 3 * 86_400)) // 60 * 60_000,
            "title": " ".join(dice.sample(WORDS, 5)).capitalize() + ', "' + dice.choice(WORDS) + '"',
            "tags": dice.sample(CATEGORIES, dice.randint(1, 3)),
            "quality": math.exp(dice.gauss(0, 0.5)),
        }
        for i in dice.sample(range(1_000, 9_000), 90)
    ]
    users: list[Row] = [
        {
            "user": u,
            "account": 7_000 + k if dice.random() < 0.7 else None,
            "region": dice.choice(["Nordal", "Sudeva", "Ostrin", "Westa"]),
            "taste": dice.sample(CATEGORIES, 2),
        }
        for k, u in enumerate(dice.sample(range(20_000, 80_000), 220))
    ]
    often = [1 / (1 + k) ** 0.6 for k in range(len(users))]
    hours = [1 + 5 * (7 <= h <= 22) + 6 * (h in (12, 19, 20)) for h in range(24)]
    pages = 3_000 // log.size
    times = sorted(
        (START_S + 86_400 * dice.randrange(5) + 3_600 * dice.choices(range(24), hours)[0] + dice.randrange(3_600))
        * 1_000
        + dice.randrange(1_000)
        for _ in range(pages)
    )
    rows: list[Row] = []
    for page, at in enumerate(times):
        user = dice.choices(users, often)[0]
        there = [i for i in items if i["born"] < at]
        fresh = [i["quality"] / (1 + (at - i["born"]) / 864e5) ** 0.5 + 0.2 for i in there]
        shown = {i["item"]: i for i in dice.choices(there, fresh, k=log.size)}
        signed, search = dice.random() < 0.8, " ".join(dice.choices(WORDS, k=dice.randint(2, 5)))
        for slot, item in enumerate(shown.values()):
            taste = 1.7 if item["category"] in user["taste"] else 0.6
            click = dice.random() < log.rate * item["quality"] * taste * 0.8 / (1 + 0.08 * slot)
            time = at + slot * dice.randint(3_000, 9_000) * log.paced
            rows.append(
                item
                | user
                | {
                    "account": user["account"] if signed else None,
                    "time": time,
                    "page": hashlib.md5(f"{seed} {page}".encode()).hexdigest()[:12],
                    "slot": slot,
                    "session": f"{user['user'] * 31 % 9_973}x{(at // 1000 - START_S) // 86_400}",
                    "click": click,
                    "read": round(dice.lognormvariate(3.4, 0.9), 1) if click else None,
                    "clicked": time + dice.randint(1_000, 40_000) if click else None,
                    "like": click and dice.random() < 0.3,
                    "buy": click and dice.random() < 0.2,
                    "stars": min(5, max(1, round(2.4 + item["quality"] * 0.6 + taste * 0.4 + dice.gauss(0, 1)))),
                    "click_id": hashlib.md5(f"c{page} {slot}".encode()).hexdigest() if click else None,
                    "hash": hashlib.md5(f"r{page} {slot}".encode()).hexdigest(),
                    "constant": "WEB_01",
                    "search": search,
                }
            )
    rows.sort(key=lambda row: int(row["time"]))
    return rows


def stamp(ms: int, form: str) -> object:
    """A time as a site writes it; what has no zone is local."""
    here = datetime.fromtimestamp(ms / 1000, HERE)
    forms: Mapping[str, object] = {
        "s": ms // 1000, "ms": ms, "-1": ms, "us": ms * 1000, "ns": ms * 1_000_000, "float": ms / 1000,
        "ts": datetime.fromtimestamp(ms // 1000, UTC), "Z": f"{here.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "+01": f"{here:%Y-%m-%dT%H:%M:%S}+01:00", "iso": f"{here:%Y-%m-%d %H:%M:%S}",
    }  # fmt: skip
    return forms[form] if form in forms else here.strftime(form)


def word(yes: bool, form: str) -> object:
    """A yes or no: a Boolean, a number or a word."""
    if form == "bool":
        return yes
    said = form.split("/")[yes]
    return int(said) if form == "0/1" else said


def written(row: Row, source: str, form: str) -> object:
    """The value of one column in one row of the file."""
    value = row.get(source)
    if source in {"time", "born"} or (source == "clicked" and value is not None):
        return stamp(row[source], form)
    if source == "clicked":
        return -1 if form == "-1" else None
    if source in {"click", "like", "buy", "word", "acts"}:
        return word(row["click" if source in {"word", "acts"} else source], form)
    if source in {"date", "clock", "day"}:
        return stamp(row["time"], {"date": "%Y-%m-%d", "clock": "%H:%M:%S", "day": "%Y%m%d"}[source])
    if source in {"user", "item", "account"}:
        if form == "hash":
            return hashlib.md5(f"{source} {value}".encode()).hexdigest()
        return value if form == "{}" or value is None else form.format(value)
    if source == "slot":
        return row["slot"] + int(form)
    if source == "price":
        return f"{value:.2f}".replace(".", ",") if form == "," else value
    if source == "read":
        return 0 if value is None and form == "0" else value
    if source == "since":
        return (row["time"] // 1000 - START_S) // 60
    return form.join(row["tags"]) if source == "tags" else value


def paged(rows: list[Row], source: str, form: str) -> object:
    """The list of a page."""
    lists: dict[str, list[Any]] = {
        "items": [row["item"] for row in rows],
        "hits": [row["item"] for row in rows if row["click"]],
        "marks": [int(row["click"]) for row in rows],
        "pairs": [f"B{row['item']}{form}{int(row['click'])}" for row in rows],
    }
    found = lists[source]
    return " ".join(found) if source == "pairs" else form.join(map(str, found)) if form else found


def write(log: Log, rows: list[Row], folder: Path) -> Path:
    """Writes the log as its site would."""
    named = log.named()
    lines: list[dict[str, object]] = []
    if log.lists:
        for _, group in groupby(rows, key=lambda row: str(row["page"])):
            page = list(group)
            lines.append({c: paged(page, s, f) if s in LISTS else written(page[0], s, f) for c, s, f in named})
    elif log.events:
        acts = [(row["time"], row | {"click": False}) for row in rows]
        acts += [(row["clicked"], row | {"time": row["clicked"]}) for row in rows if row["click"]]
        lines = [{c: written(row, s, f) for c, s, f in named} for _, row in sorted(acts, key=lambda act: int(act[0]))]
    else:
        lines = [{c: written(row, s, f) for c, s, f in named} for row in rows]
    if log.file == "days":
        (folder / log.site).mkdir()
        for day, group in groupby(lines, key=lambda line: str(line["ngay"])):
            _table(log, list(group), folder / log.site / f"{day}.csv")
        return folder / log.site
    path = folder / f"{log.site}.{log.file}"
    _table(log, lines, path)
    return path


def _table(log: Log, lines: list[dict[str, object]], path: Path) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(lines), path)
        return
    with gzip.open(path, "wt", encoding="utf-8") if path.suffix == ".gz" else path.open("w", encoding="utf-8") as out:
        if ".jsonl" in path.name:
            out.writelines(json.dumps(line) + "\n" for line in lines)
            return
        table = csv.DictWriter(out, list(lines[0]), delimiter=log.separator, quoting=log.quotes)
        table.writeheader()
        table.writerows(lines)


LISTS = {"items", "hits", "marks", "pairs"}
DOUBT = re.compile(
    r"could|may\b|might|perhaps|probabl|likely|seems?\b|looks like|unsure|not sure|not known|doubt|check"
    r"|TO BE FILLED|unless|cannot|if it|if the|instead|rather|\?"
)


class Guessed:
    """What the command prints of one log, with the questions that the judgement asks of it."""

    def __init__(self, path: Path, log: Log) -> None:
        self.path, self.named, self.whole_pages = path, log.named(), log.lists
        found = guess_schema(path)
        self.text, self.open = found.text, found.open
        self.schema = tomllib.loads(found.text)
        self.log: dict[str, Any] = self.schema["log"]
        self.fields = {field["name"]: field for field in self.schema.get("fields", ())}
        self.printed = [*found.text.splitlines(), *found.summary()]

    def column(self, source: str) -> str:
        return next((name for name, other, _ in self.named if other == source), "")

    def remarks(self, *columns: str) -> list[str]:
        """Comments and lines of the summary that name all the columns."""
        mine = (line for line in self.printed if "#" in line or line not in self.text)
        return [line for line in mine if all(re.search(rf"(?<!\w){c}(?!\w)", line) for c in columns)]

    def says(self, pattern: str, *columns: str) -> bool:
        return any(re.search(pattern, line.partition("#")[2] or line) for line in self.remarks(*columns))

    def doubts(self, about: str, *columns: str) -> bool:
        """Whether a remark names the columns, voices a doubt, and is about this."""
        spoken = (line.partition("#")[2] or line for line in self.remarks(*columns))
        return any(DOUBT.search(line) and re.search(about, line) for line in spoken)

    @cached_property
    def page_columns(self) -> set[str]:
        request = self.log.get("request")
        return set(self.log.get("combine", {}).get(request, [])) if request else set()


Right = Callable[[Guessed, str, str], bool]


def role(name: str) -> Right:
    return lambda g, c, _: bool(g.log.get(name) == c)


def no_field(g: Guessed, c: str, _: str) -> bool:
    return c not in g.fields


def text_field(g: Guessed, c: str, _: str) -> bool:
    return bool(g.fields.get(c, {}).get("kind") == "text")


def owner(of: str) -> Right:
    """Whose attribute it is. As long as the owner is open, nobody can say."""
    return lambda g, c, form: of in g.open or (g.fields[c]["of"] == of if c in g.fields else form == ",")


def form_of_time(g: Guessed, c: str, form: str) -> bool:
    if form in {"s", "ms", "us", "ns", "float"}:
        unit = g.log.get("time_unit", "ms")
        right = bool(unit == ("s" if form == "float" else form))
        return right and not {"time_format", "time_start"} & set(g.log)
    return bool(g.log.get("time_format", "iso") == (form if "%" in form else "iso"))


def zone(g: Guessed, c: str, form: str) -> bool:
    offset = g.schema.get("utc_offset", "+00:00")
    if form == "+01":
        return bool(offset == "+01:00")
    said = [line for line in g.printed if line.startswith(("utc_offset", "time ", "local_times"))]
    return any(re.search(r"# .*(offset|zone|UTC|local)", line) for line in said)


def number(g: Guessed, c: str, _: str) -> bool:
    """A numeric field, or none where a remark says that its decimal commas are why."""
    return bool(g.fields[c].get("kind") == "numeric") if c in g.fields else g.says("comma|decimal", c)


def spoken_slot(g: Guessed, c: str, form: str) -> bool:
    from_one = r"(begin|start|first|from|least|count|slot)\D*\b1\b"
    return bool(g.log.get("position") == c) and (form == "0" or g.says(from_one, c))


def rule_of_word(g: Guessed, c: str, form: str) -> bool:
    """The label's column, and an entry that says which word is yes."""
    yes = form.split("/")[1]
    return bool(g.log.get("label") == c) and any(yes in str(v) for k, v in g.log.items() if k != "label" and v != c)


def offered(g: Guessed, c: str, _: str) -> bool:
    return any(re.search(rf"(?<!\w){c}\W*>=\s*\d", line) for line in g.printed)


def of_clicks(g: Guessed, c: str, form: str) -> bool:
    times = g.log.get("action_times", {})
    made = bool(times.get("click") == c) and (form != "-1" or -1 in g.log.get("never", []))
    return made and (g.column("click") != "" or bool(g.log.get("label_action") == "click"))


def visible_pages(g: Guessed, *_: str) -> bool:
    names = (g.column("user"), g.column("time"))
    return g.page_columns == set(names) or g.says(r"page", *names)


def own_page(g: Guessed, c: str, _: str) -> bool:
    """Where each row is a page, the schema needs no name of it."""
    return bool(g.log.get("request") == c) or (g.whole_pages and c not in g.fields and "request" not in g.log)


def text_of_list(g: Guessed, c: str, form: str) -> bool:
    return form == "" or bool(g.log.get("list_separator", " ") == form)


def split_time(g: Guessed, c: str, _: str) -> bool:
    return bool(g.log.get("combine", {}).get(g.log["time"]) == [g.column("date"), g.column("clock")])


JUDGED: Mapping[str, list[tuple[str, Right, str]]] = {
    "time": [("time", role("time"), "time"), ("form", form_of_time, "unit|format|second"),
             ("zone", zone, "zone|offset|UTC|local"), ("no field", no_field, "time|clock")],
    "date": [("time", split_time, "time")],
    "clock": [("time", split_time, "time")],
    "day": [("day", role("day"), "day"), ("no field", no_field, "day")],
    "user": [("user", lambda g, c, _: c == g.log["user"] or c in list(g.log["user"]), "user")],
    "account": [("user", lambda g, c, _: g.log["user"] == [c, g.column("user")], "user")],
    "item": [("item", role("item"), "item")],
    "items": [("items", role("items"), "list"), ("separator", text_of_list, "separator")],
    "hits": [("clicked", role("clicked"), "click")],
    "marks": [("labels", role("labels"), "label")],
    "pairs": [("pairs", role("pairs"), "pair")],
    "click": [("label", role("label"), "label|click")],
    "word": [("label", rule_of_word, "label|click"), ("no field", no_field, "label|click|outcome|after|field")],
    "acts": [("label", lambda *_: False, "label|click|event|row"),
             ("no field", no_field, "label|click|event|outcome|after|field")],
    "stars": [("label", lambda g, c, _: g.log.get("label") == c and "label_at_least" in g.log, "label|rating"),
              ("no field", no_field, "label|rating|outcome|field")],
    "page": [("page", own_page, "page")],
    "session": [("no page", lambda g, c, _: g.log.get("request") != c, "page"), ("no user", lambda g, c, _:
                g.log.get("user") != c, "user")],
    "slot": [("slot", spoken_slot, "slot|position")],
    "born": [("born", role("born"), "born|publish|came|age"), ("no field", no_field, "field|number|time")],
    "clicked": [("click time", of_clicks, "click|action|time"), ("no field", no_field, "click|outcome|after|field")],
    "read": [("leak", no_field, "outcome|after|label|click"), ("outcome", offered, "outcome")],
    "like": [("leak", no_field, "outcome|after|label|click")],
    "buy": [("leak", no_field, "outcome|after|label|click")],
    "click_id": [("leak", no_field, "outcome|after|label|click")],
    "category": [("owner", owner("item"), "user|item|whose")],
    "region": [("owner", owner("user"), "user|item|whose")],
    "price": [("owner", owner("item"), "user|item|whose"), ("number", number, "number|numeric|comma|decimal")],
    "tags": [("owner", owner("item"), "user|item|whose"), ("values", lambda g, c, form: c in g.fields and
             g.fields[c].get("slots", 1) >= 3 and g.fields[c].get("separator", ",") == form, "values|separator")],
    "title": [("text", text_field, "title|sentence")],
    "search": [("text", text_field, "sentence")],
    "hash": [("junk", no_field, "unique|row|own")],
    "constant": [("junk", no_field, "constant|one value|same")],
    "since": [("clock", no_field, "clock|grows|time")],
}  # fmt: skip
ROLES = {"time", "user", "item", "label"}


def judged(g: Guessed, log: Log) -> tuple[list[str], set[str], set[str]]:
    """What is wrong and not said; the roles in which the guess is right at once; those that it leaves in doubt."""
    wrong: list[str] = []
    right: set[str] = set()
    doubted = set(g.open) & ROLES
    for column, source, form in log.named():
        for aspect, correct, about in JUDGED[source]:
            if aspect == "form" and "time" in doubted:
                continue  # there is none to have a form
            if correct(g, column, form):
                right |= {aspect} & ROLES
            elif column in g.open.get(aspect, ()):
                doubted.add(aspect)
            elif g.doubts(about, column):
                doubted |= {aspect} & ROLES
            else:
                wrong.append(f"{column} ({source} {form}) {aspect}: {seen(g, column, aspect)}")
    if not (log.lists or log.paced or g.column("page") or not g.column("time") or visible_pages(g)):
        wrong.append(f"page: rows of one {g.column('user')} and {g.column('time')} are not proposed as pages")
    return wrong, right - doubted, doubted


def seen(g: Guessed, column: str, aspect: str) -> str:
    """What was guessed in this column's place."""
    entries = {k: v for k, v in g.log.items() if v == column or (isinstance(v, list | dict) and column in str(v))}
    entries |= {aspect: g.log[aspect]} if aspect in g.log else {}
    entries |= {k: g.schema[k] for k in ("utc_offset",) if aspect == "zone"}
    entries |= {k: v for k, v in g.log.items() if k.startswith("time_") and aspect == "form"}
    return f"{entries or ''} {g.fields.get(column, 'no field')} {[r.strip() for r in g.remarks(column)]}"


def misread(g: Guessed, log: Log, rows: list[Row]) -> list[str]:
    """The log as the guessed schema reads it, against what happened."""
    table = read_log(g.path, parse_schema(g.text, log.site)).table
    if table.num_rows != len(rows):
        return [f"reads {table.num_rows} exposures of {len(rows)}"]
    wrong = []
    clicks = int(np.sum(table[g.log["label"]].to_numpy()))
    if g.column("stars") == "" and clicks != sum(row["click"] for row in rows):
        wrong.append(f"reads {clicks} clicks of {sum(row['click'] for row in rows)}")
    coarse = 60_000 if log.site == "news-polish" else 1_000
    shift = table[TS].to_numpy() // coarse - np.array([row["time"] for row in rows]) // coarse
    local = any(s == "date" or (s == "time" and (f == "iso" or "%" in f)) for _, s, f in log.named())
    if not log.lists and (np.ptp(shift) or (shift[0] and not local)):
        wrong.append(f"reads times that are wrong by {shift.min()} to {shift.max()} times {coarse} ms")
    return wrong


Sites = Callable[[Log], tuple[Guessed, list[Row]]]


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Sites:
    """Makes and guesses a log, once."""
    folder = tmp_path_factory.mktemp("sites")

    @cache
    def made(place: int) -> tuple[Guessed, list[Row]]:
        rows = site(LOGS[place], place)
        return Guessed(write(LOGS[place], rows, folder), LOGS[place]), rows

    return lambda log: made(LOGS.index(log))


@pytest.mark.parametrize("log", LOGS, ids=[log.site for log in LOGS])
def test_what_is_guessed_is_right_or_its_doubt_is_said(log: Log, sites: Sites) -> None:
    g, rows = sites(log)
    wrong, _, doubted = judged(g, log)
    if not doubted:
        try:
            wrong += misread(g, log, rows)
        except MillraceError as error:
            wrong.append(f"its schema does not read the log: {error}")
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize("name", sorted(ROLES))
def test_a_role_is_found_at_once_in_four_of_five_logs(name: str, sites: Sites) -> None:
    """Doubts are honest, but who doubts everything has said nothing."""
    there = [log for log in LOGS if any(s == ("click" if name == "label" else name) for _, s, _ in log.named())]
    found = [log.site for log in there if name in judged(sites(log)[0], log)[1]]
    assert len(found) >= 0.8 * len(there), f"'{name}' is right in {len(found)} of {len(there)}: {', '.join(found)}"


@pytest.mark.parametrize(
    ("site_name", "role_name"), [("shop-ukrainian-no-label", "label"), ("shop-indonesian-no-time", "time")]
)
def test_a_log_without_label_or_time_fails_in_one_line_that_names_the_role(
    site_name: str, role_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = next(log for log in LOGS if log.site == site_name)
    path = write(log, site(log, 1), tmp_path)
    monkeypatch.setattr("sys.argv", ["millrace", "log", "guess", str(path), "--out", str(tmp_path / "my.toml")])
    with pytest.raises(SystemExit) as end:
        main()
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 1
    assert len(lines) == 1
    assert f"{role_name}: " in lines[0]


def test_no_name_of_these_logs_stands_in_the_source() -> None:
    source = "\n".join(p.read_text() for p in Path(millrace.commands.guess.__path__[0]).rglob("*.py")).lower()
    names = {name for log in LOGS for name, _, _ in log.named()}
    names |= {
        yes for log in LOGS for _, source, form in log.named() if source in {"word", "acts"} for yes in form.split("/")
    }
    names -= {"", "1"}
    assert not sorted(name for name in names if re.search(rf"(?<![a-z0-9_]){name}(?![a-z0-9_])", source))
    parts = {part for name in names for part in name.split("_") if len(part) > 4}
    assert not sorted(part for part in parts if re.search(rf"(?<![a-z]){part}(?![a-z])", source))

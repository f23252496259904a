"""The online store: absolute writes, fields that go with their tiles, patience that ends in one line."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import redis

from millrace.basics.errors import StoreError
from millrace.contracts.events import User
from millrace.contracts.online_layout import Past, Recent, pack_recent, user_key, window_field
from millrace.processes.services import EmbeddedRedis, free_port
from stream.worker.online_writer import OnlineStore

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path_factory.mktemp("redis")) as service:
        yield service


def read(server: EmbeddedRedis, user: str) -> dict[bytes, bytes]:
    with redis.Redis.from_url(f"redis://{server.address}") as client:
        fields: dict[bytes, bytes] = client.hgetall(user_key(user))
        return fields


def flush(server: EmbeddedRedis) -> None:
    with redis.Redis.from_url(f"redis://{server.address}") as client:
        client.flushall()


def write(address: str, *calls: tuple[object, ...], patience_seconds: float = 60.0) -> None:
    async def main() -> None:
        store = OnlineStore(address, patience_seconds)
        try:
            for call in calls:
                await store.write(*call)  # type: ignore[arg-type]
        finally:
            await store.close()

    asyncio.run(main())


def test_a_user_who_is_forgotten_has_no_hash_but_what_is_written_with_it(server: EmbeddedRedis) -> None:
    tiles = [("gone", [(7, b"\1\5\1\0one")]), ("back", [(7, b"\1\5\1\0two")])]
    write(
        server.address, (tiles, [User("gone", {"age": 3}), User("back", {"age": 4})], [("gone", b"x"), ("back", b"y")])
    )
    write(server.address, ([("back", [(8, b"\1\5\1\0new")])], [], [("gone", b"")], ["gone", "back", "nobody"]))
    assert (read(server, "gone"), read(server, "back")) == ({}, {window_field(8): b"\1\5\1\0new"})
    with redis.Redis.from_url(f"redis://{server.address}") as client:
        assert client.exists(user_key("gone")) == 0


def test_writes_are_absolute_and_empty_lists_take_their_field_away(server: EmbeddedRedis) -> None:
    big = 2**64 - 3
    write(server.address, ([("a", [(7, b"\1\5\1\0one"), (big, b"two")])], [User("a", {"age": 3, "tags": ["x"]})]))
    fields = read(server, "a")
    assert fields.pop(b"profile") == msgspec.json.encode({"age": 3, "tags": ["x"]})
    assert fields == {window_field(7): b"\1\5\1\0one", (big).to_bytes(8, "little"): b"two"}
    write(server.address, ([("a", [(7, b""), (big, b"new")])], []), ([("a", [(7, b"")])], [User("a", {})]))
    assert read(server, "a") == {window_field(big): b"new", b"profile": b"{}"}
    write(server.address, ([("a", [(big, b"\1\5\0\0")])], []))
    assert read(server, "a") == {b"profile": b"{}"}


def test_the_last_field_takes_the_user_away(server: EmbeddedRedis) -> None:
    write(server.address, ([(5, [(1, b"x")])], []), ([(5, [(1, b"")])], []))
    assert read(server, "5") == {}


def test_last_clicks_come_with_the_tiles_or_alone_and_go(server: EmbeddedRedis) -> None:
    value = pack_recent(Recent([Past(7, 1000)], []))
    write(server.address, ([("r", [(1, b"x")])], [], [("r", value), ("s", value)]))
    assert read(server, "r") == {window_field(1): b"x", b"recent": value}
    assert read(server, "s") == {b"recent": value}
    write(server.address, ([("r", [(1, b"y")])], [], []), ([(5, [(1, b"z")])], [], [("5", value)]))
    assert read(server, "r")[b"recent"] == value, "who has no new clicks keeps those that there are"
    assert read(server, "5")[b"recent"] == value
    write(server.address, ([], [], [("s", b""), ("r", b""), ("5", b"")]))
    assert (read(server, "s"), read(server, "r")) == ({}, {window_field(1): b"y"})


def test_a_profile_outlives_the_last_tile_list(server: EmbeddedRedis) -> None:
    write(
        server.address, ([("p", [(1, b"x"), (2, b"y")])], [User("p", {"age": 3})]), ([("p", [(1, b""), (2, b"")])], [])
    )
    assert read(server, "p") == {b"profile": b'{"age":3}'}


async def test_ids_of_guests_stay_until_a_profile_without_them(server: EmbeddedRedis) -> None:
    store = OnlineStore(server.address)
    try:
        await store.write([], [User("g", {}, ["s1", 8]), User("h", {})])
        assert await store.guests(["g", "h", "nobody"]) == ["s1", 8]
        await store.write([], [User("g", {})])
        assert await store.guests(["g"]) == []
    finally:
        await store.close()


def test_data_that_goes_takes_the_mark_of_being_whole_along(server: EmbeddedRedis) -> None:
    async def main() -> list[bool]:
        store = OnlineStore(server.address)
        seen = [await store.filled(3)]
        await store.begin_filling(3)
        seen.append(await store.filled(3))
        await store.end_filling(3)
        seen += [await store.filled(3), await store.filled(4)]
        await store.begin_filling(3)
        flush(server)  # in the middle of a filling: its end must not claim that all is there
        await store.end_filling(3)
        seen.append(await store.filled(3))
        await store.close()
        return seen

    assert asyncio.run(main()) == [False, False, True, False, False]


def test_many_users_need_several_pipelines(server: EmbeddedRedis) -> None:
    write(server.address, ([(f"m{i}", [(i + 1, b"t%d" % i)]) for i in range(2500)], []))
    assert [read(server, f"m{i}") for i in (0, 999, 1000, 2499)] == [
        {window_field(i + 1): b"t%d" % i} for i in (0, 999, 1000, 2499)
    ]


async def test_a_store_that_comes_back_gets_what_it_missed(tmp_path: Path) -> None:
    port = free_port()
    store = OnlineStore(f"redis://127.0.0.1:{port}")
    writing = asyncio.create_task(store.write([("u", [(9, b"late")])], []))
    done, _ = await asyncio.wait([writing], timeout=0.3)
    assert not done
    with EmbeddedRedis(tmp_path, port=port) as server:
        await writing
        assert read(server, "u") == {window_field(9): b"late"}
    await store.close()


def test_a_store_that_stays_away_is_one_line() -> None:
    with pytest.raises(StoreError, match=r"Redis '127\.0\.0\.1:1' .*MILLRACE_REDIS") as caught:
        write("127.0.0.1:1", ([("u", [(9, b"x")])], []), patience_seconds=0.2)
    assert "\n" not in str(caught.value)
    with pytest.raises(StoreError, match="MILLRACE_REDIS"):
        OnlineStore("")

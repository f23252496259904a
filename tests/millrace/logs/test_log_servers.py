"""Logs that a server holds: a table of Postgres, Parquet of S3.

DuckDB's extensions are wheels of the package index, for other versions of DuckDB than the newest: they lie in a folder
of their own, which another process reads with. So the oldest DuckDB that is allowed reads here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from millrace.processes.services import free_port
from tests.architecture import ROOT
from tests.scenes.small_logs import MS
from tests.scenes.waiting import until

pytestmark = [pytest.mark.services, pytest.mark.slow]

OLDEST = "1.5.5"  # of DuckDB, that has the wheels
WHEELS = {"postgres": "postgres_scanner", "httpfs": "httpfs"}
READ = """
import json, sys
from pathlib import Path
from millrace.logs import read_log
from tests.scenes.small_logs import schema
read = read_log(Path(sys.argv[1]), schema(sys.argv[2])).table
print(json.dumps([read.num_rows, read.slice(0, 2).to_pylist()], sort_keys=True))
"""
INSTALL = """
import duckdb, sys
for file in sys.argv[2:]:
    duckdb.execute(f"INSTALL '{file}'")
if sys.argv[1]:
    duckdb.execute("LOAD httpfs")
    duckdb.execute(f"CREATE PERSISTENT SECRET lake (TYPE s3, KEY_ID 'shop', SECRET 'shop', REGION 'us-east-1', "
        f"ENDPOINT '127.0.0.1:{sys.argv[1]}', URL_STYLE 'path', USE_SSL false)")
"""
FILL = """
import io, sys
import boto3
import pyarrow as pa
import pyarrow.parquet as pq
lake = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{sys.argv[1]}", region_name="us-east-1",
    aws_access_key_id="shop", aws_secret_access_key="shop")
lake.create_bucket(Bucket="lake")
for part in range(2):
    rows = [{"at": int(sys.argv[2]) + 1000 * n, "who": n % 5, "what": f"i{n % 3}", "clicked": int(n % 4 == 0)}
        for n in range(500 * part, 500 * part + 500)]
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    lake.put_object(Bucket="lake", Key=f"log/{part}.parquet", Body=file.getvalue())
"""
EXPECTED = (
    f'[1000, [{{"clicked": 1, "ts_ms": {MS}, "what": "i0", "who": 0}}, '
    f'{{"clicked": 0, "ts_ms": {MS + 1000}, "what": "i1", "who": 1}}]]'
)


class Reader:
    """Another process's Python, with packages of its own; its DuckDB has installed the extensions."""

    def __init__(self, folder: Path, packages: Path) -> None:
        self._folder, self._packages = folder, packages
        self.environment = {
            **os.environ, "PYTHONPATH": f"{packages}:{ROOT}", "HOME": str(folder), "PYTHONWARNINGS": "ignore",
        }  # fmt: skip

    def run(self, text: str, *given: object) -> str:
        command = [sys.executable, "-c", text, *map(str, given)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.strip()

    def install(self, secret_port: int | None = None) -> None:
        files = [next(self._packages.glob(f"duckdb_extension_{one}/**/*.duckdb_extension")) for one in WHEELS.values()]
        self.run(INSTALL, secret_port or "", *files)

    def read(self, select: str, log: str) -> str:
        file = self._folder / "log.sql"
        file.write_text(select)
        return self.run(READ, file, log)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    wanted = [f"duckdb=={OLDEST}", *(f"duckdb-extension-{one.replace('_', '-')}=={OLDEST}" for one in WHEELS.values())]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", str(folder)]
    subprocess.run([*pip, *wanted, "moto[server]>=5,<6"], check=True, timeout=500)
    return folder


@pytest.fixture
def reader(tmp_path: Path, packages: Path) -> Reader:
    return Reader(tmp_path, packages)


@contextmanager
def running(*command: str, ready: list[str], user: str | None = None) -> Iterator[None]:
    """A server, when another command says that it is ready."""
    server = subprocess.Popen(command, user=user, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: _answers(ready, server), "the server answers", every=0.2)
        yield
    finally:
        server.terminate()
        server.wait(60)


def _answers(ready: list[str], server: subprocess.Popen[bytes]) -> bool:
    assert server.poll() is None, "the server has ended"
    return subprocess.run(ready, capture_output=True, check=False).returncode == 0


def test_a_table_of_postgres_is_a_log_and_stays_as_it_is(tmp_path: Path, reader: Reader) -> None:
    if not shutil.which("initdb"):
        pytest.skip("Postgres is not installed")
    port, data = free_port(), tmp_path / "data"
    owner = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    data.mkdir()
    if owner is not None:
        for folder in (data, *data.parents):
            if not folder.stat().st_mode & 0o001:  # pytest's own, which it makes anew
                folder.chmod(0o711)
        shutil.chown(data, owner)
    made = ["initdb", "-D", str(data), "-U", "shop", "--auth=trust"]
    subprocess.run(made, user=owner, check=True, capture_output=True)
    ask = ["psql", "-h", "127.0.0.1", "-p", str(port), "-U", "shop", "-At", "postgres", "-c"]
    serve = ["postgres", "-D", str(data), "-p", str(port), "-k", str(data), "-c", "listen_addresses=127.0.0.1"]
    with running(*serve, ready=[*ask, "SELECT 1"], user=owner):
        rows = (
            f"SELECT to_timestamp({MS // 1000} + n) AS at, n % 5 AS who, 'i' || n % 3 AS what, n % 4 = 0 AS clicked "
            "FROM generate_series(0, 999) n"
        )
        subprocess.run([*ask, f"CREATE TABLE exposures AS {rows}"], check=True, capture_output=True)
        reader.install()
        address = f"postgres:dbname=postgres host=127.0.0.1 port={port} user=shop"
        log = f'attach = {{ shop = "{address}" }}\nextensions = ["postgres"]\n'
        assert reader.read("SELECT * FROM shop.exposures", log) == EXPECTED
        for text in (
            "SELECT * FROM postgres_query('shop', 'SELECT * FROM exposures'); DROP TABLE shop.exposures",
            "SELECT * FROM postgres_query('shop', 'DELETE FROM exposures RETURNING *')",
        ):
            with pytest.raises(AssertionError, match=r"must be one SELECT|cannot be read"):
                reader.read(text, log)
        there = subprocess.run([*ask, "SELECT count(*) FROM exposures"], check=True, capture_output=True, text=True)
        assert there.stdout.strip() == "1000"


def test_parquet_of_s3_is_a_log(tmp_path: Path, reader: Reader) -> None:
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    alive = f"import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}/moto-api/')"
    serve = ["env", *(f"{name}={reader.environment[name]}" for name in ("PYTHONPATH", "HOME")), *command]
    with running(*serve, ready=[sys.executable, "-c", alive]):
        reader.run(FILL, port, MS)
        reader.install(port)
        assert reader.read("SELECT * FROM 's3://lake/log/*.parquet'", 'extensions = ["httpfs"]\n') == EXPECTED

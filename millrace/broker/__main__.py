# shell
"""``python -m millrace.broker --port 0 --folder DIR``: the broker, in this process, until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import math
import os
import resource
import sys
from pathlib import Path

import structlog

from millrace.basics.atomic_files import lock_of
from millrace.basics.errors import MillraceError, PortError, ServiceError
from millrace.broker.call import HOST
from millrace.broker.log import Limits
from millrace.broker.server import Server


def main(argv: list[str] | None = None) -> None:
    """Reads the command line and serves. Raises MillraceError when the port or the folder cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m millrace.broker", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="on the loopback interface; 0: any that is free")
    parser.add_argument("--folder", type=Path, required=True, help="made if missing; what it holds is taken up")
    parser.add_argument("--cluster-id", default="", help="refuses a folder of another cluster")
    parser.add_argument(
        "--disk-gib", type=float, default=math.inf, help="the oldest records go beyond this, but for compacted topics"
    )
    parser.add_argument("--sync", action="store_true", help="records are on the disk before they are acknowledged")
    args = parser.parse_args(argv)
    if not 0 <= args.port <= 65535:
        parser.error(f"argument --port: {args.port} is not from 0 to 65535")
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=True),
            structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    _allow_files()
    sys.setswitchinterval(0.0005)  # compaction computes in a thread: clients wait for it half a millisecond, not five
    try:
        args.folder.mkdir(parents=True, exist_ok=True)
        lock = lock_of(args.folder / "lock")
        if lock is None:  # two would cut off each other's records as torn
            raise ServiceError(f"another broker runs on folder '{args.folder}'", "end it, or name another folder")
        server = Server(args.folder, args.cluster_id, Limits(), sync=args.sync, disk_bytes=args.disk_gib * 2**30)
    except OSError as error:
        raise ServiceError(
            f"folder '{args.folder}' cannot be used ({error.strerror})", "name another with --folder"
        ) from None
    try:
        asyncio.run(server.run(HOST, args.port, lambda port: print(f"listening on {HOST}:{port}", flush=True)))
    except OSError as error:
        raise PortError(
            f"port {HOST}:{args.port} cannot be bound ({error.strerror})", "name a free port or 0"
        ) from None
    finally:
        os.close(lock)


def _allow_files() -> None:
    """Raises the limit of open files as far as the system allows: each partition and each client takes one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS names no bound and has one
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    try:
        main()
    except MillraceError as error:
        sys.exit(f"millrace: {error}")

# shell
"""``python -m millrace.broker --port 0 --folder DIR``: the broker, in this process, until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import resource
import sys
from pathlib import Path

import structlog

from millrace.broker.call import HOST
from millrace.broker.log import MIB, Limits
from millrace.broker.server import Server
from millrace.contracts.errors import MillraceError, PortError


def main(argv: list[str] | None = None) -> None:
    """Reads the command line and serves.

    Raises:
        MillraceError: the port is taken, or the folder cannot be used.
    """
    parser = argparse.ArgumentParser(prog="python -m millrace.broker", description=__doc__)
    default = Limits()
    parser.add_argument("--port", type=int, default=0, help="on the loopback interface; 0: any that is free")
    parser.add_argument("--folder", type=Path, required=True, help="made if missing; what it holds is taken up")
    parser.add_argument("--cluster-id", default="", help="refuses a folder of another cluster")
    parser.add_argument(
        "--partition-mib",
        type=int,
        default=default.retention_bytes // MIB,
        help="a partition's oldest records go beyond this, unless its topic is compacted; -1: no bound",
    )
    parser.add_argument("--message-bytes", type=int, default=default.message_bytes, help="largest record batch")
    parser.add_argument("--sync", action="store_true", help="records are on the disk before they are acknowledged")
    args = parser.parse_args(argv)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=True),
            structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    limits = Limits(
        message_bytes=args.message_bytes,
        retention_bytes=args.partition_mib * MIB if args.partition_mib >= 0 else -1,
    )
    _allow_files()
    sys.setswitchinterval(0.0005)  # compaction computes in a thread: clients wait for it half a millisecond, not five
    server = Server(args.folder, args.cluster_id, limits, sync=args.sync)
    try:
        asyncio.run(server.run(HOST, args.port, lambda port: print(f"listening on {HOST}:{port}", flush=True)))
    except OSError as error:
        raise PortError(
            f"port {HOST}:{args.port} cannot be bound ({error.strerror})", "name a free port or 0"
        ) from None


def _allow_files() -> None:
    """Each partition takes a descriptor, each client one: as many as the system lets us have without asking."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS names no bound and has one
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    try:
        main()
    except MillraceError as error:
        sys.exit(f"millrace: {error}")

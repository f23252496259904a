# core
"""A small broker that speaks Kafka's protocol: one process, segments on disk, made for one machine.

::

    bytes ──► server ──► wire (Produce, Fetch) ─────────────► log ──► segment      files of record batches
    (asyncio)    │       calls (all other requests) ──► topics, groups, offsets    small files beside them
                 └ a fetch that finds nothing waits here until a producer appends

It keeps what a producer sent byte for byte, compressed or not, and gives it back so. It is the broker of a laptop:
no replicas, no transactions, no static group members, no TLS; it listens on the loopback interface alone.
"""

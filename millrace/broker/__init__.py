# core
"""A small broker that speaks Kafka's protocol: one process, segments on disk, made for one machine.

::

    bytes ──► server ──► wire (Produce, Fetch) ─────────────► log ──► segment      files of record batches
    (asyncio)    │       calls (all other requests) ──► topics, groups, offsets    small files beside them
                 └ a fetch that finds nothing waits here until a producer appends

It stores record batches byte for byte, compressed or not. It has no replicas, no transactions, no static group
members and no TLS, and listens on the loopback interface alone.
"""

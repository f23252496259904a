# core
"""A small broker that speaks Kafka's protocol: one process, segments on disk, made for one machine.

``server`` passes Produce and Fetch (``wire``) to ``log`` and ``segment``, which store record batches byte for byte. All
other requests (``calls``) go to ``topics``, ``groups`` and ``offsets``. The broker has no replicas, no transactions, no
static group members and no TLS, and listens on the loopback interface alone.
"""

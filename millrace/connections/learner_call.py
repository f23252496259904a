# shell
"""What a person asks of the learner or the scorer, on its way to their HTTP, from a terminal or the live page."""

from __future__ import annotations

from http.client import HTTPConnection
from urllib.parse import urlsplit

ANSWER_SECONDS = 660.0
"""How long an answer is waited for: somewhat longer than the learner itself waits."""


def post(address: str, path: str, body: bytes, authorization: str) -> tuple[int, bytes]:
    """Status and answer of the role at ``http://host:port``. Raises OSError or HTTPException: nobody answers there,
    and ValueError: the address is none."""
    place = urlsplit(address)
    if place.scheme != "http" or not place.hostname:
        raise ValueError(f"'{address}' is no http://HOST:PORT")
    connection = HTTPConnection(place.hostname, place.port or 80, timeout=ANSWER_SECONDS)
    try:
        connection.request("POST", path, body, {"Authorization": authorization, "Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()

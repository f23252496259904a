# shell
"""Tokens for SASL OAUTHBEARER: of a token endpoint, by client credentials (RFC 6749), or AWS' for MSK with IAM."""

from __future__ import annotations

import base64
import os
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote_plus, urlencode, urlsplit

import msgspec

from millrace.basics.errors import BrokerError, SettingError
from millrace.connections.client_properties import ENDPOINT, MSK, ClientProperties

ANSWER_SECONDS = 10.0
SHARE_OF_LIFE = 0.8
"""A token is used for this share of its life, then another one is asked for."""
LIFE_SECONDS = 300.0
"""Of a token whose endpoint does not say (``expires_in``)."""
REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")


class _Answer(msgspec.Struct):
    access_token: str
    expires_in: float = LIFE_SECONDS


class TokenSource:
    """The token of now. For any thread; blocks while another one is asked for. Another file means another token."""

    def __init__(self, properties: Callable[[], ClientProperties]) -> None:
        self._properties, self._lock = properties, threading.Lock()
        self._of: ClientProperties | None = None
        self._token, self._until_s = "", 0.0

    def token(self) -> str:
        """Raises BrokerError when the endpoint gives none, SettingError when AWS' signer cannot make one."""
        found = self._properties()
        with self._lock:
            if found is not self._of or time.time() >= self._until_s:
                self._token, life_s = _of_msk() if found.mechanism == MSK else _asked(found)
                self._of, self._until_s = found, time.time() + SHARE_OF_LIFE * life_s
            return self._token


def _asked(found: ClientProperties) -> tuple[str, float]:
    url = found[ENDPOINT]
    form = {"grant_type": "client_credentials"}
    if scope := found["sasl.oauthbearer.scope"]:
        form["scope"] = scope
    names = (found["sasl.oauthbearer.client.id"], found["sasl.oauthbearer.client.secret"])
    basic = base64.b64encode(":".join(map(quote_plus, names)).encode()).decode()
    remedy = f"see that {ENDPOINT}, client id, secret and scope are those of the identity provider"
    try:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ValueError("it is no http:// or https:// URL")
        asked = urllib.request.Request(url, urlencode(form).encode(), {"Authorization": f"Basic {basic}"})  # noqa: S310
        context = ssl.create_default_context(cafile=found["https.ca.location"] or None)
        with urllib.request.urlopen(asked, timeout=ANSWER_SECONDS, context=context) as answer:  # noqa: S310
            said = msgspec.json.decode(answer.read(), type=_Answer)
    except HTTPError as error:
        error.close()
        raise BrokerError(f"the token endpoint '{url}' refuses with {error.code}", remedy) from None
    except (OSError, ValueError, HTTPException) as error:  # a URLError is an OSError, a MsgspecError a ValueError
        raise BrokerError(f"the token endpoint '{url}' gives no token ({error})", remedy) from None
    return said.access_token, said.expires_in


def _of_msk() -> tuple[str, float]:
    try:
        token, until_ms = _signer().generate_auth_token(region_of_msk())
    except Exception as error:  # whatever AWS' libraries raise without credentials
        raise SettingError(
            f"AWS' signer gives no token ({type(error).__name__}: {error})",
            "give this process credentials in one of the ways that AWS' libraries know",
        ) from None
    return str(token), until_ms / 1000 - time.time()


def region_of_msk() -> str:
    """The region to sign for. Raises SettingError: no variable names it, or the signer is not installed."""
    _signer()
    region = next((os.environ[name] for name in REGIONS if os.environ.get(name)), "")
    if not region:
        raise SettingError(f"the mechanism {MSK} needs a region, and AWS_REGION is not set", "set AWS_REGION")
    return region


def _signer() -> Any:
    try:
        from aws_msk_iam_sasl_signer import MSKAuthTokenProvider
    except ImportError:
        raise SettingError(
            f"the mechanism {MSK} needs AWS' signer, which is not installed", "pip install 'millrace[msk]'"
        ) from None
    return MSKAuthTokenProvider

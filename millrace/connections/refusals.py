# shell
"""What a server that refuses us means: a cause and a remedy, for a line of a log or an error.

Only refusals are told: whatever means that a server is away, busy or changing its leader is just waited for.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from typing import NamedTuple

from millrace.basics.errors import MillraceError, one_line

_CERTIFICATE_EXPIRED, _HOST, _ADDRESS = 10, 62, 64  # X509_V_ERR_... of OpenSSL
_PREFIX = re.compile(r"^(\[Error \d+\] |\w+: )*")
"""What clients put before the server's own words."""
_TLS_RECORD = "Invalid frame length: 3525"  # 0x1503: a TLS alert, taken for the length of an answer


class Refusal(NamedTuple):
    cause: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.cause}; {self.remedy}"


def why(error: BaseException, where: str) -> Refusal | None:
    """Why a client was refused; None: it was not, as far as ``error`` and its causes say.

    Args:
        error: any error of a Kafka or Redis client. Errors are known by their names: each process has some clients.
        where: the setting that says how we get in.
    """
    for one in _chain(error):
        found = _why(one, where)
        if found is not None:
            return found
    return None


def no_tls(where: str) -> Refusal:
    return Refusal("the server speaks no TLS there", f"take TLS out of {where}, or name its other port")


def hangs_up(error: BaseException) -> bool:
    """Whether the server ended the connection in the TLS handshake: as a rule it speaks no TLS there. One that is just
    ending does so too, so it is asked again."""
    ends = (ssl.SSLEOFError, ConnectionResetError)
    return "Handshake failed" in str(error) and any(isinstance(one, ends) for one in _chain(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it, each once; clients hand causes on as arguments too."""
    seen: list[BaseException] = []
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop(0)
        if one is not None and not any(one is before for before in seen):
            seen.append(one)
            yield one
            left += [one.__cause__, one.__context__, *(arg for arg in one.args if isinstance(arg, BaseException))]


def _why(error: BaseException, where: str) -> Refusal | None:
    names = [kind.__name__ for kind in type(error).__mro__]
    text = " ".join(str(error).split())
    if isinstance(error, MillraceError):
        return Refusal(error.problem, error.remedy)
    if isinstance(error, ssl.SSLCertVerificationError):
        return _of_certificate(error, where)
    if isinstance(error, ssl.SSLError):
        return _of_tls(error, where)
    if any(name.startswith("SaslAuthenticationFailed") or name == "AuthenticationError" for name in names):
        said = _PREFIX.sub("", text)
        return Refusal(f"user name, password or token are refused ({said})", f"correct them in {where}")
    if any(name.startswith(("UnsupportedSaslMechanism", "IllegalSaslState")) for name in names):
        return Refusal(f"the broker does not know the mechanism ({text})", f"name another sasl.mechanism in {where}")
    if "NoPermissionError" in names or any("AuthorizationFailed" in name for name in names):
        remedy = f"grant what docs/how-to/run-in-production.md lists, or name another user in {where}"
        return Refusal(f"the server's ACLs forbid it ({one_line(error)})", remedy)
    if _TLS_RECORD in text:
        return Refusal("the server speaks TLS there, and we do not", f"name a security.protocol with SSL in {where}")
    return None


def _of_certificate(error: ssl.SSLCertVerificationError, where: str) -> Refusal:
    if error.verify_code == _CERTIFICATE_EXPIRED:
        return Refusal("the server's certificate has expired", "renew it at the server")
    if error.verify_code in (_HOST, _ADDRESS):
        return Refusal(
            f"the server's certificate is for another host name ({error.verify_message})",
            "use the name in the certificate as its address, or put this name into the certificate",
        )
    return Refusal(
        f"the server's certificate is not to be trusted ({error.verify_message})",
        f"name the file of the authority that signed it in {where}",
    )


def _of_tls(error: ssl.SSLError, where: str) -> Refusal | None:
    reason = error.reason or ""
    if "ALERT" in reason and ("CERT" in reason or "UNKNOWN_CA" in reason):
        said = reason.lower().replace("_", " ")
        remedy = f"renew the certificate and key in {where}, signed by an authority that the server trusts"
        return Refusal(f"the server refuses our client certificate, or that there is none ({said})", remedy)
    if "WRONG_VERSION" in reason:
        return no_tls(where)
    return None

"""One HTTP request with a deadline, by the standard library.

Place in the flow: `endpoint` sends questions with it. Invariant: nothing follows a redirect, so what is sent, and the
key in its header, goes to the host that was named and to no other; no answer is held beyond `MAX_BYTES`.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

MAX_BYTES = 16 << 20
_AT_ONCE = 64 << 10
_IDLE_S = 2.0
"""After which a connection is opened anew: servers close idle ones, and a request that meets that is a lost try."""


@dataclass(frozen=True, slots=True)
class Response:
    """What a server said."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes


class ConnectionProblemError(Exception):
    """No whole response came; one line why."""


class NotSentError(ConnectionProblemError):
    """There was no connection: the server knows nothing of the request."""


class UntrustedError(Exception):
    """The server's certificate is not one for this host; another try finds the same."""


def address_problem(url: str, allow_http: bool) -> str:
    """What is wrong with the address of an endpoint, as `value, rule; remedy`; empty if nothing is."""
    try:
        parts = urlsplit(url)
        port_is_right = parts.port is None or parts.port > 0
    except ValueError as error:
        return f"endpoint {url!r} is no address ({error}); correct it"
    if parts.username is not None or parts.password is not None:
        return "endpoint holds a user or a password, must not, as it is written down; use api_key_variable"
    if parts.query or parts.fragment:
        return f"endpoint has a part after ? or # on {parts.hostname}, must end before it; remove it"
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_right:
        return f"endpoint {url!r} must be like https://HOST/v1; correct it"
    if parts.scheme == "http" and not allow_http and not is_local(parts.hostname):
        return (
            f"endpoint {url!r} would send documents and key unencrypted to another machine, must be https; "
            "correct it, or set allow_http"
        )
    return ""


def is_local(host: str) -> bool:
    """Whether it is this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Poster:
    """Sends to one address; for one thread. The connection is kept between requests."""

    def __init__(self, url: str, path: str, timeout_s: float) -> None:
        self._parts: SplitResult = urlsplit(url)
        self._path = self._parts.path.rstrip("/") + path
        self._timeout_s = timeout_s
        self._connection: http.client.HTTPConnection | None = None
        self._used_s = 0.0
        self._sending = False

    def post(self, body: bytes, headers: Mapping[str, str]) -> Response:
        """The response, whatever its status, within `timeout_s` from now. Raises ConnectionProblemError and
        UntrustedError."""
        if time.monotonic() - self._used_s > _IDLE_S:
            self.close()
        try:
            return self._post(body, headers, time.monotonic() + self._timeout_s)
        except TimeoutError:
            self.close()
            kind = ConnectionProblemError if self._sending else NotSentError
            raise kind(f"no whole answer in {self._timeout_s:g} s") from None
        except ssl.SSLCertVerificationError as error:
            self.close()
            raise UntrustedError(error.verify_message) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            kind = ConnectionProblemError if self._sending else NotSentError
            raise kind(f"{type(error).__name__}: {error}") from None
        finally:
            self._used_s = time.monotonic()

    def close(self) -> None:
        """Hang up."""
        if self._connection:
            self._connection.close()
            self._connection = None

    def __del__(self) -> None:
        self.close()

    def _post(self, body: bytes, headers: Mapping[str, str], deadline: float) -> Response:
        self._sending = False
        connection = self._opened(deadline)
        self._sending = True
        wire = connection.sock  # the connection forgets it where the server says that it will close
        connection.request("POST", self._path, body, dict(headers))
        response = connection.getresponse()
        content = _read(response, wire, deadline)
        if response.will_close:
            self.close()
        names = {name.lower(): value for name, value in response.getheaders()}
        return Response(response.status, names, content)

    def _opened(self, deadline: float) -> http.client.HTTPConnection:
        host, port = self._parts.hostname, self._parts.port
        assert host is not None
        if self._connection is None:
            if self._parts.scheme == "https":
                self._connection = http.client.HTTPSConnection(
                    host, port, timeout=_left_s(deadline), context=ssl.create_default_context()
                )
            else:
                self._connection = http.client.HTTPConnection(host, port, timeout=_left_s(deadline))
            self._connection.connect()
        self._connection.sock.settimeout(_left_s(deadline))
        return self._connection


def _read(response: http.client.HTTPResponse, wire: socket.socket, deadline: float) -> bytes:
    """The body, where a server that sends a byte now and then cannot hold us beyond the deadline."""
    content = bytearray()
    wire.settimeout(_left_s(deadline))
    while part := response.read1(_AT_ONCE):
        content += part
        if len(content) > MAX_BYTES:
            raise ValueError(f"the answer has more than {MAX_BYTES} bytes")
        if not response.isclosed():
            wire.settimeout(_left_s(deadline))
    left = response.length
    response.close()  # at its end it is not always closed, and the connection would take no other request
    if left:
        raise http.client.IncompleteRead(bytes(content), left)
    return bytes(content)


def _left_s(deadline: float) -> float:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s

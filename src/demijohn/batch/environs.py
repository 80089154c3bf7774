"""The WSGI environment of a part: made of what is allowed, never a copy of the batch's own."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from ..core.batch import Part
from .settings import Settings

_KEPT: Final = (
    "REMOTE_ADDR",  # what ProxyFix has made of it already
    "REMOTE_PORT",
    "SCRIPT_NAME",
    "SERVER_NAME",
    "SERVER_PORT",
    "SERVER_PROTOCOL",
    "SERVER_SOFTWARE",
    "HTTP_HOST",
    "wsgi.errors",
    "wsgi.multiprocess",
    "wsgi.multithread",
    "wsgi.run_once",
    "wsgi.url_scheme",
    "wsgi.version",
)
_CREDENTIALS: Final = frozenset({"HTTP_AUTHORIZATION", "HTTP_COOKIE"})
_INHERITED: Final = (
    *_CREDENTIALS,
    "HTTP_ACCEPT_LANGUAGE",
    "HTTP_USER_AGENT",
    "HTTP_TRACEPARENT",
    "HTTP_TRACESTATE",
)
_REQUEST_ID: Final = "HTTP_X_REQUEST_ID"
# They speak of a connection, or of an origin, and a part has neither; or they would have the answer
# coded in a way that clients of batches do not expect; or they say who calls or what was asked for,
# which only a proxy may. It removes them from a request, and does not look into a batch.
_DROPPED: Final = frozenset(
    {
        "accept-encoding",
        "cf-connecting-ip",
        "connection",
        "content-length",
        "expect",
        "fastly-client-ip",
        "fly-client-ip",
        "forwarded",
        "host",
        "keep-alive",
        "remote-user",
        "te",
        "trailer",
        "transfer-encoding",
        "true-client-ip",
        "upgrade",
        "x-client-ip",
        "x-cluster-client-ip",
        "x-real-ip",
        "x-remote-user",
        "x-rewrite-url",
    }
)
_DROPPED_PREFIXES: Final = (
    "proxy-",
    "ssl-client-",
    "x-amzn-oidc-",
    "x-auth-request-",
    "x-authenticated-",
    "x-client-cert",
    "x-envoy-",
    "x-forwarded-",
    "x-goog-authenticated-",
    "x-goog-iap-",
    "x-ms-client-principal",
    "x-original-",
    "x-remote-user-",
    "x-ssl-",
)
_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})


class Environs:
    """Makes the environments of the parts of one batch.

    Args:
        outer: the environment of the batch.
        settings: say what is inherited besides.
    """

    def __init__(self, outer: Mapping[str, Any], settings: Settings) -> None:
        kept = (*_KEPT, *_INHERITED, *settings.inherit_environ, *map(_name, settings.inherit))
        self._base = {name: outer[name] for name in kept if name in outer}
        self._request_id = outer.get(_REQUEST_ID)
        self._names = dict.fromkeys(settings.drop_headers, "")

    def make(
        self, part: Part, index: int, path: str, query: str, key: tuple[str, str] | None
    ) -> dict[str, Any]:
        """Return the environment of ``part``, which lacks only its :class:`Membership`.

        Args:
            part: what is asked.
            index: its number.
            path: within the application, as it was sent.
            query: as it was sent.
            key: the header and the value of the idempotency key that it is given.
        """
        environ = self._base.copy()
        if self._request_id:
            environ[_REQUEST_ID] = f"{self._request_id}.{index}"
        if key is not None:
            environ[_name(key[0])] = key[1]
        own = self._fields(part)
        # They belong together: whoever has one of its own is not the caller of the batch.
        if not _CREDENTIALS.isdisjoint(own):
            for name in _CREDENTIALS:
                environ.pop(name, None)
        environ.update(own)
        target = f"{path}?{query}" if query else path
        uri = environ.get("SCRIPT_NAME", "") + target
        method = part.method.upper()
        environ["REQUEST_METHOD"] = method
        environ["PATH_INFO"] = unquote_to_bytes(path).decode("latin-1")
        environ["QUERY_STRING"] = query
        environ["REQUEST_URI"] = environ["RAW_URI"] = uri
        environ["wsgi.input"] = io.BytesIO(part.body)
        environ["wsgi.input_terminated"] = True
        if part.body or method in _WITH_BODY:
            environ["CONTENT_LENGTH"] = str(len(part.body))
        return environ

    def _fields(self, part: Part) -> dict[str, str]:
        own: dict[str, str] = {}
        for field, value in part.fields:
            name = self._names.get(field)
            if name is None:  # the parts of a batch have the same ones
                lower = field.lower()
                name = self._names[field] = self._names.get(lower, _own_name(lower))
            if not name:
                continue
            if name in own:
                own[name] += ("; " if name == "HTTP_COOKIE" else ",") + value
            else:
                own[name] = value
        return own


def _own_name(lower: str) -> str:
    """Return how a field of a part is called in its environment; ``""`` if it is left out."""
    # With an underscore it would be taken for the header that has a hyphen there.
    if lower in _DROPPED or "_" in lower or lower.startswith(_DROPPED_PREFIXES):
        return ""
    return _name(lower)


def _name(header: str) -> str:
    name = header.upper().replace("-", "_")
    return name if name in {"CONTENT_TYPE", "CONTENT_LENGTH"} else f"HTTP_{name}"

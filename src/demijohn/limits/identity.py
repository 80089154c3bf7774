"""Who is counted, and under which name.

An address is that of the connection. Behind a proxy it is the proxy's, until werkzeug's
``ProxyFix`` says how many proxies are to be believed; a forwarded header is never read here.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
from collections.abc import Callable
from typing import Final, TypeAlias, cast

from flask import session

from ..errors import UsageError
from ..flow import Call
from ..principal import Principal
from .refusals import IdentityMissing
from .settings import Settings

log = logging.getLogger("demijohn.limits")

FORWARDED: Final = ("HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED", "HTTP_X_REAL_IP")
TAG_BYTES: Final = 10
REMEMBERED: Final = 10_000
EVERYBODY: Final = "all"

Find: TypeAlias = "Callable[[Call], str | None]"


class Identities:
    """Names callers, for one application.

    Args:
        settings: of the application.
        secret: under which names are hidden.
    """

    def __init__(self, settings: Settings, secret: bytes) -> None:
        self._prefix = settings.ipv6_prefix
        self._api_key = f"HTTP_{settings.api_key_header.upper().replace('-', '_')}"
        self._api_key_header = settings.api_key_header
        self._secret = secret
        self._addresses: dict[str, str] = {}
        self._warned = False
        self._finders: dict[object, Find] = {
            "ip": self._ip,
            "principal": _principal,
            "api_key": self._key,
            "session": _session,
            "all": lambda call: EVERYBODY,
        }

    def tag(self, call: Call, by: tuple[object, ...], missing: str | None) -> str | None:
        """Return the name of who calls: hexadecimal digits that tell nobody who that is.

        Args:
            call: the request.
            by: what identifies; see :data:`~demijohn.limits.settings.By`.
            missing: what to do about a request that lacks it; ``None`` for what is safe.

        Returns:
            The name; ``None`` if the limit is to be skipped.

        Raises:
            IdentityMissing: the request lacks it, and is to be refused.
            UsageError: a function returned something that identifies nobody.
        """
        if by == ("ip",):
            return self._tag_of_address(call)
        parts = []
        for part in by:
            finder = self._finders.get(part)
            found = _from_function(part) if finder is None else finder(call)
            kind = "function" if finder is None else str(part)
            if found is None:
                safe = "ip" if part == "session" else "deny"
                instead = self._missing(call, part, missing or safe)
                if instead is None:
                    return None
                kind, found = "ip", instead
            parts.append(f"{kind}:{len(found)}:{found}")
        return self.hidden(",".join(parts))

    def hidden(self, text: str) -> str:
        """Return the name of an identity that is spelled out, such as ``"ip:9:192.0.2.1"``."""
        message = text.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(message, key=self._secret, digest_size=TAG_BYTES).hexdigest()

    def spelled(self, text: str) -> tuple[tuple[str, ...], str]:
        """Return the kinds and the name of a caller, as an operator would say it.

        Args:
            text: such as ``"ip:192.0.2.1"``, or ``"principal:42,ip:192.0.2.1"`` for two together;
                ``function`` is the kind of what a function of the application returns.

        Raises:
            ValueError: a part has no kind.
        """
        kinds, parts = [], []
        for part in text.split(","):
            kind, colon, value = part.strip().partition(":")
            kind = "principal" if kind == "user" else kind
            if not colon or kind not in {*self._finders, "function", "take"}:
                raise ValueError(f"{part!r} must be a kind and a value, such as ip:192.0.2.1")
            if kind == "ip":
                value = network(value, self._prefix)
            elif kind == "principal":
                value = Principal(value).key
            kinds.append(kind)
            parts.append(f"{kind}:{len(value)}:{value}")
        if kinds == ["take"]:
            return ("take",), self.hidden(text)
        return tuple(kinds), self.hidden(",".join(parts))

    @staticmethod
    def kinds(by: tuple[object, ...]) -> tuple[str, ...]:
        """Return the kinds of callers that a limit counts."""
        return tuple("function" if callable(part) else str(part) for part in by)

    def _missing(self, call: Call, part: object, policy: str) -> str | None:
        if policy == "skip":
            return None
        if policy == "ip":
            return self._ip(call)
        what = {
            "principal": "The request must say who calls: it carries no credentials.",
            "api_key": f"The request must carry an API key in {self._api_key_header}.",
            "session": "The request must carry a session.",
        }
        detail = what.get(cast("str", part), "The request does not say who calls.")
        raise IdentityMissing(detail)

    def _tag_of_address(self, call: Call) -> str:
        address = call.request.environ.get("REMOTE_ADDR") or ""
        tag = self._addresses.get(address)
        if tag is None:
            found = self._ip(call)
            if len(self._addresses) >= REMEMBERED:
                self._addresses.clear()
            tag = self._addresses[address] = self.hidden(f"ip:{len(found)}:{found}")
        return tag

    def _ip(self, call: Call) -> str:
        environ = call.request.environ
        if not self._warned and any(name in environ for name in FORWARDED):
            self._warn(environ)
        return network(environ.get("REMOTE_ADDR") or "", self._prefix)

    def _warn(self, environ: dict[str, object]) -> None:
        self._warned = True
        # What ProxyFix has believed, it has noted down.
        if "werkzeug.proxy_fix.orig" not in environ:
            log.warning(
                "a request carries a forwarded address, which is not believed: if a proxy of yours"
                " sets it, wrap the application in werkzeug's ProxyFix, or all of its clients"
                " share one limit"
            )

    def _key(self, call: Call) -> str | None:
        return call.request.environ.get(self._api_key) or None


def network(address: str, ipv6_prefix: int) -> str:
    """Return what is counted as one address.

    An IPv6 client is given a network, and would have as many addresses as it likes: the network
    counts. An IPv4 address in IPv6 clothes (RFC 4291, 2.5.5.2) is the IPv4 address.
    """
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(found), ipv6_prefix), strict=False))


def _principal(call: Call) -> str | None:
    principal = call.principal
    return None if principal.anonymous else principal.key


def _session(call: Call) -> str | None:
    """Return what names the session: of a server-side one its id, else Flask-Login's.

    Flask's own sessions are cookies without a name; their value changes with every change, and
    whoever drops the cookie has a new one.
    """
    if "HTTP_COOKIE" not in call.request.environ:
        return None
    found = getattr(session, "sid", None) or session.get("_id") or session.get("_user_id")
    return None if found is None else str(found)


def _from_function(finder: object) -> str | None:
    found = cast("Callable[[], object]", finder)()
    if found is None or found == "":
        return None
    if isinstance(found, Principal):
        return None if found.anonymous else found.key
    if isinstance(found, bool) or not isinstance(found, str | int):
        raise UsageError(
            f"by={finder!r} returned {found!r}; it must return a string, a number or a Principal, "
            "or None where there is none"
        )
    return str(found)

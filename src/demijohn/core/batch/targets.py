"""Where the target of a part leads: to a path of this application, or nowhere."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection
from typing import Final
from urllib.parse import unquote, urljoin, urlsplit

import msgspec

from .part import Malformed

_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:")
# No segment begins with a dot or is empty, and nothing is encoded: it means what it says.
_PLAIN: Final = re.compile(r"(?:/[^/.%][^/%]*+)*+/?")
_PORTS: Final = {"http": "80", "https": "443"}
_FORBIDDEN: Final = frozenset({"CONNECT", "TRACE"})


class Place(msgspec.Struct, frozen=True):
    """Where the batch is.

    Args:
        scheme: of the request for the batch.
        origins: scheme, host and port of this application, and what else counts as such; as
            :func:`origin` returns them.
        mount: the path under which the application is; ``""`` for the root.
        path: of the request for the batch, with ``mount``.
        batches: the paths of all batches, without ``mount``, as :func:`normal` returns them.

    The other paths are as they stand in targets: percent-encoded.
    """

    scheme: str
    origins: Collection[str]
    mount: str
    path: str
    batches: Collection[str]


def origin(scheme: str, host: str) -> str:
    """Return scheme, host and port in one form; the port is always there."""
    scheme, host = scheme.lower(), host.lower()
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):
        name, port = host, ""
    return f"{scheme}://{name.rstrip('.')}:{port or _PORTS.get(scheme, '')}"


def locate(target: str, place: Place) -> tuple[str, str]:
    """Return the path within the application, as it was sent, and the query.

    Raises:
        Malformed: it leads to another origin, to a batch, or outside of the application.
    """
    path, query = own_path(target, place)
    inner = path
    if place.mount:
        if not (_within(path, place.mount) and _within(normal(path), normal(place.mount))):
            raise Malformed(
                "foreign-origin",
                f"{target!r} is outside of this application, which is at {place.mount!r}.",
            )
        inner = path[len(place.mount) :] or "/"
    if normal(inner) in place.batches:
        raise Malformed("nested-batch", "A part of a batch cannot be a batch itself.")
    return inner, query


def _within(path: str, mount: str) -> bool:
    return path == mount or path.startswith(mount + "/")


def own_path(target: str, place: Place) -> tuple[str, str]:
    """Return the whole path and the query of a target of ours.

    Raises:
        Malformed: it is another's.
    """
    if "#" in target:
        raise Malformed("malformed-part", f"The target {target!r} has a fragment.")
    if target.startswith("//") or "\\" in target:
        raise Malformed("foreign-origin", f"{target!r} leads to another origin.")
    if _SCHEME.match(target):
        try:
            parts = urlsplit(target)
            host = parts.netloc
        except ValueError:
            raise Malformed("malformed-part", f"{target!r} is no URL.") from None
        if "@" in host or not host or origin(parts.scheme, host) not in place.origins:
            raise Malformed("foreign-origin", f"{target!r} leads to another origin.")
        return parts.path or "/", parts.query
    if not target.startswith("/"):
        if target == "*":
            raise Malformed("malformed-part", "The target * is for no resource.")
        # What has more ".." than there are levels would come back without its first slash.
        target = "/" + urljoin(place.path, target).lstrip("/")
    path, _, query = target.partition("?")
    return path, query


def normal(path: str) -> str:
    """Return what a path may mean to somebody: decoded, without dots and doubled slashes."""
    if _PLAIN.fullmatch(path):
        return path.rstrip("/").casefold() or "/"
    decoded = path
    for _ in range(3):
        further = unquote(decoded)
        if further == decoded:
            break
        decoded = further
    clean = posixpath.normpath("/" + decoded.lstrip("/"))
    return clean.rstrip("/").casefold() or "/"


def check_method(method: str) -> None:
    """Refuse methods that are for connections, not for resources.

    Raises:
        Malformed: it is one.
    """
    if method.upper() in _FORBIDDEN:
        raise Malformed("forbidden-part", f"A part of a batch cannot be {method.upper()}.")

"""What a client says about the batch as a whole: formats, and preferences (RFC 7240)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from ..core.batch import Malformed, media_type

if TYPE_CHECKING:
    from flask import Request

MULTIPART: Final = "multipart/mixed"
JSON: Final = "application/json"
_PREFERENCE: Final = re.compile(r"([^=;,\s]+)\s*(?:=\s*\"?([^\";,]*)\"?)?\s*(?:;[^,]*)?")


class Wishes(msgspec.Struct, frozen=True):
    """What is to be done with a batch.

    Args:
        format: of the request.
        answer: the format of the response.
        goes_on: whether parts run behind one that has failed.
        minimal: whether the content of what succeeded is left out.
        atomic: whether all parts are one group.
        applied: the value of ``Preference-Applied``.
    """

    format: str
    answer: str
    goes_on: bool
    minimal: bool
    atomic: bool
    applied: str


def wishes_of(request: Request) -> Wishes:
    """Return what the client wants.

    Raises:
        Malformed: it sends, or accepts, no format of batches.
    """
    sent, _ = media_type(request.headers.get("Content-Type", ""))
    if sent not in {MULTIPART, JSON}:
        raise Malformed(
            "unsupported-media-type",
            f"A batch is {MULTIPART} or {JSON}, not {sent or 'without a Content-Type'}.",
        )
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Malformed("unsupported-media-type", "A batch cannot be compressed.")
    answer = _answer(request, sent)
    preferences = _preferences(request)
    goes_on = _goes_on(preferences)
    minimal = preferences.get("return") == "minimal" and answer == JSON
    atomic = "atomic" in preferences and preferences["atomic"] != "false"
    applied = [] if goes_on is None else [f"continue-on-error={str(goes_on).lower()}"]
    applied += ["return=minimal"] * minimal + ["atomic"] * atomic
    return Wishes(sent, answer, goes_on is not False, minimal, atomic, ", ".join(applied))


def _answer(request: Request, sent: str) -> str:
    """Return the format that the client likes better; the one that it sent if it does not say."""
    accepted = request.accept_mimetypes
    listed = {media_type(value)[0] for value, _ in accepted}
    excluded = {
        each
        for each in (MULTIPART, JSON)
        if not accepted.quality(each) and listed & {each, each.split("/")[0] + "/*", "*/*"}
    }
    if len(excluded) == 2:
        raise Malformed("not-acceptable", f"The answer is {MULTIPART} or {JSON}.")
    other = JSON if sent == MULTIPART else MULTIPART
    preferred = other in listed and accepted.quality(other) > accepted.quality(sent)
    return other if preferred or sent in excluded else sent


def _preferences(request: Request) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in request.headers.getlist("Prefer"):
        for match in _PREFERENCE.finditer(line):
            name = match[1].lower().removeprefix("odata.")
            found.setdefault(name, (match[2] or "").strip().lower())
    return found


def _goes_on(preferences: dict[str, str]) -> bool | None:
    value = preferences.get("continue-on-error")
    return None if value is None else value != "false"

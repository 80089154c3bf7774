"""Problem details for HTTP APIs (RFC 9457): one catalogue, one body.

Every refusal that Demijohn makes is a werkzeug exception that carries a problem, so that
``@app.errorhandler(409)`` and ``@app.errorhandler(InProgress)`` work as for any other error.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from flask import Flask, current_app
from werkzeug.exceptions import HTTPException
from werkzeug.http import HTTP_STATUS_CODES
from werkzeug.wrappers import Response as WerkzeugResponse

MEDIA_TYPE: Final = "application/problem+json"
BASE: Final = "https://demijohn.readthedocs.io/en/stable/reference/problems.html#"
"""Where the types are documented, unless ``DEMIJOHN["problem_base"]`` names another place."""

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"


@dataclass(frozen=True, slots=True)
class ProblemType:
    """One kind of problem: the last part of its URI, its status, and its unchanging title.

    With ``registry`` it is one that is registered there, and its URI is the same everywhere.
    """

    slug: str
    status: int
    title: str
    registry: str = ""

    def uri(self, app: Flask) -> str:
        """Return the URI that identifies the type in ``app``."""
        own: str = getattr(app.extensions.get("demijohn"), "problem_base", BASE)
        base = self.registry or own
        return f"{base}{self.slug}"


@dataclass(frozen=True, slots=True)
class Problem:
    """The members of a problem document.

    Args:
        type: URI of the kind of problem; ``about:blank`` says that the status says it all.
        status: the HTTP status.
        title: what kind of problem it is, always the same words.
        detail: what happened this time, and the cure.
        extensions: further members.
    """

    type: str
    status: int
    title: str
    detail: str = ""
    extensions: Mapping[str, Json] = field(default_factory=dict)

    def document(self) -> dict[str, Json]:
        """Return the members as they stand in the body."""
        members: dict[str, Json] = {
            "type": self.type,
            "title": self.title,
            "status": self.status,
        }
        if self.detail:
            members["detail"] = self.detail
        return {**self.extensions, **members}

    def response(self, headers: Iterable[tuple[str, str]] = ()) -> WerkzeugResponse:
        """Return a response with this problem as its body.

        Refusals speak of this moment: no cache may give them to a later request.
        """
        response = WerkzeugResponse(
            json.dumps(self.document()), status=self.status, mimetype=MEDIA_TYPE
        )
        response.headers["Cache-Control"] = "no-store"
        for name, value in headers:
            response.headers[name] = value
        return response


class Refusal(HTTPException):
    """Mixed into werkzeug's exceptions: an HTTP error whose body is a problem.

    Args:
        detail: what happened, and the cure.
        retry_after: whole seconds until it is worth trying again; ``None`` for no such header.
        extensions: further members of the problem.
    """

    kind: ProblemType

    def __init__(
        self,
        detail: str,
        *,
        retry_after: int | None = None,
        extensions: Mapping[str, Json] | None = None,
    ) -> None:
        super().__init__(description=detail)
        self.retry_after_seconds = retry_after
        self.extensions: Mapping[str, Json] = extensions or {}

    @property
    def problem(self) -> Problem:
        """The problem that the client will read."""
        uri = self.kind.uri(current_app)
        detail = self.description or ""
        return Problem(uri, self.kind.status, self.kind.title, detail, self.extensions)

    def get_response(self, environ: Any = None, scope: Any = None) -> WerkzeugResponse:
        """Return the problem as a response; the type's documentation is linked."""
        headers = [("Link", f'<{self.kind.uri(current_app)}>; rel="describedby"')]
        if self.retry_after_seconds is not None:
            headers.append(("Retry-After", str(self.retry_after_seconds)))
        return self.problem.response(headers)


def about(status: int, detail: str = "") -> Problem:
    """Return a problem that says no more than its status (RFC 9457, 4.2.1)."""
    return Problem("about:blank", status, HTTP_STATUS_CODES.get(status, "Unknown Error"), detail)


def problem_for(error: HTTPException) -> WerkzeugResponse | HTTPException:
    """Turn any HTTP error into a problem, keeping its headers; an error handler for Flask.

    Redirects, errors that carry a ready response, and Demijohn's own refusals stay as they are.
    """
    if error.response is not None or isinstance(error, Refusal) or (error.code or 500) < 400:
        return error
    status = error.code or 500
    response = about(status, error.description or "").response()
    for name, value in error.get_headers():
        if name.lower() not in {"content-type", "content-length"}:
            response.headers[name] = value
    return response

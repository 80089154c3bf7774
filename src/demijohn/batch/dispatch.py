"""One part through the application's whole WSGI stack, as if it had come alone."""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Callable, Iterable
from typing import Any, Final

from flask import Flask
from werkzeug.exceptions import HTTPException

from ..core.batch import Answer, check_sendable
from .refusals import instead

log = logging.getLogger("demijohn.batch")

_NO_BODY: Final = frozenset({204, 304})
_HOP_BY_HOP: Final = frozenset(
    {"connection", "keep-alive", "proxy-connection", "trailer", "transfer-encoding", "upgrade"}
)

Prepare = Callable[[], object]


class _TooLarge(Exception):
    """The response is larger than there is room for."""


def dispatch(
    app: Flask, environ: dict[str, Any], most: int, prepare: Prepare | None = None
) -> Answer:
    """Run the request in ``environ``, and return what is answered.

    It runs in an empty context: what lives in the context of the batch, such as ``g``, and sessions
    of SQLAlchemy that are kept by it, is not that of the part, and each part ends by its own
    teardown. Nothing that it raises gets out, but for what ends the process.

    Args:
        app: the application.
        environ: of the part.
        most: how many bytes the body may have.
        prepare: is called in the part's context, before anything else.
    """

    def run() -> Answer:
        if prepare is not None:
            prepare()
        return _call(app, environ, most)

    try:
        return contextvars.Context().run(run)
    except _TooLarge:
        return too_large(app)
    except HTTPException as error:  # of a middleware: the application renders its own
        response = error.get_response(environ)
        return Answer(response.status_code, tuple(response.headers.items()), response.get_data())
    except Exception:
        log.exception("a part of a batch failed: %r", environ.get("PATH_INFO"))
        return instead(app, "part-failed", "The server could not carry out the part.")


def too_large(app: Flask) -> Answer:
    """Return what a part is answered for whose response there is no room."""
    return instead(
        app,
        "part-response-too-large",
        "The part has run, and its response is larger than a batch can hold.",
    )


def _call(app: Flask, environ: dict[str, Any], most: int) -> Answer:
    head: list[Any] = []
    written: list[bytes] = []

    def start_response(
        status: str,
        headers: list[tuple[str, str]],
        exc_info: Any = None,  # noqa: ARG001 - of the protocol
    ) -> Callable[[bytes], object]:
        # With exc_info a middleware replaces what it has said before (PEP 3333).
        head[:] = [status, list(headers)]
        return written.append

    body = app.wsgi_app(environ, start_response)
    try:
        for chunk in body:
            written.append(chunk)
            if len(chunk) > most:
                raise _TooLarge
            most -= len(chunk)
    finally:
        close: Any = getattr(body, "close", None)
        if close is not None:
            close()
    code, _, reason = head[0].partition(" ")
    status = int(code)
    has_body = environ["REQUEST_METHOD"] != "HEAD" and status not in _NO_BODY
    fields = _kept(head[1])
    # Found out now: when all answers are written, one would spoil those of the others.
    check_sendable(fields)
    return Answer(status, fields, b"".join(written) if has_body else b"", reason=reason)


def _kept(headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple([pair for pair in headers if pair[0].lower() not in _HOP_BY_HOP])

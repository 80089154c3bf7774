"""HTTP requests in one HTTP request: the formats, and what they may ask for.

Theory of operation. A batch is read whole before anything of it runs: :mod:`multipart` finds the
parts of a ``multipart/mixed`` body, :mod:`message` the HTTP messages in them, :mod:`jsonformat`
does the same for JSON. Both give :class:`Part` objects. :mod:`order` checks what parts say of one
another and puts them into units that run one behind the other; :mod:`targets` decides where a
target leads, :mod:`references` puts values of earlier answers into later parts. Whatever is wrong
is a :class:`Malformed` that names the kind of mistake and the part.

Readers and writers are the same for servers and clients. They take bytes and give bytes, in time
that is linear in their length.
"""

from __future__ import annotations

from .jsonformat import read_json_answers, read_json_parts, write_json_answer, write_json_parts
from .message import check_sendable, read_response, write_request, write_response
from .multipart import (
    boundary_of,
    closing,
    make_boundary,
    media_type,
    occurs,
    read_multipart_answers,
    read_multipart_parts,
    section,
    write_multipart,
)
from .order import Plan, Unit, named, plan
from .part import Answer, Bounds, Fields, Malformed, Part, field, response_id, without_response
from .references import Unresolved, resolve
from .targets import Place, check_method, locate, normal, origin, own_path

__all__ = [
    "Answer",
    "Bounds",
    "Fields",
    "Malformed",
    "Part",
    "Place",
    "Plan",
    "Unit",
    "Unresolved",
    "boundary_of",
    "check_method",
    "check_sendable",
    "closing",
    "field",
    "locate",
    "make_boundary",
    "media_type",
    "named",
    "normal",
    "occurs",
    "origin",
    "own_path",
    "plan",
    "read_json_answers",
    "read_json_parts",
    "read_multipart_answers",
    "read_multipart_parts",
    "read_response",
    "resolve",
    "response_id",
    "section",
    "without_response",
    "write_json_answer",
    "write_json_parts",
    "write_multipart",
    "write_request",
    "write_response",
]

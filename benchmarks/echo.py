"""What is asked singly and in batches: a view that answers with the JSON that it gets."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any, Final

from flask import Flask, request

from demijohn import add_batch_route
from demijohn.core import batch as core
from demijohn.core.batch import Answer, Part

from .requests import UnexpectedAnswer

COUNT: Final = 100
MULTIPART: Final = "multipart"
JSON: Final = "JSON"
FORMATS: Final = (MULTIPART, JSON)


def echo(number: int) -> dict[str, Any]:
    """Return what was sent."""
    return {"number": number, **request.get_json()}


def echo_app() -> Flask:
    """The view in plain Flask, and batches of up to 1,000 parts."""
    made = Flask("echo")
    made.put("/items/<int:number>")(echo)
    add_batch_route(made, max_parts=1000)
    return made


app: Final = echo_app()


def batch_of(count: int, kind: str) -> str:
    """Return how a batch is called in the names of cases."""
    return f"batch of {count}, {kind}"


def parts_of(count: int) -> list[Part]:
    """Return so many small requests, of the kind that synchronises a list."""
    return [
        Part(
            "PUT",
            f"/items/{number}",
            (
                ("Content-Type", "application/json"),
                ("Accept", "application/json"),
                ("User-Agent", "benchmark"),
            ),
            json.dumps({"name": f"Article {number}", "price": number * 100 + 99}).encode(),
            str(number),
        )
        for number in range(count)
    ]


def encoded(parts: Sequence[Part], kind: str) -> tuple[str, bytes]:
    """Return the Content-Type and the body of a batch, as a client writes them."""
    if kind == JSON:
        return "application/json", core.write_json_parts(parts)
    messages = [core.write_request(part) for part in parts]
    boundary = core.make_boundary(os.urandom(22))
    named = zip([part.id for part in parts], messages, strict=True)
    return f"multipart/mixed; boundary={boundary}", core.write_multipart(named, boundary)


def decoded(content_type: str, body: bytes) -> list[Answer]:
    """Return the answers to a batch, as a client reads them."""
    if content_type == "application/json":
        return core.read_json_answers(body)
    return core.read_multipart_answers(body, core.boundary_of(content_type), core.Bounds())


def check(statuses: Sequence[int], count: int) -> None:
    """Refuse to measure what was not carried out.

    Raises:
        UnexpectedAnswer: something was not.
    """
    if list(statuses) != [200] * count:
        raise UnexpectedAnswer(f"{count} parts were answered {sorted(set(statuses))}")

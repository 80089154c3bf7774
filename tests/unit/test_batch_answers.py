"""What a client reads of an answered batch."""

from __future__ import annotations

import pytest

from demijohn.core.batch import (
    Answer,
    Bounds,
    Malformed,
    read_json_answers,
    read_multipart_answers,
    write_json_answer,
)


def test_json_answer_keeps_its_id_beside_its_headers() -> None:
    sent = Answer(200, (("content-type", "application/json"), ("etag", "1")), b"{}", "one")
    body = b'{"responses": [%b]}' % write_json_answer(sent, standard=False, minimal=False)
    assert read_json_answers(body) == [sent]


def test_json_headers_that_are_no_object_are_refused() -> None:
    with pytest.raises(Malformed, match="must be an object"):
        read_json_answers(b'{"responses": [{"id": "1", "status": 200, "headers": [1]}]}')


def test_nested_boundary_that_may_not_be_is_refused() -> None:
    body = b"--b\r\nContent-Type: multipart/mixed; boundary=\xe9\r\n\r\nx\r\n--b--\r\n"
    with pytest.raises(Malformed, match="boundary"):
        read_multipart_answers(body, "b", Bounds())

"""A stored response comes back as it was, or not at all."""

from __future__ import annotations

import gzip
import zlib
from contextlib import suppress

import pytest
from flask import Flask, Response
from hypothesis import given
from hypothesis import strategies as st

from demijohn.errors import CorruptRecord
from demijohn.frame import Frame, decode, encode, from_response, to_response

frames = st.builds(
    Frame,
    st.integers(100, 999),
    st.lists(st.tuples(st.text(), st.text())),
    st.none() | st.binary(),
)


@given(frames)
def test_frame_comes_back_as_it_was(frame: Frame) -> None:
    assert decode(encode(frame)) == frame


@given(frames, st.data())
def test_damaged_frame_is_never_another_error(frame: Frame, data: st.DataObject) -> None:
    whole = encode(frame)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(CorruptRecord):
        decode(whole[:cut])
    altered = bytearray(whole)
    altered[cut] ^= data.draw(st.integers(1, 255))
    with suppress(CorruptRecord):
        decode(bytes(altered))


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x02\x93", b"cos\nsystem\n"])
def test_other_version_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptRecord, match="this release reads 1"):
        decode(data)


@pytest.mark.parametrize("status", [-1, 0, 99, 1000])
def test_impossible_status_is_refused(status: int) -> None:
    with pytest.raises(CorruptRecord, match="impossible status"):
        decode(encode(Frame(status, [], b"")))


@given(frames, st.data())
def test_damaged_frame_is_made_a_response_or_refused(frame: Frame, data: st.DataObject) -> None:
    altered = bytearray(encode(frame))
    altered[data.draw(st.integers(1, len(altered) - 1))] ^= data.draw(st.integers(1, 255))
    with suppress(CorruptRecord):
        to_response(decode(bytes(altered)), Flask(__name__))


@pytest.mark.parametrize("status", [200, 201, 204, 303])
def test_response_is_made_again(status: int) -> None:
    app = Flask(__name__)
    body = b"" if status == 204 else b"body"
    response = Response(body, status=status, headers=[("X-A", "1"), ("X-A", "2"), ("Date", "now")])
    again = to_response(from_response(response, body, max_body=10), app)
    assert (again.status_code, again.get_data()) == (status, body)
    assert again.headers.getlist("X-A") == ["1", "2"]
    assert "Date" not in again.headers


@pytest.mark.parametrize(
    ("coding", "body", "plain"),
    [
        ("gzip", gzip.compress(b"plain", mtime=0), b"plain"),
        ("X-GZIP", gzip.compress(b"plain", mtime=0), b"plain"),
        ("deflate", zlib.compress(b"plain"), b"plain"),
        ("br", b"brotli", None),
        ("gzip", b"not gzip", None),
        ("gzip", gzip.compress(b"plain", mtime=0)[:-1], None),
        ("gzip", gzip.compress(b"x" * 1000, mtime=0), None),
    ],
)
def test_known_coding_is_undone_and_others_are_kept(
    coding: str, body: bytes, plain: bytes | None
) -> None:
    response = Response(body, headers={"Content-Encoding": coding})
    frame = from_response(response, body, max_body=100)
    names = [name for name, _ in frame.headers]
    if plain is None:
        assert frame.body == body
        assert "Content-Encoding" in names
    else:
        assert frame.body == plain
        assert "Content-Encoding" not in names

"""A body passes through byte by byte, and is reported once, whatever happens to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flask import Flask, Response
from hypothesis import given
from hypothesis import strategies as st

from demijohn.streams import Collect, Collected, Tee, collecting

app = Flask(__name__)
bodies = st.lists(st.binary(max_size=5), max_size=8)


class Source:
    """A body that says when it was closed, and may fail on its way."""

    def __init__(self, parts: list[bytes], fails_at: int | None = None) -> None:
        self.closed = 0
        self._parts = enumerate(parts)
        self._fails_at = fails_at

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        index, part = next(self._parts)
        if index == self._fails_at:
            raise OSError("in the middle")
        return part

    def close(self) -> None:
        self.closed += 1


def tee(source: Source, *, limit: int = 100, finish: bool = True) -> tuple[Tee, list[Collected]]:
    reports: list[Collected] = []
    return Tee(iter(source), source, Collect(limit, finish), reports.append), reports


@given(bodies, st.integers(0, 40))
def test_whole_body_passes_and_is_reported_if_it_fits(parts: list[bytes], limit: int) -> None:
    source, whole = Source(parts), b"".join(parts)
    body, reports = tee(source, limit=limit)
    assert b"".join(body) == whole
    assert reports == []
    body.close()
    body.close()
    assert reports == [Collected(whole if len(whole) <= limit else None, complete=True)]
    assert source.closed == 1


@given(bodies, st.integers(0, 8), st.booleans())
def test_body_that_nobody_reads_on_is_finished_or_not(
    parts: list[bytes], read: int, finish: bool
) -> None:
    source = Source(parts)
    body, reports = tee(source, finish=finish)
    got = [part for _, part in zip(range(min(read, len(parts))), body, strict=False)]
    body.close()
    (report,) = reports
    assert report.complete == finish
    assert report.body == b"".join(parts if finish else got)
    assert source.closed == 1


@pytest.mark.parametrize("read", [True, False], ids=["while sent", "while finished"])
def test_body_that_fails_is_reported_as_cut_and_raises(read: bool) -> None:
    source = Source([b"a", b"b", b"c"], fails_at=1)
    body, reports = tee(source)
    if read:
        with pytest.raises(OSError, match="middle"):
            list(body)
        body.close()  # it is not tried again
    else:
        with pytest.raises(OSError, match="middle"):
            body.close()
    assert reports == [Collected(b"a", complete=False)]
    assert source.closed == 1


def test_parts_over_the_limit_are_not_kept_in_memory() -> None:
    body, _ = tee(Source([b"x" * 10] * 1000), limit=15)
    for _ in body:
        assert len(body._parts) <= 1


def test_response_is_closed_through_to_its_source() -> None:
    reports: list[Collected] = []
    closed: list[str] = []

    def parts() -> Iterator[str]:
        try:
            yield "a"
            yield "é"
        finally:
            closed.append("generator")

    response = Response(parts())
    response.call_on_close(lambda: closed.append("response"))
    collecting(response, Collect(10), reports.append)
    with app.test_request_context():
        assert b"".join(response.iter_encoded()) == b"a\xc3\xa9"
    response.close()
    assert reports == [Collected(b"a\xc3\xa9", complete=True)]
    assert closed == ["generator", "response"]


def test_hook_that_reads_a_streamed_response_still_gets_it_reported() -> None:
    reports: list[Collected] = []
    response = Response(iter([b"a", b"b"]))
    collecting(response, Collect(10), reports.append)
    assert response.get_data() == b"ab"
    response.close()
    assert reports == [Collected(b"ab", complete=True)]

"""Requests that break off before the server has all of them."""

from __future__ import annotations

import socket

import pytest

from tests.faults.conftest import Payments, new_key
from tests.processes import HOST


@pytest.mark.parametrize(
    ("content_type", "body", "sent"),
    [
        ("application/json", b'{"id": "p"}', b'{"id": "'),
        ("application/x-www-form-urlencoded", b"amount=1000", b"amount=10"),
    ],
)
def test_key_of_a_request_cut_in_its_body_is_free_for_the_retry(
    payments: Payments, content_type: str, body: bytes, sent: bytes
) -> None:
    payments.start(workers=1)
    key = new_key()
    head = (
        f"POST /pay HTTP/1.1\r\nHost: {HOST}\r\nIdempotency-Key: {key}\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((HOST, payments.served.port), timeout=30) as connection:
        connection.sendall(head.encode() + sent)
        connection.shutdown(socket.SHUT_WR)
        assert b" 400 " in connection.recv(4096).partition(b"\r\n")[0]
    assert payments.signals() == []  # it did not even begin
    assert payments.post(key).status_code == 201

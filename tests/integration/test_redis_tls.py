"""Encrypted connections: the certificate is checked, and everything else is as without."""

from __future__ import annotations

import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("redis")

from demijohn.errors import StoreUnavailable
from demijohn.stores.redis.address import parse_url
from demijohn.stores.redis.store import RedisStore
from demijohn.testing.contract import begin, listening, one
from tests.processes import free_port
from tests.servers import HOST, RedisServer


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is needed to make a certificate")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    names = ("-addext", f"subjectAltName=IP:{HOST}")
    files = ("-keyout", str(key), "-out", str(cert))
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    return cert, key


@pytest.fixture
def encrypted(certificate: tuple[Path, Path]) -> Iterator[str]:
    cert, key = certificate
    port = free_port()
    server = RedisServer(
        None,
        *("--tls-port", str(port), "--tls-cert-file", str(cert), "--tls-key-file", str(key)),
        *("--tls-ca-cert-file", str(cert), "--tls-auth-clients", "no"),
    )
    try:
        server.start()
    except RuntimeError:
        server.close()
        pytest.skip("this server was built without TLS")
    yield f"rediss://{HOST}:{port}?timeout=2&connect_timeout=2"
    server.close()


def test_encrypted_store_runs_and_hears(encrypted: str, certificate: tuple[Path, Path]) -> None:
    store = RedisStore(parse_url(f"{encrypted}&tls_ca={certificate[0]}"))
    key = f"{{{uuid.uuid4().hex}}}"
    assert one(store, begin(key)).status == "run"
    assert one(store, begin(key)).status == "run"  # over the same connection
    assert listening(store)
    store.close()


def test_unknown_certificate_is_refused(encrypted: str) -> None:
    store = RedisStore(parse_url(encrypted))
    with pytest.raises(StoreUnavailable, match="certificate"):
        one(store, begin("key"))
    store.close()

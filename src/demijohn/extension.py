"""How Demijohn is bound to an application.

All that belongs to one application is one :class:`Binding`, in ``app.extensions["demijohn"]``.
Each capability makes it when it is the first, and adds itself. Everything is read and checked
before anything is registered, so an application with a wrong setting is left as it was.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias
from urllib.parse import quote, unquote, urlsplit

from flask import Blueprint, Flask

from . import config
from .errors import ConfigError, MissingExtra
from .flow import BoundPolicy
from .keeper import Keeper
from .principal import PrincipalHook
from .problem import BASE
from .stores import Store, open_store

if TYPE_CHECKING:
    from .records import Database

ORDER: Final = ("auth", "limits", "idempotency", "caching", "locks", "jobs", "mail")
"""The order in which policies run, from the outside in, however decorators were written."""

StoreLocation: TypeAlias = "str | Store"
"""A store URL, or a store of your own."""

SETTINGS: Final = ("principal", "problem_base", "problems", "secret", "secret_fallbacks")


class Policy(Protocol):
    """What one decorator means, before it is known in which application."""

    @property
    def capability(self) -> str:
        """The name of the capability in :data:`ORDER`."""
        ...

    @property
    def complete(self) -> bool:
        """Whether a view that has the policy needs no default of the capability."""
        ...

    def join(self, inner: Policy) -> Policy | None:
        """Return one policy that means this one and, inside it, another of the same capability.

        ``None`` says that a view may have only one.
        """
        ...

    def bind(self, binding: Binding, beside: frozenset[str]) -> BoundPolicy:
        """Join the policy with the settings of one application; called once for each.

        Args:
            binding: what is known of the application.
            beside: the capabilities that the same view has, this one among them.
        """
        ...


class Binding:
    """What Demijohn knows of one application."""

    def __init__(
        self, app: Flask, stores: Mapping[str, StoreLocation] | None, db: object = None
    ) -> None:
        general = _general(app)
        self.app_name = app.name
        self.principal: PrincipalHook | None = general.get("principal")  # type: ignore[assignment]
        self.problem_base = str(general.get("problem_base", BASE))
        self.problems = bool(general.get("problems", False))
        self.capabilities: dict[str, object] = {}
        self.guards: dict[object, tuple[BoundPolicy, ...]] = {}
        self.defaults: list[tuple[Blueprint | None, Policy]] = []
        self.defaulted: set[str] = set()
        self.keeper = Keeper()
        self.database = None if db is None else _database(app, db)
        locations = _locations(app, stores)
        self.stores = {name: _open(app, url) for name, url in locations.items()}
        given = _secrets(app, general) or [_own_secret(app, locations)]
        self.secrets = tuple(_row_secret(value) for value in given)
        # A store of the application's own may serve others, and is theirs to close.
        made = [self.stores[name] for name, given in locations.items() if isinstance(given, str)]
        weakref.finalize(app, _close, self.keeper, made)

    def store(self, capability: str) -> Store:
        """Return the store named after ``capability``, else the default one."""
        return self.stores.get(capability) or self.stores["default"]


def bind(
    app: Flask, *, stores: Mapping[str, StoreLocation] | None = None, db: object = None
) -> Binding:
    """Return the binding of ``app``, made at the first call.

    Args:
        app: the application; its configuration is read now.
        stores: as ``DEMIJOHN_STORES``, of which it takes precedence.
        db: the database of the application; see :data:`demijohn.records.database.Source`.

    Raises:
        ConfigError: a setting is wrong, or ``stores`` or ``db`` comes too late.
        MissingExtra: ``db`` is given, and SQLAlchemy is not installed.
    """
    found = app.extensions.get("demijohn")
    if found is None:
        return Binding(app, stores, db)
    if not isinstance(found, Binding):
        raise ConfigError("app.extensions['demijohn'] is taken by something else")
    if db is not None:
        raise ConfigError("db= must be given where Demijohn is first bound to the application")
    if stores is not None:
        raise ConfigError("stores= must be given where Demijohn is first bound to the application")
    return found


def register(app: Flask, binding: Binding, capability: str, value: object) -> None:
    """Put a capability's settings for ``app`` in their place.

    Raises:
        ConfigError: the capability is bound already.
    """
    if capability in binding.capabilities:
        raise ConfigError(f"{capability} is already bound to the application {app.name!r}")
    app.extensions["demijohn"] = binding
    binding.capabilities[capability] = value


# --- reading the configuration ------------------------------------------------------------------


def _general(app: Flask) -> dict[str, object]:
    given = app.config.get("DEMIJOHN", {})
    if not isinstance(given, Mapping):
        raise ConfigError("DEMIJOHN must be a dict of settings")
    for name in given:
        if str(name).lower() not in SETTINGS:
            raise ConfigError(config.unknown_name("DEMIJOHN has", str(name), SETTINGS))
    general = {str(name).lower(): value for name, value in given.items()}
    if not callable(general.get("principal", len)):
        raise ConfigError("DEMIJOHN['principal'] must be callable")
    if not isinstance(general.get("problems", False), bool):
        raise ConfigError("DEMIJOHN['problems'] must be true or false")
    return general


def _locations(app: Flask, given: Mapping[str, StoreLocation] | None) -> dict[str, StoreLocation]:
    found = app.config.get("DEMIJOHN_STORES", {}) if given is None else given
    if isinstance(found, str):
        found = {"default": found}
    if not isinstance(found, Mapping):
        raise ConfigError("DEMIJOHN_STORES must be a dict of store URLs by name, or one URL")
    known = ("default", *ORDER)
    for name in found:
        if name not in known:
            raise ConfigError(config.unknown_name("DEMIJOHN_STORES has", str(name), known))
    return {"default": "sqlite:///demijohn.db", **found}


def _open(app: Flask, location: StoreLocation) -> Store:
    if not isinstance(location, str):
        if not isinstance(location, Store):
            raise ConfigError(f"DEMIJOHN_STORES: {location!r} is neither a URL nor a store")
        return location
    return open_store(_absolute(app, location))


def _database(app: Flask, db: object) -> Database:
    try:
        from .records import Database  # noqa: PLC0415 - needs the extra
    except ModuleNotFoundError as error:
        if error.name == "sqlalchemy":
            raise MissingExtra("db=", "sql") from error
        raise
    return Database(db, app)


def _absolute(app: Flask, url: str) -> str:
    """Have the URL of a relative SQLite file begin at the instance folder."""
    path = url.removeprefix("sqlite:///")
    if path == url or path.startswith("/"):
        return url
    return f"sqlite:///{quote(app.instance_path)}/{path}"


def _close(keeper: Keeper, stores: list[Store]) -> None:
    keeper.stop()
    for store in stores:
        store.close()


# --- secrets ------------------------------------------------------------------------------------


def _secrets(app: Flask, general: Mapping[str, object]) -> list[bytes]:
    given = general.get("secret") or app.secret_key
    if not given:
        return []
    fallbacks = general.get("secret_fallbacks") or app.config.get("SECRET_KEY_FALLBACKS") or ()
    if isinstance(fallbacks, str | bytes) or not isinstance(fallbacks, list | tuple):
        raise ConfigError("SECRET_KEY_FALLBACKS must be a list of earlier secrets")
    return [_as_bytes(value) for value in (given, *fallbacks)]


def _as_bytes(value: object) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    raise ConfigError("SECRET_KEY and its fallbacks must be strings or bytes")


def _row_secret(secret: bytes) -> bytes:
    """Derive the key that names rows, so that it is of no use anywhere else."""
    return hmac.digest(secret, b"demijohn row names, version 1", hashlib.sha256)


def _own_secret(app: Flask, locations: Mapping[str, StoreLocation]) -> bytes:
    """Make up a secret for an application without one: beside the file that it protects.

    That is only right where every process reads the same file; stores on other machines are
    shared, and so must the secret be.
    """
    schemes = {urlsplit(url).scheme if isinstance(url, str) else "" for url in locations.values()}
    if not schemes <= {"sqlite", "memory"}:
        raise ConfigError(
            "SECRET_KEY is not set: the processes that share a store must share a secret, "
            "under which the names of stored keys are hidden. Set app.secret_key (or "
            "DEMIJOHN['secret']) before Demijohn is bound"
        )
    if schemes == {"memory"}:
        return secrets.token_bytes(32)
    urls = [_absolute(app, str(url)) for url in (locations["default"], *locations.values())]
    file = next(urlsplit(url).path for url in urls if url.startswith("sqlite:"))
    path = Path(unquote(file).removeprefix("/")).with_name("demijohn.secret")
    try:
        found = _shared_secret(path)
    except OSError as error:
        raise ConfigError(
            f"SECRET_KEY is not set, and no secret can be kept in {path}: {error.strerror}. "
            "Set app.secret_key (or DEMIJOHN['secret']), or make the folder writable"
        ) from error
    if len(found) < _SECRET_LENGTH:
        raise ConfigError(
            f"{path} holds no secret; remove it to have a new one made, under which keys that "
            "are stored already are not found"
        )
    return found


_SECRET_LENGTH: Final = 64


def _shared_secret(path: Path) -> bytes:
    """Return the secret in the file, which is made by whoever comes first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        return path.read_bytes()
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_hex(_SECRET_LENGTH // 2).encode())
            file.flush()
            os.fsync(file.fileno())  # stored keys may not outlive it when the power fails
        # Linking is atomic and fails if the name is taken: of several processes that start at
        # once one wins, and none reads half a secret.
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path.read_bytes()

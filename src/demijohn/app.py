"""All capabilities, bound to an application by one object."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

from flask import Flask
from werkzeug.exceptions import HTTPException

from .batch import Batch, BatchOptions
from .errors import ConfigError
from .extension import StoreLocation, bind
from .idempotency import Idempotency, Options
from .limits import Limits, LimitsOptions
from .principal import PrincipalHook
from .problem import problem_for

P = ParamSpec("P")
R = TypeVar("R")


class Demijohn:
    """Binds every capability to an application, and offers their decorators.

    Args:
        app: the application; without one, call :meth:`init_app` later.
        stores: as ``DEMIJOHN_STORES``: a store URL, or URLs by name.
        principal: says who calls; see :data:`demijohn.principal.PrincipalHook`.
        problems: whether all HTTP errors of the application become problem details (RFC 9457),
            not only Demijohn's own; else as ``DEMIJOHN["problems"]``.
        db: the application's database, for records in its own transactions: an ``Engine``,
            ``sessionmaker`` or ``scoped_session``, or the extension object of Flask-SQLAlchemy or
            Flask-SQLAlchemy-Lite, which was bound to the application before.
        idempotency: options that override ``DEMIJOHN_IDEMPOTENCY``.
        limits: options that override ``DEMIJOHN_LIMITS``.
        batch: options that override ``DEMIJOHN_BATCH``. Without either there is no route for
            batches.

    Raises:
        ConfigError: a setting is unknown or wrong.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        stores: Mapping[str, StoreLocation] | str | None = None,
        principal: PrincipalHook | None = None,
        problems: bool | None = None,
        db: object = None,
        idempotency: Options | None = None,
        limits: LimitsOptions | None = None,
        batch: BatchOptions | None = None,
    ) -> None:
        if principal is not None and not callable(principal):
            raise ConfigError("Demijohn(principal=...) must be callable")
        self._stores = {"default": stores} if isinstance(stores, str) else stores
        self._principal = principal
        self._problems = problems
        self._db = db
        self.idempotency = Idempotency(**(idempotency or {}))
        self.idempotent = self.idempotency.idempotent
        self.limits = Limits(**(limits or {}))
        self.limit = self.limits.limit
        self.concurrent = self.limits.concurrent
        self.shed = self.limits.shed
        self.batch = None if batch is None else Batch(**batch)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Bind to ``app``, whose configuration is read now.

        Raises:
            ConfigError: a setting is unknown or wrong; then nothing was registered.
        """
        binding = bind(app, stores=self._stores, db=self._db)
        limits = self.limits.prepare(app, binding)
        self.idempotency.init_app(app, binding)
        self.limits.register(app, binding, limits)
        if self.batch is not None or "DEMIJOHN_BATCH" in app.config:
            (self.batch or Batch()).init_app(app, binding)
        # From here on nothing fails.
        if self._principal is not None:
            binding.principal = self._principal
        if self._problems is not None:
            binding.problems = self._problems
        if binding.problems:
            app.register_error_handler(HTTPException, problem_for)

    def exempt(self, view: Callable[P, R]) -> Callable[P, R]:
        """Leave ``view`` out of every default."""
        return self.limits.exempt(self.idempotency.exempt(view))

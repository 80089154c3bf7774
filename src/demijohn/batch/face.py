"""Binding batches to an application."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Unpack

from flask import Flask, Response

from .. import config
from ..defaults import exempt
from ..errors import ConfigError
from ..extension import ORDER, Binding, StoreLocation, bind, register
from ..guard import install
from ..stores.forks import renew_in_children
from .settings import CAPABILITY, BatchOptions, Settings, from_config
from .view import start

ENDPOINT = "demijohn_batch"


class Batch:
    """One route that takes many requests in one, and returns all of their responses.

    Args:
        app: the application; without one, call :meth:`init_app` later.
        stores: as ``DEMIJOHN_STORES``: a store URL, or URLs by name.
        db: the application's database, for atomicity groups; as for :class:`demijohn.app.Demijohn`.
        options: override ``DEMIJOHN_BATCH`` for this application; see :class:`BatchOptions`.

    Raises:
        ConfigError: an option or a setting is unknown or wrong.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        stores: Mapping[str, StoreLocation] | str | None = None,
        db: object = None,
        **options: Unpack[BatchOptions],
    ) -> None:
        self._layer = config.parse_layer(Settings, "Batch()", options)
        self._stores = {"default": stores} if isinstance(stores, str) else stores
        self._db = db
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask, binding: Binding | None = None) -> None:
        """Bind to ``app``, whose configuration is read now.

        Args:
            app: the application.
            binding: what is known of it, where another object has begun to bind it.

        Raises:
            ConfigError: a setting is unknown or wrong; then nothing was registered.
        """
        settings = config.combine(Settings, from_config(app), self._layer)
        if binding is None:
            binding = bind(app, stores=self._stores, db=self._db)
        view = start(app, settings, binding)
        _refuse_taken(app, settings.url)
        register(app, binding, CAPABILITY, view)
        install(app)
        renew_in_children(view)

        def batch() -> Response:
            return view()

        found = batch
        for decorate in reversed(settings.decorators):
            found = decorate(found)
        # Each part has its own: the batch itself is neither charged nor kept by default.
        for capability in ORDER:
            found = exempt(found, capability)
        for number, url in enumerate(settings.url):
            endpoint = ENDPOINT if not number else f"{ENDPOINT}_{number}"
            app.add_url_rule(url, endpoint=endpoint, view_func=found, methods=["POST"])


def _refuse_taken(app: Flask, urls: tuple[str, ...]) -> None:
    taken = {rule.rule for rule in app.url_map.iter_rules() if "POST" in (rule.methods or ())}
    for url in urls:
        if url in taken:
            raise ConfigError(f"DEMIJOHN_BATCH['url']: {url!r} is taken by another view")


def add_batch_route(
    app: Flask,
    route: str = "/batch",
    *,
    stores: Mapping[str, StoreLocation] | str | None = None,
    db: object = None,
    **options: Unpack[BatchOptions],
) -> Batch:
    """Add a route for batches to ``app``.

    Args:
        app: the application.
        route: where batches are sent to.
        stores: as for :class:`Batch`.
        db: as for :class:`Batch`.
        options: as for :class:`Batch`.

    Raises:
        ConfigError: an option or a setting is unknown or wrong.
    """
    options.setdefault("url", route)
    return Batch(app, stores=stores, db=db, **options)

"""One request for a batch, from its body to its response."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import quote

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from ..core import batch as core
from ..core.batch import Answer, Malformed, Part, Place, Plan, Unit
from ..errors import ConfigError, StoreError
from ..flow import Call
from ..membership import KEY
from . import answers, signals
from .environs import Environs
from .groups import Groups, check_caller
from .keys import HEADER, batch_key
from .negotiation import JSON, Wishes, wishes_of
from .pricing import Pricing
from .refusals import refusal
from .running import Located, Run
from .settings import Settings

if TYPE_CHECKING:
    from ..extension import Binding

log = logging.getLogger("demijohn.batch")

_ID_BYTES: Final = 8
_SAFE: Final = "/!$&'()*+,;=:@~"


class View:
    """The view of batches in one application.

    Args:
        app: the application.
        settings: of batches.
        binding: what is known of the application.
    """

    def __init__(self, app: Flask, settings: Settings, binding: Binding) -> None:
        self._app = app
        self._settings = settings
        self._binding = binding
        self._batches = frozenset(core.normal(url) for url in settings.url)
        self._groups: Groups | None = None
        self.renew_after_fork()
        database = binding.database
        if database is not None and database.has_sessions:
            self._groups = Groups(binding, database, settings.ttl_ms)

    def __call__(self) -> Response:
        """Carry out the batch that the current request is."""
        started = time.perf_counter()
        try:
            wishes = wishes_of(request)
            plan, place, located = self._read(wishes)
            run = self._run(plan, place, located, wishes)
        except Malformed as error:
            raise self._refuse(error) from None
        except RequestEntityTooLarge:
            detail = f"A batch may have {self._settings.max_bytes} bytes."
            limit = {"limit": self._settings.max_bytes}
            raise self._refuse(Malformed("batch-too-large", detail), **limit) from None
        units = self._told(run, started)
        streams = self._settings.stream and all(unit.group is None for unit in plan.units)
        make = answers.streamed if streams else answers.whole
        response = make(units, wishes, self._settings)
        return self._finish(response, run, wishes)

    def _refuse(self, error: Malformed, **extensions: Any) -> HTTPException:
        signals.tell(signals.refused, self._app, kind=error.kind, detail=error.detail)
        return refusal(error, **extensions)

    # --- before anything runs -------------------------------------------------------------------

    def _read(self, wishes: Wishes) -> tuple[Plan, Place, Located]:
        """Return what is asked and where, if nothing is wrong with it.

        Raises:
            Malformed: something is.
            RequestEntityTooLarge: it is too large.
        """
        if KEY in request.environ:
            raise Malformed("nested-batch", "A part of a batch cannot be a batch itself.")
        # One more than is allowed: werkzeug cuts a chunked body off at its limit, and says nothing.
        request.max_content_length = self._settings.max_bytes + 1
        body = request.get_data(cache=False)
        if len(body) > self._settings.max_bytes:
            raise RequestEntityTooLarge
        parts = self._parts(body, wishes)
        place = self._place()
        references = wishes.format == JSON or self._settings.references
        plan = core.plan(
            parts,
            ignore_case=wishes.format == JSON,
            references=references,
            atomic=wishes.atomic,
        )
        located: dict[int, tuple[str, str]] = {}
        for index, part in enumerate(parts):
            try:
                _check(part, place)
                if not (references and plan.needs[index]):
                    located[index] = core.locate(part.target, place)
                # else it is known, and looked at, when it is to run
            except Malformed as error:
                raise error.at(index, part.id) from None
        return plan, place, located

    def _parts(self, body: bytes, wishes: Wishes) -> list[Part]:
        bounds = self._settings.bounds
        if wishes.format == JSON:
            return core.read_json_parts(body, bounds)
        boundary = core.boundary_of(request.headers.get("Content-Type", ""))
        return core.read_multipart_parts(body, boundary, bounds)

    def _place(self) -> Place:
        own = core.origin(request.scheme, request.host)
        # As they stand in targets: with percent signs.
        mount = quote(request.root_path.rstrip("/"), safe=_SAFE)
        path = mount + quote(request.path, safe=_SAFE)
        origins = (own, *self._settings.origins)
        return Place(request.scheme, origins, mount, path, self._batches)

    def _check_groups(self, call: Call, key: str | None) -> None:
        check_caller(key, anonymous=key is not None and call.principal.anonymous)
        if self._groups is None:
            raise Malformed(
                "atomic-not-supported",
                "Atomicity groups need a database whose sessions can join a transaction.",
            )
        try:
            self._groups.check(keyed=key is not None)
        except StoreError as error:
            log.warning("a batch with groups was refused: %s", error)
            raise Malformed("batch-unavailable", "The database cannot be reached.") from None

    def _run(self, plan: Plan, place: Place, located: Located, wishes: Wishes) -> Run:
        names = self._key_headers()
        given = (request.headers.get(name) for name in names)
        key = batch_key(value for value in given if value is not None)
        call = Call(self._app, cast("Any", request)._get_current_object(), self._binding.principal)
        caller = ""
        if any(unit.group is not None for unit in plan.units):
            self._check_groups(call, key)
            caller = call.principal.key if key is not None else ""
        run = Run(
            self._app,
            self._settings,
            plan,
            place,
            located,
            Environs(request.environ, self._settings),
            name=secrets.token_hex(_ID_BYTES),
            key=key,
            key_headers=names,
            caller=caller,
            goes_on=wishes.goes_on,
            groups=self._groups,
            pool=self._pool,
        )
        run.pricing = Pricing.of(self._binding, self._settings, call, run)
        try:
            self._settle()
        except BaseException:
            run.pricing.give_back()
            raise
        return run

    def _settle(self) -> None:
        """Commit what the sessions of this request have begun, as before an atomic view.

        A hook may have loaded the user. While the parts run, its transaction would keep a
        connection from them, and in SQLite the lock to write.
        """
        if self._binding.database is not None:
            self._binding.database.settle()

    def _key_headers(self) -> tuple[str, ...]:
        bound: Any = self._binding.capabilities.get("idempotency")
        return (HEADER,) if bound is None else bound.settings.key_headers

    def renew_after_fork(self) -> None:
        """Leave the parent's threads to it; those of this process begin when they are needed."""
        workers = self._settings.workers
        self._pool = ThreadPoolExecutor(workers, "demijohn-batch") if workers else None

    # --- while it runs, and after ---------------------------------------------------------------

    def _told(self, run: Run, started: float) -> Iterator[tuple[Unit, Sequence[Answer]]]:
        try:
            yield from run.units()
        finally:
            run.pricing.give_back()
            statuses = [run.answers[index].status for index in sorted(run.answers)]
            milliseconds = (time.perf_counter() - started) * 1000
            signals.tell(
                signals.executed,
                self._app,
                batch=run.name,
                statuses=statuses,
                milliseconds=milliseconds,
            )

    def _finish(self, response: Response, run: Run, wishes: Wishes) -> Response:
        response.headers["Cache-Control"] = "private, no-store"
        response.vary.add("Accept")
        if wishes.applied:
            response.headers["Preference-Applied"] = wishes.applied
        if self._settings.cookies == "forward":
            for cookie in _last_cookies(run.answers[index] for index in sorted(run.answers)):
                response.headers.add("Set-Cookie", cookie)
        if response.is_streamed:  # perhaps nobody comes to read it
            response.call_on_close(run.pricing.give_back)
        if self._settings.compress and request.accept_encodings.quality("gzip"):
            answers.compressed(response)
        return response


def _last_cookies(found: Iterable[Answer]) -> Iterable[str]:
    cookies: dict[str, str] = {}
    for answer in found:
        for name, value in answer.fields:
            if name.lower() == "set-cookie":
                cookies[value.partition("=")[0].strip()] = value
    return cookies.values()


def _check(part: Part, place: Place) -> None:
    core.check_method(part.method)
    host = core.field(part.fields, "host")
    if host is not None:
        scheme = place.scheme
        if core.origin(scheme, host) not in place.origins:
            raise Malformed("foreign-origin", f"A part has Host: {host}, which is not this one.")


def start(app: Flask, settings: Settings, binding: Binding) -> View:
    """Return the view of batches.

    Raises:
        ConfigError: the settings contradict each other.
    """
    if settings.stream and settings.cookies == "forward":
        raise ConfigError(
            f"{', '.join(settings.url)}: cookies='forward' needs the answers before the head, and "
            "stream=True sends the head before them"
        )
    return View(app, settings, binding)

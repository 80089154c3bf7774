"""The words in which a policy and the guard speak to each other.

A policy's flow for one call is a generator without I/O. It yields *commands* and gets their
results back:

===================================  ==============================================================
``Step``                             decided by the policy's store; gives its ``Outcome``, or
                                     raises ``StoreError`` at the ``yield``
:class:`Act`                         does I/O of the policy's own; gives what it returns
``PROCEED``, :class:`Proceed`        the view runs; gives a :class:`Result`
:class:`Wait`                        blocks until a key is woken; gives whether it was
:class:`~demijohn.streams.Collect`   after the view: gives the streamed body when it was sent
===================================  ==============================================================

Returning a response, or raising an HTTP exception, answers the request; returning ``None`` leaves
the answer as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Final, Protocol, TypeAlias, cast

import msgspec
from flask import Flask, Request, Response, request

from .core.step import Outcome, Step
from .principal import Principal, PrincipalHook, resolve
from .stores import Store
from .streams import Collect, Collected


class Proceed(msgspec.Struct, frozen=True, eq=False):
    """Command: let the view run; the result is a :class:`Result`.

    Args:
        seal: called with the response that the view has made, before anybody is told of it. What it
            raises takes the place of what the view might have raised.
        again: called with what the view or ``seal`` has raised; whether the view runs once more.
    """

    seal: Callable[[Response], None] | None = None
    again: Callable[[Exception], bool] | None = None


PROCEED: Final = Proceed()


class Act(msgspec.Struct, frozen=True, eq=False):
    """Command: call ``does``; the result is what it returns, and what it raises is raised."""

    does: Callable[[], Any]


class Wait(msgspec.Struct, frozen=True):
    """Command: block until ``key`` is woken; the result is whether it was.

    See :meth:`Store.wait` for the arguments.
    """

    key: str
    since: int
    timeout_ms: int


class Result(msgspec.Struct, frozen=True):
    """How the view ended: its response, and the exception where that was rendered from one.

    ``response`` is ``None`` where an exception is on its way past Flask, to the server or a
    debugger. ``by_view`` is false when another policy answered in the view's place.
    """

    response: Response | None
    exception: Exception | None = None
    by_view: bool = True


Command: TypeAlias = "Step | Act | Proceed | Wait | Collect"
Reply: TypeAlias = "Outcome | Result | Collected | bool | Any"
Flow: TypeAlias = Generator[Command, Any, Response | None]


class State:
    """Demijohn's one object on the request, where capabilities keep what lives as long as it.

    It is not on ``flask.g``: requests made inside an application context that was pushed before,
    as tests and batches make them, share one ``g``, and would share caller and key with it.
    """

    __slots__ = ("idempotency", "principal", "unrendered")

    def __init__(self) -> None:
        self.principal: Principal | None = None
        self.idempotency: object = None
        self.unrendered: list[Any] = []


def state(of: Request | None = None) -> State:
    """Return the state of a request, made at the first use.

    Args:
        of: the request itself, not the proxy; without it, the current one.
    """
    # The object behind the proxy: each access to a proxy looks the context up again.
    members = (of or request._get_current_object()).__dict__  # type: ignore[attr-defined]
    found = members.get("_demijohn")
    if found is None:
        found = members["_demijohn"] = State()
    return cast("State", found)


class Call:
    """One request on its way through one guard.

    Args:
        app: the application.
        request: the request itself, not the proxy.
        hook: says who calls.
    """

    __slots__ = ("_hook", "_state", "app", "request")

    def __init__(self, app: Flask, request: Request, hook: PrincipalHook | None) -> None:
        self.app = app
        self.request = request
        self._hook = hook
        self._state: State | None = None

    @property
    def state(self) -> State:
        """What capabilities keep for this request."""
        if self._state is None:
            self._state = state(self.request)
        return self._state

    @property
    def principal(self) -> Principal:
        """Who calls; the hook is asked once a request."""
        current = self.state
        if current.principal is None:
            current.principal = resolve(self._hook, self.request)
        return current.principal


class BoundPolicy(Protocol):
    """A policy with the settings and the store of one application."""

    @property
    def postpones(self) -> bool:
        """Whether its conclusion waits for the end of the atomicity group of the request.

        True of what keeps a result: it would speak of rows that may be rolled back.
        """
        ...

    @property
    def store(self) -> Store:
        """Where the flow's steps are decided."""
        ...

    def flow(self, call: Call) -> Flow | None:
        """Return the flow for one call, ``None`` if the call is no concern of this policy.

        Raises:
            HTTPException: the call is refused before anything is decided.
        """
        ...

"""Views that are guarded without a decorator: by default, for an application or a blueprint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

from flask import Blueprint, Flask, current_app, request

from .extension import Binding, Policy
from .flow import BoundPolicy, Call, Flow
from .guard import Guard, guarded

P = ParamSpec("P")
R = TypeVar("R")


def exempt(view: Callable[P, R], capability: str) -> Callable[P, R]:
    """Mark ``view`` as not to be guarded by default for ``capability``."""
    marks: frozenset[str] = getattr(view, "__demijohn_exempt__", frozenset())
    # A bound method takes no attributes, and shows those of its function.
    marked: Any = getattr(view, "__func__", view)
    marked.__demijohn_exempt__ = marks | {capability}
    return view


def by_default(
    app: Flask, binding: Binding, policy: Policy, blueprint: Blueprint | None = None
) -> None:
    """Guard every view of the application, or of ``blueprint``, that does not say otherwise."""
    if not binding.defaults:
        app.before_request(apply_defaults)
    binding.defaults.append((blueprint, policy))


def apply_defaults() -> None:
    """Guard the current view by default, at its first request; a before-request function.

    Routes may be added after the extension was bound, so that there is no earlier moment at
    which all are known. A view that is decorated for a capability itself, or exempt, is not given
    the default; the innermost blueprint's default wins over the outer one's and the application's.
    """
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    binding: Binding = app.extensions["demijohn"]
    endpoint = request.endpoint
    if endpoint is not None and endpoint not in binding.defaulted:
        guard_by_default(app, binding, endpoint)


def guard_by_default(app: Flask, binding: Binding, endpoint: str) -> None:
    """Guard the view of ``endpoint`` by default, unless that is done already."""
    if not binding.defaults or endpoint in binding.defaulted:
        return
    view: Callable[..., Any] = app.view_functions[endpoint]
    parts = endpoint.split(".")[:-1]
    blueprints = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
    for policy in _defaults_for(binding, app, blueprints):
        if not _speaks_for_itself(view, policy.capability):
            view = _guarded(view, policy)
    app.view_functions[endpoint] = view
    # Only now: a request that comes in between guards the view itself.
    binding.defaulted.add(endpoint)


def _guarded(view: Callable[..., Any], policy: Policy) -> Callable[..., Any]:
    methods = _deciding_methods(view, policy.capability)
    if not methods:
        return guarded(view, policy)
    # A guard of its own: within the view's, a policy could not be joined for some methods only.
    return Guard(view, [_Except(policy, methods)]).wrapper


def _defaults_for(binding: Binding, app: Flask, names: Sequence[str]) -> list[Policy]:
    known = [app.blueprints[name] for name in names if name in app.blueprints]
    scopes: list[object] = [*known, None]
    chosen: dict[str, Policy] = {}
    for scope in scopes:
        for blueprint, policy in binding.defaults:
            if blueprint is scope:
                chosen.setdefault(policy.capability, policy)
    return list(chosen.values())


def _speaks_for_itself(view: object, capability: str) -> bool:
    """Whether ``view``, or what it wraps, is decorated for ``capability`` or exempt from it."""
    while view is not None:
        if capability in getattr(view, "__demijohn_exempt__", ()):
            return True
        guard = getattr(view, "__demijohn_guard__", None)
        if isinstance(guard, Guard) and any(
            policy.capability == capability and policy.complete for policy in guard.policies
        ):
            return True
        view = getattr(view, "__wrapped__", None)
    return False


def _deciding_methods(view: object, capability: str) -> frozenset[str]:
    """Return the HTTP methods of a class-based view whose functions speak for themselves."""
    methods = getattr(view, "methods", None) or ()
    view_class = getattr(view, "view_class", None)
    return frozenset(
        method
        for method in methods
        if _speaks_for_itself(getattr(view_class, method.lower(), None), capability)
    )


class _Except:
    """A default policy that leaves some methods of a class-based view to themselves."""

    complete = True

    def __init__(self, policy: Policy, methods: frozenset[str]) -> None:
        self.capability = policy.capability
        self._policy = policy
        self._methods = methods

    def join(self, inner: Policy) -> None:
        """A default is given to a view that has no policy of the capability."""

    def bind(self, binding: Binding, beside: frozenset[str]) -> BoundPolicy:
        return _BoundExcept(self._policy.bind(binding, beside), self._methods)


class _BoundExcept:
    """See :class:`_Except`; ``policy`` and ``methods`` are for who lists what guards a view."""

    def __init__(self, policy: BoundPolicy, methods: frozenset[str]) -> None:
        self.store = policy.store
        self.postpones = policy.postpones
        self.policy = policy
        self.methods = methods

    def flow(self, call: Call) -> Flow | None:
        return None if call.request.method in self.methods else self.policy.flow(call)

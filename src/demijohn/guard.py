"""The one wrapper around a view, and the flows that pass through it.

Theory of operation. A *policy* is what one decorator means. For one call it is a *flow*: a
generator without I/O that yields commands and gets their results back, as ``auth_flow`` does in
httpx, so that it reads from top to bottom::

    def flow(self, call):
        outcome = yield take(...)         # a Step: decided before the view
        if outcome.status == "refused":
            return refusal                # answers instead of the view
        result = yield PROCEED            # the view runs
        yield refund(...)                 # a Step: decided after the view

The :class:`Guard` collects the first step of every flow and has each store decide all of its
steps in one trip; after the view it does the same again. Flows run in :data:`ORDER`, however the
decorators were written. What a flow answers ends the flows behind it, and those before it learn
of the answer as if the view had given it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeAlias, TypeVar, cast

from flask import (
    Flask,
    Response,
    after_this_request,
    current_app,
    got_request_exception,
    request,
)
from werkzeug.exceptions import HTTPException

from .core.step import Step
from .errors import StoreError, UsageError
from .extension import ORDER, Binding, Policy
from .flow import Act, BoundPolicy, Call, Command, Flow, Proceed, Reply, Result, Wait, state
from .membership import Group, membership_of
from .streams import Collect, Collected, collecting

P = ParamSpec("P")
R = TypeVar("R")

Answer: TypeAlias = "Response | HTTPException"


class _Run:
    """One flow in progress: its command to be carried out, or its answer."""

    __slots__ = ("answer", "command", "done", "flow", "postpones", "store")

    def __init__(self, flow: Flow, policy: BoundPolicy) -> None:
        self.flow = flow
        self.store = policy.store
        self.postpones = policy.postpones
        self.answer: Answer | None = None
        self.done = False
        self.command: Command | None = None
        self.send(None)

    def send(self, reply: Reply) -> None:
        try:
            self.command = self.flow.send(reply)
        except (StopIteration, HTTPException) as end:
            self._end(end)

    def throw(self, error: Exception) -> None:
        try:
            self.command = self.flow.throw(error)
        except (StopIteration, HTTPException) as end:
            self._end(end)

    def _end(self, end: StopIteration | HTTPException) -> None:
        self.command = None
        self.done = True
        self.answer = end.value if isinstance(end, StopIteration) else end

    def settle(self) -> None:
        """Carry out what this flow wants for itself alone, until it proceeds or ends."""
        while True:
            command = self.command
            try:
                if isinstance(command, Step):
                    reply: Reply = self.store.run((command,))[0]
                elif isinstance(command, Wait):
                    reply = self.store.wait(
                        command.key, since=command.since, timeout_ms=command.timeout_ms
                    )
                elif isinstance(command, Act):
                    reply = command.does()
                else:
                    return
            except Exception as error:  # noqa: BLE001 - the flow raises again what it has no use for
                self.throw(error)
            else:
                self.send(reply)


def _one_trip(runs: Sequence[_Run]) -> None:
    """Have each store decide the waiting steps of ``runs`` in one trip, and tell the flows.

    Where an outcome halts, the flows behind it are not told anything.
    """
    if len(runs) == 1:
        return  # alone it settles itself, in as many trips
    waiting = [run for run in runs if isinstance(run.command, Step)]
    while waiting:
        store = waiting[0].store
        group = [run for run in waiting if run.store is store]
        waiting = [run for run in waiting if run.store is not store]
        try:
            outcomes = store.run([run.command for run in group if isinstance(run.command, Step)])
        except StoreError as error:
            for run in group:
                run.throw(error)
            continue
        for run, outcome in zip(group, outcomes, strict=False):
            run.send(outcome)
        if outcomes[-1].halts:
            return


class _Passage:
    """One call through one guard, from the first flow's start to the last flow's end."""

    __slots__ = ("active", "app", "group")

    def __init__(self, app: Flask, group: Group | None) -> None:
        self.app = app
        self.active: list[_Run] = []
        self.group = group

    def enter(self, call: Call, policies: Sequence[BoundPolicy]) -> Answer | None:
        """Decide before the view; an answer means that the view does not run."""
        early = self._start(call, policies)
        if not self.active:
            return early
        _one_trip(self.active)
        for index, run in enumerate(self.active):
            run.settle()
            if run.answer is not None:
                return self._answered(run.answer, index)
        self.active = [run for run in self.active if not run.done]
        if early is not None:
            return self._answered(early, len(self.active))
        return None

    def _start(self, call: Call, policies: Sequence[BoundPolicy]) -> Answer | None:
        for policy in policies:
            try:
                flow = policy.flow(call)
            except HTTPException as refusal:
                return refusal
            if flow is None:
                continue
            run = _Run(flow, policy)
            if run.answer is not None:
                return run.answer
            if not run.done:
                self.active.append(run)
        return None

    def _answered(self, answer: Answer, index: int) -> Answer:
        """Tell the flows before ``index`` what was answered; those behind it never began."""
        for run in self.active[index + 1 :]:
            run.flow.close()
        self.active = [run for run in self.active[:index] if not run.done]
        if self.active:
            response = answer if isinstance(answer, Response) else None
            error = answer if isinstance(answer, HTTPException) else None
            self.leave(Result(response, error, by_view=False))
        return answer

    def seal(self, response: Response) -> None:
        """Have the flows that want to conclude before the others are told of ``response``."""
        for run in self.active[::-1]:
            command = run.command
            if isinstance(command, Proceed) and command.seal is not None:
                command.seal(response)

    def again(self, error: Exception) -> bool:
        """Tell whether the view runs once more, after ``error``."""
        for run in self.active[::-1]:
            command = run.command
            if isinstance(command, Proceed) and command.again is not None and command.again(error):
                return True
        return False

    def leave(self, result: Result) -> Answer | None:
        """Decide after the view, from the inside out; an answer replaces the view's response."""
        runs, self.active = self.active, []
        runs.reverse()
        if self.group is not None:
            runs = self._postpone(self.group, runs, result)
        for run in runs:
            run.send(result)
        _one_trip(runs)
        replaced: Answer | None = None
        for run in runs:
            run.settle()
            if run.answer is not None:
                replaced = run.answer
            elif isinstance(run.command, Collect) and result.response is not None:
                collecting(result.response, run.command, functools.partial(_collected, run))
        return replaced

    def _postpone(self, group: Group, runs: list[_Run], result: Result) -> list[_Run]:
        """Leave to ``group`` what can only be concluded when it has ended; return the rest.

        The response is kept as it is now: what is stored of it must not depend on its group.
        """
        later = [run for run in runs if run.postpones]
        if not later:
            return runs
        response = result.response
        if response is not None:
            response.direct_passthrough = False
            kept = type(response)(response.get_data(), response.status, response.headers.copy())
            result = Result(kept, result.exception, result.by_view)

        def conclude(*, committed: bool | None) -> None:
            if committed is None:
                for run in later:
                    run.flow.close()  # it is left to its lease
                return
            for run in later:
                run.send(result if committed else Result(None, result.exception, by_view=False))
            _one_trip(later)
            for run in later:
                run.settle()

        group.postpone(conclude)
        return [run for run in runs if not run.postpones]

    def abandon(self) -> None:
        """The process is being told to end inside the view: leave everything to the leases."""
        for run in self.active[::-1]:
            run.flow.close()
        self.active = []


def _collected(run: _Run, collected: Collected) -> None:
    run.send(collected)
    run.settle()


class Guard:
    """The policies of one view.

    Args:
        view: the view as it was written.
        policies: in any order.
    """

    __slots__ = ("name", "policies", "view", "wrapper")

    def __init__(self, view: Callable[..., Any], policies: Sequence[Policy]) -> None:
        self.view = view
        self.name = getattr(view, "__qualname__", view)  # a partial has none
        self.policies = tuple(sorted(policies, key=lambda p: ORDER.index(p.capability)))
        self.wrapper: Callable[..., Any] = self._wrap()
        self.wrapper.__demijohn_guard__ = self  # type: ignore[attr-defined]

    def _wrap(self) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(self.view):
            return self._asynchronous()
        return self._synchronous()

    def _asynchronous(self) -> Callable[..., Any]:
        view = self.view

        @functools.wraps(view)
        async def asynchronous(*args: Any, **kwargs: Any) -> Any:
            passage, answer = self._enter()
            if answer is not None:
                return _give(answer)
            if passage is None:
                return await view(*args, **kwargs)
            while True:
                try:
                    response = passage.app.make_response(await view(*args, **kwargs))
                    passage.seal(response)
                except BaseException as error:
                    if _runs_again(passage, error):
                        continue
                    raise
                return _leave(passage, response)

        return asynchronous

    def _synchronous(self) -> Callable[..., Any]:
        view = self.view

        @functools.wraps(view)
        def synchronous(*args: Any, **kwargs: Any) -> Any:
            passage, answer = self._enter()
            if answer is not None:
                return _give(answer)
            if passage is None:
                return view(*args, **kwargs)
            while True:
                try:
                    # Within the try: what no response can be made of is an exception of the view.
                    response = passage.app.make_response(view(*args, **kwargs))
                    passage.seal(response)
                except BaseException as error:
                    if _runs_again(passage, error):
                        continue
                    raise
                return _leave(passage, response)

        return synchronous

    def bound(self, binding: Binding) -> tuple[BoundPolicy, ...]:
        """Return the policies with the settings of one application; made at the first use."""
        policies = binding.guards.get(self)
        if policies is None:
            beside = frozenset([policy.capability for policy in self.policies])
            policies = tuple(policy.bind(binding, beside) for policy in self.policies)
            binding.guards[self] = policies
        return policies

    def _enter(self) -> tuple[_Passage | None, Answer | None]:
        app = current_app._get_current_object()  # type: ignore[attr-defined]
        binding: Binding | None = app.extensions.get("demijohn")
        if binding is None:
            raise UsageError(
                f"view {self.name!r} is decorated by Demijohn, but this application "
                "is not bound: call Demijohn(app) or init_app(app)"
            )
        policies = self.bound(binding)
        call = Call(app, request._get_current_object(), binding.principal)  # type: ignore[attr-defined]
        part = membership_of(call.request.environ)
        passage = _Passage(app, None if part is None else part.group)
        answer = passage.enter(call, policies)
        return (passage if passage.active else None), answer


def _give(answer: Answer) -> Response:
    if isinstance(answer, HTTPException):
        raise answer
    return answer


def _leave(passage: _Passage, response: Response) -> Response:
    replaced = passage.leave(Result(response))
    return response if replaced is None else _give(replaced)


def _runs_again(passage: _Passage, error: BaseException) -> bool:
    """Tell whether the view runs once more; if not, see to it that the flows are told."""
    if not isinstance(error, Exception):
        # What is not an ``Exception`` ends the process, or this thread: that is no result.
        passage.abandon()
        return False
    try:
        if passage.again(error):
            return True
    except Exception as instead:  # such as a refusal: it is raised in the place of ``error``
        _failed(passage, instead)
        raise
    _failed(passage, error)
    return False


def _failed(passage: _Passage, error: Exception) -> None:
    """Have the flows told when Flask has made a response of the exception.

    The exception goes on its way: whoever is outside of the guard sees it, and the application's
    error handlers are called once. Where no response is made of it, the end of the request tells
    the flows.
    """

    def rendered(response: Response) -> Response:
        state().unrendered.remove(waiting)
        if not response.direct_passthrough:
            response.make_sequence()  # an HTTPException renders itself as if it streamed
        replaced = passage.leave(Result(response, error))
        if isinstance(replaced, HTTPException):
            # Nobody is left to catch it: the application's handlers are asked as Flask would.
            return current_app.make_response(current_app.handle_http_exception(replaced))
        return replaced or response

    # A guard within a guard has a passage of its own, and the inner one comes first.
    waiting = (passage, error)
    state().unrendered.append(waiting)
    after_this_request(rendered)


def finish_unrendered(app: Flask, **_: object) -> None:
    """Tell the flows of an exception of which Flask will make no response; a signal's receiver.

    Flask sends the signal for every exception that no handler takes, before it either renders a
    500 (then the flows are told of that) or lets the exception through, as here is known by the
    same rule.
    """
    propagate = app.config["PROPAGATE_EXCEPTIONS"]
    if not (app.testing or app.debug if propagate is None else propagate):
        return
    unrendered = state().unrendered
    while unrendered:
        passage, error = unrendered.pop(0)
        passage.leave(Result(None, error))


def guarded(view: Callable[P, R], policy: Policy) -> Callable[P, R]:
    """Add ``policy`` to ``view``, whose guard it shares if ``view`` is one.

    A foreign decorator copies attributes of what it wraps, the mark of a guard among them; only a
    view that *is* the guard's wrapper is merged with.

    Raises:
        UsageError: the view already has a policy of this capability, and one is the most.
    """
    guard = getattr(view, "__demijohn_guard__", None)
    if not isinstance(guard, Guard) or guard.wrapper is not view:
        return cast("Callable[P, R]", Guard(view, [policy]).wrapper)
    others = [inner for inner in guard.policies if inner.capability != policy.capability]
    joined: Policy | None = policy
    for inner in guard.policies:
        if inner.capability == policy.capability:
            joined = policy.join(inner)
    if joined is None:
        raise UsageError(
            f"view {guard.name!r} is decorated for {policy.capability} twice; "
            "write all its options in one decorator"
        )
    return cast("Callable[P, R]", Guard(guard.view, [*others, joined]).wrapper)


def install(app: Flask) -> None:
    """Register what the guards of ``app`` need besides themselves; once an application."""
    got_request_exception.connect(finish_unrendered, app)

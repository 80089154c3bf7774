"""How policies merge, share trips, and hear of each other's answers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, Response
from werkzeug.exceptions import TooManyRequests

from demijohn.core.step import EXPIRES, Decision, Outcome, Rows, Step, StepKind
from demijohn.defaults import exempt
from demijohn.errors import StoreUnavailable, UsageError
from demijohn.extension import ORDER, Binding, bind, register
from demijohn.flow import PROCEED, Call, Flow, Result
from demijohn.guard import Guard, guarded, install
from demijohn.problem import ProblemType, Refusal
from demijohn.stores.memory import MemoryStore


def _decide(rows: Rows, now_ms: int, halts: int) -> Decision:
    row = {"n": int((rows[0] or {}).get("n", 0)) + 1, EXPIRES: now_ms + 1000}
    return Decision(Outcome("counted", (row["n"],), halts=bool(halts)), {0: row})


COUNT = StepKind("test.count", _decide, "tests/none.lua")


class Counting(MemoryStore):
    """Remembers how many steps each run had."""

    def __init__(self) -> None:
        super().__init__()
        self.trips: list[int] = []
        self.fails = False

    def run(self, steps: Sequence[Step]) -> list[Outcome]:
        self.trips.append(len(steps))
        if self.fails:
            raise StoreUnavailable("down")
        return super().run(steps)


class Refused(Refusal, TooManyRequests):
    kind = ProblemType("refused", 429, "Refused")


class Policy:
    """Counts before and after the view, and writes down what happens."""

    def __init__(self, capability: str, log: list[str], does: str = "", store: Any = None) -> None:
        self.capability = capability
        self.log = log
        self.does = does
        self._store = store

    complete = True
    postpones = False

    def join(self, inner: Policy) -> Policy | None:
        if self.capability != "limits":
            return None
        return Policy("limits", [*inner.log, "joined"])

    def bind(self, binding: Binding, beside: frozenset[str]) -> Policy:
        self.beside = beside
        self.store = self._store or binding.store(self.capability)
        return self

    def flow(self, call: Call) -> Flow | None:
        if self.does == "ignore":
            return None
        if self.does == "refuse-early":
            raise Refused("at once")
        return self._flow(call)

    def _flow(self, call: Call) -> Flow:
        self.log.append(f"{self.capability}>")
        if self.does == "answer-early":
            return Response("early")
        if self.does == "end-early":
            return None
        try:
            yield Step(COUNT, (self.capability,), (int(self.does == "halt"),))
        except StoreUnavailable:
            self.log.append(f"{self.capability}!")
            return None
        if self.does == "refuse":
            raise Refused("no")
        if self.does == "answer":
            return Response(f"answered by {self.capability}")
        result: Result = yield PROCEED
        status = result.response.status_code if result.response else None
        by = "view" if result.by_view else "policy"
        self.log.append(f"<{self.capability} {status} {by}")
        yield Step(COUNT, (self.capability,), (0,))
        return Response("replaced") if self.does == "replace" else None


@pytest.fixture
def store() -> Counting:
    return Counting()


@pytest.fixture
def app(tmp_path: Path, store: Counting) -> Flask:
    app = Flask("guarded", instance_path=str(tmp_path))
    app.secret_key = "s"
    binding = bind(app, stores={"default": store})
    register(app, binding, "limits", object())
    install(app)
    return app


def call(app: Flask, *policies: Policy, view: Callable[..., Any] | None = None) -> Any:
    function = view or (lambda: "view")
    for policy in policies:
        function = guarded(function, policy)
    app.add_url_rule("/", view_func=function, endpoint="x", methods=["POST"])
    return app.test_client().post("/")


def test_policies_run_in_their_order_however_they_were_written(app: Flask, store: Counting) -> None:
    log: list[str] = []
    names = ["mail", "auth", "idempotency", "limits"]
    assert call(app, *(Policy(name, log) for name in names)).text == "view"
    assert log == [
        "auth>", "limits>", "idempotency>", "mail>",
        "<mail 200 view", "<idempotency 200 view", "<limits 200 view", "<auth 200 view",
    ]  # fmt: skip
    assert store.trips == [4, 4]


def test_each_store_is_one_trip(app: Flask, store: Counting) -> None:
    other, log = Counting(), []  # type: ignore[var-annotated]
    policies = [
        Policy("auth", log, store=other),
        Policy("limits", log),
        Policy("idempotency", log, store=other),
    ]
    assert call(app, *policies).text == "view"
    assert (store.trips, other.trips) == ([1, 1], [2, 2])


def test_policy_without_interest_costs_nothing(app: Flask, store: Counting) -> None:
    log: list[str] = []
    assert call(app, Policy("limits", log, "ignore")).text == "view"
    assert (store.trips, log) == ([], [])


@pytest.mark.parametrize("does", ["answer", "refuse"])
def test_policies_before_an_answer_hear_of_it_and_those_behind_never_began(
    app: Flask, store: Counting, does: str
) -> None:
    log: list[str] = []
    policies = [Policy("auth", log), Policy("limits", log, does), Policy("mail", log)]
    answer = call(app, *policies)
    assert answer.status_code == (200 if does == "answer" else 429)
    status = "200" if does == "answer" else "None"
    assert log == ["auth>", "limits>", "mail>", f"<auth {status} policy"]
    assert store.trips == [3, 1]


@pytest.mark.parametrize("does", ["answer-early", "refuse-early"])
def test_early_answer_lets_only_those_before_it_decide(
    app: Flask, store: Counting, does: str
) -> None:
    log: list[str] = []
    answer = call(app, Policy("auth", log), Policy("limits", log, does), Policy("mail", log))
    assert answer.status_code == (200 if does == "answer-early" else 429)
    assert [entry for entry in log if entry.startswith(("mail", "<mail"))] == []
    assert log[-1].startswith("<auth")
    assert store.trips == [1, 1]


def test_early_answer_of_the_first_is_the_answer(app: Flask, store: Counting) -> None:
    assert call(app, Policy("auth", [], "answer-early"), Policy("mail", [])).text == "early"
    assert store.trips == []


def test_step_behind_a_halt_that_does_not_answer_is_decided_for_itself(
    app: Flask, store: Counting
) -> None:
    log: list[str] = []
    policies = [Policy("auth", log, "halt"), Policy("limits", log), Policy("mail", log)]
    assert call(app, *policies).text == "view"
    assert store.trips == [3, 1, 1, 3]


def test_policy_that_has_nothing_to_decide_is_left_out(app: Flask, store: Counting) -> None:
    log: list[str] = []
    assert call(app, Policy("auth", log, "end-early"), Policy("mail", log)).text == "view"
    assert log == ["auth>", "mail>", "<mail 200 view"]
    assert store.trips == [1, 1]


def test_caller_is_asked_for_once_however_many_policies_want_to_know(app: Flask) -> None:
    asked: list[int] = []
    app.extensions["demijohn"].principal = lambda: asked.append(1) or "alice"

    class Asking(Policy):
        def flow(self, call: Call) -> Flow | None:
            assert call.principal.id == "alice"
            return super().flow(call)

    assert call(app, Asking("auth", []), Asking("limits", []), Asking("mail", [])).text == "view"
    assert asked == [1]


def test_store_that_fails_is_heard_of_by_each(app: Flask, store: Counting) -> None:
    log: list[str] = []
    store.fails = True
    assert call(app, Policy("auth", log), Policy("limits", log)).text == "view"
    assert log == ["auth>", "limits>", "auth!", "limits!"]


def test_outer_replacement_wins(app: Flask) -> None:
    policies = [Policy("mail", [], "replace"), Policy("auth", [])]
    assert call(app, *policies).text == "replaced"


def test_policies_of_one_capability_are_joined(app: Flask, store: Counting) -> None:
    assert call(app, Policy("limits", []), Policy("limits", [])).text == "view"
    assert store.trips == [1, 1]


def test_policy_is_told_what_is_beside_it(app: Flask) -> None:
    policies = [Policy("limits", []), Policy("mail", [])]
    assert call(app, *policies).text == "view"
    assert [policy.beside for policy in policies] == [frozenset({"limits", "mail"})] * 2


def test_decorating_makes_a_new_guard_and_leaves_the_old_alone() -> None:
    def view() -> str:
        return "x"

    one = guarded(view, Policy("auth", []))
    both = guarded(one, Policy("mail", []))
    assert len(one.__demijohn_guard__.policies) == 1  # type: ignore[attr-defined]
    guard: Guard = both.__demijohn_guard__  # type: ignore[attr-defined]
    assert [policy.capability for policy in guard.policies] == ["auth", "mail"]
    assert guard.view is view
    assert both.__wrapped__ is view  # type: ignore[attr-defined]
    assert both.__name__ == "view"


def test_copied_mark_of_a_guard_is_not_taken_for_one() -> None:
    def foreign(view: Callable[[], str]) -> Callable[[], str]:
        @functools.wraps(view)
        def wrapper() -> str:
            return f"foreign {view()}"

        return wrapper

    wrapped = foreign(guarded(lambda: "x", Policy("auth", [])))
    outer = guarded(wrapped, Policy("mail", []))
    assert outer.__demijohn_guard__.view is wrapped  # type: ignore[attr-defined]


def test_order_names_every_capability_once() -> None:
    assert len(set(ORDER)) == len(ORDER)


class Views:
    def one(self) -> str:
        return "one"


def test_any_callable_can_be_a_view_and_is_named_in_messages(app: Flask) -> None:
    partial = functools.partial(lambda text: text, "partial")
    once = guarded(partial, Policy("auth", []))
    with pytest.raises(UsageError, match=r"functools.partial.* is decorated for auth twice"):
        guarded(once, Policy("auth", []))
    assert call(app, Policy("auth", []), view=partial).text == "partial"


def test_method_of_an_object_can_be_exempt() -> None:
    views = Views()
    assert exempt(exempt(views.one, "auth"), "limits") == views.one
    assert views.one.__demijohn_exempt__ == {"auth", "limits"}  # type: ignore[attr-defined]

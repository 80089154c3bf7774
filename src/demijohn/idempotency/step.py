"""Recovery points: a retried request resumes after the last step that was finished.

Theory of operation. A view that has effects outside of its database cannot be undone as a whole. It
is cut into steps; each commits its result as soon as it is finished, in a transaction of its own. A
later run under the same key is given the results of the finished steps, and runs the others. A
process that dies between an effect and the commit of its result has the step run again: a step runs
*at least* once, and its effect happens once where the service behind it knows the step's ``key``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, ParamSpec, Self, TypeVar, cast

import msgspec

from ..errors import UsageError
from .current import Attempt, find_attempt
from .recovery import Recovery

P = ParamSpec("P")
R = TypeVar("R")


class step(Generic[R]):  # noqa: N801 - reads as a statement
    """A recovery point, as a block or as a decorator.

    As a block::

        with idempotency.step("charge") as step:
            if not step.done:
                step.save(charge_card(amount, key=step.key))
        charge = step.result

    As a decorator, of a function that is called once in the view::

        @idempotency.step("charge")
        def charge(amount): ...

    Args:
        name: of the step; the steps of a view have different names and a fixed order.

    Raises:
        UsageError: the order has changed since an earlier run, or there is no ``db=``.
    """

    def __init__(self, name: str) -> None:
        if not isinstance(name, str) or not 0 < len(name) <= 80 or not name.isascii():
            raise UsageError(f"step({name!r}): a name is 1 to 80 ASCII characters")
        self.name = name
        self.done = False
        """Whether an earlier run has finished it."""
        self._result: Any = None
        self._recovery: Recovery | None = None
        self._position = 0
        self._attempt: Attempt | None = None

    def __enter__(self) -> Self:
        self._attempt = find_attempt()
        self._recovery = self._attempt.recovery
        if self._recovery is not None:
            self._position, saved = self._recovery.enter(self.name)
            if saved is not None:
                self.done, self._result = True, msgspec.json.decode(saved)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and not self.done:
            self.save(None)

    @property
    def key(self) -> str:
        """A key for the service behind the step, the same in every run; see ``derive``."""
        if self._attempt is None:
            raise UsageError(f"step {self.name!r}: key is known within the block only")
        return self._attempt.derive(f"step:{self.name}")

    @property
    def result(self) -> Any:
        """What the step has given now or in an earlier run, as JSON has it."""
        if not self.done:
            raise UsageError(f"step {self.name!r} has no result yet: call save(), or end the block")
        return self._result

    def save(self, result: object) -> None:
        """Commit ``result``, which ends the step; without this the end of the block does so.

        Raises:
            UsageError: it cannot be written as JSON, or the step is done already.
        """
        if self.done:
            raise UsageError(f"step {self.name!r} is done already; look at done before running it")
        try:
            encoded = msgspec.json.encode(result)
        except (TypeError, ValueError) as error:
            raise UsageError(f"step {self.name!r}: its result is not JSON ({error})") from error
        if self._recovery is not None:
            encoded = self._recovery.save(self._position, self.name, encoded)
        # As every later run will see it, so that no view works on its first run only.
        self._result = msgspec.json.decode(encoded)
        self.done = True

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Make a step of ``function``."""
        name = self.name

        @functools.wraps(function)
        def resumed(*args: P.args, **kwargs: P.kwargs) -> R:
            with step[R](name) as point:
                if not point.done:
                    point.save(function(*args, **kwargs))
            return cast("R", point.result)

        return resumed

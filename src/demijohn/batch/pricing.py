"""The limits of all parts, taken in one trip before any of them runs.

What limits can take beforehand is theirs to say (:class:`Pricer`): the parts that it
leaves out take for themselves, when they run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flask import Flask

    from ..extension import Binding
    from ..flow import Call
    from .running import Run
    from .settings import Settings


class Taken(Protocol):
    """What was taken for the parts of a batch."""

    prepaid: Mapping[int, object]

    def give_back(self) -> None:
        """Return what was taken for parts that have not used it."""
        ...


class Pricer(Protocol):
    """What takes for several requests at once."""

    def limits_views(self, binding: Binding, app: Flask) -> bool:
        """Whether there is anything to take at all."""
        ...

    def price(
        self, binding: Binding, call: Call, environs: Mapping[int, dict[str, Any]], *, whole: bool
    ) -> Taken:
        """Take for the requests in ``environs``; all or nothing of it if ``whole``.

        Raises:
            HTTPException: there is not enough for all of them.
        """
        ...


class Pricing:
    """What was taken for one batch; nothing, where limits are not bound or one part comes alone."""

    def __init__(self, taken: Taken | None) -> None:
        self._taken = taken

    @classmethod
    def of(cls, binding: Binding, settings: Settings, call: Call, run: Run) -> Pricing:
        """Take for all parts of ``run``.

        Raises:
            HTTPException: there is not enough for all of them, and so none is to run.
        """
        pricer = cast("Pricer | None", binding.capabilities.get("limits"))
        whole = settings.on_excess == "reject"
        if pricer is None or settings.on_excess == "each" or not (whole or len(run.plan.parts) > 1):
            return cls(None)
        if not pricer.limits_views(binding, run.app):
            return cls(None)
        taken = pricer.price(binding, call, run.environs(), whole=whole)
        run.prepaid.update(taken.prepaid)
        return cls(taken)

    def give_back(self) -> None:
        """Return what was taken for parts that have not run."""
        if self._taken is not None:
            self._taken.give_back()


NOTHING: Final = Pricing(None)

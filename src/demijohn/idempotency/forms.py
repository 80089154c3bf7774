"""The key of an HTML form, so that a form that is submitted twice is carried out once."""

from __future__ import annotations

import uuid

from flask import current_app
from markupsafe import Markup

from ..errors import UsageError
from .bound import bound_to


def idempotent_key() -> str:
    """Return a new key, for one rendering of one form; a function of Jinja templates."""
    return str(uuid.uuid4())


def idempotent_input() -> Markup:
    """Return a hidden input with a new key; a function of Jinja templates.

    Raises:
        UsageError: keys are not looked for in forms.
    """
    _, bound = bound_to(current_app)
    field = bound.settings.key_field
    if field is None:
        raise UsageError(
            "idempotent_input() has no effect while keys are not looked for in forms: set "
            "DEMIJOHN_IDEMPOTENCY['forms'] = True"
        )
    return Markup('<input type="hidden" name="{}" value="{}">').format(field, idempotent_key())

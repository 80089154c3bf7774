"""What a client is told when it is over a limit."""

from __future__ import annotations

from typing import Final

from werkzeug.exceptions import ServiceUnavailable, TooManyRequests, Unauthorized

from ..problem import ProblemType, Refusal

REGISTRY: Final = "https://iana.org/assignments/http-problem-types#"
"""Where the types of draft-ietf-httpapi-ratelimit-headers are registered."""


class QuotaExceeded(Refusal, TooManyRequests):
    """429: a limit is reached; the member ``violated-policies`` names every one that is."""

    kind = ProblemType(
        "quota-exceeded",
        429,
        "Request cannot be satisfied as assigned quota has been exceeded",
        REGISTRY,
    )


class CapacityReduced(Refusal, ServiceUnavailable):
    """503: this process has as much to do as it can; the request was shed."""

    kind = ProblemType(
        "temporary-reduced-capacity",
        503,
        "Request cannot be satisfied due to temporary server capacity constraints",
        REGISTRY,
    )


class IdentityMissing(Refusal, Unauthorized):
    """401: the limit counts by caller, and nothing in the request says who calls."""

    kind = ProblemType("limits-identity-missing", 401, "The caller is not known")


class LimitsUnavailable(Refusal, ServiceUnavailable):
    """503: the store cannot be asked, and the limit is one that fails closed."""

    kind = ProblemType("limits-unavailable", 503, "The limits cannot be checked at the moment")


ALL: Final = (QuotaExceeded, CapacityReduced, IdentityMissing, LimitsUnavailable)

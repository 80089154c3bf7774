"""What a reply means for those whose requests were in the batch.

========================================  ==========================================================
reply                                     verdict
========================================  ==========================================================
2xx, and an answer of the part            the answer; 429, and 503 with Retry-After, may wait
2xx, complete, and no answer of the part  :class:`BatchProtocolError`
2xx that breaks off; no response          what has come is good; the rest again where that is safe
404, 405, 415 and redirects               nothing ran, there is no batch here: singly
413                                       nothing ran: in halves, a single one by itself
429                                       nothing ran: again, whatever the method
other 4xx                                 nothing ran: the answer to each of them
5xx                                       again where that is safe, else the answer to each
========================================  ==========================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from ...core.batch import Answer, Fields
from ..policy import Answer as PolicyAnswer
from ..policy import asked_s
from .entries import Again, Answered, Entry, Failed, Singly, Verdict
from .envelope import Outgoing, Reply, read
from .errors import BatchProtocolError

WAITS: Final = 3
_BASE_S: Final = 0.1
_CAP_S: Final = 5.0
_NOT_HERE: Final = frozenset({404, 405, 415})
_FINAL: Final = frozenset({501, 505})  # what a server cannot do now, it cannot do in a second
# What speaks of the message that brought it, and not of what it says.
_OF_THE_BATCH: Final = frozenset(
    {"connection", "content-encoding", "content-length", "keep-alive", "set-cookie",
     "transfer-encoding"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Moment:
    """What a judgement needs to know of the world.

    Args:
        now: with a time zone; for dates in Retry-After.
        draw: a random number from 0 to 1, one for all of a batch, so that they meet again.
        retry: how often a request may be sent again.
    """

    now: datetime
    draw: float
    retry: int


def not_here(status: int) -> bool:
    """Whether a status says that batches are not served at this URL."""
    return status in _NOT_HERE or 300 <= status < 400


def too_large(reply: Reply, entries: Sequence[Entry]) -> bool:
    """Whether the batch should be sent in halves."""
    return reply.status == 413 and len(entries) > 1 and not any(each.related for each in entries)


def judge(outgoing: Outgoing, reply: Reply, moment: Moment) -> list[Verdict]:
    """Return a verdict for each entry."""
    entries, status = outgoing.entries, reply.status
    if 200 <= status < 300:
        return _parts(outgoing, reply, moment)
    if status == 0:
        lost = Failed(reply.error or BatchProtocolError("The batch was not answered."))
        return [_again(each, lost, moment, 0.0) for each in entries]
    whole = Answered(Answer(status, _handed_on(reply.fields), reply.body), whole=True)
    if status == 413 or not_here(status):
        return [whole if each.related else Singly() for each in entries]
    if status == 429:
        return [_later(each, whole, moment) for each in entries]
    if status >= 500 and status not in _FINAL:
        asked = _asked(whole.answer, moment)
        return [_again(each, whole, moment, asked) for each in entries]
    return [whole for _ in entries]


def judge_single(entry: Entry, outcome: Answer | Exception, moment: Moment) -> Verdict:
    """Return what to do with a request that was sent by itself."""
    if isinstance(outcome, Exception):
        return _again(entry, Failed(outcome), moment, 0.0)
    return _part(entry, outcome, moment)


def _handed_on(fields: Fields) -> Fields:
    return tuple([pair for pair in fields if pair[0].lower() not in _OF_THE_BATCH])


def _parts(outgoing: Outgoing, reply: Reply, moment: Moment) -> list[Verdict]:
    reading = read(outgoing, reply)
    cut = reply.error or BatchProtocolError("The answer to the batch breaks off.")
    missing = BatchProtocolError("The answer to the batch has none of this request.")
    verdicts: list[Verdict] = []
    for number, entry in enumerate(outgoing.entries):
        answer = reading.answers.get(number)
        if answer is not None:
            verdicts.append(_part(entry, answer, moment))
        elif reading.whole:
            verdicts.append(Failed(reading.errors.get(number, missing)))
        elif entry.related and reading.answers:
            # What it depends on is answered: in a batch of the rest its reference would be to
            # nothing.
            verdicts.append(Failed(reading.errors.get(number, cut)))
        else:
            verdicts.append(_again(entry, Failed(cut), moment, 0.0))
    return verdicts


def _part(entry: Entry, answer: Answer, moment: Moment) -> Verdict:
    found = Answered(answer)
    named = {name.lower() for name, _ in answer.fields}
    if answer.status == 429 or (answer.status == 503 and "retry-after" in named):
        return _later(entry, found, moment)
    return found


def _later(entry: Entry, found: Answered, moment: Moment) -> Verdict:
    """Return "again" for what was told to wait, if it has not been told so too often."""
    # Those that depend on it have been answered already, so what is related stays as it is.
    if entry.waited >= WAITS or entry.sent > moment.retry:
        return found
    if entry.related and not found.whole:
        return found
    entry.waited += 1
    return Again(_asked(found.answer, moment) + _pause(entry, moment), found)


def _again(
    entry: Entry, otherwise: Answered | Failed, moment: Moment, asked: float
) -> Again | Answered | Failed:
    """Return "again" for what may have run, if a second arrival changes nothing."""
    if entry.sent > moment.retry or not entry.repeatable:
        return otherwise
    return Again(asked + _pause(entry, moment), otherwise)


def _asked(answer: Answer, moment: Moment) -> float:
    headers = {name.lower(): value for name, value in answer.fields}
    return asked_s(PolicyAnswer(answer.status, headers), moment.now)


def _pause(entry: Entry, moment: Moment) -> float:
    return moment.draw * min(_CAP_S, _BASE_S * 2.0 ** min(entry.sent - 1, 60))

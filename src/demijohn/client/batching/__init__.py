"""Many requests in one, for requests and httpx.

Theory of operation. A caller's request becomes an :class:`~.entries.Entry`, if :mod:`admission`
finds that it can be part of a batch. Entries of one lane (the same origin, Authorization and
Cookie) may share a batch. :meth:`~.flow.Engine.exchange` carries a list of them through one
exchange: it yields what is to be sent and is given what came of it, and leaves with each entry a
verdict: its answer, an error, "once more later" or "by itself". :mod:`envelope` writes and reads
batches, :mod:`verdicts` judges replies, :mod:`queue` orders what an explicit batch sends. None of
these does I/O, and clocks and chance come from outside; the modules below know a library each.

======================  ===========================================================================
``sessions``            ``Batching``: explicit, over a session of requests
``clients``             ``HttpxBatching``, ``AsyncHttpxBatching``: explicit, over a client of httpx
``adapter``             ``BatchAdapter``: under a session of requests, for threads
``transports``          ``BatchTransport``: under a client of httpx, for threads
``async_transport``     ``AsyncBatchTransport``: under an asynchronous client of httpx, for tasks
======================  ===========================================================================
"""

from __future__ import annotations

from .errors import BatchDependencyError, BatchError, BatchPending, BatchProtocolError

__all__ = ["BatchDependencyError", "BatchError", "BatchPending", "BatchProtocolError"]

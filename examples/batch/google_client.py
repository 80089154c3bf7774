"""Three requests in one, by Google's client; the only argument is where the API is."""

from __future__ import annotations

import sys
from typing import Any

import httplib2
from googleapiclient.http import BatchHttpRequest, HttpRequest
from googleapiclient.model import JsonModel

model = JsonModel()
http = httplib2.Http()


def ask(method: str, uri: str, body: Any = None) -> HttpRequest:
    """Make a request as the methods of a service built by ``discovery.build`` do."""
    headers, _, query, content = model.request({}, {}, {}, body)
    return HttpRequest(
        http, model.response, uri + query, method=method, body=content, headers=headers
    )


def show(name: str, response: Any, error: Exception | None) -> None:
    """Print what became of one request."""
    print(name, response if error is None else error)


def main(api: str) -> None:
    """Send the batch."""
    batch = BatchHttpRequest(callback=show, batch_uri=f"{api}/batch")
    batch.add(ask("PUT", f"{api}/cats/tom", {"colour": "grey"}), request_id="tom")
    batch.add(ask("GET", f"{api}/cats/tim"), request_id="tim")
    batch.add(ask("GET", f"{api}/cats/nobody"), request_id="nobody")
    batch.execute(http=http)


if __name__ == "__main__":
    main(sys.argv[1])

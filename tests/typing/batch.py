"""Options of batches are typed; read by mypy and pyright, never run.

Each `type: ignore` is a test as well: both checkers report one that is not needed.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from datetime import timedelta
from typing import assert_type

import requests
from flask import Flask

from demijohn import Batch, Demijohn, add_batch_route
from demijohn.batch import BatchOptions, Membership, current_part
from demijohn.client import Batching

app = Flask(__name__)
options: BatchOptions = {"url": ["/batch", "/$batch"], "deadline": timedelta(seconds=5)}
dj = Demijohn(app, batch=options)
assert_type(dj.batch, Batch | None)
alone = Batch(app, stores="memory://", max_parts=20, on_excess="reject")
assert_type(add_batch_route(app, "/many", workers=4), Batch)
assert_type(current_part(), Membership | None)

add_batch_route(app, max_part=5)  # type: ignore[call-arg]
Batch(app, on_excess="none")  # type: ignore[arg-type]
Demijohn(app, batch={"cookies": "drop"})  # type: ignore[arg-type]


def explicit() -> int:
    with Batching("https://api.example.com/batch", requests.Session(), format="json") as batch:
        response: requests.Response = batch.get("/people", id="a", depends_on=["b"])
    return response.status_code

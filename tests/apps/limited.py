"""An app whose limits several processes share."""

from __future__ import annotations

import os
import time

from flask import Flask

from demijohn import Demijohn


def create_app() -> Flask:
    """Make the app: ``/`` may be asked fifty times an hour, ``/slow`` by two at a time."""
    app = Flask(__name__)
    app.secret_key = "of all workers"
    dj = Demijohn(app, stores=os.environ["DEMIJOHN_TEST_STORE"])

    @app.get("/")
    @dj.limit("50/hour")
    def quick() -> dict[str, int]:
        return {"pid": os.getpid()}

    @app.get("/slow")
    @dj.concurrent(2, by="all", lease=2)
    def slow() -> dict[str, int]:
        time.sleep(1.0)
        return {"pid": os.getpid()}

    @app.get("/hang")
    @dj.concurrent(1, by="all", lease=1)
    def hang() -> dict[str, int]:
        time.sleep(60)
        return {"pid": os.getpid()}

    return app

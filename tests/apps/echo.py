"""The least app that shows in which process it runs."""

from __future__ import annotations

import os
import time

from flask import Flask, request


def create_app() -> Flask:
    """Make the app: ``/`` says who serves and with what environment, ``/slow`` takes its time."""
    app = Flask(__name__)

    @app.get("/")
    def who() -> dict[str, object]:
        return {"pid": os.getpid(), "word": os.environ.get("DEMIJOHN_ECHO", "")}

    @app.get("/slow")
    def slow() -> dict[str, object]:
        time.sleep(float(request.args.get("seconds", "0.2")))
        return {"pid": os.getpid()}

    return app

"""An API of cats that takes batches."""

from __future__ import annotations

from typing import Any

from flask import Flask, request

from demijohn import Demijohn

app = Flask(__name__)
app.secret_key = "a long random value"
Demijohn(app, stores="memory://", batch={})

cats: dict[str, dict[str, Any]] = {"tim": {"name": "tim", "colour": "red"}}


@app.put("/cats/<name>")
def put_cat(name: str) -> dict[str, Any]:
    """Add a cat, or paint it."""
    cats[name] = {"name": name, "colour": request.get_json()["colour"]}
    return cats[name]


@app.get("/cats/<name>")
def get_cat(name: str) -> Any:
    """Show a cat."""
    if name not in cats:
        return {"error": {"code": 404, "message": "there is no such cat"}}, 404
    return cats[name]

"""What can be known of the server that runs the application."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def server_threads(argv: Sequence[str], environ: Mapping[str, str]) -> int | None:
    """Return how many threads serve requests in this process, where that can be known.

    gunicorn's ``--threads`` is read from the command line and from ``GUNICORN_CMD_ARGS``.
    """
    words = [*environ.get("GUNICORN_CMD_ARGS", "").split(), *argv]
    threads: int | None = None
    for index, word in enumerate(words):
        value = word.removeprefix("--threads=")
        if word == "--threads":
            value = words[index + 1] if index + 1 < len(words) else ""
        if value != word and value.isdigit():
            threads = int(value)
    return threads

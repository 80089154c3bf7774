"""A payments API under four workers and a hostile client, and what the ledger says in the end.

    python examples/payments/demo.py [--store URL] [--guard on|off] [--help]

Exit status: 0 if the run showed what it should (guarded, every payment was made exactly once;
unguarded, some were made twice), 1 if not, 2 if it could not be run.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from types import FrameType

from customers import AT_ONCE, Customers
from plan import Plan, Tally
from screen import Screen
from server import HOST, WORKERS, CannotRun, Server, kill_workers
from verdict import Verdict, conclude, report

from demijohn.errors import DemijohnError
from demijohn.stores import open_store


def play(plan: Plan, interrupts: Interrupts) -> int:
    """Play the scenario; return the exit status."""
    check_store(plan.store)
    tally = Tally()
    with Server(plan, interrupts.check) as server:
        introduce(plan, server)
        torment(plan, server, tally, interrupts)
        server.stop()
        verdict = Verdict.of(plan.intents(), server.ledger)
        notes, log = server.notes(), server.log()
    print("\n".join(report(plan, tally, verdict, notes)))
    right, words = conclude(plan, tally, verdict)
    if not right:
        print("\n".join(log.splitlines()[-40:]), file=sys.stderr)
    print(words)
    return 0 if right else 1


def check_store(url: str) -> None:
    """Find out early that a store cannot be used."""
    if url.startswith("memory:"):
        raise CannotRun("memory:// is one process's own; four need a store that they share")
    if not url or url.startswith("sqlite:"):
        return
    try:
        with closing(open_store(url)) as store:
            health = store.health()
    except DemijohnError as error:
        raise CannotRun(str(error)) from error
    if not health.ok:
        raise CannotRun(f"the store does not answer: {health.detail}")


def introduce(plan: Plan, server: Server) -> None:
    """Say what is going on."""
    store = plan.store.rpartition("@")[2] or "the default, an SQLite file"
    guard = f"Demijohn on {store}" if plan.guarded else "nothing (GUARD=off)"
    print(f"A payments API under {WORKERS} gunicorn workers.")
    print(f"  guarded by  {guard}")
    print(f"  payments    {plan.payments}, each with {plan.duplicates} concurrent duplicates")
    print(f"  killer      {plan.kills} times kill -9, seed {plan.seed}")
    print(f"  server      port {server.port}, process group {server.group}", flush=True)


def torment(plan: Plan, server: Server, tally: Tally, interrupts: Interrupts) -> None:
    """Let the customers and the killer loose until every payment is settled."""
    over = threading.Event()
    customers = Customers(plan, HOST, server.port, tally, over)
    killer = threading.Thread(target=kill_workers, args=(plan, server, tally, over))
    screen = Screen(plan, server, tally)
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        killer.start()
        settling = [pool.submit(customers.settle, intent) for intent in plan.intents()]
        watch(settling, screen, interrupts)
    except BaseException:
        over.set()
        server.stop(at_once=True)  # what is under way loses its connection, and so its thread ends
        raise
    finally:
        screen.clear()
        over.set()
        pool.shutdown(cancel_futures=True)
        customers.close()
        killer.join()


def watch(settling: Sequence[Future[None]], screen: Screen, interrupts: Interrupts) -> None:
    """Show the progress until all is done."""
    left: set[Future[None]] = set(settling)
    while left:
        interrupts.check()
        done, left = wait(left, timeout=0.1)
        for future in done:
            future.result()
        screen.draw()


# --- the command line ---------------------------------------------------------------------------


def parse(arguments: Sequence[str]) -> Plan:
    """Read the command line; an empty value is the default, as make gives it."""
    parser = argparse.ArgumentParser(prog="demo.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--store", default="", metavar="URL", help="such as redis://localhost")
    parser.add_argument("--guard", default="on", choices=("on", "off", ""), help="default: on")
    defaults = {"payments": 100, "duplicates": 5, "kills": 12, "seed": random.randrange(10_000)}
    for name, default in defaults.items():
        shown = "drawn" if name == "seed" else default
        parser.add_argument(f"--{name}", default="", metavar="N", help=f"default: {shown}")
    parser.add_argument("--plain", action="store_true", help="no live display")
    given = parser.parse_args(arguments)
    numbers = {name: getattr(given, name) or str(default) for name, default in defaults.items()}
    for name, value in numbers.items():
        if not value.isdecimal():
            parser.error(f"--{name} must be a number of 0 or more, not {value!r}")
    if int(numbers["payments"]) < 1:
        parser.error("--payments must be at least 1")
    return Plan(
        store=given.store,
        guarded=given.guard != "off",
        plain=given.plain,
        **{name: int(value) for name, value in numbers.items()},
    )


class Interrupts:
    """The signals that ask for an end: noted when they come, raised where that is safe.

    A handler that raises would do so anywhere, also while a lock is being taken or given back.
    """

    def __init__(self) -> None:
        self._asked = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._note)

    def check(self) -> None:
        """Raise if the end was asked for.

        Raises:
            KeyboardInterrupt: it was.
        """
        if self._asked:
            raise KeyboardInterrupt

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True


def main() -> int:
    """Run the demo."""
    plan = parse(sys.argv[1:])
    try:
        return play(plan, Interrupts())
    except CannotRun as error:
        print(f"The demo cannot run: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted; everything was stopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())

"""The record of a key commits with the rows of its view, or neither does."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask import Response, abort, stream_with_context
from sqlalchemy import Engine, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from demijohn import idempotency
from demijohn.idempotency import signals
from demijohn.records.tables import keys
from tests.acceptance.conftest import heard, new_key
from tests.atomic.shop import Order, Shop

Make = Callable[..., Shop]


def replayed(response: Any) -> bool:
    return bool(response.headers.get("Idempotent-Replayed") == "true")


# --- one run ------------------------------------------------------------------------------------


def test_retry_gets_the_first_response_and_writes_nothing(shop: Shop) -> None:
    key = new_key()
    first = shop.post(key)
    again = shop.post(key)
    assert (first.status_code, replayed(first)) == (201, False)
    assert (again.data, again.status_code, replayed(again)) == (first.data, 201, True)
    assert (shop.orders(), shop.records()) == (["tea"], 1)


def test_without_a_key_the_view_commits_as_ever(shop: Shop) -> None:
    assert shop.post(None).status_code == 201
    assert (shop.orders(), shop.records()) == (["tea"], 0)


def test_another_request_with_the_key_is_refused(shop: Shop) -> None:
    key = new_key()
    shop.post(key)
    assert shop.post(key, what="coffee").status_code == 422
    assert shop.orders() == ["tea"]


def test_first_request_is_two_statements_more_and_one_commit(
    shop: Shop, statements: list[str]
) -> None:
    shop.post(None)
    bare = [word for word in statements if word in {"INSERT", "UPDATE", "SELECT", "WITH", "SET"}]
    shop.post(new_key())
    statements.clear()
    shop.post(new_key())
    work = [word for word in statements if word in {"INSERT", "UPDATE", "SELECT", "WITH", "SET"}]
    assert len(work) == len(bare) + 2
    assert statements.count("COMMIT") == 1
    # The view's own commit is a savepoint that is released.
    assert statements.count("SAVEPOINT") == statements.count("RELEASE") == 1


def test_replay_is_one_statement_and_no_commit(shop: Shop, statements: list[str]) -> None:
    key = new_key()
    shop.post(key)
    statements.clear()
    shop.post(key)
    assert [word for word in statements if word != "BEGIN"] in (
        ["INSERT", "ROLLBACK all"],
        ["WITH", "ROLLBACK all"],
        ["SET", "ROLLBACK all"],
    )


# --- what the view commits and undoes -----------------------------------------------------------


def test_view_may_commit_and_roll_back_as_it_likes(shop: Shop) -> None:
    def view() -> Any:
        with shop.make_session() as session:
            session.add(Order(what="one"))
            session.commit()
            session.add(Order(what="undone"))
            session.flush()
            session.rollback()
            session.add(Order(what="two"))
            session.commit()
            session.add(Order(what="never committed"))
            session.flush()
        return {}, 201

    shop.add("/view", view)
    key = new_key()
    assert shop.post(key, "/view").status_code == 201
    assert replayed(shop.post(key, "/view"))
    assert shop.orders() == ["one", "two"]


def test_work_that_is_still_open_when_the_view_ends_is_not_committed(shop: Shop) -> None:
    kept: list[Session] = []

    def view() -> Any:
        session = shop.make_session()
        kept.append(session)  # a session that somebody else will close
        session.add(Order(what="open"))
        session.flush()
        return {}, 201

    shop.add("/view", view)
    shop.post(new_key(), "/view")
    kept[0].close()
    assert (shop.orders(), shop.records()) == ([], 1)


def test_nested_transactions_of_the_view_are_its_own(shop: Shop) -> None:
    def view() -> Any:
        with shop.make_session() as session:
            session.add(Order(what="kept"))
            nested = session.begin_nested()
            session.add(Order(what="undone"))
            session.flush()
            nested.rollback()
            with session.begin_nested():
                session.add(Order(what="nested"))
            session.commit()
        return {}, 201

    shop.add("/view", view)
    shop.post(new_key(), "/view")
    assert shop.orders() == ["kept", "nested"]


@pytest.mark.parametrize("status", [500, 503, 401, 409, 429])
def test_response_that_is_not_stored_undoes_what_the_view_wrote(shop: Shop, status: int) -> None:
    def view() -> Any:
        shop.write("half")
        return {}, status

    shop.add("/view", view)
    key = new_key()
    with heard(signals.released) as seen:
        assert shop.post(key, "/view").status_code == status
    assert (shop.orders(), shop.records(), len(seen)) == ([], 0, 1)
    shop.post(key, "/view")
    assert shop.orders() == []


def test_exception_undoes_what_the_view_wrote(shop: Shop) -> None:
    def view() -> Any:
        shop.write("half")
        raise RuntimeError("the view has a mistake")

    shop.add("/view", view)
    assert shop.post(new_key(), "/view").status_code == 500
    assert (shop.orders(), shop.records()) == ([], 0)


def test_exception_that_passes_flask_undoes_what_the_view_wrote(shop: Shop) -> None:
    def view() -> Any:
        shop.write("half")
        raise RuntimeError("the view has a mistake")

    shop.add("/view", view)
    shop.app.testing = True
    with pytest.raises(RuntimeError, match="mistake"):
        shop.post(new_key(), "/view")
    assert (shop.orders(), shop.records()) == ([], 0)


def test_process_that_is_told_to_end_undoes_what_the_view_wrote(shop: Shop) -> None:
    def view() -> Any:
        shop.write("half")
        raise SystemExit

    shop.add("/view", view)
    with pytest.raises(SystemExit):
        shop.post(new_key(), "/view")
    assert (shop.orders(), shop.records()) == ([], 0)


def test_refusal_by_the_view_is_stored_with_what_it_committed(shop: Shop) -> None:
    def view() -> Any:
        shop.write("attempt")
        abort(422)

    shop.add("/view", view)
    key = new_key()
    first, again = shop.post(key, "/view"), shop.post(key, "/view")
    assert (first.status_code, again.status_code, replayed(again)) == (422, 422, True)
    assert again.data == first.data
    assert shop.orders() == ["attempt"]


def test_after_the_point_of_no_return_an_error_is_stored_too(shop: Shop) -> None:
    def view() -> Any:
        shop.write("done")
        idempotency.effects_done()
        return {"sorry": True}, 500

    shop.add("/view", view)
    key = new_key()
    assert shop.post(key, "/view").status_code == 500
    assert replayed(shop.post(key, "/view"))
    assert shop.orders() == ["done"]


def test_mistake_in_a_statement_that_the_view_survives_does_not_cost_the_record(shop: Shop) -> None:
    def view() -> Any:
        with shop.make_session() as session:
            session.add(Order(id=1, what="one"))
            session.commit()
            session.add(Order(id=1, what="again"))
            with pytest.raises(IntegrityError):
                session.commit()
        return {"error": "exists"}, 422

    shop.add("/view", view)
    key = new_key()
    assert shop.post(key, "/view").status_code == 422
    assert replayed(shop.post(key, "/view"))
    assert shop.orders() == ["one"]


def test_core_statements_through_the_session_join(shop: Shop) -> None:
    def view() -> Any:
        with shop.make_session.begin() as session:
            session.execute(text("INSERT INTO orders (what) VALUES ('core')"))
        return {}, 500

    shop.add("/view", view)
    shop.post(new_key(), "/view")
    assert shop.orders() == []


# --- bodies -------------------------------------------------------------------------------------


def test_streamed_body_is_made_before_the_commit(shop: Shop) -> None:
    def view() -> Any:
        def body() -> Iterator[str]:
            with shop.make_session() as session:
                session.add(Order(what="streamed"))
                session.commit()
                yield from session.scalars(select(Order.what))

        return Response(stream_with_context(body()))

    shop.add("/view", view)
    key = new_key()
    assert shop.post(key, "/view").data == b"streamed"
    assert shop.post(key, "/view").data == b"streamed"
    assert shop.orders() == ["streamed"]


def test_large_body_is_sent_and_not_kept(make_shop: Make) -> None:
    shop = make_shop(max_body=10)
    closed = threading.Event()

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            return iter([b"12345"] * 5)

        def close(self) -> None:
            closed.set()

    shop.add("/view", lambda: Response(Body()))
    key = new_key()
    assert shop.post(key, "/view").data == b"12345" * 5
    assert closed.is_set()
    refused = shop.post(key, "/view")
    assert (refused.status_code, refused.json["original_status"]) == (409, 200)  # type: ignore[index]


def test_body_that_fails_undoes_what_the_view_wrote(shop: Shop) -> None:
    def view() -> Any:
        shop.write("half")

        def body() -> Iterator[bytes]:
            yield b"x"
            raise RuntimeError("in the midst of the body")

        return Response(body())

    shop.add("/view", view)
    assert shop.post(new_key(), "/view").status_code == 500
    assert shop.orders() == []


# --- duplicates ---------------------------------------------------------------------------------


def test_duplicates_wait_in_the_database_and_get_the_first_response(shop: Shop) -> None:
    key = new_key()
    shop.go.clear()
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(shop.post, key) for _ in range(8)]
        assert shop.entered.acquire(timeout=20)
        threading.Event().wait(0.3)
        shop.go.set()
        answers = [future.result(60) for future in futures]
    assert {answer.status_code for answer in answers} == {201}
    assert {answer.data for answer in answers} == {answers[0].data}
    assert sum(map(replayed, answers)) == 7
    assert shop.orders() == ["tea"]


def test_duplicate_runs_when_the_first_one_is_undone(shop: Shop) -> None:
    runs: list[int] = []

    def view() -> Any:
        runs.append(1)
        shop.write(f"run {len(runs)}")
        if len(runs) == 1:
            shop.entered.release()
            assert shop.go.wait(30)
            return {}, 500
        return {}, 201

    shop.add("/view", view)
    key = new_key()
    shop.go.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(shop.post, key, "/view")
        assert shop.entered.acquire(timeout=20)
        second = pool.submit(shop.post, key, "/view")
        threading.Event().wait(0.3)
        shop.go.set()
        assert first.result(60).status_code == 500
        assert second.result(60).status_code == 201
    assert shop.orders() == ["run 2"]


def test_duplicate_that_may_not_wait_is_told_at_once(make_shop: Make) -> None:
    shop = make_shop(wait=0)
    key = new_key()
    shop.go.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(shop.post, key)
        assert shop.entered.acquire(timeout=20)
        with heard(signals.conflicted) as seen:
            second = shop.post(key)
        shop.go.set()
        assert first.result(60).status_code == 201
    assert (second.status_code, len(seen)) == (409, 1)
    assert 1 <= int(second.headers["Retry-After"]) <= 5
    assert replayed(shop.post(key))


def test_duplicates_beyond_the_bound_are_told_at_once(make_shop: Make) -> None:
    shop = make_shop(max_waiters=0)
    key = new_key()
    shop.go.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(shop.post, key)
        assert shop.entered.acquire(timeout=20)
        assert shop.post(key).status_code == 409
        shop.go.set()
        assert first.result(60).status_code == 201


def test_who_waits_too_long_for_another_process_is_told_to_come_back(
    make_shop: Make, engine: Engine
) -> None:
    shop = make_shop(wait=1)
    key = new_key()
    shop.go.clear()
    other = make_shop(wait=1)  # an application that knows nothing of the first one's requests
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(shop.post, key)
        assert shop.entered.acquire(timeout=20)
        assert other.post(key).status_code == 409
        shop.go.set()
        assert first.result(60).status_code == 201
    assert replayed(other.post(key))


def test_other_keys_do_not_wait(shop: Shop, engine: Engine) -> None:
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer: other keys wait for it")
    shop.go.clear()
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(shop.post, new_key()) for _ in range(2)]
        assert shop.entered.acquire(timeout=20)
        assert shop.entered.acquire(timeout=20)  # both are in their views
        shop.go.set()
        assert [future.result(60).status_code for future in futures] == [201, 201]


# --- time ---------------------------------------------------------------------------------------


def age(engine: Engine, by_ms: int) -> None:
    """Let all records be as old as if so much time had passed."""
    with engine.begin() as connection:
        connection.execute(
            update(keys).values(until=keys.c.until - by_ms, expires=keys.c.expires - by_ms)
        )


def test_record_that_is_over_gives_the_key_free(make_shop: Make, engine: Engine) -> None:
    shop = make_shop(ttl=100)
    key = new_key()
    shop.post(key)
    age(engine, 99_000)
    assert replayed(shop.post(key))
    age(engine, 1_000)
    assert not replayed(shop.post(key, what="coffee"))
    assert (shop.orders(), shop.records()) == (["tea", "coffee"], 1)
    assert replayed(shop.post(key, what="coffee"))


def test_tombstone_refuses_the_key_until_it_is_over(make_shop: Make, engine: Engine) -> None:
    shop = make_shop(ttl=100, tombstone=100)
    key = new_key()
    shop.post(key)
    age(engine, 100_000)
    assert shop.post(key).json["type"].endswith("idempotency-key-expired")  # type: ignore[index]
    age(engine, 100_000)
    assert shop.post(key).status_code == 201
    assert shop.orders() == ["tea", "tea"]


def test_record_under_an_earlier_secret_is_found(make_shop: Make) -> None:
    key = new_key()
    make_shop().post(key)
    shop = make_shop()
    binding = shop.app.extensions["demijohn"]
    binding.secrets = (b"a new one".ljust(32), *binding.secrets)
    assert replayed(shop.post(key))
    assert shop.orders() == ["tea"]


def test_damaged_record_is_not_run_for_again(shop: Shop, engine: Engine) -> None:
    key = new_key()
    shop.post(key)
    with engine.begin() as connection:
        connection.execute(update(keys).values(frame=b"\x02"))
    with heard(signals.corrupt) as seen:
        assert shop.post(key).status_code == 500
    assert (shop.orders(), len(seen)) == (["tea"], 1)


# --- sessions of every kind ---------------------------------------------------------------------


def test_scoped_session(make_shop: Make, engine: Engine) -> None:
    scoped = scoped_session(sessionmaker(engine))
    shop = make_shop(db=scoped)

    def view() -> Any:
        scoped.add(Order(what="scoped"))
        scoped.commit()
        return {}, 201

    shop.add("/view", view)
    shop.app.teardown_appcontext(lambda _: scoped.remove())
    key = new_key()
    shop.post(key, "/view")
    assert replayed(shop.post(key, "/view"))
    assert shop.orders() == ["scoped"]


def test_hook_that_has_read_before_the_view_does_not_keep_it_out(
    make_shop: Make, engine: Engine
) -> None:
    scoped = scoped_session(sessionmaker(engine))
    shop = make_shop(db=scoped)
    runs: list[int] = []

    @shop.app.before_request
    def read() -> None:
        scoped.scalars(select(Order)).all()

    def view() -> Any:
        runs.append(1)
        scoped.add(Order(what="scoped"))
        scoped.commit()
        return {}, 500

    shop.add("/view", view)
    shop.app.teardown_appcontext(lambda _: scoped.remove())
    shop.post(new_key(), "/view")
    assert (runs, shop.orders()) == ([1], [])


def test_sessions_of_other_databases_are_left_alone(shop: Shop, tmp_path: Path) -> None:
    from sqlalchemy import create_engine

    other = create_engine(f"sqlite:///{tmp_path}/other.db")
    Order.metadata.create_all(other)
    elsewhere = sessionmaker(other)

    def view() -> Any:
        with elsewhere() as session:
            session.add(Order(what="elsewhere"))
            session.commit()
        shop.write("here")
        return {}, 500

    shop.add("/view", view)
    shop.post(new_key(), "/view")
    assert shop.orders() == []
    with elsewhere() as session:
        assert session.scalars(select(Order.what)).all() == ["elsewhere"]
    other.dispose()


def test_thread_that_the_view_starts_has_a_transaction_of_its_own(
    shop: Shop, engine: Engine
) -> None:
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer: the thread would wait for the view")

    def view() -> Any:
        thread = threading.Thread(target=shop.write, args=["its own"])
        thread.start()
        thread.join(30)
        return {}, 500

    shop.add("/view", view)
    shop.post(new_key(), "/view")
    assert shop.orders() == ["its own"]


def test_thread_that_takes_the_request_along_joins(shop: Shop) -> None:
    def view() -> Any:
        context = contextvars.copy_context()  # as asyncio.to_thread does
        thread = threading.Thread(target=context.run, args=[shop.write, "joined"])
        thread.start()
        thread.join(30)
        return {}, 500

    shop.add("/view", view)
    shop.post(new_key(), "/view")
    assert shop.orders() == []


def test_request_that_the_view_makes_of_its_own_application_does_not_join(
    shop: Shop, engine: Engine
) -> None:
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer: the inner request would wait for the outer one")

    def view() -> Any:
        shop.post(new_key(), what="inner")
        shop.write("outer")
        return {}, 500

    shop.add("/view", view)
    shop.post(new_key(), "/view")
    assert shop.orders() == ["inner"]


@pytest.mark.usefixtures("needs_async")
def test_async_view(shop: Shop) -> None:
    async def view() -> Any:
        shop.write("from a coroutine")
        return {}, 201 if len(shop.orders()) == 0 else 500

    async def failing() -> Any:
        shop.write("undone")
        abort(500)

    shop.add("/view", view)
    shop.add("/failing", failing)
    key = new_key()
    assert shop.post(key, "/view").status_code == 201
    assert replayed(shop.post(key, "/view"))
    assert shop.post(new_key(), "/failing").status_code == 500
    assert shop.orders() == ["from a coroutine"]


def test_sessions_after_the_request_are_not_affected(shop: Shop) -> None:
    shop.post(new_key())
    shop.write("later")
    assert shop.orders() == ["tea", "later"]

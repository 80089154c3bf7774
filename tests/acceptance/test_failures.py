"""What happens when the store, the configuration or a record is not as it should be."""

from __future__ import annotations

import logging
import stat
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from demijohn import Demijohn, Idempotency, Principal, idempotency
from demijohn.core.idempotency import State
from demijohn.errors import (
    ConfigError,
    CorruptRecord,
    StoreTimeout,
    StoreUnavailable,
    UsageError,
)
from demijohn.extension import bind, register
from demijohn.idempotency import policy, signals
from demijohn.idempotency.forms import idempotent_input
from tests.acceptance.conftest import Bank, FailingStore, heard, new_key, together

Make = Callable[..., Bank]
DOWN = StoreUnavailable("the store is down")


@pytest.fixture
def store() -> FailingStore:
    return FailingStore()


def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    """Wait until ``condition`` holds."""
    for _ in range(int(seconds * 100)):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never became so")


# --- the store ----------------------------------------------------------------------------------


def test_store_down_before_the_view_refuses_the_request(
    lone_bank: Make, store: FailingStore
) -> None:
    bank = lone_bank(store=store)
    store.fails["begin"] = DOWN
    key = new_key()
    with heard(signals.store_failed) as seen:
        answer = bank.post(key)
    assert answer.status_code == 503
    assert answer.get_json(force=True)["type"].endswith("#store-unavailable")
    assert answer.headers["Retry-After"] == "1"
    assert bank.runs == 0
    assert seen[0][1]["phase"] == "before"
    assert seen[0][1]["error"] is DOWN
    del store.fails["begin"]
    assert bank.post(key).status_code == 201


def test_store_down_before_the_view_may_leave_it_unprotected(
    lone_bank: Make, store: FailingStore, caplog: pytest.LogCaptureFixture
) -> None:
    bank = lone_bank(store=store, on_store_failure="open")
    store.fails["begin"] = DOWN
    with heard(signals.unprotected) as seen:
        assert bank.post(new_key()).status_code == 201
    assert len(seen) == 1
    assert "unprotected" in caplog.text


def test_claim_made_in_doubt_keeps_the_result_of_the_view_that_ran_unprotected(
    lone_bank: Make, store: FailingStore
) -> None:
    bank = lone_bank(store=store, on_store_failure="open", wait=20)
    store.loses["begin"] = StoreTimeout("no reply in time")
    key = new_key()
    assert bank.post(key).json == {"run": 1}
    retried = bank.post(key)  # it waits until the result is written
    assert (retried.json, retried.headers["Idempotent-Replayed"]) == ({"run": 1}, "true")
    assert bank.runs == 1


def test_claim_made_in_doubt_is_given_back_if_the_view_fails(
    lone_bank: Make, store: FailingStore
) -> None:
    bank = lone_bank(store=store, on_store_failure="open", wait=20)
    bank.add("/fails", lambda: ("no", 500))
    store.loses["begin"] = StoreTimeout("no reply in time")
    key = new_key()
    assert bank.post(key, "/fails").status_code == 500
    until(lambda: ("release",) in store.calls)
    assert [row["s"] for _, row in store.scan("")] == [State.ABSENT]


def test_claim_made_in_doubt_is_kept_without_the_body_of_a_stream(
    lone_bank: Make, store: FailingStore
) -> None:
    bank = lone_bank(store=store, on_store_failure="open", wait=20)
    bank.add("/stream", lambda: iter([b"a", b"b"]))
    store.loses["begin"] = StoreTimeout("no reply in time")
    key = new_key()
    assert bank.post(key, "/stream").data == b"ab"
    retried = bank.post(key, "/stream")
    assert retried.json["original_status"] == 200
    assert retried.status_code >= 400


@pytest.mark.parametrize("policy", ["closed", "open"])
def test_duplicate_of_a_running_request_never_runs_beside_it(
    lone_bank: Make, store: FailingStore, policy: str
) -> None:
    bank = lone_bank(store=store, on_store_failure=policy, max_waiters=1)
    key = new_key()
    bank.go.clear()
    with together(2) as start, heard(signals.unprotected) as seen:
        first = start(bank.post, key)
        assert bank.entered.acquire(timeout=10)
        second = start(bank.post, key)
        until(lambda: len(store.calls) == 2)  # it knows by now that the first one runs
        store.fails["begin"] = DOWN
        assert second.result(30).status_code == 503
        bank.go.set()
        assert first.result(30).status_code == 201
    assert (bank.runs, seen) == (1, [])


def test_damaged_record_is_not_run_for_again_where_failures_let_views_run(
    lone_bank: Make, store: FailingStore
) -> None:
    bank = lone_bank(store=store, on_store_failure="open")
    key = new_key()
    bank.post(key)
    ((_, row),) = store.scan("")
    row["r"] = b"\x02"  # type: ignore[index]
    assert bank.post(key).status_code == 500
    assert bank.runs == 1


@pytest.mark.parametrize(("pause_ms", "seconds"), [(None, "1"), (250, "1"), (2001, "3")])
def test_client_is_told_when_the_store_may_be_back(
    lone_bank: Make, store: FailingStore, pause_ms: int | None, seconds: str
) -> None:
    bank = lone_bank(store=store)
    error = StoreUnavailable("its circuit is open")
    error.retry_after_ms = pause_ms
    store.fails["begin"] = error
    assert bank.post(new_key()).headers["Retry-After"] == seconds


def test_request_without_a_key_does_not_need_the_store(
    lone_bank: Make, store: FailingStore
) -> None:
    bank = lone_bank(store=store)
    store.fails["begin"] = DOWN
    assert bank.post().status_code == 201
    assert store.calls == []


def test_claim_whose_reply_was_lost_is_given_back(lone_bank: Make, store: FailingStore) -> None:
    bank = lone_bank(store=store, wait=0)
    store.loses["begin"] = StoreTimeout("no reply in time")
    key = new_key()
    assert bank.post(key).status_code == 503
    assert bank.runs == 0
    until(lambda: bank.post(key).status_code == 201)
    assert bank.runs == 1


def test_store_down_after_the_view_delivers_the_result_when_it_is_back(
    lone_bank: Make, store: FailingStore, caplog: pytest.LogCaptureFixture
) -> None:
    bank = lone_bank(store=store, wait=0)
    store.fails["complete"] = DOWN
    key = new_key()
    with heard(signals.store_failed, signals.completed) as seen:
        assert bank.post(key).json == {"run": 1}
        assert bank.post(key).status_code == 409  # still claimed: no second run
        until(lambda: store.calls.count(("complete",)) >= 2)
        del store.fails["complete"]
        until(lambda: len(seen) == 2)
    assert [details.get("phase") for _, details in seen] == ["after", None]
    assert bank.post(key).headers["Idempotent-Replayed"] == "true"
    assert bank.runs == 1
    assert caplog.text.count("could not store the result") == 1


def test_result_that_can_never_be_stored_is_told_as_lost(
    lone_bank: Make, store: FailingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "DELIVER_FOR_MS", 0)
    bank = lone_bank(store=store)
    store.fails["complete"] = DOWN
    with heard(signals.lost) as seen:
        assert bank.post(new_key()).status_code == 201
        until(lambda: seen)


def test_completion_whose_reply_was_lost_is_made_once(lone_bank: Make, store: FailingStore) -> None:
    bank = lone_bank(store=store, wait=5)
    store.loses["complete"] = StoreTimeout("no reply in time")
    key = new_key()
    assert bank.post(key).json == {"run": 1}
    assert bank.post(key).json == {"run": 1}
    until(lambda: store.calls.count(("complete",)) == 2)
    assert bank.runs == 1


def test_open_deliveries_are_tried_once_more_at_the_end(
    lone_bank: Make, store: FailingStore
) -> None:
    bank = lone_bank(store=store)
    store.fails["complete"] = DOWN
    key = new_key()
    bank.post(key)
    del store.fails["complete"]
    bank.app.extensions["demijohn"].keeper.stop()
    assert bank.post(key).headers["Idempotent-Replayed"] == "true"


def test_store_that_fails_after_a_stream_delivers_too(lone_bank: Make, store: FailingStore) -> None:
    bank = lone_bank(store=store)
    bank.add("/stream", lambda: iter([b"a", b"b"]))
    store.fails["complete"] = DOWN
    key = new_key()
    assert bank.post(key, "/stream").data == b"ab"
    del store.fails["complete"]
    until(lambda: next(store.scan(""))[1]["s"] == 2)


def test_failed_renewal_is_tried_again(
    lone_bank: Make, store: FailingStore, caplog: pytest.LogCaptureFixture
) -> None:
    bank = lone_bank(store=store, lease=0.6, wait=0)
    bank.go.clear()
    key = new_key()
    thread = threading.Thread(target=bank.post, args=[key])
    store.fails["renew"] = DOWN
    thread.start()
    assert bank.entered.acquire(timeout=10)
    until(lambda: "could not renew" in caplog.text)
    del store.fails["renew"]
    threading.Event().wait(1.0)
    assert bank.post(key).status_code == 409
    bank.go.set()
    thread.join(30)
    assert bank.runs == 1


@pytest.mark.parametrize("damage", [b"", b"\x02", b"\x01\x93", b"\x01\x93\xcc\x07\x90\xc4\x00"])
def test_damaged_record_is_an_error_and_never_a_second_run(
    lone_bank: Make, store: FailingStore, damage: bytes
) -> None:
    bank = lone_bank(store=store)
    key = new_key()
    bank.post(key)
    ((_, row),) = store.scan("")
    row["r"] = damage  # type: ignore[index]
    with heard(signals.corrupt) as seen:
        answer = bank.post(key)
    assert answer.status_code == 500
    assert answer.get_json(force=True)["type"].endswith("#idempotency-record-unreadable")
    assert bank.runs == 1
    assert len(seen) == 1


def test_altered_header_is_never_sent(lone_bank: Make, store: FailingStore) -> None:
    bank = lone_bank(store=store)
    bank.add("/header", lambda: ("x", 200, {"X-Own": "abcd"}))
    key = new_key()
    bank.post(key, "/header")
    ((_, row),) = store.scan("")
    row["r"] = row["r"].replace(b"abcd", b"a\r\nb")  # type: ignore[index, union-attr]
    answer = bank.post(key, "/header")
    assert answer.get_json(force=True)["type"].endswith("#idempotency-record-unreadable")


def test_damaged_result_of_the_winner_is_an_error_for_the_loser(
    lone_bank: Make, store: FailingStore
) -> None:
    bank = lone_bank(store=store, lease=0.2)
    key, late = new_key(), threading.Event()

    def view() -> Any:
        if idempotency.current.attempt == 1:
            bank.entered.release()
            assert late.wait(30)
        return "x"

    bank.add("/lost", view)
    bank.app.extensions["demijohn"].keeper.keep = lambda *a, **k: None
    with together(1) as start, heard(signals.fenced, signals.corrupt) as seen:
        first = start(bank.post, key, "/lost")
        assert bank.entered.acquire(timeout=10)
        assert bank.post(key, "/lost").status_code == 200
        ((_, row),) = store.scan("")
        row["r"] = b"\x02"  # type: ignore[index]
        late.set()
        answer = first.result(30)
    assert answer.get_json(force=True)["type"].endswith("#idempotency-record-unreadable")
    assert [name for name, _ in seen] == ["idempotency-fenced", "idempotency-corrupt"]


def test_damaged_row_is_an_error_too(lone_bank: Make, store: FailingStore) -> None:
    bank = lone_bank(store=store)
    store.fails["begin"] = CorruptRecord("row x cannot be read")
    assert bank.post(new_key()).status_code == 500
    assert bank.runs == 0


# --- problems -----------------------------------------------------------------------------------


def test_refusals_reach_the_error_handlers_of_the_application(lone_bank: Make) -> None:
    bank = lone_bank(required=True)
    bank.app.register_error_handler(400, lambda error: (f"mine: {error.problem.title}", 400))
    assert bank.post().text == "mine: An idempotency key is required"
    other = lone_bank(required=True)
    other.app.register_error_handler(idempotency.KeyMissing, lambda error: ("exactly", 418))
    assert other.post().status_code == 418


def test_all_errors_of_an_application_may_become_problems(tmp_path: Path) -> None:
    app = Flask("problems", instance_path=str(tmp_path))
    Demijohn(app, stores="memory://", problems=True)

    @app.get("/fails")
    def fails() -> str:
        raise RuntimeError("secret detail")

    client = app.test_client()
    cases = [("/no", "GET", 404), ("/fails", "POST", 405), ("/fails", "GET", 500)]
    for path, method, status in cases:
        answer = client.open(path, method=method)
        assert answer.status_code == status
        assert answer.mimetype == "application/problem+json"
        document = answer.get_json(force=True)
        assert (document["type"], document["status"]) == ("about:blank", status)
        assert b"secret" not in answer.data
    assert "GET" in client.post("/fails").headers["Allow"]


def test_redirects_and_ready_responses_stay_as_they_are(tmp_path: Path) -> None:
    from flask import abort, make_response

    app = Flask("problems", instance_path=str(tmp_path))
    app.config["DEMIJOHN"] = {"problems": True}
    Demijohn(app, stores="memory://")
    app.get("/folder/", endpoint="folder")(lambda: "x")
    app.get("/ready", endpoint="ready")(lambda: abort(make_response("ready", 409)))
    client = app.test_client()
    assert client.get("/folder").status_code == 308
    assert client.get("/ready").text == "ready"


def test_types_of_problems_may_live_elsewhere(tmp_path: Path) -> None:
    app = Flask("problems", instance_path=str(tmp_path))
    app.config["DEMIJOHN"] = {"problem_base": "https://api.example.com/problems/"}
    dj = Demijohn(app, stores="memory://")
    app.add_url_rule("/", view_func=dj.idempotent(required=True)(lambda: "x"), methods=["POST"])
    document = app.test_client().post("/").get_json(force=True)
    assert document["type"] == "https://api.example.com/problems/idempotency-key-missing"


# --- configuration ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"DEMIJOHN": {"problms": True}}, "did you mean 'problems'"),
        ({"DEMIJOHN": 7}, "DEMIJOHN must be a dict"),
        ({"DEMIJOHN": {"principal": 7}}, "DEMIJOHN['principal'] must be callable"),
        ({"DEMIJOHN": {"problems": 1}}, "true or false"),
        ({"DEMIJOHN_STORES": 7}, "DEMIJOHN_STORES must be"),
        ({"DEMIJOHN_STORES": {"defualt": "memory://"}}, "did you mean 'default'"),
        ({"DEMIJOHN_STORES": {"default": 7}}, "neither a URL nor a store"),
        ({"DEMIJOHN_STORES": "memori://"}, "unknown scheme"),
        ({"DEMIJOHN_IDEMPOTENCY": 7}, "must be a dict"),
        ({"DEMIJOHN_IDEMPOTENCY": {"wiat": 7}}, "did you mean 'wait'"),
        ({"DEMIJOHN_IDEMPOTENCY": {"wait": "7"}}, "['wait'] must be a timedelta"),
        ({"DEMIJOHN_IDEMPOTENCY": {"wait": True}}, "['wait'] must be a timedelta"),
        ({"DEMIJOHN_IDEMPOTENCY": {"lease": 0.01}}, "at least 0.1 s"),
        ({"DEMIJOHN_IDEMPOTENCY": {"max_body": -1}}, "integer of at least 0"),
        ({"DEMIJOHN_IDEMPOTENCY": {"required": 1}}, "true or false"),
        ({"DEMIJOHN_IDEMPOTENCY": {"on_lost": "maybe"}}, "one of run, refuse"),
        ({"DEMIJOHN_IDEMPOTENCY": {"store": "most"}}, "'final', 'all'"),
        ({"DEMIJOHN_IDEMPOTENCY": {"store": [9]}}, "'final', 'all'"),
        ({"DEMIJOHN_IDEMPOTENCY": {"fingerprint": ["amount"]}}, "not a JSON Pointer"),
        ({"DEMIJOHN_IDEMPOTENCY": {"fingerprint": 7}}, "JSON Pointers"),
        ({"DEMIJOHN_IDEMPOTENCY": {"key_pattern": "["}}, "regular expression"),
        ({"DEMIJOHN_IDEMPOTENCY": {"key_pattern": 7}}, "regular expression"),
        ({"DEMIJOHN_IDEMPOTENCY": {"scope": "tenant"}}, "must be callable"),
        ({"DEMIJOHN_IDEMPOTENCY": {"headers": [1]}}, "strings"),
        ({"DEMIJOHN_IDEMPOTENCY": {"headers": 1}}, "strings"),
        ({"DEMIJOHN_IDEMPOTENCY": {"form_field": ""}}, "not empty"),
        ({"SECRET_KEY": 7}, "strings or bytes"),
        ({"SECRET_KEY": "a", "SECRET_KEY_FALLBACKS": "b"}, "list of earlier secrets"),
        ({"IDEMPOTENT_TIMEOUT": "soon"}, "IDEMPOTENT_TIMEOUT"),
    ],
)
def test_wrong_setting_is_named_and_nothing_is_registered(
    tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    app = Flask("wrong", instance_path=str(tmp_path))
    app.config.update({"DEMIJOHN_STORES": "memory://", **config})
    with pytest.raises(ConfigError) as caught:
        Demijohn(app)
    assert words in str(caught.value)
    assert app.extensions == {}


def test_wrong_option_of_a_decorator_is_named_where_it_stands() -> None:
    idem = Idempotency()
    with pytest.raises(ConfigError, match=r"@idempotent has the unknown setting 'requierd'"):
        idem.idempotent(requierd=True)  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match=r"Idempotency\(\)\['ttl'\]"):
        Idempotency(ttl=0)
    with pytest.raises(ConfigError, match="callable"):
        Demijohn(principal=7)  # type: ignore[arg-type]


def test_environment_may_hold_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASK_DEMIJOHN_IDEMPOTENCY__wait", "2.5")
    monkeypatch.setenv("FLASK_DEMIJOHN_IDEMPOTENCY__REQUIRED", "true")
    monkeypatch.setenv("FLASK_DEMIJOHN_STORES", "memory://")
    app = Flask("env", instance_path=str(tmp_path))
    app.config.from_prefixed_env()
    Demijohn(app)
    settings = app.extensions["demijohn"].capabilities["idempotency"].settings
    assert (settings.wait_ms, settings.required) == (2500, True)


def test_later_level_wins(tmp_path: Path) -> None:
    app = Flask("levels", instance_path=str(tmp_path))
    app.config["DEMIJOHN_IDEMPOTENCY"] = {"wait": 1, "lease": 1, "ttl": timedelta(hours=1)}
    idem = Idempotency(app, stores="memory://", wait=2, lease=timedelta(seconds=2))
    bound = app.extensions["demijohn"].capabilities["idempotency"]
    policy = bound.policy(app.extensions["demijohn"], {"wait_ms": 3000})
    settings = policy._settings
    assert (settings.wait_ms, settings.lease_ms, settings.ttl_ms) == (3000, 2000, 3_600_000)
    assert idem


def test_capability_that_is_not_bound_says_so(tmp_path: Path) -> None:
    app = Flask("other", instance_path=str(tmp_path))
    app.testing = True
    register(app, bind(app, stores={"default": "memory://"}), "limits", object())
    app.add_url_rule("/", view_func=Idempotency().idempotent(lambda: "x"), methods=["POST"])
    with pytest.raises(ConfigError, match="idempotency is not bound to the application 'other'"):
        app.test_client().post("/")
    with app.test_request_context(), pytest.raises(ConfigError, match="call Demijohn"):
        idempotent_input()


def test_binding_twice_is_a_mistake(tmp_path: Path) -> None:
    app = Flask("twice", instance_path=str(tmp_path))
    Demijohn(app, stores="memory://")
    with pytest.raises(ConfigError, match="already bound"):
        Idempotency(app)
    with pytest.raises(ConfigError, match="first bound"):
        Idempotency(app, stores="memory://")
    before = app.extensions["demijohn"].principal
    with pytest.raises(ConfigError, match="already bound"):
        Demijohn(app, principal=lambda: "somebody else", problems=True)
    assert app.extensions["demijohn"].principal is before
    app.extensions["demijohn"] = "another extension"
    with pytest.raises(ConfigError, match="taken"):
        Idempotency(app)


# --- secrets ------------------------------------------------------------------------------------


def bank_app(folder: Path, secret: str | bytes | None, fallbacks: list[str], store: Any) -> Flask:
    app = Flask("secrets", instance_path=str(folder))
    app.secret_key = secret
    app.config["SECRET_KEY_FALLBACKS"] = fallbacks
    dj = Demijohn(app, stores={"default": store}, principal=lambda: "alice")
    app.add_url_rule("/", view_func=dj.idempotent(lambda: "x"), methods=["POST"])
    return app


def test_keys_are_found_under_an_earlier_secret(tmp_path: Path, store: FailingStore) -> None:
    headers = {"Idempotency-Key": new_key()}
    old = bank_app(tmp_path, "old", [], store).test_client()
    new = bank_app(tmp_path, b"new", ["old"], store).test_client()
    stranger = bank_app(tmp_path, "new", [], store).test_client()
    old.post("/", headers=headers)
    assert "Idempotent-Replayed" in new.post("/", headers=headers).headers
    assert "Idempotent-Replayed" not in stranger.post("/", headers=headers).headers


def test_application_without_a_secret_makes_one_beside_its_file(tmp_path: Path) -> None:
    headers = {"Idempotency-Key": new_key()}
    for replayed in (False, True):
        app = bank_app(tmp_path, None, [], "sqlite:///rows.db")
        answer = app.test_client().post("/", headers=headers)
        assert ("Idempotent-Replayed" in answer.headers) == replayed
    secret = tmp_path / "demijohn.secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "rows.db").stat().st_mode) == 0o600
    assert not list(tmp_path.glob("demijohn.secret.*"))


def test_releases_of_an_application_that_share_a_file_share_its_secret(tmp_path: Path) -> None:
    headers = {"Idempotency-Key": new_key()}
    answers = []
    for release in ("blue", "green"):  # each has an instance folder of its own
        app = bank_app(tmp_path / release, None, [], f"sqlite:///{tmp_path}/shared/rows.db")
        answers.append(app.test_client().post("/", headers=headers))
    assert ["Idempotent-Replayed" in answer.headers for answer in answers] == [False, True]
    assert (tmp_path / "shared" / "demijohn.secret").exists()


@pytest.mark.parametrize("folder", ["with space", "a%41b", "a?b=c", "a#b"])
def test_instance_folder_may_have_any_name(tmp_path: Path, folder: str) -> None:
    app = bank_app(tmp_path / folder, None, [], "sqlite:///rows.db?synchronous=normal")
    assert app.test_client().post("/", headers={"Idempotency-Key": new_key()}).text == "x"
    assert {"rows.db", "demijohn.secret"} <= {file.name for file in (tmp_path / folder).iterdir()}


def test_secret_that_cannot_be_kept_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"SECRET_KEY is not set, and no secret can be kept"):
        bank_app(tmp_path / "file", None, [], "sqlite:///rows.db")
    (tmp_path / "demijohn.secret").write_bytes(b"")  # what a full disk may leave
    with pytest.raises(ConfigError, match="holds no secret"):
        bank_app(tmp_path, None, [], "sqlite:///rows.db")


def test_processes_that_start_at_once_agree_on_a_secret(tmp_path: Path) -> None:
    barrier, secrets = threading.Barrier(8), []
    apps = [Flask("secrets", instance_path=str(tmp_path)) for _ in range(8)]

    def start(app: Flask) -> None:
        barrier.wait()
        Demijohn(app)
        secrets.append(app.extensions["demijohn"].secrets)

    threads = [threading.Thread(target=start, args=[app]) for app in apps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(secrets) == 8
    assert len(set(secrets)) == 1


def test_store_on_another_machine_needs_a_shared_secret(tmp_path: Path) -> None:
    pytest.importorskip("redis")
    with pytest.raises(ConfigError, match="SECRET_KEY is not set"):
        bank_app(tmp_path, None, [], "redis://127.0.0.1:1/")


# --- who calls ----------------------------------------------------------------------------------


@pytest.mark.parametrize("caller", [7, "7", Principal("7")])
def test_ways_to_name_a_caller_agree(lone_bank: Make, caller: Any) -> None:
    bank = lone_bank()
    key = new_key()
    bank.caller = "7"
    bank.post(key)
    bank.caller = caller
    assert bank.post(key).json == {"run": 1}


def test_callers_of_different_kinds_and_tenants_never_meet(lone_bank: Make) -> None:
    bank = lone_bank()
    key = new_key()
    callers = [Principal("7"), Principal("7", kind="token"), Principal("7", tenant="a")]
    for number, caller in enumerate(callers, start=1):
        bank.caller = caller  # type: ignore[assignment]
        assert bank.post(key).json == {"run": number}


@pytest.mark.parametrize(
    "caller",
    [
        "",
        True,
        1.5,
        object(),
        Principal(""),
        Principal("", kind="anonymous"),
        Principal(None),  # type: ignore[arg-type]
        Principal("7", tenant=None),  # type: ignore[arg-type]
        Principal("7", kind=None),  # type: ignore[arg-type]
    ],
)
def test_hook_that_names_nobody_is_a_mistake(lone_bank: Make, caller: Any) -> None:
    bank = lone_bank()
    bank.app.testing = True
    bank.caller = caller
    with pytest.raises(UsageError, match="principal hook"):
        bank.post(new_key())


def test_without_a_hook_the_credentials_are_the_caller(tmp_path: Path) -> None:
    app = Flask("credentials", instance_path=str(tmp_path))
    app.secret_key = "s"
    dj = Demijohn(app, stores="memory://")
    app.add_url_rule("/", view_func=dj.idempotent(lambda: "x"), methods=["POST"])
    key = new_key()

    def post(authorization: str | None = None, user: str | None = None) -> bool:
        client = app.test_client()
        if user is not None:
            with client.session_transaction() as session:
                session["_user_id"] = user
        headers = {"Idempotency-Key": key}
        if authorization is not None:
            headers["Authorization"] = authorization
        return "Idempotent-Replayed" in client.post("/", headers=headers).headers

    callers: list[dict[str, str]] = [
        {},
        {"authorization": "Bearer a"},
        {"authorization": "Bearer b"},
        {"user": "1"},
        {"user": "2"},
    ]
    assert [post(**caller) for caller in callers] == [False] * 5
    assert [post(**caller) for caller in callers] == [True] * 5


def test_logs_reveal_neither_key_nor_body(
    lone_bank: Make, store: FailingStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    bank = lone_bank(store=store, on_store_failure="open")
    store.fails["begin"] = DOWN
    bank.post("a-rather-telling-key", json={"card": "4111"})
    assert "telling" not in caplog.text
    assert "4111" not in caplog.text

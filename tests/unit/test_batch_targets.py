"""Where targets lead: to a path of the application, or nowhere, whatever is tried."""

from __future__ import annotations

import contextlib
from urllib.parse import quote, unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from demijohn.core.batch import Malformed, Place, check_method, locate, origin, own_path
from demijohn.core.batch.targets import normal

ROOT = Place("http", {"http://api.example:80"}, "", "/v1/batch", {"/v1/batch", "/$batch"})
APP = Place("https", {"https://[::1]:8443"}, "/app", "/app/batch", {"/batch"})


def kind_of(target: str, place: Place = ROOT) -> str:
    with pytest.raises(Malformed) as caught:
        locate(target, place)
    return caught.value.kind


@pytest.mark.parametrize(
    ("scheme", "host", "written"),
    [
        ("http", "api.example", "http://api.example:80"),
        ("HTTPS", "API.example", "https://api.example:443"),
        ("http", "api.example:", "http://api.example:80"),
        ("http", "api.example.:8080", "http://api.example:8080"),
        ("https", "[::1]", "https://[::1]:443"),
        ("https", "[::1]:8443", "https://[::1]:8443"),
        ("ws", "h", "ws://h:"),
    ],
)
def test_origin_has_one_form(scheme: str, host: str, written: str) -> None:
    assert origin(scheme, host) == written


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("/cats/p?alt=json", ("/cats/p", "alt=json")),
        ("/a%2Fb//c?x?y=http://z", ("/a%2Fb//c", "x?y=http://z")),
        ("/", ("/", "")),
        ("/?", ("/", "")),
        ("http://api.example/x?y", ("/x", "y")),
        ("HTTP://API.Example:80/x", ("/x", "")),
        ("http://api.example", ("/", "")),
        ("http://api.example?y", ("/", "y")),
        ("Employees('1')", ("/v1/Employees('1')", "")),
        ("../cats", ("/cats", "")),
        ("../../../cats", ("/cats", "")),
        ("..//evil.example/x", ("/evil.example/x", "")),
        ("./a:b", ("/v1/a:b", "")),
        ("$1/x", ("/v1/$1/x", "")),
    ],
)
def test_targets_of_ours_are_paths(target: str, found: tuple[str, str]) -> None:
    assert locate(target, ROOT) == found


@pytest.mark.parametrize(
    "target",
    [
        "http://evil.example/x",
        "https://api.example/x",
        "http://api.example:81/x",
        "http://api.example:080/x",
        "http://api.example:x/x",
        "http://api.example@evil.example/",
        "http://user@api.example/",
        "http://user:pw@api.example/",
        "http://api.example.evil.example/",
        "http://api.example:80:80/",
        "http:/x",
        "http:///x",
        "http:x",
        "http:",
        "javascript:x",
        "a:b",
        "//evil.example/x",
        "///x",
        "//api.example/x",
        "/\\evil.example",
        "\\\\evil.example",
        "http://api.example\\@evil.example/",
        "http://[::1]/",
    ],
)
def test_targets_of_others_are_refused(target: str) -> None:
    assert kind_of(target) == "foreign-origin"


@pytest.mark.parametrize("target", ["*", "/x#y", "http://[", "http://[x]/", "http://api.example/#"])
def test_what_is_no_target_is_refused(target: str) -> None:
    assert kind_of(target) == "malformed-part"


@pytest.mark.parametrize(
    "target",
    [
        "/v1/batch",
        "/v1/batch/",
        "/v1/batch?x",
        "//v1/batch"[1:],
        "/v1//batch",
        "/v1/./batch",
        "/x/../v1/batch",
        "/v1/%62atch",
        "/v1/%2562atch",
        "/v1%2Fbatch",
        "/v1/x/%2e%2e/batch",
        "/V1/BATCH",
        "http://api.example/v1/batch",
        "http://api.example//v1/batch",
        "batch",
        "?x",
        "../v1/batch",
        "../../../../v1/batch",
        "/$batch",
        "/%24BATCH",
    ],
)
def test_batch_in_a_batch_is_found(target: str) -> None:
    assert kind_of(target) == "nested-batch"


def test_mount_is_taken_from_the_path() -> None:
    assert locate("/app/x?y", APP) == ("/x", "y")
    assert locate("/app", APP) == ("/", "")
    assert locate("/app/", APP) == ("/", "")
    assert locate("https://[::1]:8443/app/x", APP) == ("/x", "")
    assert locate("x", APP) == ("/x", "")
    assert kind_of("/app/batch", APP) == "nested-batch"


@pytest.mark.parametrize(
    "target",
    [
        "/x", "/apple", "/apple/x", "/App/x", "/%61pp/x", "/app%2Fx", "/app?x".replace("app", "ap"),
        "/app/../x", "/app/..%2fx", "/app/%2e%2e/apple", "/app/y/../../x", "../x", "/",
    ],
)  # fmt: skip
def test_path_beside_the_mount_is_refused(target: str) -> None:
    assert kind_of(target, APP) == "foreign-origin"


def test_path_is_decoded_as_often_as_anybody_would() -> None:
    assert locate("/v1/%25252562atch", ROOT) == ("/v1/%25252562atch", "")


def test_path_within_the_mount_may_have_dots() -> None:
    assert locate("/app/a/../b", APP) == ("/a/../b", "")


@pytest.mark.parametrize("method", ["CONNECT", "trace"])
def test_methods_for_connections_are_refused(method: str) -> None:
    with pytest.raises(Malformed) as caught:
        check_method(method)
    assert caught.value.kind == "forbidden-part"


def test_other_methods_are_left_alone() -> None:
    check_method("PATCH")


@pytest.mark.parametrize(
    ("path", "meaning"),
    [
        ("", "/"),
        ("/", "/"),
        ("/..", "/"),
        ("//A//b/", "/a/b"),
        ("/%252e%252e/x", "/x"),
        ("x", "/x"),
    ],
)
def test_path_has_one_meaning(path: str, meaning: str) -> None:
    assert normal(path) == meaning


@given(st.text(st.sampled_from("/./aB.~%2E"), max_size=12))
def test_plain_path_means_the_same_without_looking_further(path: str) -> None:
    slowly = normal(path.replace("/", "/./", 1))
    assert normal(path) == slowly


TARGETS = st.one_of(
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=30),
    st.lists(
        st.sampled_from(
            ["/", "//", "..", ".", "app", "batch", "v1", "?", "%2e", "%2F", "%25", "http:", "h",
             "@", "api.example", ":80", "[::1]", "\\", "[", "]", ";", "$1", "a:b"]
        ),
        min_size=1, max_size=10,
    ).map("".join),
)  # fmt: skip


@given(TARGETS, st.sampled_from([ROOT, APP]))
@example("..//a/../../..//x", ROOT)
def test_whatever_is_asked_for_it_is_a_path_or_refused(target: str, place: Place) -> None:
    with contextlib.suppress(Malformed):
        path, query = locate(target, place)
        assert path.startswith("/")
        assert "?" not in path
        assert "#" not in path + query
        assert normal(path) not in place.batches
        assert normal(place.mount + path).startswith(place.mount)


@given(st.lists(st.sampled_from(["v1", "batch", "x", ".."]), max_size=5), st.data())
def test_encoding_hides_no_batch(segments: list[str], data: st.DataObject) -> None:
    path = "/" + "/".join(segments)
    hidden = "".join(f"%{ord(char):02X}" if data.draw(st.booleans()) else char for char in path[1:])
    assert normal("/" + hidden) == normal(path)
    assert unquote(quote(path)) == path


def test_own_path_has_the_mount() -> None:
    assert own_path("/app/x?y", APP) == ("/app/x", "y")

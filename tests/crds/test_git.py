"""Where scripts from git may come from."""

from __future__ import annotations

import time

import pytest

from oet_crds.git import (
    GIT_VARIABLES,
    GitPolicy,
    find_problem,
    find_secret,
    find_version_problem,
    is_commit,
    mask_credentials,
    mask_secrets,
    parse_place,
)
from oet_crds.settings import GitSettings


def _policy(allowed: str = "", protocols: str = "https ssh http git file") -> GitPolicy:
    policy = GitPolicy()
    policy.allowed, policy.protocols = allowed, protocols
    return policy


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("https://Git.Example.org/a/b.git", ("https", "git.example.org", "/a/b.git")),
        ("https://me:secret@h:8443/a", ("https", "h:8443", "/a")),
        ("https://h/a%2Fb/", ("https", "h", "/a/b")),
        ("git@h:a/b.git", ("ssh", "h", "/a/b.git")),
        ("h:/a", ("ssh", "h", "/a")),
        ("ssh://git@h:2222/a", ("ssh", "h:2222", "/a")),
        ("/srv/git/a", ("file", "", "/srv/git/a")),
        ("file:///srv/git/a", ("file", "", "/srv/git/a")),
        ("git://h/a", ("git", "h", "/a")),
    ],
)
def test_url_is_understood_as_git_does(url: str, place: tuple[str, str, str]) -> None:
    found = parse_place(url)
    assert (found.protocol, found.host, found.path) == place


@pytest.mark.parametrize(
    "url",
    [
        *("", "-x", "a b", "a\nb", "ext::sh", "fd::17", "r", "./r", "https://", "https:///a", "file://host/a"),
        *(
            "https://h/../a",
            "https://h/%2e%2e/a",
            "ssh://-o/a",
            "-oX=y:a",
            "h:-a",
            "h:../a",
            "https://h/-a",
            "https://[/a",
        ),
    ],
)
def test_url_that_is_none_or_a_trick_is_refused(url: str) -> None:
    assert find_problem(url, _policy()) is not None


SECRETS = [
    ("https://me:pass@h/x", "https://me:***@h/x"),
    ("https://me:1234@h/x", "https://me:***@h/x"),
    ("https://me:@h/x", "https://me:***@h/x"),
    ("https://:pass@h/x", "https://:***@h/x"),
    ("ssh://me:pa/ss@h/x", "ssh://me:***@h/x"),
    ("https://me:pa#ss@h/x", "https://me:***@h/x"),
    ("https://me:pa?ss@h/x", "https://me:***@h/x"),
    ("https://me:pa@ss@h/x", "https://me:***@h/x"),
    ("https://me@org:pass@h:80/x@y", "https://me@org:***@h:80/x@y"),
    ("https://me:pass@[::1]:80/x", "https://me:***@[::1]:80/x"),
    ("me:pass@h:x", "me:***@h:x"),
    ("me:pass@h/x", "me:***@h/x"),
    ("https://h/x?private_token=pass", "https://h/x?***"),
    ("file:///srv/x?pass", "file:///srv/x?***"),
    ("https://me:pass@h/x?a=pass", "https://me:***@h/x?***"),
]


@pytest.mark.parametrize(("url", "shown"), SECRETS)
def test_url_with_password_or_query_is_refused_and_never_shown(url: str, shown: str) -> None:
    assert "password or a query" in (find_secret(url) or "")
    problem = find_problem(url, _policy())
    assert problem is not None
    assert "pass@" not in problem
    assert "=pass" not in problem
    assert mask_secrets(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        *(
            "https://h/x",
            "https://h:8443/x@y",
            "https://me@h/x",
            "https://me@h:80/x:y@z",
            "ssh://git@h:22/x",
            "https://h:",
        ),
        *(
            "git@h:x/y.git",
            "h:x",
            "h:/x@y",
            "ssh://git@[::1]:22/x",
            "https://[::1]/x",
            "/srv/x@y:z",
            "file:///srv/x:y@z",
        ),
    ],
)
def test_url_with_a_name_alone_is_taken_and_shown(url: str) -> None:
    assert find_secret(url) is None
    assert mask_secrets(url) == url


@pytest.mark.parametrize("piece", ["://", "://a:b", "://a?", "://a@", "?://"])
def test_masking_takes_time_that_grows_with_the_text_alone(piece: str) -> None:
    begun = time.perf_counter()
    mask_credentials(piece * 100_000 + "@?")
    assert time.perf_counter() - begun < 10  # It takes half a second; what grows with the square takes minutes.


@pytest.mark.parametrize("url", ["ftp://h/a", "javascript://h/a", "http+unix://h/a"])
def test_other_protocols_cannot_be_allowed(url: str) -> None:
    assert find_problem(url, _policy(protocols="ftp javascript http+unix")) is not None


@pytest.mark.parametrize(
    ("url", "allowed", "is_allowed"),
    [
        ("https://a.org/x", "", True),
        ("https://a.org/x", "a.org", True),
        ("git@a.org:x", "b.org, a.org", True),
        ("https://a.org/x", "b.org", False),
        ("https://a.org.evil/x", "a.org", False),
        ("https://a.org@evil/x", "a.org", False),
        ("https://evil/a.org/x", "a.org", False),
        ("https://a.org:1/x", "a.org", False),
        ("https://a.org:1/x", "a.org:1", True),
        ("https://git.a.org/x", "*.a.org", True),
        ("https://a.org/team/x.git", "a.org/team", True),
        ("https://a.org/team/x.git", "a.org/team/", True),
        ("https://a.org/team/x.git", "a.org/team/x", True),
        ("https://a.org/team/x", "a.org/team/x.git", True),
        ("https://a.org/teams/x", "a.org/team", False),
        ("https://a.org/team/../other/x", "a.org/team", False),
        ("https://a.org/%74eam/x", "a.org/team", True),
        ("file:///srv/git/x", "/srv/git", True),
        ("/srv/gitx", "/srv/git", False),
        ("https://a.org/srv/git/x", "/srv/git", False),
        ("file:///srv/git/x", "a.org", False),
    ],
)
def test_list_of_the_allowed_means_hosts_and_what_is_below_a_path(url: str, allowed: str, is_allowed: bool) -> None:
    assert (find_problem(url, _policy(allowed)) is None) == is_allowed


@pytest.mark.parametrize(
    ("branch", "commit", "is_good"),
    [
        (None, None, True),
        ("main", None, True),
        ("feature/x-1.0", None, True),
        ("-x", "c0ffee", True),
        (None, "C0FFEE", True),
        (None, "c0f", False),
        (None, "main", False),
        (None, "", False),
        ("", None, False),
        ("-x", None, False),
        ("a..b", None, False),
        ("a b", None, False),
        ("a*", None, False),
        ("a^{}", None, False),
        ("a@{1}", None, False),
        ("/a", None, False),
    ],
)
def test_names_of_versions_are_plain(branch: str | None, commit: str | None, is_good: bool) -> None:
    assert (find_version_problem(branch, commit) is None) == is_good


def test_credentials_are_masked_wherever_they_are() -> None:
    text = "fatal: https://me:se@cret@h/x and 'ssh://git@h/y?a=b' failed; http://h/a@b is plain"
    assert mask_credentials(text) == "fatal: https://***@h/x and 'ssh://***@h/y?***' failed; http://h/a@b is plain"


@pytest.mark.parametrize(
    ("value", "expected"), [("a" * 40, True), ("a" * 64, True), ("a" * 41, False), ("g" * 40, False), (1, False)]
)
def test_full_hash_is_told_from_anything_else(value: object, expected: bool) -> None:
    assert is_commit(value) is expected


def test_settings_travel_to_the_runner_by_their_variables() -> None:
    settings = GitSettings(protocols="http, file", allowed="a.org b.org/x", cache_bytes=7, fetch_timeout_seconds=0.5)
    policy = settings.build_policy()
    assert {name: getattr(policy, name) for name in GIT_VARIABLES} == {
        name: getattr(settings, name) for name in GIT_VARIABLES
    }
    assert vars(GitSettings().build_policy()) == vars(GitPolicy())
    with pytest.raises(ValueError, match="share_environments is 'sometimes'"):
        GitPolicy.from_environ({GIT_VARIABLES["share_environments"]: "sometimes"})

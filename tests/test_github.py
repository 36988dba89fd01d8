"""Comments and releases on GitHub, as those who read them find them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from rechunk_action.errors import GitHubError
from rechunk_action.github import TRIES, Home, _with, put_comment, put_release
from tests.github_api import BOT, MAINTAINER, REPOSITORY, TOKEN, FakeGitHub, Fault

MARK = "<!-- rechunk-action: ghcr.io/owner/image -->"
OTHER = "<!-- rechunk-action: ghcr.io/owner/image-2 -->"
END = "<!-- end of rechunk-action: ghcr.io/owner/image -->"
ONE, TWO = f"{MARK}\nMerging this costs 1 MB.\n", f"{MARK}\nMerging this costs 2 MB.\n"
HOSTILE = '"}{\\u0000 <script> ::error::x @owner \N{RIGHT-TO-LEFT OVERRIDE} \N{PILE OF POO}'
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ELSEWHERE = {"login": "other-app[bot]", "type": "Bot"}

LIMIT = {"message": "API rate limit exceeded for installation ID 1."}
SECOND_LIMIT = {"message": "You have exceeded a secondary rate limit. Please wait a few minutes before you try again."}


@pytest.fixture
def github() -> Iterator[FakeGitHub]:
    fake = FakeGitHub()
    with fake.mocked():
        yield fake


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def home(waits: list[float]) -> Home:
    return Home(REPOSITORY, TOKEN, sleep=waits.append)


def bodies(github: FakeGitHub) -> list[str]:
    return [comment["body"] for comment in github.comments]


class TestComment:
    def test_is_added_where_there_is_none(self, github: FakeGitHub, home: Home) -> None:
        github.comment("Looks good")
        github.comment(None)
        assert put_comment(home, 7, ONE) == f"https://github.com/{REPOSITORY}/pull/7#issuecomment-3"
        assert bodies(github) == ["Looks good", None, ONE]
        assert len(github.asked) == 2
        assert github.headers[0]["User-Agent"].startswith("rechunk-action/")

    def test_is_updated_in_place(self, github: FakeGitHub, home: Home) -> None:
        put_comment(home, 7, ONE)
        github.comment("Looks good")
        assert put_comment(home, 7, TWO) == f"https://github.com/{REPOSITORY}/pull/7#issuecomment-1"
        assert bodies(github) == [TWO, "Looks good"]

    @pytest.mark.parametrize("there", [ONE, ONE.replace("\n", "\r\n"), ONE.rstrip()])
    def test_is_not_sent_again_unchanged(self, github: FakeGitHub, home: Home, there: str) -> None:
        made = github.comment(there, BOT)
        assert put_comment(home, 7, ONE) == made["html_url"]
        assert github.written == []

    @pytest.mark.parametrize("before", [0, 99, 100, 250])
    def test_is_found_on_any_page(self, github: FakeGitHub, home: Home, before: int) -> None:
        for number in range(before):
            github.comment(f"{number}")
        made = github.comment(ONE, BOT)
        put_comment(home, 7, TWO)
        assert made["body"] == TWO
        assert len(github.comments) == before + 1
        assert len(github.written) == 1

    def test_is_one_for_each_image(self, github: FakeGitHub, home: Home) -> None:
        other = ONE.replace(MARK, OTHER)
        for text in (ONE, other, TWO, other):
            put_comment(home, 7, text)
        assert bodies(github) == [TWO, other]

    @pytest.mark.parametrize("copy", [ONE, f"> {ONE}", f"See this:\n{ONE}", f"{MARK} what is this?"])
    def test_of_a_person_who_copies_its_mark_stays(self, github: FakeGitHub, home: Home, copy: str) -> None:
        github.comment(copy)
        for text in (ONE, TWO):
            put_comment(home, 7, text)
        assert bodies(github) == [copy, TWO]

    def test_is_known_by_its_writer_with_a_person_s_token(self, github: FakeGitHub, home: Home) -> None:
        github.me = MAINTAINER
        for user in ({"login": "stranger", "type": "User"}, BOT):
            github.comment(ONE, user)
        for text in (ONE, TWO):
            put_comment(home, 7, text)
        assert bodies(github) == [ONE, ONE, TWO]

    def test_of_another_bot_that_may_not_be_edited_is_left(self, github: FakeGitHub, home: Home) -> None:
        github.comment(ONE, ELSEWHERE)
        github.faults = [Fault("PATCH .*/1", 403, {"message": "Resource not accessible by integration"})]
        put_comment(home, 7, TWO)
        assert bodies(github) == [ONE, TWO]
        put_comment(home, 7, ONE)
        assert bodies(github) == [ONE, ONE]

    def test_that_is_deleted_meanwhile_is_added(self, github: FakeGitHub, home: Home) -> None:
        put_comment(home, 7, ONE)
        github.faults = [Fault("PATCH", 404, {"message": "Not Found"})]
        put_comment(home, 7, TWO)
        assert bodies(github) == [ONE, TWO]

    def test_arrives_as_it_is(self, github: FakeGitHub, home: Home) -> None:
        for text in (f"{MARK}\n{HOSTILE}", f"{MARK}\n{HOSTILE} again"):
            put_comment(home, 7, text)
            assert bodies(github) == [text]


class TestRelease:
    def put(
        self, home: Home, tag: str = "43-1", text: str = "## 43-1", mark: str = MARK, *, latest: bool = True
    ) -> str:
        return put_release(home, tag, text, mark=mark, commit=COMMIT, latest=latest)

    @pytest.mark.parametrize("latest", [True, False])
    def test_is_published_where_there_is_none(self, github: FakeGitHub, home: Home, latest: bool) -> None:
        assert self.put(home, latest=latest) == f"https://github.com/{REPOSITORY}/releases/tag/43-1"
        [release] = github.releases.values()
        assert release["body"] == f"{MARK}\n## 43-1\n{END}"
        assert (release["draft"], release["prerelease"], release["name"]) == (False, False, "43-1")
        assert (release["target_commitish"], release["make_latest"]) == (COMMIT, str(latest).lower())

    @pytest.mark.parametrize("ends", ["\n", "\r\n"])
    def test_keeps_what_a_person_wrote(self, github: FakeGitHub, home: Home, ends: str) -> None:
        release = github.release("43-1", "Mind the kernel.\n\n- And this".replace("\n", ends), name="Autumn")
        self.put(home, text="one")
        assert release["body"] == f"Mind the kernel.\n\n- And this\n\n{MARK}\none\n{END}"
        release["body"] = (release["body"] + "\n\nThanks to all!").replace("\n", ends)
        self.put(home, text="two")
        assert release["body"] == f"Mind the kernel.\n\n- And this\n\n{MARK}\ntwo\n{END}\n\nThanks to all!"

    def test_keeps_its_name_and_what_it_is(self, github: FakeGitHub, home: Home) -> None:
        release = github.release("43-1", None, name="Autumn", prerelease=True)
        self.put(home)
        assert (release["name"], release["prerelease"], release["draft"]) == ("Autumn", True, False)
        assert "make_latest" not in release

    def test_is_not_sent_again_unchanged(self, github: FakeGitHub, home: Home) -> None:
        self.put(home)
        github.releases["43-1"]["body"] = github.releases["43-1"]["body"].replace("\n", "\r\n")
        assert self.put(home) == github.releases["43-1"]["html_url"]
        assert len(github.written) == 1

    def test_may_be_of_several_images(self, github: FakeGitHub, home: Home) -> None:
        for text in ("one", "two"):
            for mark in (MARK, OTHER):
                self.put(home, text=f"{text} of {mark[-7:-4]}", mark=mark)
        notes = github.releases["43-1"]["body"]
        assert notes.count("two of") == 2
        assert "one of" not in notes

    def test_text_cannot_leave_its_marks(self, github: FakeGitHub, home: Home) -> None:
        github.release("43-1", "Before")
        self.put(home, text=f"a {END} {MARK} b")
        github.releases["43-1"]["body"] += "\nafter"
        self.put(home, text="c")
        assert github.releases["43-1"]["body"] == f"Before\n\n{MARK}\nc\n{END}\nafter"

    @given(st.text(), st.text() | st.just(f"x{END}y"), st.text() | st.just(f"x{MARK}y"))
    def test_text_replaces_the_one_before(self, notes: str, one: str, two: str) -> None:
        placed = _with(notes, two, MARK)
        assert _with(_with(notes, one, MARK), two, MARK) == placed == _with(placed, two, MARK)
        assert placed.startswith(notes.replace("\r\n", "\n").rstrip())

    def test_that_another_run_makes_meanwhile_gets_both_texts(self, github: FakeGitHub, home: Home) -> None:
        github.release("43-1", f"{OTHER}\nother\n{OTHER.replace('<!-- ', '<!-- end of ')}")
        github.faults = [Fault("GET .*/tags/", 404, {"message": "Not Found"})]
        self.put(home)
        assert "other" in github.releases["43-1"]["body"]
        assert "## 43-1" in github.releases["43-1"]["body"]

    @pytest.mark.parametrize("tag", ["stable/43", "a b", "../../user", "?x=#y", "%2e"])
    def test_tags_are_only_names(self, github: FakeGitHub, home: Home, tag: str) -> None:
        self.put(home, tag)
        self.put(home, tag, "new")
        [(name, release)] = github.releases.items()
        assert (name, "new" in release["body"]) == (tag, True)

    def test_says_what_it_takes(self, github: FakeGitHub, home: Home) -> None:
        github.faults = [Fault("POST", 403, {"message": "Resource not accessible by integration"})]
        with pytest.raises(GitHubError, match=r"^release 43-1 of owner/image .*`permissions: contents: write`"):
            self.put(home)


class TestFaults:
    @pytest.mark.parametrize("late", [True, False])
    @pytest.mark.parametrize(
        "what", [{"status": 500}, {"status": 502, "text": "<html>"}, {"error": requests.ConnectionError("reset")}]
    )
    @pytest.mark.parametrize("request_", ["GET", "PATCH", "POST"])
    def test_that_pass_leave_one_comment(
        self, github: FakeGitHub, home: Home, waits: list[float], request_: str, what: dict[str, Any], late: bool
    ) -> None:
        if request_ != "POST":
            put_comment(home, 7, TWO)
        github.faults = [Fault(request_, **what, late=late) for _ in range(TRIES - 1)]
        if late and request_ != "GET":
            del github.faults[1:]  # what was done is not done again
        put_comment(home, 7, ONE)
        assert bodies(github) == [ONE]
        assert github.faults == []
        assert waits == [2.0, 4.0][: len(waits)]

    def test_that_pass_leave_one_release(self, github: FakeGitHub, home: Home) -> None:
        github.faults = [Fault("POST", late=True), Fault("GET")]
        put_release(home, "43-1", "x", mark=MARK, commit=COMMIT, latest=True)
        assert list(github.releases) == ["43-1"]
        assert len(github.written) == 1

    def test_that_stay_are_told_in_the_end(self, github: FakeGitHub, home: Home, waits: list[float]) -> None:
        github.faults = [Fault("GET", 503) for _ in range(9)]
        with pytest.raises(GitHubError, match=r"api\.github\.com answered 503: run this again"):
            put_comment(home, 7, ONE)
        assert (len(github.asked), waits) == (TRIES, [2.0, 4.0])

    @pytest.mark.parametrize(
        ("status", "said", "told"),
        [
            (401, {"message": "Bad credentials"}, "leave out the input token"),
            (403, {"message": "Resource not accessible by integration"}, "`permissions: pull-requests: write`"),
            (403, {"message": "Resource not accessible by integration"}, "a fork may only read"),
            (403, LIMIT, "may ask for no more just now"),
            (403, SECOND_LIMIT, "may ask for no more just now"),
            (404, {"message": "Not Found"}, "`permissions: pull-requests: write`"),
            (410, {"message": "Issues are disabled"}, "(Issues are disabled): run this again"),
            (
                422,
                {"message": "Validation Failed", "errors": ["body is too long"]},
                "Validation Failed; body is too long",
            ),
            (422, {"message": "No", "errors": [{"field": "tag", "code": "invalid"}]}, "(No; tag invalid)"),
            (422, {"message": "No", "errors": "a text"}, "(No; a text)"),
            (429, {"message": "Too many"}, "may ask for no more just now"),
        ],
    )
    @pytest.mark.parametrize("request_", ["GET", "POST"])
    def test_that_stay_are_told_at_once(
        self, github: FakeGitHub, home: Home, request_: str, status: int, said: object, told: str
    ) -> None:
        github.faults = [Fault(request_, status, said)]
        with pytest.raises(GitHubError) as caught:
            put_comment(home, 7, ONE)
        text = str(caught.value)
        assert text.startswith("the comment in pull request 7 of owner/image could not be written: api.github.com")
        assert f" answered {status} (" in text
        assert told in text
        assert (github.faults, github.comments) == ([], [])

    @pytest.mark.parametrize("said", [LIMIT, SECOND_LIMIT])
    def test_a_limit_of_requests_is_no_reason_for_a_second_comment(
        self, github: FakeGitHub, home: Home, said: object
    ) -> None:
        github.comment(ONE, BOT)
        for request in ("PATCH", "GET /user"):
            github.faults = [Fault(request, 403, said)]
            with pytest.raises(GitHubError, match="no more just now"):
                put_comment(home, 7, TWO)
        assert bodies(github) == [ONE]

    @pytest.mark.parametrize(
        ("error", "told"),
        [
            (requests.ReadTimeout("x"), "said nothing for 20 seconds"),
            (requests.ConnectTimeout("x"), "said nothing for 20 seconds"),
            (requests.exceptions.SSLError("x"), "see whether network, proxy and SSL_CERT_FILE"),
            (requests.exceptions.ProxyError("x"), "see whether network, proxy and SSL_CERT_FILE"),
        ],
    )
    def test_of_the_line_are_told(self, github: FakeGitHub, home: Home, error: Exception, told: str) -> None:
        github.faults = [Fault("GET", error=error) for _ in range(TRIES)]
        with pytest.raises(GitHubError) as caught:
            put_comment(home, 7, ONE)
        assert told in str(caught.value)

    @pytest.mark.parametrize(
        "answer",
        [
            {"text": "<html>Sign in</html>"},
            {"text": "[1, {"},
            {"text": '{"message": "no list"}'},
            {"document": [{"body": 7}]},
            {"status": 400, "document": ["x"]},
            {"status": 301, "headers": {"Location": "https://elsewhere.example/"}},
            {"document": [{"body": "x"}], "headers": {"Link": '<https://elsewhere.example/>; rel="next"'}},
        ],
    )
    def test_of_what_is_not_github_are_told(self, github: FakeGitHub, home: Home, answer: dict[str, Any]) -> None:
        github.faults = [Fault("GET", **{"status": 200, **answer})]
        with pytest.raises(GitHubError, match="see whether GITHUB_API_URL is right"):
            put_comment(home, 7, ONE)
        assert github.written == []

    @pytest.mark.parametrize("status", [200, 307])
    def test_an_answer_that_is_not_what_was_made_is_no_success(
        self, github: FakeGitHub, home: Home, status: int
    ) -> None:
        github.faults = [Fault("POST", status, {"message": "Moved"}, headers={"Location": "https://elsewhere.example"})]
        with pytest.raises(GitHubError, match="see whether GITHUB_API_URL is right"):
            put_comment(home, 7, ONE)

    @pytest.mark.parametrize("api", ["nonsense", "ftp://example.com"])
    def test_an_address_that_is_none_is_told(self, api: str) -> None:
        with pytest.raises(GitHubError, match="see whether GITHUB_API_URL is right"):
            put_comment(Home(REPOSITORY, TOKEN, api), 7, ONE)

    def test_a_token_is_in_no_message(self, github: FakeGitHub, home: Home) -> None:
        assert TOKEN not in repr(home)
        for fault in (
            Fault("GET", 400, {"message": f"what is\n {TOKEN}?"}),
            Fault("GET", error=requests.RequestException(TOKEN)),
            Fault("GET", text=TOKEN, status=200),
        ):
            github.faults = [fault]
            with pytest.raises(GitHubError) as caught:
                put_comment(home, 7, ONE)
            assert TOKEN not in str(caught.value)
            assert caught.value.__cause__ is None
            assert caught.value.__suppress_context__

    def test_words_are_one_line_of_a_bounded_length(self, github: FakeGitHub, home: Home) -> None:
        github.faults = [Fault("GET", 400, {"message": f"{HOSTILE}\n::error::x\r\x1b[31m" + "x" * 10_000})]
        with pytest.raises(GitHubError) as caught:
            put_comment(home, 7, ONE)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 600


def test_a_server_of_one_s_own_is_asked_where_it_is() -> None:
    github = FakeGitHub("https://git.example.com:8443/api/v3")
    with github.mocked():
        home = Home(REPOSITORY, TOKEN, github.api)
        for number in range(150):
            github.comment(f"{number}")
        for text in (ONE, TWO):
            put_comment(home, 7, text)
        assert bodies(github)[150:] == [TWO]
        put_release(home, "1", "x", mark=MARK, commit=COMMIT, latest=False)
        assert list(github.releases) == ["1"]


def test_is_loaded_only_where_something_is_put() -> None:
    code = "import sys, rechunk_action.cli, rechunk_action.action; print('github' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"

"""GitHub's API, as far as reports go there: a comment in a pull request, the notes of a release.

The only module that knows PyGithub, which takes 0.3 s to load: import it where something is to be put. To put a text is
to see to it that it is there, once, however often that is done: what is there is looked at first. So what met a fault
is simply done again, and nothing is ever there twice.

Invariants:
- What others wrote stays. Of comments only our own are changed, of notes only what is between our marks.
- All faults are `GitHubError`, within a bounded time. Its text has GitHub's words on one line, and no secret.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import requests
from github import Auth, BadAttributeException, Github, GithubException, RateLimitExceededException
from github.GitRelease import GitRelease
from github.IssueComment import IssueComment

from rechunk_action import __version__
from rechunk_action.errors import GitHubError

API = "https://api.github.com"

TRIES = 3

TIMEOUT = 20
"""Seconds of silence in a connection."""

PAUSE = 2.0
"""Seconds until what met a fault is done again; twice that the next time."""


@dataclass(frozen=True)
class Home:
    """A repository (`owner/name`) on GitHub or a server like it, and a token for it. `api` is where requests go."""

    repository: str
    token: str = field(repr=False)
    api: str = API
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)


def put_comment(home: Home, number: int, text: str) -> str:
    """Put a comment into a pull request. The address of the comment.

    It is known again by its first line, which readers should not see. A newer text replaces the older one in place.
    Raises `GitHubError`.
    """

    def put(api: Github) -> str:
        pull = api.get_repo(home.repository).get_issue(number)
        mark = _first_line(text)
        marked = [comment for comment in pull.get_comments() if _first_line(comment.body or "") == mark]
        for comment in filter(_writer(api), reversed(marked)) if marked else ():
            if _same(comment.body, text) or _edited(comment, text):
                return _address(comment)
        return _address(pull.create_comment(text))

    return _persistently(home, put, f"the comment in pull request {number} of {home.repository}", "pull-requests")


def put_release(home: Home, tag: str, text: str, *, mark: str, commit: str, latest: bool) -> str:
    """Put a text into the notes of a tag's release. The address of the release.

    A release that is there keeps its notes; the text comes after them, in the place of what was put there under the
    same `mark`, an HTML comment. One that is not is published: `commit` gets the tag, unless that exists, and `latest`
    is whether GitHub shows it as the latest release. Drafts are not found by their tag. Raises `GitHubError`.
    """

    def put(api: Github) -> str:
        repository = api.get_repo(home.repository)
        try:
            release = repository.get_release(tag)
        except GithubException as fault:
            if fault.status != _NOT_FOUND:
                raise
            made = repository.create_git_release(
                tag, tag, _with("", text, mark), target_commitish=commit, make_latest=str(latest).lower()
            )
            return _address(made)
        notes = _with(release.body or "", text, mark)
        if not _same(release.body, notes):
            release.update_release(release.name or "", notes, release.draft, release.prerelease)
        return _address(release)

    return _persistently(home, put, f"release {tag} of {home.repository}", "contents")


_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _INVALID, _TOO_MANY, _FAULT = 401, 403, 404, 422, 429, 500

_UNREADABLE = (BadAttributeException, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What PyGithub, which takes answers at their word, raises of those that are not GitHub's."""


def _persistently(home: Home, put: Callable[[Github], str], what: str, right: str) -> str:
    """What `put` comes to once it meets no fault that may pass. `right` is the permission that a job needs for it."""
    tried = 0
    while True:
        tried += 1
        try:
            with _opened(home) as api:
                return put(api)
        except (GithubException, requests.RequestException, *_UNREADABLE) as fault:
            if tried == TRIES or not _may_pass(fault):
                raise GitHubError(f"{what} could not be written: {_explained(home, fault, right)}") from None
        home.sleep(PAUSE * 2 ** (tried - 1))


def _opened(home: Home) -> Github:
    """A client that asks for no more than it is told to, and does nothing again by itself."""
    return Github(
        base_url=home.api,
        auth=Auth.Token(home.token),
        timeout=TIMEOUT,
        retry=None,
        user_agent=f"rechunk-action/{__version__}",
        per_page=100,
        seconds_between_requests=None,
        seconds_between_writes=None,
        lazy=True,
    )


def _writer(api: Github) -> Callable[[IssueComment], bool]:
    """Whether a comment is ours: its first line could be a copy. A person's token says who we are. Those of workflows
    and apps do not, but they write as bots, and no person can do that.
    """
    try:
        login = api.get_user().login
    except GithubException as fault:
        if fault.status != _FORBIDDEN or _is_limit(fault):
            raise
        return lambda comment: comment.user.type == "Bot"
    return lambda comment: comment.user.login == login


def _edited(comment: IssueComment, text: str) -> bool:
    """Edit a comment, and whether that was possible: it may be another bot's, or gone by now."""
    try:
        comment.edit(text)
    except GithubException as fault:
        if fault.status not in (_FORBIDDEN, _NOT_FOUND) or _is_limit(fault):
            raise
        return False
    return True


def _with(notes: str, text: str, mark: str) -> str:
    """Notes with a text between marks. The last end is ours, whatever the text itself holds."""
    end = mark.replace("<!-- ", "<!-- end of ", 1)
    before, begun, rest = _lines(notes).partition(mark)
    after = ""
    if begun and end in rest:
        after = rest.rpartition(end)[2]
    elif notes.strip():
        before = f"{_lines(notes).rstrip()}\n\n"
    return f"{before}{mark}\n{_lines(text).strip()}\n{end}{after}"


def _same(one: str | None, other: str) -> bool:
    return _lines(one or "").strip() == _lines(other).strip()


def _first_line(text: str) -> str:
    return _lines(text).partition("\n")[0]


def _lines(text: str) -> str:
    """A text with the ends of lines that we write; GitHub's editor writes others."""
    return text.replace("\r\n", "\n")


def _address(put: IssueComment | GitRelease) -> str:
    if not put.html_url:
        raise ValueError("an answer without an address is none to what was asked")
    return put.html_url


def _is_limit(fault: GithubException) -> bool:
    return isinstance(fault, RateLimitExceededException) or fault.status == _TOO_MANY


def _may_pass(fault: Exception) -> bool:
    if isinstance(fault, GithubException):
        # Of two runs that make a release, one finds that it exists.
        return fault.status >= _FAULT or "already_exists" in _words(fault)
    return isinstance(fault, requests.ConnectionError | requests.Timeout)


def _explained(home: Home, fault: Exception, right: str) -> str:
    """What happened, and what to do next."""
    host = urlsplit(home.api).netloc
    if isinstance(fault, GithubException):
        said = _words(fault).replace(home.token or "\n", "***")
        return f"{host} answered {fault.status}{f' ({said})' if said else ''}: {_remedy(fault, right)}"
    if isinstance(fault, requests.Timeout):
        return f"{host} said nothing for {TIMEOUT} seconds: see whether it is up, and run this again"
    if isinstance(fault, requests.RequestException):
        return f"there is no connection to {host}: see whether network, proxy and SSL_CERT_FILE are right"
    return f"what {host} answers is not what GitHub does: see whether GITHUB_API_URL is right"


def _remedy(fault: GithubException, right: str) -> str:
    if _is_limit(fault):
        return "its token may ask for no more just now; the next run may again"
    if fault.status == _UNAUTHORIZED:
        return "leave out the input token, or give it one that is valid"
    if fault.status in (_FORBIDDEN, _NOT_FOUND):
        fork = ", and that of a pull request from a fork may only read" if right == "pull-requests" else ""
        return f"give the job `permissions: {right}: write`; a token given as an input has rights of its own{fork}"
    if fault.status == _INVALID:
        return "correct what it complains of"
    return "run this again, and see whether GitHub is well if it stays so"


def _words(fault: GithubException) -> str:
    """GitHub's words, on one line."""
    said = fault.data if isinstance(fault.data, dict) else {}
    errors = said.get("errors")
    parts = [said.get("message"), *(errors if isinstance(errors, list) else [errors])]
    texts = [
        " ".join(str(part[key]) for key in ("field", "code", "message") if part.get(key))
        if isinstance(part, dict)
        else str(part)
        for part in parts
        if part
    ]
    return " ".join("".join(c if c.isprintable() else " " for c in "; ".join(texts)).split())[:300]

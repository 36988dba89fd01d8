"""Every error a user can meet, in one small tree.

A message says what happened, to which thing, and what to do next; the class carries the exit code. Anything that is
not a `RechunkError` is a bug of ours, and only that shows a traceback.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rechunk_action.report.model import Update


class RechunkError(Exception):
    """Base of all expected failures. `exit_code` is the process's exit status."""

    exit_code = 1


class InputError(RechunkError):
    """What the user named or gave cannot be used: a bad option, a missing source, a damaged image."""

    exit_code = 2


class UnsupportedTree(InputError):
    """The tree holds something that image clients cannot take, such as a name that is not UTF-8."""


class CorruptImage(InputError):
    """An image does not hold what its manifest says: a wrong digest or size, a broken archive, a bomb."""


class Bomb(CorruptImage):
    """A blob expands far beyond what any real layer does."""


class EnvironmentLack(RechunkError):
    """The machine lacks something: disk space, a program, a right."""

    exit_code = 3


class WorkspaceFull(EnvironmentLack):
    """Scratch space has nearly run out while work was going on in it."""


class VerificationFailed(RechunkError):
    """The image, merged as clients merge it, is not the tree."""

    exit_code = 5


class EngineFailed(RechunkError):
    """The engine's container failed."""


class Overdue(EnvironmentLack):
    """There was not enough time."""


class Cancelled(RechunkError):
    """Stopped on request, at a point where something is visible already."""

    exit_code = 130


class TooLarge(VerificationFailed):
    """The update costs users more than the maintainer allows: `limit`, in bytes. `update` tells what it would cost; its
    image was never made.
    """

    def __init__(self, text: str, update: Update, limit: int) -> None:
        super().__init__(text)
        self.update = update
        self.limit = limit


class RegistryError(RechunkError):
    """A registry could not be talked to, or refused what it was asked."""

    exit_code = 4


class AccessDenied(RegistryError):
    """The registry wants other credentials, or more rights for those it was given."""


class RegistryUnavailable(RegistryError):
    """The registry did not answer, or answered with faults of its own for longer than we wait."""


class NotInRegistry(RegistryError):
    """The registry answered that it does not have what was asked for."""


class GitHubError(RechunkError):
    """GitHub could not be talked to, or refused what it was asked. The image is not concerned."""

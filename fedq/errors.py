"""Every error fedq raises, as one tree; each class carries a code, an exit code and a hint.

Codes are promises: they travel in replies and stand in ``--json`` output. An error that travels
carries only its code and the fields below, never text of torch (which echoes values).
Texts are made visible as they are put in: parts of them may be others'.
The table of exit codes is in docs/errors.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from fedq import spelling


class FedqError(Exception):
    """Base of all errors: ``str(error)`` is one line a user can act on.

    Args:
        message: what happened, in the user's words.
        hint: what to do about it; shown after a blank line. Defaults to the class's own.
        fields: structured facts (ids, sizes, lines); what travels when the error does.
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1
    hint: str | None = None

    def __init__(self, message: str, /, *, hint: str | None = None, **fields: Any) -> None:
        super().__init__(spelling.visible(message))
        if hint is not None:
            self.hint = spelling.visible(hint)
        self.fields: Mapping[str, Any] = fields


class UsageError(FedqError):
    """The call itself is wrong: words, options, arguments."""

    code = "usage"
    exit_code = 2


class NotBuilt(UsageError, RuntimeError):
    """A plan was sent or saved before it was recorded."""

    code = "not_built"
    hint = "call .build(example, ...) first, or give args_shape="


class Conflict(UsageError):
    """An id, token or name is already taken by other content."""

    code = "conflict"


class NotFound(FedqError):
    """Nothing has this name."""

    code = "not_found"
    exit_code = 3


class UnknownDevice(NotFound):
    code = "unknown_device"


class UnknownValue(NotFound):
    """A tag or id that neither the catalog nor the outbox knows."""

    code = "unknown_value"


class UnknownPlan(NotFound):
    code = "unknown_plan"


class Ambiguous(NotFound):
    """A tag or prefix that fits several values."""

    code = "ambiguous"


class FileMissing(NotFound):
    code = "file_missing"


class MissingValue(NotFound):
    """An argument that no message promised, or whose message never came."""

    code = "missing_value"


class Refused(FedqError):
    """A check said no, before anything ran."""

    code = "refused"
    exit_code = 4


class CannotRecord(Refused):
    """A function does what a plan cannot hold; names file, line and what to write instead."""

    code = "cannot_record"


class SpecMismatch(Refused, TypeError):
    """Wrong number, shape or dtype of arguments."""

    code = "spec_mismatch"


class NotAllowed(Refused):
    """An op, argument or graph that verification does not let through."""

    code = "not_allowed"
    hint = "'fedq ops' lists the allowed ops"


class OtherTorch(Refused):
    """The torch that is installed is not the one that the ops of plans were judged for."""

    code = "other_torch"
    hint = "install the torch that it names, or run 'make ops' in a checkout of fedq and start the device again"


class OldCopy(Refused):
    """A device's home is an old copy of it: a later start of it was seen."""

    code = "old_copy"
    hint = "see that no other copy runs, then: fedq device resume NAME --after-restore"


class BadFile(Refused):
    """Bytes that are not a fedq file: truncated, malformed, too large."""

    code = "bad_file"


class BadVersion(BadFile):
    code = "bad_version"
    hint = "upgrade the older side: pip install -U fedq"


class BadSignature(BadFile):
    """Unsigned, signed by an unknown key, or changed after signing."""

    code = "bad_signature"


class Quota(Refused):
    """No room: a limit that a device has for each requester. ``which``, ``most``, ``there``, ``more``."""

    code = "quota"


class Expired(Refused):
    """The message's time was over before it could be done."""

    code = "expired"


class Cancelled(Refused):
    """Its sender took it back before it was done."""

    code = "cancelled"


class Denied(FedqError):
    """The owner said no."""

    code = "denied"
    exit_code = 5


class Replaced(Refused):
    """The owner put another value in the place of one that was asked about. ``id``: of the new one."""

    code = "replaced"


class Removed(Refused):
    """The owner removed a value that was asked about."""

    code = "removed"


class WaitingForApproval(FedqError):
    """It waits for its owner's word: `fedq review`."""

    code = "waiting_for_approval"
    exit_code = 6


class TimedOut(FedqError, TimeoutError):
    """Nothing came in the time given; says for whom and why it waited."""

    code = "timed_out"
    exit_code = 7


class Failed(FedqError):
    """It ran on the device and failed there; names the action and its line."""

    code = "failed"
    exit_code = 8


class NotFinite(Failed):
    """A step of a fold gave infinities or NaN; names the step and the values."""

    code = "not_finite"


class WorkerDied(Failed):
    """The worker process ended in the middle of it, three times."""

    code = "worker_died"


class Unreachable(FedqError):
    """The queue root, a pair or a home cannot be used."""

    code = "unreachable"
    exit_code = 9


class AlreadyRunning(FedqError):
    """Another gate serves this devices root."""

    code = "already_running"
    exit_code = 9


class DiskFull(Unreachable):
    code = "disk_full"


def tree(base: type[FedqError] = FedqError) -> list[type[FedqError]]:
    """The class and all below it, in definition order."""
    return [base, *(c for sub in base.__subclasses__() for c in tree(sub))]


def from_code(code: str, message: str, /, **fields: Any) -> FedqError:
    """The error a reply names, as an exception; an unknown code gives a plain `Failed`."""
    kind = next((c for c in tree() if c.code == code), Failed)
    error = kind(message)
    error.fields = fields
    return error

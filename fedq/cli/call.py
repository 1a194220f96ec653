"""The plumbing of every command: shared options, one envelope, errors, exit codes.

A command's body gets a Call and gives a Shown; it prints nothing itself. stdout is data, stderr
is talk; nobody sees a traceback who did not ask for one with FEDQ_DEBUG=1.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from fedq import spelling
from fedq.errors import FedqError, Unreachable, UsageError

if TYPE_CHECKING:
    from fedq.client.session import Client
    from fedq.config import Config
    from fedq.device.home import Home
    from fedq.trust.keys import Key

SCHEMA_VERSION = 1
INTERRUPTED = 130

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON envelope.")]
QueueRoot = Annotated[str | None, typer.Option("--queue", metavar="DIR", help="Root of what travels.")]
DevicesRoot = Annotated[str | None, typer.Option("--devices", metavar="DIR", help="Root of private homes.")]


@dataclass(frozen=True, slots=True)
class Shown:
    """What a command found.

    Attributes:
        data: for programs; JSON.
        text: for people; printed on stdout.
        error: why some of it is missing; what is there is shown first.
    """

    data: Any
    text: str = ""
    error: FedqError | None = None


@dataclass(frozen=True)
class Call:
    """One use of a command: its shared options, and what follows from them."""

    queue: str | None
    devices: str | None
    as_json: bool = False

    @cached_property
    def config(self) -> Config:
        from fedq import config

        return config.find(queue=self.queue, devices=self.devices)

    @cached_property
    def key(self) -> Key:
        """The requester's own key; made at its first use."""
        from fedq.trust import keys

        return keys.load_or_create(self.config.home / "key")

    @cached_property
    def client(self) -> Client:
        from fedq.client.session import Client

        return Client(self.config)

    def home(self, name: str) -> Home:
        """The home of a device on this machine."""
        from fedq.device.home import Home

        return Home(self.config.devices / name, self.config)

    def say(self, text: str) -> None:
        """A line of talk."""
        _print(text, sys.stderr)

    def show(self, text: str) -> None:
        """What a command found, before it asks something about it."""
        _print(text)

    @property
    def can_ask(self) -> bool:
        """Whether a person sits there: never in a pipe, nor for a program."""
        return not self.as_json and sys.stdin.isatty() and sys.stdout.isatty()

    def ask(self, question: str) -> str:
        """What a person answers, in lower case; "" at the end of input."""
        _print(question, sys.stderr, end=" ")
        return sys.stdin.readline().strip()

    @cached_property
    def owner(self) -> str:
        """Who types this, for the record of a device's owners: the name of the Unix user."""
        import pwd

        try:
            return pwd.getpwuid(os.getuid()).pw_name
        except KeyError:
            return str(os.getuid())


Body = Callable[..., Shown]


def command(app: typer.Typer, *, examples: Sequence[str], numbers: bool = False) -> Callable[[Body], Body]:
    """Add a function ``body(call, ...)`` as a command, with the shared options and examples.

    ``numbers``: an argument may be a negative number; a misspelled option then arrives as one.
    """

    def add(body: Body) -> Body:
        def run(ctx: typer.Context, **given: Any) -> None:
            first = ctx.find_root().params
            shared = {k: given.pop(k) or first.get(k) for k in ("queue_root", "devices_root", "as_json")}
            shown = body(Call(shared["queue_root"], shared["devices_root"], bool(shared["as_json"])), **given)
            raise typer.Exit(finish(shown, as_json=bool(shared["as_json"])))

        _disguise(run, body)
        epilog = "\b\nExamples:\n" + "\n".join(f"  $ {line}" for line in examples)
        app.command(body.__name__, epilog=epilog, context_settings={"ignore_unknown_options": numbers})(run)
        return body

    return add


def _disguise(run: Callable[..., None], body: Body) -> None:
    """Give ``run`` the body's parameters, with the shared options after them, for typer to read."""
    own = list(inspect.signature(body, eval_str=True).parameters.values())[1:]
    shared = {"as_json": (AsJson, False), "queue_root": (QueueRoot, None), "devices_root": (DevicesRoot, None)}
    kind = inspect.Parameter.KEYWORD_ONLY
    more = [inspect.Parameter(n, kind, annotation=hint, default=d) for n, (hint, d) in shared.items()]
    first = inspect.Parameter("ctx", kind, annotation=typer.Context)
    params = [first, *(p.replace(kind=kind) for p in own), *more]
    run.__doc__ = body.__doc__
    run.__signature__ = inspect.Signature(params)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in params}


def finish(shown: Shown, *, as_json: bool) -> int:
    """Print what was found and return the exit code."""
    if as_json:
        _print(json.dumps(envelope(shown.data, shown.error)))
    elif shown.text:
        _print(shown.text)
    if shown.error is None:
        return 0
    if not as_json:
        complain(shown.error)
    return shown.error.exit_code


def _print(text: str, to: TextIO | None = None, *, head: str = "", end: str = "\n") -> None:
    """The one door to a terminal: nothing that acts on it, or that nobody sees, goes through.

    Args:
        to: standard output if not said. A reader that went away, such as ``head``, is no error: the rest goes nowhere.
        head: of our own, which may have colours.
    """
    try:
        print(head + spelling.visible(text), end=end, file=to or sys.stdout, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), (to or sys.stdout).fileno())
    except UnicodeEncodeError:  # a terminal that cannot show the letters
        _print(text.encode("ascii", "backslashreplace").decode(), to, head=head, end=end)


def envelope(data: Any, error: FedqError | None) -> dict[str, Any]:
    """The one form of all ``--json`` output."""
    head = {"schema_version": SCHEMA_VERSION, "status": "error" if error else "ok"}
    if error is None:
        return {**head, "exit_code": 0, "data": data}
    said = {"exit_code": error.exit_code, "error_code": error.code, "message": str(error), "hint": error.hint}
    return {**head, **said, **({} if data is None else {"data": data})}


def complain(error: FedqError) -> None:
    """``error: ...``, a blank line, ``hint: ...``, on stderr."""
    _print(str(error), sys.stderr, head=f"{_paint('error:', 31)} ")
    if error.hint:
        _print(error.hint, sys.stderr, head=f"\n{_paint('hint:', 36)} ")


def _paint(text: str, colour: int) -> str:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stderr.isatty()
    return text if plain else f"\033[1;{colour}m{text}\033[0m"


def guarded(app: typer.Typer, argv: Sequence[str]) -> int:
    """Run the app; every way it can end becomes an exit code."""
    try:
        return int(typer.main.get_command(app).main(list(argv), prog_name="fedq", standalone_mode=False) or 0)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as problem:
        return finish(Shown(None, "", as_error(problem)), as_json="--json" in argv)


def as_error(problem: Exception) -> FedqError:
    """Any exception as an error of ours: typer's complaints, the system's, and what nobody foresaw."""
    if isinstance(problem, FedqError):
        return problem
    if hasattr(problem, "format_message"):
        ctx = getattr(problem, "ctx", None)
        path = ctx.command_path if ctx else "fedq"
        text = problem.format_message().rstrip(".")
        return UsageError(text[:1].lower() + text[1:], hint=f"'{path} --help' shows how")
    if isinstance(problem, OSError) and problem.filename and not os.environ.get("FEDQ_DEBUG"):
        return Unreachable(f"{problem.filename}: {problem.strerror}")
    text = (str(problem).splitlines() or [""])[0]
    return FedqError(f"unexpected {type(problem).__name__}: {text}", hint=_keep_traceback())


def _keep_traceback() -> str:
    import traceback

    if os.environ.get("FEDQ_DEBUG"):
        _print(traceback.format_exc(), sys.stderr)
        return "this is a bug in fedq"
    from fedq import config, fs

    try:
        log: Path = config.find().home / "error.log"
        fs.make_dir(log.parent)
        fs.replace(log, [traceback.format_exc().encode()], durable=False)
    except (OSError, FedqError):
        return "this is a bug in fedq; FEDQ_DEBUG=1 shows where"
    return f"this is a bug in fedq; {log} holds the traceback, FEDQ_DEBUG=1 shows it here"

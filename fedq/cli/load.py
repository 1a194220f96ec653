"""Plans out of files: a user's Python file, run to get one name out of it, or a plan file."""

from __future__ import annotations

import contextlib
import importlib.util
import linecache
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedq.errors import CannotRecord, Conflict, FedqError, FileMissing, UnknownPlan, UsageError

if TYPE_CHECKING:
    from fedq.plan.file import PlanFile
    from fedq.plan.plan import Plan
    from fedq.trust.keys import Key

MAX_BYTES = 1 << 40


def plan_file(path: str | Path) -> PlanFile:
    """Read a plan file whose signature holds.

    Raises:
        FileMissing, BadSignature, BadFile, BadVersion: each names the file.
    """
    from fedq import fs
    from fedq.plan.codec import decode
    from fedq.plan.file import KIND, decode_plan
    from fedq.trust.keys import signer_of

    try:
        raw = fs.read(Path(path).resolve(), limit_bytes=MAX_BYTES)
        signer_of(KIND, memoryview(raw))
        return decode_plan(decode(raw))
    except FileNotFoundError:
        raise FileMissing(f"no file {path}", hint=f"looked for {Path(path).absolute()}") from None
    except FedqError as error:
        raise type(error)(f"{path}: {error}", hint=error.hint) from None


def check_suffix(path: str) -> None:
    """UsageError, FileMissing unless a plan file may be called so, and written there."""
    from fedq import fs

    if not path.endswith(".safetensors"):
        raise UsageError(
            f"{path}: a plan file ends in .safetensors", hint=f"-o {Path(path).with_suffix('.safetensors')}"
        )
    fs.check_free(path)


def save(path: str, plan: PlanFile, key: Key, *, new: bool = False) -> None:
    """Write a plan file, whole or not at all; ``new``: only if nothing stands there."""
    from fedq import fs
    from fedq.plan.file import encode_plan

    place, chunks = fs.check_free(path), encode_plan(plan, key)
    if not new:
        return fs.replace(place, chunks)
    try:
        fs.put(place, chunks)
    except FileExistsError:
        raise Conflict(f"{path} is there already", hint="-o FILE says where, and replaces what is there") from None


def plan_in(path: Path, name: str, shapes: Sequence[tuple[int, ...]] | None, *, check: bool = False) -> Plan:
    """The built plan that ``name`` in a Python file is, or can be made of: a plan, a plan class, a module, a function.

    Args:
        shapes: of the inputs; builds it anew. None: it must be built in the file.
        check: replay it in a fresh worker on what it was built on; on random numbers if that was shapes.
    """
    if not check:
        return _plan_in(path, name, shapes)
    from fedq.checking import check as in_a_worker
    from fedq.plan.plan import examples

    with examples() as kept:
        plan = _plan_in(path, name, shapes)
    with _blaming(path):
        in_a_worker(plan, *kept[plan])
    return plan


def _plan_in(path: Path, name: str, shapes: Sequence[tuple[int, ...]] | None) -> Plan:
    found = name_in(path, name)
    from fedq.plan.plan import Plan, func2plan  # torch, not before the file is known to run

    with _blaming(path):
        if isinstance(found, type) and issubclass(found, Plan):
            found = found()
        if not callable(found):
            raise UsageError(f"{name!r} in {path} is a {type(found).__name__}, not a function or plan")
        plan = found if isinstance(found, Plan) else func2plan()(found)
        if shapes is not None:
            return plan.build_shapes(shapes)
    if not plan.is_built:
        raise UsageError(f"{name!r} in {path} is not built there", hint='give its input shapes: --args-shape "(-1,1)"')
    return plan


def name_in(path: Path, name: str) -> Any:
    """The value called ``name`` after running the file, which finds modules beside it.

    Raises:
        FileMissing; CannotRecord: the file raised, with its own file and line;
        UnknownPlan: no such name there.
    """
    if not path.is_file():
        raise FileMissing(f"no file {path}", hint=f"looked for {path.absolute()}")
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(f"_fedq_{path.stem}", path)
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    with _blaming(path):
        spec.loader.exec_module(module)
    if not hasattr(module, name):
        plans = ", ".join(n for n, v in vars(module).items() if hasattr(v, "is_built") and not isinstance(v, type))
        raise UnknownPlan(f"{path} has no {name!r}", hint=f"its plans: {plans}" if plans else None)
    return getattr(module, name)


@contextlib.contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Run a user's code: what it prints is talk, what it raises is told with its own line."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except FedqError:
        raise
    except (Exception, SystemExit) as error:
        raise in_users_words(error, path) from None


def in_users_words(error: BaseException, path: Path) -> CannotRecord:
    """The error with the last line of the user's that led to it; none of our frames."""
    if isinstance(error, SyntaxError):
        file, line, source = error.filename or str(path), error.lineno or 0, (error.text or "").strip()
    else:
        ours = str(Path(__file__).resolve().parents[1])
        frames = traceback.extract_tb(error.__traceback__)
        users = [f for f in frames if not f.filename.startswith(("<", ours, sys.prefix, sys.base_prefix))]
        file, line = (users[-1].filename, users[-1].lineno or 0) if users else (str(path), 0)
        source = linecache.getline(file, line).strip()
    said = (str(error.msg if isinstance(error, SyntaxError) else error).splitlines() or [""])[0]
    where = f"\n  {source}        {Path(file).name}:{line}" if source else ""
    return CannotRecord(f"{type(error).__name__}: {said}{where}", hint=f"{path} must run without errors")

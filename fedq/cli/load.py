"""Run a user's Python file to get one name out of it, and say what went wrong in their words."""

from __future__ import annotations

import contextlib
import importlib.util
import linecache
import sys
import traceback
from pathlib import Path
from typing import Any

from fedq.errors import CannotRecord, FedqError, FileMissing, UnknownPlan


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
    try:
        with contextlib.redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
    except FedqError:
        raise
    except (Exception, SystemExit) as error:
        raise in_users_words(error, path) from None
    if not hasattr(module, name):
        plans = ", ".join(n for n, v in vars(module).items() if hasattr(v, "is_built") and not isinstance(v, type))
        raise UnknownPlan(f"{path} has no {name!r}", hint=f"its plans: {plans}" if plans else None)
    return getattr(module, name)


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
    said = (str(error).splitlines() or [""])[0]
    where = f"\n  {source}        {Path(file).name}:{line}" if source else ""
    return CannotRecord(f"{type(error).__name__}: {said}{where}", hint=f"{path} must run without errors")

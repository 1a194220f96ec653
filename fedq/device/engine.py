"""Which torch this machine would load, told without loading it: a gate has none in memory.

What is installed says its version twice, in its metadata and in its own ``version.py``; where one of them
is not the version that the op table was judged for, no plan is served.
"""

from __future__ import annotations

import re
from importlib import metadata, util
from importlib.abc import FileLoader
from pathlib import Path

from fedq.errors import OtherTorch
from fedq.plan import optable

_VERSION = re.compile(rb"""^__version__\s*=\s*['"]([^'"]+)['"]""", re.MULTILINE)


def check() -> None:
    """OtherTorch unless the torch that a worker started now would load is the one the op table was judged for."""
    found = versions()
    if not found:
        raise OtherTorch("no torch is installed, so no plan can be served", hint=f"pip install torch=={optable.TORCH}")
    for version in found:
        optable.check_torch(version)


def versions() -> list[str]:
    """What the installed torch calls itself: by its metadata, then by its own file; what there is of them."""
    said = _by_metadata(), _by_its_file()
    return [version for version in said if version]


def _by_metadata() -> str:
    try:
        return metadata.version("torch") or ""
    except metadata.PackageNotFoundError:
        return ""


def _by_its_file() -> str:
    """By the ``version.py`` beside the module that Python would import."""
    spec = util.find_spec("torch")
    if spec is None or not isinstance(spec.loader, FileLoader) or not spec.origin:
        return ""
    try:
        text = spec.loader.get_data(str(Path(spec.origin).with_name("version.py")))
    except OSError:
        return ""
    match = _VERSION.search(text)
    return match[1].decode("ascii", "replace") if match else ""

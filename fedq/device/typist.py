"""A worker that is given no data: it says which types a graph makes of inputs of given types.

Run as ``python -m fedq.device.typist``: a line of JSON per question on stdin, one per answer on stdout.
It reads graphs that strangers sent, holds no key, reads no file, and is ended when it takes too long.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

from fedq.errors import FedqError
from fedq.plan import typed
from fedq.plan.foresee import foresee
from fedq.plan.graph import Type, graph_from_json
from fedq.plan.verify import verify

MEMORY_BYTES = 32 << 30
"""Address space; torch alone maps some gigabytes of it."""


def answer(question: Any) -> Any:
    """``[which, types]``: the variant that is chosen, and what it makes as `typed.texts`; or why there is none."""
    graph, given = question
    try:
        checked = verify(graph_from_json(graph)).graph
        which, found = foresee(checked, [Type.parse(text) for text in given])
    except FedqError as error:
        return {"refused": str(error)}
    except Exception as error:
        return {"refused": type(error).__name__}
    return [which, typed.texts(found)]


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for line in sys.stdin:
        said = memoryview(json.dumps(answer(json.loads(line))).encode() + b"\n")
        while said:
            said = said[os.write(1, said) :]


if __name__ == "__main__":
    main()

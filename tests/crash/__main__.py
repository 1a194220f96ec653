"""``python -m tests.crash --kills 100000``: lanes of roots in parallel, killed and checked; prints what was hit."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--lanes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=None, help="of the first lane; each further one adds 1")
    parser.add_argument("--where", type=Path, default=None, help="a folder; its file system is told")
    parser.add_argument("--durability", default="full", choices=("full", "none"))
    parser.add_argument("--worker", action="store_true", help="real workers and replays")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.seed is None:
        args.seed = int.from_bytes(os.urandom(4), "big")
    return one_lane(args) if args.one else all_lanes(args)


def one_lane(args: argparse.Namespace) -> int:
    from tests.crash.lane import Lane

    worker = None
    if args.worker:
        from tests.crash.real import Zygote

        worker = Zygote(args.seed).worker
    lane = Lane(args.where, args.seed, durability=args.durability, worker=worker)
    try:
        lane.run(args.kills)
    except Exception as error:
        import traceback

        traceback.print_exc()
        print(json.dumps({"error": str(error), "kills": lane.kills}))
        return 1
    hits = [[*k, n] for k, n in lane.hits.items()]
    print(json.dumps({"kills": lane.kills, "lives": lane.lives, "roots": lane.roots, "messages": lane.messages,
                      "outcomes": lane.outcomes, "hits": hits}))  # fmt: skip
    return 0


def all_lanes(args: argparse.Namespace) -> int:
    base = args.where or Path("/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir())
    where = Path(tempfile.mkdtemp(prefix="fedq-crash-", dir=base))
    listed = subprocess.run(["df", "--output=fstype", where], capture_output=True, text=True).stdout.split()
    disk = listed[-1] if listed else "?"
    print(
        f"{args.kills} kills in {args.lanes} lanes on {disk}, durability {args.durability}, seed {args.seed}",
        flush=True,
    )
    began = time.monotonic()
    each = -(-args.kills // args.lanes)
    command = [sys.executable, "-m", "tests.crash", "--one", "--kills", str(each), "--where", str(where),
               "--durability", args.durability, *(["--worker"] if args.worker else [])]  # fmt: skip
    lanes = [
        subprocess.Popen([*command, "--seed", str(args.seed + n)], stdout=subprocess.PIPE, text=True)
        for n in range(args.lanes)
    ]
    found = [json.loads(lane.communicate()[0].splitlines()[-1]) for lane in lanes]
    took_s = time.monotonic() - began
    errors = [f["error"] for f in found if "error" in f]
    total: Counter[str] = Counter()
    hits: Counter[tuple[str, ...]] = Counter()
    outcomes: Counter[str] = Counter()
    for f in found:
        total.update({k: v for k, v in f.items() if isinstance(v, int)})
        hits.update({tuple(row[:3]): row[3] for row in f.get("hits", ())})
        outcomes.update(f.get("outcomes", {}))
    for (role, phase, name), n in sorted(hits.items()):
        print(f"  {role:10} {phase:10} {name:26} {n}")
    rate = total["kills"] / took_s
    print(f"{total['kills']} kills in {took_s:.0f} s ({rate:.0f}/s), {total['lives']} lives, "
          f"{total['roots']} roots brought to rest, {total['messages']} messages")  # fmt: skip
    print(f"outcomes {dict(outcomes)}")
    print(f"{len(hits)} (role, phase, step) hit; lost, torn, changed, done twice: {len(errors)}")
    for error in errors:
        print(f"VIOLATION: {error}")
    if not errors:
        where.rmdir()
    return len(errors)


if __name__ == "__main__":
    sys.exit(main())

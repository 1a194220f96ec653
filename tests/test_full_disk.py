"""Real full disks: a daemon says so, holds, and goes on; a send says whether it will still go out. Nothing is lost."""

import pytest

from fedq.client import sending
from tests.namespaces import in_namespace


def test_a_daemon_whose_disk_is_full_says_so_holds_and_goes_on_when_there_is_room(tmp_path):
    script = """if True:
        import sys
        from contextlib import suppress
        from pathlib import Path
        import torch
        from tests.rig import Rig, wait_until
        with Rig(Path(sys.argv[1])) as rig:
            rig.start()
            assert rig.device.send(torch.ones(3)).copy(timeout_s=30).sum() == 3
            full = rig.config.devices / "full"
            with suppress(OSError), full.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
            sent = [rig.device.send(torch.full((2,), float(n))) for n in range(20)]
            wait_until(lambda: rig.heartbeat().trouble == "disk_full")
            full.unlink()
            print([p.get(timeout_s=30)[0].item() for p in sent] == list(range(20)))
            wait_until(lambda: not rig.heartbeat().trouble)
        """
    out = in_namespace('mkdir "$2/devices"; mount -t tmpfs -o size=4m none "$2/devices"', script, tmp_path)
    assert out == "True\n"


SENDS = """if True:
    import sys
    from contextlib import suppress
    from pathlib import Path
    import torch
    from fedq.errors import DiskFull
    from tests.rig import Rig, client_of
    root, where, token = Path(sys.argv[1]), {where!r}, {token!r}
    with Rig(root) as rig:
        rig.device.send(torch.ones(2))  # opens what is opened once
        before = rig.device.pair.carrier.list("in")
        full = root / where / "full"
        with suppress(OSError), full.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        try:
            with rig.device.batch(token=token):
                rig.device.send(torch.arange(60_000.0))
            print("sent")
        except DiskFull as error:
            print(error.hint.partition("; ")[2])
        full.unlink()
        print(len(rig.device.pair.carrier.list("in")) - len(before))
        client_of(root).close()  # the next start
        print(len(rig.device.pair.carrier.list("in")) - len(before))
    """
FULL = {
    "the share, without a token": ("queue", None, sending.NOT_SENT, 0),
    "the share, with a token": ("queue", "nightly", sending.RECORDED, 1),
    "the outbox, without a token": ("home", None, sending.NOT_SENT, 0),
    "the outbox, with a token": ("home", "nightly", sending.NOT_SENT, 0),
}


@pytest.mark.parametrize("case", FULL)
def test_a_send_that_met_a_full_disk_says_whether_it_will_go_out_and_it_is_so(case, tmp_path):
    where, token, said, later = FULL[case]
    setup = f'mkdir "$2/{where}"; mount -t tmpfs -o size=1m,mode=700 none "$2/{where}"'
    out = in_namespace(setup, SENDS.format(where=where, token=token), tmp_path)
    assert out.splitlines() == [said, "0", str(later)]

"""A real daemon whose disk is full: it says so, holds, and goes on; nothing that was sent is lost."""

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

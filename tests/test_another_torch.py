"""A torch that the ops of plans were not judged for: no plan is served, built or run with it, and that is said."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fedq as fq
from fedq.device import engine, pool
from fedq.errors import OtherTorch, TimedOut
from fedq.plan import optable
from fedq.plan.graph import Var
from tests.marks import more, rows
from tests.rig import Rig, wait_until
from tests.test_attempts import plan

ROOT = Path(__file__).parent.parent
OTHER = "0.0.1"


def install(folder: Path, version: str) -> Path:
    """What pip leaves of another torch, where Python looks first."""
    info = folder / f"torch-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
    return info


@pytest.fixture
def copy(tmp_path):
    """A copy of fedq whose table was judged for another torch; the environment that finds it."""
    shutil.copytree(ROOT / "fedq", tmp_path / "copy/fedq", ignore=shutil.ignore_patterns("__pycache__"))
    table = tmp_path / "copy/fedq/plan/ops.py"
    table.write_text(table.read_text().replace(f'TORCH = "{optable.TORCH}"', f'TORCH = "{OTHER}"'))
    return {**os.environ, "PYTHONPATH": str(tmp_path / "copy"), "FEDQ_HOME": str(tmp_path / "me")}


def fedq(environ, where, *words):
    command = [sys.executable, "-c", "import sys, fedq.cli; sys.exit(fedq.cli.main())", *words]
    return subprocess.run(command, cwd=where, env=environ, capture_output=True, text=True, timeout=60)


SERVING = (("up", "ward"), ("step", "ward"), ("up", "ward", "--foreground"))


@pytest.mark.parametrize("words", rows(SERVING, SERVING[:1]))
def test_a_device_is_not_served_and_the_words_name_the_cure(words, copy, tmp_path):
    assert fedq(copy, tmp_path, "device", "init", "ward").returncode == 0
    done = fedq(copy, tmp_path, "device", *words)
    assert done.returncode == 4
    assert f"torch {torch.__version__} is installed" in done.stderr and f"torch {OTHER} only" in done.stderr
    assert "make ops" in done.stderr.partition("hint:")[2] and "Traceback" not in done.stderr
    assert "ward  up" not in fedq(copy, tmp_path, "device", "ls").stdout


@more
def test_nothing_is_built_since_no_device_would_take_its_word(copy, tmp_path):
    (tmp_path / "tour.py").write_text("import fedq as fq\n@fq.func2plan(args_shape=[(-1,)])\ndef f(x): return x + 1\n")
    done = fedq(copy, tmp_path, "build", "tour.py:f", "-o", "f.safetensors")
    assert done.returncode == 4 and "make ops" in done.stderr and not (tmp_path / "f.safetensors").exists()


@more
def test_a_worker_that_loaded_another_ends_before_it_takes_anything(copy, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", copy["PYTHONPATH"])
    worker = pool.ProcessWorker(threads=1)
    worker.start({"calls": [["p", [], [], 0, None]]}, [])
    died = wait_until(worker.poll)
    assert isinstance(died, pool.Died) and "while it started" in died.why
    assert "make ops" in died.said


def test_a_virtual_worker_is_not_made_and_a_plan_is_not_run(monkeypatch):
    double = fq.func2plan(args_shape=[(-1,)])(lambda x: x + x)
    monkeypatch.setattr(optable, "TORCH", OTHER)
    with fq.TorchHook(torch) as hook, pytest.raises(OtherTorch, match="make ops"):
        fq.VirtualWorker(hook, id="ward")
    with pytest.raises(OtherTorch, match="make ops"):
        double.compiled()
    with pytest.raises(OtherTorch, match="make ops"):
        fq.func2plan(args_shape=[(-1,)])(lambda x: x + x)


@pytest.mark.parametrize(
    "version", ["2.12.0", "2.13.1", "2.13", "2.13.0a0+git1234", "2.13.0.post1", "3.0", "2.13.0rc1"]
)
def test_another_version_is_any_but_the_very_one(version, tmp_path, monkeypatch):
    install(tmp_path, version)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(OtherTorch, match="make ops"):
        engine.check()


@pytest.mark.parametrize("local", ["", "+cpu", "+cu130"])
def test_what_stands_behind_a_plus_says_only_how_it_was_built(local, tmp_path, monkeypatch):
    install(tmp_path, optable.TORCH + local)
    monkeypatch.syspath_prepend(str(tmp_path))
    engine.check()


def test_a_module_that_hides_the_installed_one_is_looked_at_too_and_never_run(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("raise SystemExit('loaded')")
    (tmp_path / "torch/version.py").write_text("from typing import Optional\n__version__ = '2.12.0+cpu'\n")
    code = "from fedq.device import engine; print(engine.versions()[-1]); engine.check()"
    environ = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    assert (done.stdout, "OtherTorch" in done.stderr) == ("2.12.0+cpu\n", True)


def test_a_torch_that_is_changed_below_a_daemon_gets_no_call_and_when_it_is_back_all_goes_on(tmp_path, monkeypatch):
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.setenv("PYTHONPATH", f"{site}:{ROOT}")
    with Rig(tmp_path / "root", data={"x": torch.ones(3)}) as rig:
        double = plan("aten.abs", [Var(0)], "f32[n]", result="f32[n]")
        rig.start()
        pointer = rig.device.send_plan(double)
        x = rig.device.find("x")
        assert pointer(x).get(timeout_s=60).tolist() == [1, 1, 1]  # its worker has the right one in memory
        info = install(site, "2.12.0")
        wait_until(lambda: rig.heartbeat().trouble == "other_torch")
        waits = pointer(x)
        with pytest.raises(TimedOut, match="its torch is not the one that plans were judged for"):
            waits.get(timeout_s=1.2)
        shutil.rmtree(info)
        assert waits.get(timeout_s=60).tolist() == [1, 1, 1]
        wait_until(lambda: not rig.heartbeat().trouble)

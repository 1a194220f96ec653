"""What was denied, or whose data was replaced, is shown again, until it is asked for under new ids."""

import numpy as np


def ask(shell, *more, code=0):
    words = ("run", "double_abs.safetensors", "ward:private", "--token", "nightly", "--wait", "--timeout", "60s", *more)
    return shell(*words, code=code)


def test_a_token_that_was_denied_stands_until_it_is_asked_again(shell, plans):
    shell.plan("double_abs.safetensors", plans["double_abs"])
    np.save(shell.root / "x.npy", np.full((1, 2), -2, "f4"))
    shell("device", "init", "ward")
    shell("data", "add", "ward", "x.npy", "--tag", "private")
    first = shell.out("run", "double_abs.safetensors", "ward:private", "--token", "nightly")
    shell("device", "step", "ward")
    shell("deny", first, "--why", "too few rows")
    shell("device", "step", "ward")
    for _ in range(2):
        assert "too few rows" in ask(shell, code=5).stderr
    np.save(shell.root / "x.npy", np.full((1, 2), -3, "f4"))
    shell("data", "add", "ward", "x.npy", "--tag", "private", "--replace")
    again = shell.out("run", "double_abs.safetensors", "ward:private", "--token", "nightly", "--ask-again")
    assert again != first
    shell("device", "step", "ward")
    shell("approve", again)
    shell("device", "step", "ward")
    assert "6" in ask(shell).stdout
    assert "--token" in shell("run", "double_abs", "ward:private", "--ask-again", code=2).stderr


def test_a_result_whose_data_was_replaced_is_asked_for_again_on_what_is_there_now(shell, plans):
    shell.plan("double_abs.safetensors", plans["double_abs"])
    np.save(shell.root / "x.npy", np.full((1, 2), -2, "f4"))
    shell("device", "init", "ward")
    shell("data", "add", "ward", "x.npy", "--tag", "private")
    first = shell.out("run", "double_abs.safetensors", "ward:private")
    shell("device", "step", "ward")
    np.save(shell.root / "x.npy", np.full((1, 2), -4, "f4"))
    shell("data", "add", "ward", "x.npy", "--tag", "private", "--replace")
    shell("device", "step", "ward")
    assert "put another value in" in shell("get", first, "--timeout", "10s", code=4).stderr
    told = shell("get", first, "--ask-again", "--timeout", "100ms", code=7).stderr
    again = told.partition("asked again: ")[2].split()[0]
    shell("device", "step", "ward")
    shell("approve", again)
    shell("device", "step", "ward")
    assert "8" in shell.out("get", again, "--timeout", "10s")

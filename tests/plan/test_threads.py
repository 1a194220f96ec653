"""Plans built in several threads at a time are those that one thread builds."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

import fedq as fq


def built(_=None):
    return fq.func2plan()(lambda x: (x * 2).softmax(-1)).build(torch.ones(4, 3)).id


def test_threads_that_build_at_a_time_build_what_one_builds_alone():
    with ThreadPoolExecutor(4) as pool:
        assert {*pool.map(built, range(8))} == {built()}

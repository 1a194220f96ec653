"""The property behind the rule: until a releasing word, a share tells nothing of private bytes."""

from __future__ import annotations

import os

import pytest

from tests.attacks.enemy import NAME, SECRETS, Enemy, Town, f32

SEEDS = range(int(os.environ.get("FEDQ_ATTACKS", "12")))


def changed(one: dict[str, bytes], other: dict[str, bytes], released: set[str]) -> list[str]:
    """Files that are not the same, but for the bytes of what was released."""
    odd = [path for path in one.keys() | other.keys() if one.get(path) != other.get(path)]
    fine = {
        path for path in odd if path in one and path in other and path.rpartition("/")[2].partition(".")[0] in released
    }
    return sorted(set(odd) - fine)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_share_is_the_same_whatever_the_private_bytes_are_and_whether_the_owner_looked(seed, tmp_path):
    towns = [Town(tmp_path / str(n), secrets) for n, secrets in enumerate(SECRETS)]
    towns[1].looks = seed % 2 == 0
    enemy = Enemy(seed, towns[0].mine)
    rng, released, words = enemy.rng, set[str](), 0
    for turn in range(40):
        move = rng.random()
        if move < 0.55:
            message = enemy.message()
            for town in towns:
                town.write(*message)
        elif move < 0.8:
            asked = [town.questions() for town in towns]
            one, other = ([(q.reply, q.about["same"], q.about["chain"]) for q in a] for a in asked)
            assert one == other
            if asked[0]:
                n, word = rng.randrange(len(asked[0])), rng.choice(["look", "look", "look", "deny", "approve"])
                said = [
                    town.say(a[n], word) for town, a in zip(towns, asked, strict=True) if word != "look" or town.looks
                ]
                words += said[0] == ""
                if word == "approve" and said[0] == "":
                    released.add(asked[0][n].reply)
        elif 0.8 <= move < 0.86:
            if not towns[1].looks:
                continue  # a question that was looked at keeps the value that was replaced, others do not
            tag, release = rng.choice(["p", "open"]), rng.choice(["review", "review", "open"])
            for town in towns:
                public = release == "open" or tag == "open"
                new = town.add(tag, f32(5, 5, 5) if public else town.secrets["again"], "open" if public else release)
            enemy.owners.append(new)
            enemy.tags[tag] = new
            enemy.pool.append(new)
        elif move < 0.89:
            tag = rng.choice(["p", "q", "n", "open"])
            for town in towns:
                town.remove(tag)
        elif move < 0.94:
            for town in towns:
                town.restart()
        step = rng.choice([1.0, 1.0, 3700.0, 86_400.0, 20 * 86_400.0] if turn % 5 == 4 else [1.0])
        for town in towns:
            town.now += step
            town.serve()
            town.now += 10  # a second look: what a released value took to compute may show
            town.serve()
        one, other = (town.share() for town in towns)
        assert not changed(one, other, released), f"seed {seed}, turn {turn}"
    for town in towns:
        town.restart()
    assert any(NAME in path for path in one)

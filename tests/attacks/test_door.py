"""One door: what may be given and what may leave is said in `trust.policy`, and nowhere else."""

from __future__ import annotations

import ast
from pathlib import Path

import fedq
from fedq.trust import policy

ROOT = Path(fedq.__file__).parent
RULES = {policy.OPEN, policy.REVIEW, *policy.PLANNED}
SETTINGS = {("home.py", policy.REVIEW)}
"""The section ``[review]`` of a device's settings is called as the rule is."""
CONSTANTS = {"OPEN", "REVIEW", "PLANNED", "ENFORCED"}


def modules(room: str) -> list[tuple[str, ast.Module]]:
    return [(path.name, ast.parse(path.read_text())) for path in sorted((ROOT / room).glob("*.py"))]


def test_no_rule_is_named_in_the_device():
    named = {
        (name, found.value)
        for name, tree in modules("device")
        for found in ast.walk(tree)
        if isinstance(found, ast.Constant) and found.value in RULES
    }
    assert named == SETTINGS


def test_no_constant_that_names_a_rule_is_used_in_the_device():
    used = [
        (name, found.attr if isinstance(found, ast.Attribute) else found.id)
        for name, tree in modules("device")
        for found in ast.walk(tree)
        if isinstance(found, ast.Attribute | ast.Name)
        and (found.attr if isinstance(found, ast.Attribute) else found.id) in CONSTANTS
    ]
    assert used == []


def test_no_rule_of_a_value_is_compared_in_the_device():
    """Rules are read from the journal and handed to the policy as they are."""
    compared = [
        (name, found.lineno)
        for name, tree in modules("device")
        for found in ast.walk(tree)
        if isinstance(found, ast.Compare)
        and any(isinstance(part, ast.Attribute) and part.attr == "release" for part in ast.walk(found))
    ]
    assert compared == []


def test_values_are_given_and_leave_at_one_place_each():
    """A second place would have to ask, too."""
    asked = [
        (name, found.attr)
        for name, tree in modules("device")
        for found in ast.walk(tree)
        if isinstance(found, ast.Attribute) and found.attr in ("may_be_given", "may_leave")
    ]
    assert sorted(asked) == [("batch.py", "may_be_given"), ("peer.py", "may_leave")]


def test_a_reply_is_made_from_the_row_that_lets_it_leave_and_looks_up_nothing_else():
    (tree,) = [tree for name, tree in modules("device") if name == "publish.py"]
    reads = {
        found.attr
        for found in ast.walk(tree)
        if isinstance(found, ast.Attribute) and isinstance(found.value, ast.Attribute) and found.value.attr == "store"
    }
    assert reads == {"allowed"}

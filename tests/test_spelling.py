r"""Names and texts of others, as they are shown: nothing in them can look like something else."""

import unicodedata

import pytest

from fedq import spelling
from fedq.plan.graph import About, Action, Graph, Type, Var, show

NAMES = {
    "letters, digits, _-.": ("double_abs-2.x", "double_abs-2.x"),
    "one script that is not Latin": ("среднее", "среднее"),
    "Japanese is one script": ("平均値ー々あア", "平均値ー々あア"),
    "a Cyrillic letter in a Latin word": ("me\u0430n", r"me\u{430}n"),
    "a Latin letter in a Greek word": ("αa", r"\u{3b1}a"),
    "what looks like the printed form": ("f(%0)", r"f\u{28}\u{25}0\u{29}"),
    "a space": ("a b", r"a\u{20}b"),
    "a backslash that would look like an escape": (r"a\u{30}", r"a\u{5c}u\u{7b}30\u{7d}"),
    "a blank of braille": ("a\u2800", r"a\u{2800}"),
    "a filler of Hangul": ("\u3164\u115f\u1160", r"\u{3164}\u{115f}\u{1160}"),
    "a mark that turns the direction": ("\u200fa\u061c", r"\u{200f}a\u{61c}"),
    "a tag, a soft hyphen, a joiner": ("\U000e0041\xad\u200b\u2060", r"\u{e0041}\u{ad}\u{200b}\u{2060}"),
    "letters of full width": ("ａ𝐚", r"\u{ff41}\u{1d41a}"),
    "a letter that combines": ("a\u0300", r"a\u{300}"),
    "digits of another script": ("\u0661", r"\u{661}"),
}


@pytest.mark.parametrize(("given", "shown"), NAMES.values(), ids=NAMES)
def test_a_name_is_letters_of_one_script_digits_and_three_signs(given, shown):
    assert spelling.name(given) == shown


def test_every_character_of_unicode_is_a_letter_with_a_shape_or_escaped():
    for c in map(chr, range(0x110000)):
        shown = spelling.name(c)
        assert shown == spelling.escaped(c) or unicodedata.category(c)[0] == "L" or c in "0123456789_-."
        assert shown.isprintable() and not shown.isspace()


def test_a_long_name_pushes_nothing_out_of_sight():
    assert spelling.name("a" * 1000) == "a" * 80 + "..."


TEXTS = {
    "a sentence": ("Too much, for now (see #12).", "Too much, for now (see #12)."),
    "two scripts in two words": ("mean среднее", "mean среднее"),
    "two scripts in one word": ("me\u0430n it", r"me\u{430}n it"),
    "lines and escapes of a terminal": ("a\nb\x1b[2J", r"a\u{a}b\u{1b}[2J"),
    "many spaces": ("a   b", r"a\u{20}\u{20} b"),
    "a backslash": ("a\\b", r"a\u{5c}b"),
}


@pytest.mark.parametrize(("given", "shown"), TEXTS.values(), ids=TEXTS)
def test_a_text_is_one_line_of_words_and_punctuation(given, shown):
    assert spelling.text(given) == shown


def test_a_printed_plan_shows_no_name_that_looks_like_a_part_of_it():
    kind = Type("f32", ("n",))
    graph = Graph((kind,), (Action("aten.abs", (Var(0),), {}, (kind,)),), {"a: %9": Var(1)}, {"n": 0})
    about = About("me\u0430n(%0: f32[n]) -> %1\u2800", ("\u200f= aten.mean(%0)   stats.py:9",))
    head, action = show(graph, about, claims=True).splitlines()
    assert head.startswith(r"plan me\u{430}n\u{28}\u{25}0")
    assert head.endswith(r"-> {'a\u{3a} \u{25}9': %1}")
    assert action.endswith(r"claims \u{200f}\u{3d}\u{20}aten.mean\u{28}\u{25}0\u{29}\u{20}\u{20}\u{20}stats.py:9")

"""Descriptions of prefixes: the model card of a repository, and the table of a notebook."""

import json
import re
from html import unescape

import pytest

from prefixembed._files.cards import bank_table, model_card

NAMES = ["plain", "<script>alert(1)</script>", "a | b", "`code`", "two\nlines", "  wide ", ""]


def facts_of(**changes):
    facts = {
        "objective": "regression", "n_classes": None, "length": 5, "ffn_length": 16,
        "digest": "d" * 64, "n_bytes": 2000, "reading": {"pooling": "mean", "max_length": 64},
        "training": {},
    }  # fmt: skip
    return facts | changes


def rows_of_card(prefixes):
    """Return the rows of a card's table as dicts by column."""
    lines = model_card("me/x", prefixes, "backbone", None, "pass").splitlines()
    table = [line for line in lines if line.startswith("|")]
    header, _, *rows = (re.split(r"(?<!\\)\|", line)[1:-1] for line in table)
    columns = [cell.strip() for cell in header]
    return [dict(zip(columns, map(str.strip, row), strict=True)) for row in rows]


def rows_of_table(prefixes, weights=None):
    """Return the rows of a notebook's table as dicts by column."""
    table = bank_table(prefixes, weights or {}, "backbone", "concat")
    header, *rows = re.findall("<tr>(.*?)</tr>", table, re.DOTALL)
    columns = re.findall("<th>(.*?)</th>", header)
    return [
        dict(zip(columns, map(unescape, re.findall("<td>(.*?)</td>", row, re.DOTALL)), strict=True))
        for row in rows
    ]


def test_each_fact_is_in_its_column():
    training = {"n_texts": 1234, "valid_accuracy": 0.75, "valid_loss": 0.5}
    facts = facts_of(
        objective="token_classification", n_classes=3, length=2, ffn_length=7, training=training
    )
    (card,) = rows_of_card({"tags": facts})
    assert card == {
        "source task": "tags", "objective": "token_classification", "classes": "3",
        "texts": "1234", "held-out scores": "accuracy 0.750", "positions": "2", "slots": "7",
        "reading": "pooling='mean', max_length=64", "digest": "d" * 12,
    }  # fmt: skip
    (table,) = rows_of_table({"tags": facts}, {"tags": 0.5})
    assert table == {
        "prefix": "tags", "active": "yes", "weight": "0.5", "positions": "2", "slots": "7",
        "source task": "token classification, 3 classes", "texts": "1,234",
        "held out": "accuracy 0.750", "kB": "2",
    }  # fmt: skip


def test_missing_facts_leave_cells_empty():
    facts = facts_of(objective=None, length=0)
    (card,) = rows_of_card({"a": facts})
    assert [card[name] for name in ("objective", "classes", "texts", "held-out scores")] == [
        "none", "", "", ""
    ]  # fmt: skip
    (table,) = rows_of_table({"a": facts})
    assert [table[name] for name in ("active", "weight", "source task", "texts", "held out")] == [
        "no", "", "none", "", ""
    ]  # fmt: skip
    assert card["positions"] == table["positions"] == "0"


@pytest.mark.parametrize("lengths", [(5, 0), (0, 3), (4, 2)])
def test_facts_of_a_prefix_are_shown(tiny, random_prefix, lengths):
    length, ffn_length = lengths
    prefix = random_prefix(tiny(), length, ffn_length=ffn_length)
    for (row,) in (rows_of_card({"a": prefix.facts()}), rows_of_table({"a": prefix.facts()})):
        assert (row["positions"], row["slots"]) == (str(length), str(ffn_length))


def test_names_cannot_break_out_of_their_cell():
    prefixes = {name: facts_of() for name in NAMES}
    shown = [row["source task"] for row in rows_of_card(prefixes)]
    assert shown == [
        "plain", "&lt;script>alert(1)&lt;/script>", "a \\| b", "'code'", "two lines", "wide", ""
    ]  # fmt: skip
    assert [row["prefix"] for row in rows_of_table(prefixes)] == NAMES
    table = bank_table(prefixes, {}, "<b>bold</b>", "mean")
    assert "<script>" not in table and "<b>" not in table


@pytest.mark.parametrize(
    ("training", "shown"),
    [
        ({"valid_accuracy": 0.8754, "valid_loss": 0.3}, "accuracy 0.875"),
        ({"valid_r2": 1.0, "n_texts": 3, "train_loss": 0.25}, "r2 1.000"),
        ({"valid_a": 0.5, "valid_b": 0.25}, "a 0.500, b 0.250"),
        ({"valid_accuracy": None, "valid_note": "none"}, ""),
        ({}, ""),
    ],
)
def test_held_out_scores_are_shown_without_losses(training, shown):
    prefixes = {"a": facts_of(training=training)}
    (card,), (table,) = rows_of_card(prefixes), rows_of_table(prefixes)
    assert card["held-out scores"] == table["held out"] == shown


def test_header_of_a_card_is_valid_yaml(tmp_path):
    yaml = pytest.importorskip("yaml")
    odd = 'a"b: [c'
    card = model_card("me/x", {"s\ud800\n# not a title": facts_of()}, odd, None, "pass")
    header = yaml.safe_load(card.split("---")[1])
    assert header["base_model"] == odd and header["library_name"] == "prefixembed"
    assert "\n# not a title" not in card
    card.encode()
    assert "base_model" not in model_card("me/x", {}, str(tmp_path), None, "pass")
    assert json.loads(json.dumps(header)) == header


def test_card_shows_how_to_use_the_prefixes():
    card = model_card("me/x", {"a": facts_of()}, "back|`bone`", "f" * 64, "x = 1\ny = 2", "How.")
    assert "```python\nx = 1\ny = 2\n```" in card
    assert "Prefixes of 1 source task on the frozen backbone `back\\|'bone'`" in card
    assert "). How.\n" in card
    assert "of 2 source tasks on" in model_card(
        "m", dict.fromkeys("ab", facts_of()), "b", None, "pass"
    )


def test_card_shows_each_field_of_the_reading():
    reading = {"pooling": "cls", "max_length": 9, "prompt": "query: |", "a later field": True}
    (row,) = rows_of_card({"a": facts_of(reading=reading)})
    expected = "pooling='cls', max_length=9, prompt='query: \\|', a later field=True"
    assert row["reading"] == expected


def test_table_shows_active_and_inactive_prefixes():
    pairs = {"pooling": "mean", "max_length": 64, "pairs": "apart"}
    prefixes = {
        "a": facts_of(objective="classification", n_classes=2, reading=pairs),
        "b": facts_of(objective=None),
    }
    assert "1 of 2 prefixes active, combined by mean, on back&lt;bone" in bank_table(
        prefixes, {"a": 0.5}, "back<bone", "mean"
    )
    one, other = rows_of_table(prefixes, {"a": 0.5})
    assert one["source task"] == "classification, 2 classes, pairs apart"
    assert (one["active"], one["weight"]) == ("yes", "0.5")
    assert (other["active"], other["weight"], other["source task"]) == ("no", "", "none")

"""Rows of a run folder read one by one: found by id, without their candidates, and summed up in whatever order they come."""

from __future__ import annotations

import json
import random
from dataclasses import fields, replace
from pathlib import Path

import pytest

from tts.data.records import Attempt, Outcome, Record
from tts.data.store import RunStore
from tts.errors import InputError
from tts.evals.summary import Seconds, summarize
from tts.options import configure
from tts.strategies import get_strategy
from tts.types import Branch, Usage

TRAPS = [
    "plain",
    'a "quoted" id',
    "ünïcode ✓",
    "half \ud83d",
    "p-1",
    "p-10",
    'x", "candidates": [{}], "choice": 1',
    "back\\slash\n",
]


def row(i, text):
    steps = f"<think>{text}</think>\n\n", "so"
    attempts = tuple(
        Attempt(steps, (3, 2), "stop", k / 7, (0.1, k / 3), k / 9, str(k % 2), k % 2, k % 2 == i % 2) for k in range(5)
    )
    tree = (Branch(None, 0, f'], "choice": {text}', 3, "stop", 0.5, "pruned", text),)
    return Record(text, f"the problem {text}", text, attempts, 4, i % 2 == 0, Usage(generated=25, calls=1), tree=tree)


@pytest.fixture
def store():
    store = RunStore.create(Path("r"), {"strategy": "bon"}, {})
    for i, text in enumerate(TRAPS):
        store.append(row(i, text), {"id": text})
    return store


def test_rows_are_found_by_id_with_and_without_the_place_that_the_timing_names(store):
    for _ in range(2):
        for i, text in enumerate(TRAPS):
            assert store.find(text) == row(i, text)
        assert store.find("p") is None
        assert store.find("p-100") is None
        store.timings.unlink(missing_ok=True)


def test_a_place_that_is_not_the_rows_any_more_does_not_matter(store):
    lines = store.results.read_bytes().splitlines(keepends=True)
    store.results.write_bytes(b"".join([*lines[2:], lines[1][:-20]]))
    assert [store.find(text) is not None for text in TRAPS] == [False, False, *[True] * (len(TRAPS) - 2)]
    store.results.write_bytes(b"".join(reversed(lines)))
    assert all(store.find(text) == row(i, text) for i, text in enumerate(TRAPS))


def test_rows_in_another_form_are_found_too(store):
    rows = [json.loads(line) for line in store.results.read_bytes().splitlines()]
    store.results.write_text("".join(json.dumps(dict(reversed(row.items()))) + "\n" for row in rows))
    for i, text in enumerate(TRAPS):
        assert store.find(text) == row(i, text)
    assert [outcome.id for outcome in store.outcomes()] == TRAPS


def test_an_outcome_is_its_row_without_the_candidates(store):
    for record, outcome in zip(store.records(), store.outcomes(), strict=True):
        assert all(getattr(outcome, field.name) == getattr(record, field.name) for field in fields(Outcome))


def test_a_row_is_read_as_it_was_written(store):
    for line, record in store.lines(TRAPS):
        assert record.to_line() == line
        assert record == Record.from_json(json.dumps(json.loads(line)))


def test_a_bad_row_is_one_line(store):
    with store.results.open("ab") as file:
        file.write(b'{"id": 1}\n')
    for read in (store.records, store.outcomes, lambda: store.find("nobody")):
        with pytest.raises(InputError, match=r"results\.jsonl has a row that cannot be read") as error:
            list(read())
        assert "\n" not in str(error.value)


def summary_of(records, **others):
    about = {"name": "bon", "benchmark": "b", "cached": 0, "seconds": Seconds(), "run": "r"}
    strategy = configure(get_strategy("bon"), {"n": 5})
    return summarize(iter(records), strategy, reward=lambda attempt: attempt.reward(), **about, **others)


def test_a_summary_reads_rows_once_and_their_order_does_not_matter():
    records = [row(i, f"{text}{mark}") for mark in ("", "#2") for i, text in enumerate(TRAPS)]
    unrated = replace(records[0].candidates[0], rewards=(None, None), final=None, final_missing=True)
    records[0] = replace(records[0], candidates=(unrated, *records[0].candidates[1:]))
    records.append(Record("failed", "p", "1", (), None, None, Usage(generated=1), "ValueError: no"))
    found = summary_of(records, repeat=2)
    assert (found.problems, found.graded, found.failed) == (17, 16, 1)
    assert (found.missing, found.unrated) == (3, 1)
    assert found.usage.generated == 16 * 25 + 1
    for seed in range(3):
        assert summary_of(random.Random(seed).sample(records, len(records)), repeat=2) == found


def test_the_mean_length_of_a_candidate_goes_into_the_flops():
    said = []
    summary_of([row(0, "a"), row(1, "b")], flops=lambda usage, length: said.append((usage.generated, length)))
    assert said == [(50, 5.0)]

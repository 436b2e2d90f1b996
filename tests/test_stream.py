"""Files of rows: what is checked and dropped when they are resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tts.data.stream import FileSink
from tts.errors import InputError

OUT = Path("rows.jsonl")
META = Path("rows.jsonl.settings.json")


def resume(settings):
    FileSink.open(OUT, settings, resume=True, command="tts score").close()


@pytest.fixture(autouse=True)
def _started():
    FileSink.open(OUT, {"alpha": 1.0, "over": None}, resume=False, command="tts score").close()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"alpha": 0.5, "over": None}, "started with alpha = 1.0, not 0.5; resume it with that setting"),
        ({"alpha": 1.0, "over": None, "names": {"a": "b"}}, "started with names = None, not {'a': 'b'}"),
        ({"over": None}, "started with alpha = 1.0, not None"),
    ],
)
def test_other_settings_are_refused_by_name(settings, complaint):
    with pytest.raises(InputError) as refused:
        resume(settings)
    assert complaint in str(refused.value)


def test_a_new_setting_that_is_unset_does_not_prevent_resuming():
    resume({"alpha": 1.0, "over": None, "names": None})
    resume({"alpha": 1.0})


@pytest.mark.parametrize("text", ["", '{"alpha": 1', "[1]"])
def test_settings_that_cannot_be_read_are_one_line(text):
    META.write_text(text)
    with pytest.raises(InputError, match=r"rows.jsonl.settings.json is not valid JSON|started with alpha = None") as refused:
        resume({"alpha": 1.0})
    assert len(str(refused.value).splitlines()) == 1


def test_rows_of_the_last_line_are_dropped_with_what_follows():
    rows = [{"line": 1}, {"line": 3}, {"line": 4, "i": 0}, {"line": 4, "i": 1}]
    OUT.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"line": 4, "i"')
    Path("rows.rejected.jsonl").write_text('{"line": 2}\n{"line": 5}\n')
    sink = FileSink.open(OUT, {"alpha": 1.0, "over": None}, resume=True, command="tts score")
    sink.close()
    assert (sink.first_line, sink.done) == (4, 2)
    assert OUT.read_text() == '{"line": 1}\n{"line": 3}\n'
    assert Path("rows.rejected.jsonl").read_text() == '{"line": 2}\n'

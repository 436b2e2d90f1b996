"""Files of rows: what is checked and dropped when they are resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tts.data.stream import FileSink
from tts.errors import InputError
from tts.runs.settings import ScoreSettings

OUT = Path("rows.jsonl")
META = Path("rows.jsonl.settings.json")


def open_sink(*, resume=True, **options):
    settings = ScoreSettings(traces=Path("t.jsonl"), **options)
    sink = FileSink.open(OUT, settings, resume=resume, command="tts score")
    sink.close()
    return sink


@pytest.fixture(autouse=True)
def _started():
    open_sink(resume=False)


def test_other_settings_are_refused_by_name():
    with pytest.raises(InputError, match=r"was started with --alpha 1\.0, not 0\.5"):
        open_sink(alpha=0.5)


@pytest.mark.parametrize(
    ("text", "reason"), [("", "not valid JSON"), ('{"alpha": 1', "not valid JSON"), ("[1]", "not a JSON object")]
)
def test_settings_that_cannot_be_read_are_one_line(text, reason):
    META.write_text(text)
    with pytest.raises(InputError, match=rf"cannot resume rows.jsonl: rows.jsonl.settings.json is {reason}") as refused:
        open_sink()
    assert len(str(refused.value).splitlines()) == 1


def test_rows_of_the_last_line_are_dropped_with_what_follows():
    rows = [{"line": 1}, {"line": 3}, {"line": 4, "i": 0}, {"line": 4, "i": 1}]
    OUT.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"line": 4, "i"')
    Path("rows.rejected.jsonl").write_text('{"line": 2}\n{"line": 5}\n')
    sink = open_sink()
    assert (sink.first_line, sink.done) == (4, 2)
    assert OUT.read_text() == '{"line": 1}\n{"line": 3}\n'
    assert Path("rows.rejected.jsonl").read_text() == '{"line": 2}\n'

"""Difficulty bins fitted to run folders, by hand-computed numbers."""

from __future__ import annotations

import json
import shlex

import pytest

from tts.cli import main
from tts.data.records import Attempt, Record
from tts.data.store import RunStore
from tts.errors import InputError
from tts.evals.difficulty import fit_difficulty
from tts.options import configure
from tts.strategies.compute_optimal import ComputeOptimal
from tts.types import Branch, Usage

EASE = [0.1, 0.2, 0.4, 0.5, 0.8, 0.9]


@pytest.fixture
def folder(tmp_path):
    """Write the run folder of a strategy: the ease of each problem, and whether it was solved."""

    def write(strategy, solved, *, ease=EASE, samples=2, tree=()):
        store = RunStore.create(tmp_path / strategy, {"strategy": strategy}, {})
        with store.results.open("w") as file:
            for i, (value, right) in enumerate(zip(ease, solved, strict=True)):
                rewards = [(value - 0.05,), (value + 0.05, None)] if value is not None else [None, None]
                attempts = [Attempt(("t",), (1,), "stop", 0.0, known, None, "1", 0, right) for known in rewards[:samples]]
                record = Record(f"p{i}", "?", "1", tuple(attempts), 0, right, Usage(), tree=tree)
                file.write(record.to_json() + "\n")
        return tmp_path / strategy

    return write


def test_thresholds_are_terciles_and_each_bin_gets_its_best_strategy(folder, capsys):
    pool = folder("bon", [True, False, False, True, True, True])
    beam = folder("beam", [False, False, True, True, True, False])
    found = fit_difficulty(pool, beam, pilot=2)
    # terciles of the six means, interpolated at places 5/3 and 10/3: 0.2 + 2/3 * 0.2 and 0.5 + 1/3 * 0.3
    assert (found.hard_below, found.easy_above) == (0.3333, 0.6)
    assert found.problems == {"hard": 2, "medium": 2, "easy": 2}
    assert found.accuracy == {
        "bon": {"hard": 0.5, "medium": 0.5, "easy": 1.0},
        "beam": {"hard": 0.0, "medium": 1.0, "easy": 0.5},
    }
    assert found.chosen == {"hard": "bon", "medium": "beam", "easy": "bon"}
    words = shlex.split(found.options)
    options = {name.lstrip("-").replace("-", "_"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    fitted = configure(ComputeOptimal, options)
    assert (fitted.hard_below, fitted.easy_above, fitted.medium) == (0.3333, 0.6, "beam")
    assert main(["difficulty", str(pool), str(beam), "--pilot", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found.to_json()
    assert main(["difficulty", str(pool), str(beam), "--pilot", "2"]) == 0
    assert found.options in " ".join(capsys.readouterr().out.split())


def test_runs_that_cannot_be_fitted_to_are_refused(folder):
    solved = [True] * 6
    pool, unrated = folder("bon", solved), folder("majority", solved, ease=[None] * 6)
    search = folder("beam", solved, tree=(Branch(None, 0, "t", 1, "stop", 0.5, "returned"),))
    unknown = folder("weighted", [None] * 6)
    for runs, pilot, message in (
        ([pool], 3, "has 2 samples of 'p0'; --pilot is 3"),
        ([pool, pool], 2, "two of the runs are of bon"),
        ([unrated, pool], 2, "has no step rewards"),
        ([search, pool], 2, "is of a search; give a run that draws independent samples first"),
        ([pool, unknown], 2, "no graded problem in common"),
    ):
        with pytest.raises(InputError, match=message):
            fit_difficulty(*runs, pilot=pilot)

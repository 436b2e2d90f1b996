"""Reports of runs: one HTML file that needs no network, with the numbers as CSV and the plots as PNG and SVG beside it."""

from __future__ import annotations

import base64
import csv
import json
import math
import re
import secrets
import sys
import time
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from tts.data.files import ESCAPE, write_whole
from tts.data.records import Attempt, Record
from tts.data.store import RunStore
from tts.delimiters import Delimiter, delimiter
from tts.errors import InputError
from tts.evals.calibration import Calibration, calibration, reward_length_correlation
from tts.evals.load import open_run, read_json, read_summary
from tts.show.browse import number_of, ranking, rated_steps, twigs
from tts.show.plots import COSTS, write_plots
from tts.show.sample import PROBLEMS, Entry, Sample

Json = dict[str, Any]
"""A JSON object, or a row of a CSV file."""


@dataclass(frozen=True)
class Reliability:
    """How the rewards of a run compare with correctness."""

    of: str
    """The reward in question: `final reward` or `mean step reward`."""
    candidates: int
    """Number of graded candidates."""
    curve: Calibration
    length: float | None
    """Rank correlation of reward and number of tokens; None if it is not defined."""


@dataclass(frozen=True)
class Charted:
    """A finished run with the data of its charts, which is also that of the CSV files."""

    name: str
    """Name of the folder, or its path if two folders have the same name."""
    settings: Json
    started: str
    summary: Json
    against_n: tuple[Json, ...]
    against_cost: tuple[Json, ...]
    reliability: Reliability | None

    @property
    def n(self) -> int:
        return number_of(self.settings, self.summary)


def write_report(
    folders: Sequence[Path],
    out: Path,
    *,
    title: str | None = None,
    problems: int = PROBLEMS,
    complain: Callable[[str], object] | None = None,
) -> Path:
    """Write a report of finished runs; the same as `tts report`.

    Rows are read one by one. All numbers are over all problems; how many are shown with all of their candidates is limited.

    Args:
        folders: Run folders, at least one.
        out: HTML file to write. A folder `<stem>_files` beside it gets the CSV, PNG and SVG files.
        title: Heading of the page. Default: the benchmarks and strategies.
        problems: Problems shown with all of their candidates, at most. Default 1,000.
        complain: Called with a line if problems are left out, and with one that says how to get plots if matplotlib is
            missing. Default: print it to standard error.

    Returns:
        `out`.

    Raises:
        InputError: If a folder is not that of a finished run, or a file cannot be written.
    """
    if not folders:
        raise InputError("tts report needs at least one run folder, as listed by tts runs")
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--out is {out}; the name of a report should end in .html")
    stores = [open_run(folder) for folder in folders]
    summaries = [_summary_of(store) for store in stores]
    files, sample, complain = out.with_name(f"{out.stem}_files"), Sample(problems), complain or _say
    try:
        files.mkdir(parents=True, exist_ok=True)
        with _csv(files / "problems.csv") as write_problem:
            runs = [
                _read(store, name, summary, i, sample, write_problem)
                for i, (store, name, summary) in enumerate(zip(stores, _names(folders), summaries, strict=True))
            ]
        page = _page(runs, sample, title or f"{', '.join(dict.fromkeys(map(_benchmark, runs)))}: {_strategies(runs)}")
        write_whole(out, page)
        _write_numbers(runs, files)
        if len(sample.entries) < sample.problems:
            complain(
                f"{out} shows the candidates of {len(sample.entries):,} of {sample.problems:,} problems, a random sample;"
                " its numbers are over all of them. --problems changes how many are shown"
            )
        if not write_plots(runs, files):
            complain("PNG and SVG plots need matplotlib: pip install 'tts-toolkit[report]', then report again")
    except OSError as error:
        raise InputError(f"cannot write to {error.filename or out}: {error.strerror}; choose another --out") from error
    return out


def _summary_of(store: RunStore) -> Json:
    if (summary := read_summary(store.folder)) is None:
        raise InputError(f"{store.folder} is not finished (no summary.json); finish it with: tts run --resume {store.folder}")
    return summary


def _read(
    store: RunStore, name: str, summary: Json, index: int, sample: Sample, write_problem: Callable[[Json], object]
) -> Charted:  # fmt: skip
    """Read the rows of run number `index`, once."""
    ratings = _Ratings()
    for record in store.stream():
        ratings.add(record)
        sample.add(index, record)
        write_problem(_problem_row(name, record))
    settings, started = store.settings, str(read_json(store.folder / "run.json").get("started", ""))
    return Charted(
        name, settings, started, summary, *_points(name, summary, number_of(settings, summary)), ratings.reliability()
    )


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Whether each (cost, accuracy) is on the Pareto front: no other is cheaper and as accurate, or as cheap and better."""
    return [not any(c <= cost and a >= accuracy and (c, a) != (cost, accuracy) for c, a in points) for cost, accuracy in points]


def _say(line: str) -> None:
    print(f"tts: {line}", file=sys.stderr)


def _names(folders: Sequence[Path]) -> list[str]:
    """The names of the folders, or their paths if two have the same name."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _benchmark(run: Charted) -> str:
    return str(run.summary["benchmark"])


def _strategies(runs: Sequence[Charted]) -> str:
    return ", ".join(dict.fromkeys(str(run.summary["strategy"]) for run in runs))


def _points(name: str, summary: Json, n: int) -> tuple[tuple[Json, ...], tuple[Json, ...]]:
    """The points of accuracy against N, and those of accuracy against cost."""
    problems = max(1, summary["problems"])
    cost = {"generated": summary["usage"]["generated"] / problems, "scored": summary["usage"]["scored"] / problems,
            "seconds": summary["seconds"]["total"] / problems, "gflops": _gflops(summary, problems)}  # fmt: skip
    unknown = dict.fromkeys(COSTS)
    at_n: list[Json] = []
    at_cost: list[Json] = []
    if summary["accuracy"] is not None:
        whole = {"n": n, "accuracy": summary["accuracy"], "ci": summary["ci"], "majority": None, "pass": None}
        for point in summary["curve"] or [whole]:
            low, high = point["ci"]
            place = {"run": name, "n": point["n"], "accuracy": point["accuracy"], "low": low, "high": high}
            at_n.append(place | {"majority": point["majority"], "pass": point["pass"]})
            # k of n samples cost k / n of the generated tokens; their scoring and time are not known
            share = point["n"] / summary["curve"][-1]["n"] if summary["curve"] else 1
            at_cost.append(place | (cost if share == 1 else {**unknown, "generated": cost["generated"] * share}))
    return tuple(at_n), tuple(at_cost)


def _gflops(summary: Json, problems: int) -> float | None:
    """GFLOPs per problem; None if the shape of one of the models is not known."""
    flops = summary.get("flops") or {}
    policy, scorer = flops.get("generator"), flops.get("scorer") if summary["usage"]["scored"] else 0.0
    return None if policy is None or scorer is None else float(policy + scorer) / problems / 1e9


class _Ratings:
    """Rewards, correctness and lengths of the graded candidates of a run. An unknown reward is NaN."""

    def __init__(self) -> None:
        self._finals, self._means, self._tokens, self._right = array("d"), array("d"), array("q"), array("b")
        self._all_final = True

    def add(self, record: Record) -> None:
        for attempt in record.candidates:
            if attempt.correct is not None:
                reward = attempt.reward()
                self._all_final &= attempt.final is not None or attempt.final_missing
                self._finals.append(math.nan if attempt.final is None else attempt.final)
                self._means.append(reward.aggregate("mean") if reward.known else math.nan)
                self._tokens.append(sum(attempt.tokens))
                self._right.append(attempt.correct)

    def reliability(self) -> Reliability | None:
        """The reliability of the final rewards if the reward model gives them, otherwise of the mean step rewards.

        Candidates without a verdict are left out. None if no candidate has a reward, or if one is outside [0, 1].
        """
        of, values = ("final reward", self._finals) if self._all_final else ("mean step reward", self._means)
        rated = ~np.isnan(values)
        rewards = np.asarray(values)[rated]
        if not len(rewards) or rewards.min() < 0 or rewards.max() > 1:
            return None
        curve = calibration(rewards.tolist(), np.asarray(self._right, bool)[rated].tolist())
        return Reliability(
            of, len(rewards), curve, reward_length_correlation(rewards.tolist(), np.asarray(self._tokens)[rated].tolist())
        )


# The page


def _page(runs: Sequence[Charted], sample: Sample, title: str) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": _percent, "number": _number}
    problems = sorted(sample.entries, key=lambda entry: _natural(entry[0][1].id))
    data = {
        "runs": [{"name": run.name, "strategy": run.summary["strategy"]} for run in runs],
        "againstN": [row for run in runs for row in run.against_n],
        "againstCost": _with_fronts(runs),
        "costs": COSTS,
        "calibration": [_calibration_data(run) for run in runs if run.reliability],
        "problems": [_index_entry(entry) for entry in problems],
        "chunks": [_packed(_chunk(entry, runs)) for entry in problems],
    }
    return environment.get_template("report.html.j2").render(
        title=title,
        made=time.strftime("%Y-%m-%d"),
        runs=runs,
        costs=COSTS,
        points=_with_fronts(runs),
        settings=_settings(runs),
        mixed=sample.mixed(len(runs)),
        shown=len(problems),
        known=sample.problems,
        data=_script_safe(data),
        nonce=secrets.token_urlsafe(16),
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}".replace("%", " %")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f}" if abs(value) < 100 and value != int(value) else f"{value:,.0f}"


def _script_safe(data: Any) -> Markup:
    """JSON that cannot end the script element around it; in ASCII, which keeps halves of surrogate pairs as well."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _settings(runs: Sequence[Charted]) -> tuple[list[tuple[str, list[str]]], list[tuple[str, list[str]]]]:
    """The settings that differ between the runs and those that do not, each with one value per run."""
    flat = [_flat(run.settings) | {"started": run.started[:16].replace("T", " ")} for run in runs]
    rows = [(name, [_setting(settings.get(name)) for settings in flat]) for name in dict.fromkeys(k for s in flat for k in s)]
    return [row for row in rows if len(set(row[1])) > 1], [row for row in rows if len(set(row[1])) == 1]


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        (inner if name == "options" else f"{name}.{inner}") if isinstance(value, dict) else name: item
        for name, value in settings.items()
        for inner, item in (value.items() if isinstance(value, dict) else [("", value)])
    }


def _setting(value: Any) -> str:
    return "–" if value is None else value if isinstance(value, str) and value.isprintable() else json.dumps(value)


def _with_fronts(runs: Sequence[Charted]) -> list[Json]:
    """All points of accuracy against cost, each with the costs for which it is on the Pareto front."""
    rows = [row for run in runs for row in run.against_cost]
    fronts: list[list[str]] = [[] for _ in rows]
    for cost in COSTS:
        known = [i for i, row in enumerate(rows) if row[cost] is not None]
        for i, best in zip(known, pareto([(rows[i][cost], rows[i]["accuracy"]) for i in known]), strict=True):
            if best:
                fronts[i].append(cost)
    return [row | {"front": front} for row, front in zip(rows, fronts, strict=True)]


def _calibration_data(run: Charted) -> Json:
    assert run.reliability is not None
    return {"run": run.name, "of": run.reliability.of, "bins": [b._asdict() for b in run.reliability.curve.bins]}


# The problems: an index to search, and for each problem a compressed chunk that the page unpacks when it is opened


def _natural(text: str) -> list[tuple[bool, int, str]]:
    """Sort key that puts problem-9 before problem-10."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", text)]


def _index_entry(entry: Entry) -> Json:
    record = entry[0][1]
    return {
        "id": record.id,
        "prompt": record.problem,
        "reference": record.answer,
        "results": [
            {"run": i, "answer": tried.candidates[tried.choice].answer if tried.choice is not None else None,
             "outcome": _outcome(tried), "missed": tried.correct is False and any(a.correct for a in tried.candidates)}
            for i, tried in entry
        ],
    }  # fmt: skip


def _outcome(record: Record) -> str:
    if record.error is not None:
        return "failed"
    return {True: "right", False: "wrong", None: "ungraded"}[record.correct]


def _chunk(entry: Entry, runs: Sequence[Charted]) -> Json:
    """All candidates and trees of one problem. Each distinct text is once in `texts`; steps and branches refer to its index."""
    texts: dict[str, int] = {}

    def place(text: str) -> int:
        return texts.setdefault(text, len(texts))

    def candidate(index: int, attempt: Attempt, over: Any, by: Delimiter) -> Json:
        thinking, response = rated_steps(attempt, over, by)
        return {
            "index": index,
            "thinking": [place(step.text) for step in thinking],
            "response": [place(step.text) for step in response],
            "rewards": [_short(step.reward) for step in (*thinking, *response)],
            "score": _short(attempt.score),
            "final": _short(attempt.final),
            "answer": attempt.answer,
            "correct": attempt.correct,
            "finish": attempt.finish,
            "tokens": sum(attempt.tokens),
        }

    tries = [
        {
            "run": i,
            "choice": record.choice,
            "error": record.error,
            "generated": record.usage.generated,
            "scored": record.usage.scored,
            "candidates": [
                candidate(
                    index, record.candidates[index], runs[i].settings.get("score_over"), delimiter(record.step_delimiter)
                )
                for index in ranking(record)
            ],
            "tree": [
                {"parent": twig.parent, "text": place(twig.branch.text.strip()), "tokens": twig.branch.tokens,
                 "reward": _short(twig.branch.reward), "fate": twig.branch.fate, "outcome": twig.branch.outcome,
                 "copies": twig.copies, "chosen": twig.chosen}
                for twig in twigs(record)
            ],
        }
        for i, record in entry
    ]  # fmt: skip
    return {"texts": list(texts), "tries": tries}


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _packed(chunk: Json) -> str:
    return base64.b64encode(zlib.compress(json.dumps(chunk, separators=(",", ":")).encode(), 9)).decode()


# The numbers


def _write_numbers(runs: Sequence[Charted], folder: Path) -> None:
    _write_csv(folder / "runs.csv", (_run_row(run) for run in runs))
    _write_csv(folder / "accuracy-n.csv", (row for run in runs for row in run.against_n))
    points = ({**row, "front": " ".join(row["front"])} for row in _with_fronts(runs))
    _write_csv(folder / "accuracy-cost.csv", points)
    _write_csv(
        folder / "calibration.csv",
        ({"run": run.name, "of": r.of, **b._asdict(), "ece": r.curve.error} for run in runs if (r := run.reliability)
         for b in r.curve.bins),
    )  # fmt: skip


def _run_row(run: Charted) -> Json:
    s = run.summary
    low, high = s["ci"] or (None, None)
    return {
        "run": run.name, "strategy": s["strategy"], "n": run.n, "benchmark": s["benchmark"],
        "problems": s["problems"], "graded": s["graded"], "failed": s["failed"], "accuracy": s["accuracy"], "low": low,
        "high": high, "pass@1": s["pass@1"], "majority": s["majority"], "pass@n": s["pass@n"],
        "candidates": s["n"], "truncated": s["truncated"], **s["usage"], "seconds": s["seconds"]["total"],
    }  # fmt: skip


def _problem_row(run: str, record: Record) -> Json:
    answers = Counter(attempt.correct for attempt in record.candidates)
    return {
        "run": run, "id": record.id, "outcome": _outcome(record), "reference": record.answer,
        "answer": record.candidates[record.choice].answer if record.choice is not None else None,
        "candidates": len(record.candidates), "right": answers[True], "generated": record.usage.generated,
        "scored": record.usage.scored,
    }  # fmt: skip


def _write_csv(path: Path, rows: Iterable[Json]) -> None:
    with _csv(path) as write:
        for row in rows:
            write(row)


@contextmanager
def _csv(path: Path) -> Iterator[Callable[[Json], object]]:
    """Write a CSV file row by row; the first row's names are its heading."""
    with path.open("w", encoding="utf-8", errors=ESCAPE, newline="") as file:
        writer: csv.DictWriter[str] | None = None

        def write(row: Json) -> None:
            nonlocal writer
            if writer is None:
                writer = csv.DictWriter(file, row)
                writer.writeheader()
            writer.writerow({name: _cell(value) for name, value in row.items()})

        yield write


def _cell(value: Any) -> Any:
    """Quote a text that a spreadsheet would take for a formula."""
    risky = isinstance(value, str) and re.match(r"[=+\-@\t\r]", value) and not re.fullmatch(r"[+-]?[\d.]+", value)
    return f"'{value}" if risky else value

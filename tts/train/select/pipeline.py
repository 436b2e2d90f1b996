"""`tts select`: the best traces of a pool, for training on them (arXiv 2506.18896, offline data selection).

The pool is read once for the numbers of `tts.train.select.pool`, by which traces are chosen; then the chosen lines are read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tts.data.store import ESCAPE
from tts.data.stream import Tally, rejected_of
from tts.errors import InputError
from tts.interrupts import on_interrupt
from tts.runs.score import ScoreSettings, score_file
from tts.show.console import field_names, key_values, print_rich, warn, watched
from tts.train.select.pool import REWARDED, UNSCORED, Pool, Rows, lacks_rewards, read_pool
from tts.train.select.selection import Histogram, Selection, Stage, draw
from tts.train.settings import Select
from tts.types import Scorer

Indices = npt.NDArray[np.intp]


def select(settings: Select) -> int:
    """The command: a live view, then a table with histograms, or JSON. Its exit code is 1 where rows could not be ranked."""
    from tts.show.terminal import FileView

    tally = Tally()
    with on_interrupt(lambda: _how_to_resume(settings)):
        selection = watched(
            lambda: select_file(settings, tally, complain=warn),
            lambda console: FileView(tally, console),
            hidden=settings.as_json,
        )
    if settings.as_json:
        print(json.dumps(selection.to_json()))
    else:
        print_rich(selection.show())
    if selection.set_aside:
        where = " and ".join(map(str, selection.rejected))
        warn(f"{selection.set_aside} of {selection.pool} rows could not be ranked; see {where}")
        return 1
    return 0


def select_file(
    settings: Select,
    tally: Tally | None = None,
    *,
    complain: Callable[[str], object] | None = None,
    scorer_instance: Scorer | None = None,
) -> Selection:
    """Write the chosen traces of a pool, best first, each with `selected`: its rank from 1 on, its score, and by what.

    Where the pool has no rewards, or a scorer is named, it is scored first, into OUT's `.scored.jsonl`. What cannot be ranked
    goes to OUT's `.rejected.jsonl`; `complain` hears what a person should know. Raises InputError for bad input as a whole.
    """
    tally, complain = tally or Tally(), complain or (lambda message: None)
    names = field_names(settings.field)
    _check_files(settings)
    out, scorer, scored = settings.out, settings.scorer, None
    if scorer is None and settings.by in REWARDED and lacks_rewards(settings.pool, names):
        scorer = "arith-prm"
        complain(f"no rewards in {settings.pool}; it is scored by {scorer} first (--scorer names another)")
    if scorer is not None:
        scored = _scored_of(out)
        _score(settings, scorer, scored, names, tally, scorer_instance)
    tally.stage, tally.running = "ranking", scored is None  # a bar that was full does not begin again
    pool = read_pool(settings, scored or settings.pool, names, rejected_of(out), tally)
    rejected = [path for path in ([rejected_of(scored)] if scored else []) + [rejected_of(out)] if path.exists()]
    set_aside = sum(_lines(path) for path in rejected)
    if not len(pool.rows):
        _refuse(settings.pool, set_aside, rejected)
    pool.check(settings, complain)
    stages, chosen = choose(pool.rows, settings)
    kinds = [] if settings.by in UNSCORED else ["score"]
    selection = Selection(
        out=out, by=settings.by, pool=len(pool.rows) + set_aside, set_aside=set_aside, stages=stages,
        histograms={name: Histogram.of(pool.rows[name], chosen, log=name != "score") for name in [*kinds, "characters"]},
        rejected=tuple(rejected), scored=scored, plot=settings.plot,
    )  # fmt: skip
    _write(settings, selection, pool, chosen)
    return selection


def choose(rows: Rows, settings: Select) -> tuple[list[Stage], Indices]:
    """What is left after each filter, and the indices of the chosen traces, best first. Raises InputError."""
    left = np.argsort(-rows["score"], kind="stable")  # at equal scores the earlier row goes first
    stages: list[Stage] = []

    def leave(name: str, kept: Indices) -> Indices:
        stages.append(_stage(name, rows[kept], scored=settings.by not in UNSCORED))
        return kept

    leave("readable" if settings.by in UNSCORED else "ranked", left)
    if settings.dedup:
        left = leave("without copies", left[_first_of_each(rows["text"][left], 1)])
    if settings.threshold is not None:
        score = rows["score"][left]
        if score[0] < settings.threshold:
            raise InputError(
                f"no trace reaches --threshold {settings.threshold:g}: {settings.by} goes from {score[-1]:.4g} to"
                f" {score[0]:.4g}; give a lower one"
            )
        left = leave(f"at least {settings.threshold:g}", left[score >= settings.threshold])
    if settings.per_problem is not None:
        left = leave(f"{settings.per_problem} a problem", left[_first_of_each(rows["problem"][left], settings.per_problem)])
    if settings.top is not None:
        k = _count(settings.top, len(rows))
        if k > len(left):
            asked = f"{settings.top}, of {len(rows)} traces, is {k}," if settings.top.endswith("%") else f"{k} is"
            way = ", ".join(f"{stage.traces} {stage.name}" for stage in stages)
            raise InputError(f"--top {asked} more than there are ({way}); ask for {len(left)} at most, or filter less")
        left = leave(f"top {settings.top}", left[:k])
    return stages, left


def _count(top: str, pool: int) -> int:
    """How many --top asks for; a share is of the pool, rounded half up, and at least 1."""
    if not top.endswith("%"):
        return int(top)
    return max(1, int(Decimal(top[:-1]) * pool / 100 + Decimal("0.5")))


def _first_of_each(keys: npt.NDArray[np.uint64], most: int) -> Indices:
    """Places of the first `most` of every key, in order."""
    grouped = np.argsort(keys, kind="stable")
    begins = np.flatnonzero(np.diff(keys[grouped], prepend=~keys[grouped[:1]]))  # ~: the first is new, whatever it is
    place = np.arange(len(keys)) - np.repeat(begins, np.diff(begins, append=len(keys)))
    return np.sort(grouped[place < most])


def _stage(name: str, rows: Rows, *, scored: bool) -> Stage:
    known = rows["correct"][rows["correct"] >= 0]
    return Stage(
        name,
        traces=len(rows),
        problems=len(np.unique(rows["problem"])),
        correct=float(known.mean()) if len(known) else None,
        score=float(rows["score"].mean()) if scored else None,
        steps=float(rows["steps"].mean()),
        characters=float(rows["characters"].mean()),
    )


# Files


def _how_to_resume(settings: Select) -> str:
    """The line for an interrupted command."""
    out = settings.out
    if out.exists():
        return f"interrupted; {out} is whole"
    kept = _scored_of(out).exists()
    return f"interrupted before {out} was written; " + (
        "resume with the same command and --resume, which keeps what was scored" if kept else "nothing was written"
    )


def _check_files(settings: Select) -> None:
    """Everything that can be said of the files before anything is read. Raises InputError."""
    pool, out = settings.pool, settings.out
    if not pool.is_file():
        raise InputError(f"no file {pool}; give a JSONL file of traces")
    for written in (out, _part_of(out), _settings_of(out), _scored_of(out), rejected_of(out)):
        if written.resolve() == pool.resolve():
            raise InputError(f"--out {out} would write over the pool, {pool}; choose another --out")
    if out.exists():
        _check_same(settings)
    if settings.plot is not None and find_spec("matplotlib") is None:
        raise InputError("--plot needs matplotlib; pip install 'tts-toolkit[report]', or leave --plot away")
    for file in filter(None, (out, settings.plot)):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write to {file}: {error.strerror or error}; choose another place") from error


def _check_same(settings: Select) -> None:
    """Raise InputError unless OUT, which exists, is to be made again by the settings that made it."""
    out, beside = settings.out, _settings_of(settings.out)
    if not settings.resume:
        raise InputError(f"{out} exists; choose another --out")
    try:
        begun = json.loads(beside.read_text())
    except (OSError, ValueError):
        raise InputError(f"{out} was not made by tts select (no {beside.name} beside it); choose another --out") from None
    for name, value in _kept(settings).items():
        if begun.get(name) != value:
            raise InputError(f"{out} was made with {name} = {begun.get(name)!r}, not {value!r}; choose another --out")


def _kept(settings: Select) -> dict[str, Any]:
    """The settings that the chosen traces depend on."""
    beside = ("out", "resume", "plot", "as_json", "scorer_url")
    return {name: value for name, value in asdict(settings).items() if name not in beside} | {"pool": str(settings.pool)}


def _scored_of(out: Path) -> Path:
    return out.with_name(f"{out.stem}.scored.jsonl")


def _part_of(out: Path) -> Path:
    return out.with_name(out.name + ".part")


def _settings_of(out: Path) -> Path:
    return out.with_name(out.name + ".settings.json")


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _score(
    settings: Select, scorer: str, out: Path, names: dict[str, str], tally: Tally, scorer_instance: Scorer | None
) -> None:
    """Rewards for the pool, in a file that a killed scoring goes on with."""
    score_file(
        ScoreSettings(
            str(settings.pool), scorer, settings.scorer_format, settings.scorer_engine,
            key_values("--scorer-arg", settings.scorer_arg), settings.score_over, settings.model, settings.alpha,
            settings.aggregate, names,
        ),
        out=out, resume=settings.resume and _settings_of(out).exists(), url=settings.scorer_url, tally=tally,
        scorer_instance=scorer_instance,
    )  # fmt: skip


def _refuse(pool: Path, set_aside: int, rejected: list[Path]) -> None:
    """Raise InputError: there is nothing to choose from."""
    if not set_aside:
        raise InputError(f"{pool} holds no traces; give a JSONL file of traces")
    with rejected[0].open(encoding="utf-8") as file:
        row = json.loads(file.readline())
    raise InputError(
        f"none of the {set_aside} rows of {pool} can be ranked (line {row['line']}: {row['error']}); see {rejected[0]}"
    )


def _write(settings: Select, selection: Selection, pool: Pool, chosen: Indices) -> None:
    """The chosen rows and their picture; OUT comes last and whole."""
    out, by, part = settings.out, settings.by, _part_of(settings.out)
    try:
        with pool.path.open("rb") as source, part.open("w", encoding="utf-8", errors=ESCAPE) as file:
            for rank, index in enumerate(chosen, 1):
                score = None if by in UNSCORED else float(pool.rows["score"][index])
                row = {**pool.fields_of(index, source), "selected": {"rank": rank, "score": score, "by": by}}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")  # a NaN among the row's own fields leaves as it came
            file.flush()
            os.fsync(file.fileno())
        if settings.plot is not None:
            fine = {name: Histogram.of(pool.rows[name], chosen, bins=24, log=name != "score") for name in selection.histograms}
            draw(selection, fine, settings.plot)
        _settings_of(out).write_text(json.dumps(_kept(settings), indent=2) + "\n")
        part.replace(out)
    except OSError as error:
        raise InputError(f"cannot write to {error.filename or out}: {error.strerror or error}; choose another place") from error

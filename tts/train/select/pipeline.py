"""`tts select`: score, rank and filter a pool of traces, and write the best (arXiv 2506.18896, offline data selection).

The pool is read once for the numbers that `tts.train.select.pool` keeps. Traces are chosen by these, and only the lines of the
chosen ones are read again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tts.data.files import ESCAPE, part_of, replacing, writing
from tts.data.lock import Lock
from tts.data.stream import Tally, begin, check_begun, rejected_of, settings_of
from tts.errors import Exit, InputError
from tts.interrupts import on_interrupt
from tts.options import options_of
from tts.runs.score import score_file
from tts.runs.settings import PolicyOptions, ScorerOptions, ScoreSettings
from tts.show.console import Output, warn
from tts.train.select.pool import REWARDED, UNSCORED, TraceArray, TracePool, lacks_rewards, read_pool
from tts.train.select.selection import FilterStage, Histogram, Selection, draw_histograms
from tts.train.settings import SelectSettings
from tts.types import Scorer

Indices = npt.NDArray[np.intp]


def select(settings: SelectSettings, output: Output) -> int:
    """The command."""
    from tts.show.live import FileView

    tally, out = Tally(), settings.out
    with on_interrupt(lambda: _how_to_resume(settings)):
        selection = output.watched(
            lambda: select_file(settings, tally, complain=warn), lambda console: FileView(tally, console)
        )
    output.result(table=selection.show, data=selection.to_json, brief=out)
    if selection.set_aside:
        where = " and ".join(map(str, selection.rejected))
        warn(f"{selection.set_aside} of {selection.pool} rows could not be ranked; see {where}")
        return Exit.FAILURES
    return Exit.OK


def select_file(
    settings: SelectSettings,
    tally: Tally | None = None,
    *,
    complain: Callable[[str], object] | None = None,
    scorer_instance: Scorer | None = None,
) -> Selection:
    """Write the chosen traces of a pool, best first, as `tts select` does.

    Each chosen row gets the field `selected`, with its rank (from 1), its score, and what it was ranked by. A pool without
    rewards is scored first, as is any pool if `settings.scorer` is given; the rewards go to `.scored.jsonl` beside the output.
    Rows that cannot be ranked go to `.rejected.jsonl`, with the reasons.

    Args:
        settings: The options of `tts select`.
        tally: Progress, updated in place for a live view. Default: a new one.
        complain: Called with each warning. Default: warnings are dropped.
        scorer_instance: A loaded scorer to use instead of the one that `settings` names.

    Raises:
        InputError: The pool or an option cannot be used, no trace can be chosen, or a file cannot be written.
    """
    with ExitStack() as stack:
        with writing(settings.out, "choose another place"):
            _check_files(settings)
            stack.enter_context(Lock(settings.out))
        return _select(settings, tally or Tally(), complain or (lambda message: None), scorer_instance)


def _select(
    settings: SelectSettings, tally: Tally, complain: Callable[[str], object], scorer_instance: Scorer | None
) -> Selection:
    names, out, scorer, scored = settings.names, settings.out, settings.scorer, None
    if scorer is None and settings.by in REWARDED and lacks_rewards(settings.pool, names):
        scorer = ScorerOptions.scorer
        complain(f"{settings.pool} has no rewards; scoring it with {scorer} first (choose another with --scorer)")
    if scorer is not None:
        scored = _scored_of(out)
        _score_pool(settings, scorer, scored, tally, scorer_instance)
    tally.stage, tally.running = "ranking", scored is None  # after scoring, the bar is full already
    pool = read_pool(settings, scored or settings.pool, names, rejected_of(out), tally)
    rejected = [path for path in ([rejected_of(scored)] if scored else []) + [rejected_of(out)] if path.exists()]
    set_aside = sum(_count_lines(path) for path in rejected)
    if not len(pool.traces):
        _raise_empty(settings.pool, set_aside, rejected)
    pool.check(settings, complain)
    stages, chosen = choose(pool.traces, settings)
    kinds = [] if settings.by in UNSCORED else ["score"]
    selection = Selection(
        out=out, by=settings.by, pool=len(pool.traces) + set_aside, set_aside=set_aside, stages=stages,
        histograms={name: Histogram.of(pool.traces[name], chosen, log=name != "score") for name in [*kinds, "characters"]},
        rejected=tuple(rejected), scored=scored, plot=settings.plot,
    )  # fmt: skip
    _write(settings, selection, pool, chosen)
    return selection


def choose(traces: TraceArray, settings: SelectSettings) -> tuple[list[FilterStage], Indices]:
    """Rank and filter the traces of a pool.

    The filters are applied in this order: --dedup, --threshold, --per-problem, --top. Ties keep the order of the pool.

    Returns:
        The statistics after each filter, and the indices of the chosen traces, best first.

    Raises:
        InputError: A filter leaves no trace, or fewer than --top.
    """
    left = np.argsort(-traces["score"], kind="stable")
    stages: list[FilterStage] = []

    def keep(name: str, kept: Indices) -> Indices:
        stages.append(_statistics(name, traces[kept], scored=settings.by not in UNSCORED))
        return kept

    keep("readable" if settings.by in UNSCORED else "ranked", left)
    if settings.dedup:
        left = keep("without copies", left[_first_of_each(traces["text"][left], 1)])
    if settings.threshold is not None:
        score = traces["score"][left]
        if score[0] < settings.threshold:
            raise InputError(
                f"no trace reaches --threshold {settings.threshold:g}: {settings.by} is between {score[-1]:.4g} and"
                f" {score[0]:.4g}; choose a lower threshold"
            )
        left = keep(f"at least {settings.threshold:g}", left[score >= settings.threshold])
    if settings.per_problem is not None:
        first = _first_of_each(traces["problem"][left], settings.per_problem)
        left = keep(f"{settings.per_problem} per problem", left[first])
    if settings.top is not None:
        k = _top_count(settings.top, len(traces))
        if k > len(left):
            asked = f"{settings.top} of {len(traces)} traces is {k}," if settings.top.endswith("%") else f"{k} is"
            so_far = ", ".join(f"{stage.name}: {stage.traces}" for stage in stages)
            raise InputError(f"--top {asked} more than there are ({so_far}); ask for at most {len(left)}, or filter less")
        left = keep(f"top {settings.top}", left[:k])
    return stages, left


def _top_count(top: str, pool: int) -> int:
    """Return the number of traces that --top asks for. A percentage is of the pool, rounded half up, and at least 1 trace."""
    if not top.endswith("%"):
        return int(top)
    return max(1, int(Decimal(top[:-1]) * pool / 100 + Decimal("0.5")))


def _first_of_each(keys: npt.NDArray[np.uint64], most: int) -> Indices:
    """Return the positions of the first `most` occurrences of every key, in order."""
    grouped = np.argsort(keys, kind="stable")
    begins = np.flatnonzero(np.diff(keys[grouped], prepend=~keys[grouped[:1]]))  # ~: unlike the first key
    place = np.arange(len(keys)) - np.repeat(begins, np.diff(begins, append=len(keys)))
    return np.sort(grouped[place < most])


def _statistics(name: str, traces: TraceArray, *, scored: bool) -> FilterStage:
    known = traces["correct"][traces["correct"] >= 0]
    return FilterStage(
        name,
        traces=len(traces),
        problems=len(np.unique(traces["problem"])),
        correct=float(known.mean()) if len(known) else None,
        score=float(traces["score"].mean()) if scored else None,
        steps=float(traces["steps"].mean()),
        characters=float(traces["characters"].mean()),
    )


# Files


def _how_to_resume(settings: SelectSettings) -> str:
    """The line for an interrupted command."""
    out = settings.out
    if out.exists():
        return f"interrupted; {out} is complete"
    kept = _scored_of(out).exists()
    return f"interrupted before {out} was written; " + (
        "resume with the same command and --resume, which keeps what was scored" if kept else "nothing was written"
    )


def _check_files(settings: SelectSettings) -> None:
    """Raise InputError for what can be found wrong with the files before any is read."""
    pool, out = settings.pool, settings.out
    if not pool.is_file():
        raise InputError(f"no file {pool}; give a JSONL file of traces")
    for written in (out, part_of(out), settings_of(out), _scored_of(out), rejected_of(out)):
        if written.resolve() == pool.resolve():
            raise InputError(f"--out {out} would overwrite the pool, {pool}; choose another --out")
    if out.exists():
        _check_same(settings)
    if settings.plot is not None and find_spec("matplotlib") is None:
        raise InputError("--plot needs matplotlib; install it with pip install 'tts-toolkit[report]', or omit --plot")
    for file in filter(None, (out, settings.plot)):
        file.parent.mkdir(parents=True, exist_ok=True)


def _check_same(settings: SelectSettings) -> None:
    """Raise InputError unless --out, which exists, was made with the same settings and --resume is given."""
    out, beside = settings.out, settings_of(settings.out)
    if not settings.resume:
        raise InputError(f"{out} exists; choose another --out")
    if not beside.is_file():
        raise InputError(f"{out} was not made by tts select (no {beside.name} beside it); choose another --out")
    check_begun(out, settings)


def _scored_of(out: Path) -> Path:
    return out.with_name(f"{out.stem}.scored.jsonl")


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _score_pool(settings: SelectSettings, scorer: str, out: Path, tally: Tally, scorer_instance: Scorer | None) -> None:
    """Score the pool into a file; with --resume, continue a scoring that was stopped."""
    shared = {
        option.name: getattr(settings, option.name) for group in (ScorerOptions, PolicyOptions) for option in options_of(group)
    }
    score_file(
        ScoreSettings(
            **{**shared, "scorer": scorer}, traces=settings.pool, fields=settings.fields, out=out,
            resume=settings.resume and settings_of(out).exists(), accept_changes=settings.accept_changes,
        ),
        tally=tally, scorer_instance=scorer_instance,
    )  # fmt: skip


def _raise_empty(pool: Path, set_aside: int, rejected: list[Path]) -> None:
    """Raise the InputError for a pool without any trace that can be ranked."""
    if not set_aside:
        raise InputError(f"{pool} holds no traces; give a JSONL file of traces")
    with rejected[0].open(encoding="utf-8") as file:
        row = json.loads(file.readline())
    raise InputError(
        f"none of the {set_aside} rows of {pool} can be ranked (line {row['line']}: {row['error']}); see {rejected[0]}"
    )


def _write(settings: SelectSettings, selection: Selection, pool: TracePool, chosen: Indices) -> None:
    """Write the chosen rows, the plot and the settings. The output file appears last and complete."""
    out, by = settings.out, settings.by
    again = "; give the same command with --resume, which keeps what was scored" if selection.scored else ""
    with writing(out, f"make room, or choose another place{again}"):
        if settings.plot is not None:
            columns = {name: pool.traces[name] for name in selection.histograms}
            fine = {name: Histogram.of(values, chosen, bins=24, log=name != "score") for name, values in columns.items()}
            with replacing(settings.plot) as picture:
                draw_histograms(selection, fine, picture)
        begin(out, settings)
        with pool.path.open("rb") as source, replacing(out) as file:
            for rank, index in enumerate(chosen, 1):
                score = None if by in UNSCORED else float(pool.traces["score"][index])
                row = {**pool.fields_of(index, source), "selected": {"rank": rank, "score": score, "by": by}}
                line = json.dumps(row, ensure_ascii=False) + "\n"  # keeps a NaN among the row's own fields
                file.write(line.encode("utf-8", ESCAPE))

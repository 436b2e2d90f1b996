"""`tts score`: rewards for a file of traces, streamed in constant memory, in the order of the file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tts import interrupts
from tts.data.stream import Done, Files, Lines, Rejected, Sink, Tally, work_through
from tts.data.traces import Trace
from tts.errors import InputError
from tts.scorers import PLAIN, load_scorer
from tts.types import Aggregate, Part, Reward, Scorer, counts_final


@dataclass(frozen=True)
class ScoreSettings:
    """What the rewards in a file depend on; a file goes on only under the settings that it began with."""

    traces: str
    scorer: str = "arith-prm"
    scorer_format: str | None = None
    scorer_engine: str = "transformers"
    scorer_args: dict[str, Any] = field(default_factory=dict)
    score_over: Part | None = None
    model: str = "arith-policy"
    """The policy, for scorers that ask it."""
    alpha: float = 1.0
    aggregate: Aggregate = "mean"
    names: dict[str, str] = field(default_factory=dict)
    """What the file calls the fields of `tts.data.traces.FIELDS`."""
    bare: bool = False
    """Leave the traces' own fields out."""


Scored = Done[Reward]


def score_file(
    settings: ScoreSettings,
    *,
    out: Path | None = None,
    resume: bool = False,
    limit: int | None = None,
    url: str | None = None,
    tally: Tally | None = None,
    write: Callable[[str], object] | None = None,
    complain: Callable[[str], object] | None = None,
    show: Callable[[Scored, Part], None] | None = None,
    scorer_instance: Scorer | None = None,
) -> Tally:
    """Score every trace of a file; the same as `tts score`.

    Rows go to `out` (lines that are no trace to its `.rejected.jsonl`), or to `write` one by one, and what is wrong with other
    lines to `complain`; `show` gets each row, and the part that was rated.
    `resume` goes on with an `out` that was begun. Raises InputError for bad input as a whole; a bad line is set aside.
    """
    tally = tally or Tally()
    source = Path(settings.traces).expanduser()
    if not source.is_file():
        raise InputError(f"no file {settings.traces}; give a JSONL file of traces")
    if settings.scorer == "agreement":
        raise InputError("the scorer agreement compares solutions of one problem; tts score reads traces one by one")
    sink: Sink = Lines(write, complain)
    if out is not None:
        sink = Files.open(out, asdict(settings), resume=resume, command="tts score")
    tally.resumed, tally.total_bytes = sink.done, source.stat().st_size
    tally.stage = f"loading {settings.scorer}"
    scorer = scorer_instance or _load(settings, url)
    tally.running = True

    async def score(traces: Sequence[Trace]) -> list[Reward]:
        rewards = await scorer.score([trace.candidate for trace in traces])
        return [replace(reward, alpha=settings.alpha, how=settings.aggregate) for reward in rewards]

    async def work() -> None:
        try:
            chunks = work_through(
                source, score, names=settings.names, first_line=sink.first_line, limit=limit, tally=tally
            )  # fmt: skip
            async for chunk in chunks:
                scored = [item for item in chunk if isinstance(item, Done)]
                refused = [item for item in chunk if isinstance(item, Rejected)]
                tally.done += len(scored)
                tally.rejected += len(refused)
                tally.tokens += sum(item.value.tokens for item in scored)
                if show is not None:
                    for item in scored:
                        show(item, getattr(scorer, "over", "all"))
                sink.add([_row(item, settings.bare) for item in scored], refused)
        finally:
            if scorer is not scorer_instance and (close := getattr(scorer, "close", None)) is not None:
                await close()

    try:
        interrupts.run(work())
    except OSError as error:
        raise InputError(
            f"cannot write to {out}: {error.strerror or error}; what was scored is kept, go on with --resume"
        ) from error
    finally:
        sink.close()
    return tally


def _load(settings: ScoreSettings, url: str | None) -> Scorer:
    options = dict(settings.scorer_args)
    if settings.scorer not in PLAIN and settings.scorer_engine == "transformers":
        options.setdefault("cache_gib", 0)  # traces of a file seldom begin alike: keep no prefixes for later ones
    return load_scorer(
        settings.scorer,
        format=settings.scorer_format,
        over=settings.score_over,
        final=counts_final(settings.alpha, settings.aggregate),
        engine=settings.scorer_engine,
        url=url,
        policy=settings.model,
        options=options,
    )


def _row(item: Scored, bare: bool) -> dict[str, Any]:
    """The rewards, and then what the trace's row held."""
    reward = item.value
    row = {
        "id": item.trace.id,
        "step_rewards": list(reward.steps),
        "final": reward.final,
        "total": reward.total,
        "line": item.line,
    }
    return row if bare else row | {name: value for name, value in item.trace.row.items() if name not in row}

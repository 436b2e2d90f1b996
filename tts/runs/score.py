"""`tts score`: rewards for a file of traces, streamed in constant memory, in the order of the file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from tts import interrupts
from tts.data.files import writing
from tts.data.stream import CallbackSink, FileSink, Processed, Rejected, Sink, Tally, work_through
from tts.data.traces import Trace
from tts.errors import InputError
from tts.runs.settings import ScoreSettings
from tts.scorers import compares, is_reward_model
from tts.solving.scoring import check_rewards
from tts.types import Part, Reward, Scorer

Scored = Processed[Reward]


def score_file(
    settings: ScoreSettings,
    *,
    tally: Tally | None = None,
    write: Callable[[str], object] | None = None,
    complain: Callable[[str], object] | None = None,
    show: Callable[[Scored, Part], None] | None = None,
    scorer_instance: Scorer | None = None,
) -> Tally:
    """Score every trace of a file; the same as `tts score`.

    Args:
        settings: What to score, and with what.
        tally: Updated while the file is scored.
        write: Gets each row, as JSON, where `settings.out` is None.
        complain: Gets what is wrong with a line that cannot be scored, where `settings.out` is None; else such lines go to
            OUT's `.rejected.jsonl`.
        show: Gets each scored trace, and the part of it that was rated.
        scorer_instance: A scorer that is already loaded.

    Raises:
        InputError: The input as a whole cannot be used. A bad line is set aside.
    """
    tally, out = tally or Tally(), settings.out
    source = settings.traces.expanduser()
    if not source.is_file():
        raise InputError(f"no file {settings.traces}; give a JSONL file of traces")
    if compares(settings.scorer):
        raise InputError(f"the scorer {settings.scorer} compares solutions of one problem; tts score reads traces one by one")
    sink: Sink = CallbackSink(write, complain)
    if out is not None:
        sink = FileSink.open(out, settings, resume=settings.resume, command="tts score")
    tally.resumed, tally.total_bytes = sink.done, source.stat().st_size
    tally.stage = f"loading {settings.scorer}"
    try:
        scorer = scorer_instance or _load(settings)
    except InputError:
        sink.undo()
        raise
    except BaseException:
        sink.close()
        raise
    tally.running = True

    async def score(traces: Sequence[Trace]) -> list[Reward]:
        candidates = [trace.instructed(settings.instruction).candidate for trace in traces]
        rewards = await scorer.score(candidates)
        check_rewards(rewards, candidates, scorer.over)
        return [replace(reward, alpha=settings.alpha, how=settings.aggregate) for reward in rewards]

    async def work() -> None:
        try:
            try:
                await scorer.check()
            except InputError:
                sink.undo()
                raise
            chunks = work_through(
                source, score, names=settings.names, first_line=sink.first_line, limit=settings.limit, tally=tally,
                step_delimiter=settings.step_delimiter,
            )  # fmt: skip
            async for chunk in chunks:
                scored = [item for item in chunk if isinstance(item, Processed)]
                refused = [item for item in chunk if isinstance(item, Rejected)]
                tally.done += len(scored)
                tally.rejected += len(refused)
                tally.tokens += sum(item.value.tokens for item in scored)
                tally.missing += sum(item.value.missing for item in scored)
                tally.unrated += sum(not item.value.rated for item in scored)
                tally.windowed += sum(bool(item.value.windows) for item in scored)
                if show is not None:
                    for item in scored:
                        show(item, scorer.over)
                sink.add([_row(item, scorer.over, settings.bare) for item in scored], refused)
        finally:
            if scorer is not scorer_instance:
                await scorer.close()

    try:
        with writing(out, "what was scored is kept; make room, then continue with --resume"):
            interrupts.run(work())
    finally:
        sink.close()
    return tally


def _load(settings: ScoreSettings) -> Scorer:
    embedded = is_reward_model(settings.scorer) and settings.scorer_engine == ScoreSettings.scorer_engine
    # traces of a file seldom begin alike: keep no prefixes for later ones
    return settings.load_scorer(policy=settings, defaults={"cache_gib": 0} if embedded else {})


OWN = {"id", "step_rewards", "final", "total", "line", "final_missing", "windows"}
"""Fields of a row that a trace does not keep from another scoring."""


def _row(item: Scored, over: Part, bare: bool) -> dict[str, Any]:
    """The rewards, null where there is no verdict or nothing to rate, and then what the trace's row held."""
    reward = item.value
    whole_only = not reward.steps and reward.final is not None
    row: dict[str, Any] = {
        "id": item.trace.id,
        "step_rewards": [] if whole_only else item.trace.by_position(reward.steps, over),
        "final": reward.final,
        "total": reward.total if reward.rated else None,
        "line": item.line,
    }
    if reward.final_missing:
        row["final_missing"] = True
    if reward.windows:
        row["windows"] = [asdict(window) for window in item.trace.windows_by_position(reward.windows, over)]
    return row if bare else row | {name: value for name, value in item.trace.row.items() if name not in OWN}

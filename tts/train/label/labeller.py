"""`tts label`: from traces to what a PRM is to say of them (arXiv 2506.18896, section 3)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tts.data.labelled import Labelled, trl_row
from tts.data.stream import Done, Files, Rejected, Tally, how_to_resume, rejected_of, work_through
from tts.data.traces import BadRowError, Trace, parse_line, read_lines
from tts.engines import load_engine
from tts.errors import InputError
from tts.grading.pool import Grader
from tts.grading.rules import get_grader
from tts.interrupts import on_interrupt, run
from tts.models import checkpoints
from tts.models.templates import read_template
from tts.show.console import field_names, key_values, warn, watched
from tts.solving.generator import derive_seed
from tts.train.label.cache import Cache
from tts.train.label.encoder import Encoder
from tts.train.label.quality import JUDGE, Check, Judge, Quality, Rollout
from tts.train.label.targets import Array, alignment, coherence, step_target
from tts.train.label.template import Guide
from tts.train.settings import Label
from tts.types import Candidate, Engine, Problem

CHUNK = 16
"""Traces labelled together: each may ask for hundreds of completions."""
POOL = 2048
"""Steps of the file from which coherence draws those of other problems."""


@dataclass(frozen=True)
class Labels:
    """What is found out about one trace. Lists have an entry for every thinking step and then every response step."""

    alignment: list[float | None]
    quality: list[float]
    coherence: list[float | None]
    """The first two terms that compare with the response or with a step before are of thinking steps alone."""
    steps: list[float]
    final: float | None
    correct: bool | None
    template: str | None = None


def label(settings: Label) -> int:
    """The command: a live view, and what became of it in a line. Its exit code is 1 where traces have no labels."""
    from tts.show.terminal import FileView

    tally = Tally()
    with on_interrupt(lambda: how_to_resume(tally, "labelled", settings.out)):
        watched(lambda: label_file(settings, tally), lambda console: FileView(tally, console), hidden=False)
    before = f", {tally.resumed} before" if tally.resumed else ""
    print(f"{tally.done} {'trace' if tally.done == 1 else 'traces'} labelled{before}: {settings.out}")
    if tally.rejected:
        warn(f"{tally.rejected} of {tally.done + tally.rejected} traces have no labels; see {rejected_of(settings.out)}")
        return 1
    return 0


def label_file(
    settings: Label, tally: Tally | None = None, *, policy: Engine | None = None, expert: Engine | None = None
) -> Tally:
    """Write a row of labels for every trace of a file; the same as `tts label`.

    `policy` and `expert` are engines that are loaded already. Raises InputError for bad input as a whole; a trace that cannot
    be labelled goes to `.rejected.jsonl` with the reason.
    """
    tally = tally or Tally()
    if not settings.traces.is_file():
        raise InputError(f"no file {settings.traces}; give a JSONL file of traces")
    names = field_names(settings.field)
    get_grader(settings.grader)
    kept = {name: value for name, value in asdict(settings).items() if name not in ("out", "resume", "limit", "cache")}
    sink = Files.open(settings.out, {**kept, "traces": str(settings.traces)}, resume=settings.resume, command="tts label")
    tally.resumed, tally.total_bytes = sink.done, settings.traces.stat().st_size

    async def work() -> None:
        async with AsyncExitStack() as stack:
            labeller = await _load(settings, names, stack, tally, policy, expert)
            tally.running = True
            chunks = work_through(
                settings.traces, labeller.label, names=names, first_line=sink.first_line, limit=settings.limit, tally=tally,
                chunk=CHUNK,
            )  # fmt: skip
            async for chunk in chunks:
                done = [item for item in chunk if isinstance(item, Done)]
                refused = [item for item in chunk if isinstance(item, Rejected)]
                tally.done += len(done)
                tally.rejected += len(refused)
                sink.add([_row(item, settings) for item in done], refused)

    try:
        run(work())
    except OSError as error:
        raise InputError(f"cannot write to {settings.out}: {error.strerror or error}; go on with --resume") from error
    finally:
        sink.close()
    return tally


@dataclass
class Labeller:
    """What labels traces: the terms of the paper's reward, and those who know them."""

    settings: Label
    grader: Grader
    quality: Quality
    encoder: Encoder | None
    """Phi; None where quality is all that counts."""
    pool: list[tuple[str, str]]
    """(problem, step) of the whole file, at random."""
    guide: Guide | None
    """Answers under a template; None where the trajectory reward is another."""

    async def label(self, traces: Sequence[Trace]) -> list[Labels]:
        if self.encoder is not None:  # all texts in few batches, before each is asked for again
            texts = [text for trace in traces for text in (trace.candidate.problem.prompt, *trace.candidate.trajectory.steps)]
            await asyncio.to_thread(self.encoder.encode, texts)
        return list(await asyncio.gather(*(self._label(trace.candidate) for trace in traces)))

    async def _label(self, candidate: Candidate) -> Labels:
        candidate = Candidate(_graded_by(candidate.problem, self.settings.grader), candidate.steps)
        thinking, response = candidate.trajectory
        if self.settings.targets == "combined" and not (thinking and response):
            missing = "response" if thinking else "thinking part"
            raise InputError(f"the trace has no {missing}, which combined targets compare; use --targets quality or hard")
        if self.settings.final != "none" and candidate.problem.answer is None:
            raise InputError(f"problem {candidate.problem.id} has no answer, which --final {self.settings.final} needs")
        [verdict] = await self.grader.judge([candidate])
        quality = await self.quality.rate(candidate)
        align: list[float | None] = [None] * len(quality)
        coh: list[float | None] = [None] * len(quality)
        steps = list(quality)
        if self.settings.targets == "hard":
            steps = [float(value >= self.settings.threshold) for value in quality]
        elif self.encoder is not None:
            terms, found = self._compare(candidate)
            for t, ((a, c), negatives) in enumerate(zip(terms, found, strict=True)):
                align[t], coh[t] = a, c
                steps[t] = step_target(a, quality[t], c, negatives, self.settings.normalize)
        final, template = None if self.settings.final == "none" else float(bool(verdict.correct)), None
        if self.guide is not None:
            template, final = await self.guide.reward(candidate)
        return Labels(align, quality, coh, steps, final, verdict.correct, template)

    def _compare(self, candidate: Candidate) -> tuple[list[tuple[float, float]], list[int]]:
        """(alignment, coherence) of every thinking step, and the number of negatives that the latter was compared with.

        The first step follows the problem.
        """
        assert self.encoder is not None
        (thinking, response), prompt = candidate.trajectory, candidate.problem.prompt
        vectors = self.encoder.encode([prompt, *thinking])
        aligned = alignment(vectors[1:], self.encoder.encode(response), self.settings.match)
        terms, counts = [], []
        for t in range(len(thinking)):
            negatives = self._negatives(prompt, thinking, t)
            value = coherence(vectors[t], vectors[t + 1], negatives, self.settings.tau, not self.settings.positive_outside)
            terms.append((float(aligned[t]), value))
            counts.append(len(negatives))
        return terms, counts

    def _negatives(self, prompt: str, thinking: Sequence[str], t: int) -> Array:
        """Embeddings of steps of other problems, the same ones for the same step whatever else is labelled."""
        assert self.encoder is not None
        rng = random.Random(derive_seed(self.settings.seed, "negatives", prompt, *thinking[: t + 1]))
        found: dict[int, str] = {}
        seen: set[int] = set()
        while len(found) < self.settings.negatives and len(seen) < len(self.pool):
            seen.add(i := rng.randrange(len(self.pool)))
            problem, step = self.pool[i]
            if problem != prompt:
                found[i] = step
        return self.encoder.encode(list(found.values()))


async def _load(
    settings: Label, names: dict[str, str], stack: AsyncExitStack, tally: Tally, policy: Engine | None, expert: Engine | None
) -> Labeller:
    """Everything that the settings ask for, loaded; `stack` lets go of it."""

    def engine(name: str, model: str, url: str | None, arguments: list[str], option: str) -> Engine:
        tally.stage = f"loading {model}"
        loaded = load_engine(name, model, url=url, options=key_values(option, arguments))
        stack.push_async_callback(loaded.close)
        return loaded

    uses_policy = settings.quality == "rollout" or settings.final == "template"
    uses_expert = settings.quality == "judge" or settings.final == "template"
    if policy is None and (uses_policy or (uses_expert and settings.expert is None)):
        policy = engine(settings.engine, settings.model, settings.url, settings.engine_arg, "--engine-arg")
    if expert is None and uses_expert and settings.expert is not None:
        expert = engine(settings.expert_engine, settings.expert, settings.expert_url, settings.expert_arg, "--expert-arg")
    expert = expert or policy
    grader = Grader()
    stack.push_async_callback(grader.close)
    # by what the models are, too: one may be trained anew under its name
    about = [(name, checkpoints.fingerprint(name)) for name in (settings.model, settings.expert) if name]
    cache = Cache(settings.cache or settings.out.with_name(settings.out.name + ".cache"), *about)
    stack.callback(cache.close)
    quality: Quality
    if settings.quality == "rollout":
        assert policy is not None
        quality = Rollout(
            policy, grader, cache, n=settings.n, max_tokens=settings.max_tokens, temperature=settings.temperature,
            seed=settings.seed,
        )  # fmt: skip
    elif settings.quality == "judge":
        assert expert is not None
        prompt = JUDGE if settings.judge_prompt is None else settings.judge_prompt
        quality = Judge(expert, cache, template=read_template(prompt, "step", "the judge's prompt"), seed=settings.seed)
    else:
        quality = Check(settings.quality)
    guide = None
    if settings.final == "template":
        assert policy is not None
        assert expert is not None
        guide = Guide(
            expert, policy, grader, cache, n=settings.n, max_tokens=settings.max_tokens, temperature=settings.temperature,
            seed=settings.seed,
        )  # fmt: skip
    encoder, pool = None, list[tuple[str, str]]()
    if settings.targets == "combined":
        tally.stage = "reading steps of other problems"
        pool = _pool(settings.traces, names, settings.seed)
        if len({problem for problem, _ in pool}) < 2:
            raise InputError(
                f"{settings.traces} has thinking steps of one problem at most, and coherence compares with other problems;"
                " add some, or use --targets quality"
            )
        tally.stage = f"loading {settings.encoder or settings.model}"
        encoder = Encoder(settings.encoder or settings.model)
        encoder.encode([step for _, step in pool])
    return Labeller(settings, grader, quality, encoder, pool, guide)


def _pool(path: Path, names: dict[str, str], seed: int) -> list[tuple[str, str]]:
    """POOL thinking steps of the file, each as likely as any other (reservoir sampling)."""
    rng, pool = random.Random(derive_seed(seed, "pool")), list[tuple[str, str]]()
    for count, pair in enumerate(_thinking_steps(path, names)):
        if len(pool) < POOL:
            pool.append(pair)
        elif (place := rng.randrange(count + 1)) < POOL:
            pool[place] = pair
    return pool


def _thinking_steps(path: Path, names: dict[str, str]) -> Iterator[tuple[str, str]]:
    for number, line, _ in read_lines(path):
        try:
            traces = parse_line(line, number, names)
        except BadRowError:
            continue  # refused with its reason when its turn to be labelled comes
        for trace in traces:
            for step in trace.candidate.trajectory.thinking:
                yield trace.candidate.problem.prompt, step


def _graded_by(problem: Problem, grader: str) -> Problem:
    return Problem(problem.id, problem.prompt, problem.answer, grader)


def _row(item: Done[Labels], settings: Label) -> dict[str, Any]:
    """The trace, its targets, the terms that they are made of, and what else its row held."""
    labels, problem = item.value, item.trace.candidate.problem
    own = {"id": problem.id, "problem": problem.prompt, "answer": problem.answer, "text": item.trace.candidate.text}
    if settings.layout == "trl":
        columns = trl_row(Labelled(item.trace, tuple(labels.steps), labels.final), settings.threshold)
        return {"id": problem.id, **columns, "answer": problem.answer, "correct": labels.correct, "line": item.line}
    row = {
        **own,
        "correct": labels.correct,
        "step_targets": labels.steps,
        "final_target": labels.final,
        "terms": {"alignment": labels.alignment, "quality": labels.quality, "coherence": labels.coherence},
    }
    if labels.template is not None:
        row["template"] = labels.template
    row["line"] = item.line
    named = {*row, "thinking", "response", "steps", *key_values("--field", settings.field).values()}  # `text` holds these
    return row | {name: value for name, value in item.trace.row.items() if name not in named}

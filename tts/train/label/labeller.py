"""`tts label`: compute the training targets of a PRM for every trace of a file (arXiv 2506.18896, section 3)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tts.data.files import writing
from tts.data.labelled import LabelledTrace, trl_row
from tts.data.stream import FileSink, Processed, Rejected, Tally, how_to_resume, rejected_of, work_through
from tts.data.traces import BadRowError, Trace, parse_line, read_lines
from tts.errors import Exit, InputError
from tts.grading.pool import Grader
from tts.grading.rules import get_grader
from tts.interrupts import on_interrupt, run
from tts.models import checkpoints
from tts.models.templates import read_template
from tts.show.console import Output, warn
from tts.solving.generator import derive_seed
from tts.train.label.cache import Cache
from tts.train.label.encoder import Encoder
from tts.train.label.quality import JUDGE, CheckerQuality, JudgeQuality, Quality, RolloutQuality
from tts.train.label.targets import Array, alignment, coherence, step_target
from tts.train.label.template import TemplateReward
from tts.train.settings import LabelSettings
from tts.types import Candidate, Engine

LABEL_CHUNK = 16
"""Traces labelled at a time. It is small because every trace may need hundreds of completions."""
NEGATIVE_SOURCE = 2048
"""Steps sampled from the whole file, from which the negatives of coherence are drawn."""


@dataclass(frozen=True)
class TraceLabels:
    """The targets of one trace and their terms. Lists have one entry per thinking step, then per response step."""

    alignment: list[float | None]
    """r_align, in [-1, 1]; None for response steps, and unless the targets are combined."""
    quality: list[float | None]
    """r_qual, in [0, 1]; None for a step that the judge did not rate."""
    coherence: list[float | None]
    """r_coh; None for response steps, and unless the targets are combined."""
    steps: list[float | None]
    """The targets of the steps; None where the quality is not known. That of a response step is its quality."""
    final: float | None
    """The target of the trace as a whole; None with --final none."""
    correct: bool | None
    """Whether the trace's own answer is correct; None for a problem without a reference answer."""
    template: str | None = None
    """The reasoning template that the expert extracted, with --final template."""


def label(settings: LabelSettings, output: Output) -> int:
    """The command."""
    from tts.show.live import FileView

    tally, out = Tally(), settings.out
    with on_interrupt(lambda: how_to_resume(tally, "labelled", out)):
        output.watched(lambda: label_file(settings, tally), lambda console: FileView(tally, console))
    output.result(table=lambda: tally.summary("labelled", out), data=lambda: tally.to_json(out), brief=out)
    if tally.missing:
        warn(f"the judge did not rate {tally.missing} steps; they have no target (null)")
    if tally.rejected:
        warn(f"{tally.rejected} of {tally.done + tally.rejected} traces have no labels; see {rejected_of(out)}")
        return Exit.FAILURES
    return Exit.OK


def label_file(
    settings: LabelSettings, tally: Tally | None = None, *, policy: Engine | None = None, expert: Engine | None = None
) -> Tally:
    """Label every trace of a file, as `tts label` does.

    A trace that cannot be labelled is written to `.rejected.jsonl` beside the output, with the reason.

    Args:
        settings: The options of `tts label`.
        tally: Progress, updated in place for a live view. Default: a new one.
        policy: A loaded engine to use instead of `settings.engine` and `settings.model`.
        expert: A loaded engine to use instead of `settings.expert_engine` and `settings.expert`.

    Returns:
        The tally, with the number of traces that were labelled and rejected.

    Raises:
        InputError: The input, an option or a model cannot be used, or the output cannot be written.
    """
    tally = tally or Tally()
    if not settings.traces.is_file():
        raise InputError(f"no file {settings.traces}; give a JSONL file of traces")
    names = settings.names
    get_grader(settings.grader)
    sink = FileSink.open(settings.out, settings, resume=settings.resume, command="tts label")
    tally.resumed, tally.total_bytes = sink.done, settings.traces.stat().st_size

    async def work() -> None:
        async with AsyncExitStack() as stack:
            try:
                labeller = await _load_labeller(settings, names, stack, tally, policy, expert)
            except InputError:
                sink.undo()
                raise
            tally.running = True
            chunks = work_through(
                settings.traces, labeller.label, names=names, first_line=sink.first_line, limit=settings.limit, tally=tally,
                step_delimiter=settings.step_delimiter, chunk=LABEL_CHUNK,
            )  # fmt: skip
            async for chunk in chunks:
                done = [item for item in chunk if isinstance(item, Processed)]
                refused = [item for item in chunk if isinstance(item, Rejected)]
                tally.done += len(done)
                tally.missing += sum(item.value.quality.count(None) for item in done)
                tally.rejected += len(refused)
                sink.add([_row(item, settings) for item in done], refused)

    try:
        with writing(settings.out, "what was labelled is kept; make room, then continue with --resume"):
            run(work())
    finally:
        sink.close()
    return tally


@dataclass
class Labeller:
    """Computes the labels of traces, with everything that the settings ask for already loaded."""

    settings: LabelSettings
    grader: Grader
    quality: Quality
    encoder: Encoder | None
    """Phi; None unless the targets are combined."""
    negative_source: list[tuple[str, str]]
    """(problem, thinking step) pairs sampled from the whole file; empty unless the targets are combined."""
    template_reward: TemplateReward | None
    """None unless --final template."""

    async def label(self, traces: Sequence[Trace]) -> list[TraceLabels]:
        """Return the labels of each trace, in order. Raises InputError if one of them cannot be labelled."""
        if self.encoder is not None:  # encode all texts in few batches first; the lookups below then hit its cache
            texts = [text for trace in traces for text in (trace.candidate.problem.prompt, *trace.candidate.trajectory.steps)]
            await asyncio.to_thread(self.encoder.encode, texts)
        return list(await asyncio.gather(*(self._label(trace.candidate) for trace in traces)))

    async def _label(self, candidate: Candidate) -> TraceLabels:
        problem = candidate.problem.instructed(self.settings.instruction)
        candidate = Candidate(replace(problem, grader=self.settings.grader), candidate.steps)
        thinking, response = candidate.trajectory
        if self.settings.targets == "combined" and not (thinking and response):
            missing = "response" if thinking else "thinking part"
            raise InputError(f"the trace has no {missing}, which --targets combined needs; use --targets quality or hard")
        if self.settings.final != "none" and candidate.problem.answer is None:
            raise InputError(f"problem {candidate.problem.id} has no answer, which --final {self.settings.final} needs")
        [verdict] = await self.grader.judge([candidate])
        quality = list(await self.quality.rate(candidate))
        align: list[float | None] = [None] * len(quality)
        coh: list[float | None] = [None] * len(quality)
        steps = list(quality)
        if self.settings.targets == "hard":
            steps = [None if value is None else float(value >= self.settings.threshold) for value in quality]
        elif self.encoder is not None:
            terms, found = self._compare(candidate)
            for t, ((a, c), negatives) in enumerate(zip(terms, found, strict=True)):
                align[t], coh[t] = a, c
                if (rating := quality[t]) is not None:
                    steps[t] = step_target(a, rating, c, negatives, self.settings.normalize)
        final, template = None if self.settings.final == "none" else float(bool(verdict.correct)), None
        if self.template_reward is not None:
            template, final = await self.template_reward.rate(candidate)
        return TraceLabels(align, quality, coh, steps, final, verdict.correct, template)

    def _compare(self, candidate: Candidate) -> tuple[list[tuple[float, float]], list[int]]:
        """Return (alignment, coherence), and the number of negatives of the coherence, for every thinking step.

        The step before the first one is the problem.
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
        """Return embeddings of steps of other problems [N, h]. The choice depends on the seed and the steps up to t alone."""
        assert self.encoder is not None
        rng = random.Random(derive_seed(self.settings.seed, "negatives", prompt, *thinking[: t + 1]))
        found: dict[int, str] = {}
        seen: set[int] = set()
        while len(found) < self.settings.negatives and len(seen) < len(self.negative_source):
            seen.add(i := rng.randrange(len(self.negative_source)))
            problem, step = self.negative_source[i]
            if problem != prompt:
                found[i] = step
        return self.encoder.encode(list(found.values()))


async def _load_labeller(
    settings: LabelSettings,
    names: dict[str, str],
    stack: AsyncExitStack,
    tally: Tally,
    policy: Engine | None,
    expert: Engine | None,
) -> Labeller:
    """Load everything that the settings ask for; `stack` closes it."""

    def engine(model: str, load: Callable[[], Engine]) -> Engine:
        tally.stage = f"loading {model}"
        loaded = load()
        stack.push_async_callback(loaded.close)
        return loaded

    uses_policy = settings.quality == "rollout" or settings.final == "template"
    uses_expert = settings.quality == "judge" or settings.final == "template"
    if policy is None and (uses_policy or (uses_expert and settings.expert is None)):
        policy = engine(settings.model, settings.load_engine)
        settings.note_recommended()
    if expert is None and uses_expert and settings.expert is not None:
        expert = engine(settings.expert, settings.load_expert)
    if policy is not None and uses_policy:  # rollouts continue a given trace
        policy.check_sampling(replace(settings.sampling, written=int(settings.quality == "rollout")))
    expert = expert or policy
    for one in dict.fromkeys(filter(None, (policy, expert))):
        tally.stage = "asking the server"
        await one.check()
    grader = Grader()
    stack.push_async_callback(grader.close)
    encoder, negative_source = None, list[tuple[str, str]]()
    if settings.targets == "combined":
        tally.stage = "sampling steps for coherence"
        negative_source = _sample_thinking_steps(settings.traces, names, settings.seed, settings.step_delimiter)
        if len({problem for problem, _ in negative_source}) < 2:
            raise InputError(
                f"{settings.traces} has thinking steps of at most one problem, but coherence compares steps with those of other"
                " problems; add traces of other problems, or use --targets quality"
            )
        tally.stage = f"loading {settings.encoder or settings.model}"
        encoder = Encoder(settings.encoder or settings.model)
        encoder.encode([step for _, step in negative_source])
    # the weights are part of the key: a model may have been retrained under the same name
    models = [(name, checkpoints.fingerprint(name)) for name in (settings.model, settings.expert) if name]
    models += [("adapter", settings.adapter)] if settings.adapter is not None else []
    models += list(settings.prompting.items())
    cache = Cache(settings.cache or settings.out.with_name(settings.out.name + ".cache"), *models)
    stack.callback(cache.close)
    quality: Quality
    if settings.quality == "rollout":
        assert policy is not None
        quality = RolloutQuality(
            policy, grader, cache, n=settings.n, sampling=settings.sampling, seed=settings.seed
        )  # fmt: skip
    elif settings.quality == "judge":
        assert expert is not None
        prompt = JUDGE if settings.judge_prompt is None else settings.judge_prompt
        quality = JudgeQuality(expert, cache, template=read_template(prompt, "step", "the judge's prompt"), seed=settings.seed)
    else:
        quality = CheckerQuality(settings.quality)
    template_reward = None
    if settings.final == "template":
        assert policy is not None
        assert expert is not None
        template_reward = TemplateReward(
            expert, policy, grader, cache, n=settings.n, sampling=settings.sampling, seed=settings.seed
        )  # fmt: skip
    return Labeller(settings, grader, quality, encoder, negative_source, template_reward)


def _sample_thinking_steps(path: Path, names: dict[str, str], seed: int, step_delimiter: str | None) -> list[tuple[str, str]]:
    """Return NEGATIVE_SOURCE (problem, thinking step) pairs of the file, sampled uniformly (reservoir sampling)."""
    rng, sample = random.Random(derive_seed(seed, "pool")), list[tuple[str, str]]()
    for count, pair in enumerate(_thinking_steps(path, names, step_delimiter)):
        if len(sample) < NEGATIVE_SOURCE:
            sample.append(pair)
        elif (place := rng.randrange(count + 1)) < NEGATIVE_SOURCE:
            sample[place] = pair
    return sample


def _thinking_steps(path: Path, names: dict[str, str], step_delimiter: str | None) -> Iterator[tuple[str, str]]:
    for number, line, _ in read_lines(path):
        try:
            traces = parse_line(line, number, names)
        except BadRowError:
            continue  # rejected, with the reason, when it is labelled
        for trace in traces:
            for step in trace.divided(step_delimiter).candidate.trajectory.thinking:
                yield trace.candidate.problem.prompt, step


def _row(item: Processed[TraceLabels], settings: LabelSettings) -> dict[str, Any]:
    """Return the output row: the trace, its targets, their terms, and the other fields of the input row."""
    labels, problem = item.value, item.trace.candidate.problem
    own = {"id": problem.id, "problem": problem.prompt, "answer": problem.answer, "text": item.trace.candidate.text}
    if instruction := problem.instructed(settings.instruction).instruction:
        own["instruction"] = instruction
    if settings.layout == "trl":
        columns = trl_row(LabelledTrace(item.trace, tuple(labels.steps), labels.final), settings.threshold)
        return {"id": problem.id, **columns, "answer": problem.answer, "correct": labels.correct, "line": item.line}
    terms: dict[str, Sequence[float | None]] = {
        "alignment": labels.alignment, "quality": labels.quality, "coherence": labels.coherence
    }  # fmt: skip
    row = {
        **own,
        "correct": labels.correct,
        "step_targets": item.trace.by_position(labels.steps),
        "final_target": labels.final,
        "terms": {name: item.trace.by_position(values) for name, values in terms.items()},
    }
    if item.trace.given is not None:  # the list whose positions the targets have
        row["steps"] = item.trace.row[settings.names.get("steps", "steps")]
    if labels.template is not None:
        row["template"] = labels.template
    row["line"] = item.line
    named = {*row, "instruction", "thinking", "response", "steps", *settings.names.values()}  # `text` holds all of these
    return row | {name: value for name, value in item.trace.row.items() if name not in named}

"""Process reward models, read as a trajectory-aware reward (arXiv 2506.18896)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, get_args

from tts.errors import InputError
from tts.models import chat, checkpoints
from tts.models.chat import Encoded
from tts.scorers import formats, windows
from tts.scorers.reader import Query, load_reader
from tts.scorers.readouts import TRACE_HEAD
from tts.scorers.windows import Span
from tts.trajectory import BOUNDARY, from_step, with_tags
from tts.types import Candidate, Part, Reward, Scorer, Window


class PRM(Scorer):
    """A process reward model that scores each step of a candidate, and the candidate as a whole.

    Its format (`tts.scorers.formats`) determines how a trace is shown to the model and where rewards are read. A model that
    rates only whole traces gives no step rewards.

    Args:
        model: A bundled model's name, a folder or a hub id.
        format: The name of a format; by default it is recognised from the checkpoint.
        over: The part of the trajectory that the model is shown and rates: all, think or response. Default: `score_over` of
            config.json, or else all.
        final: Whether to compute a final reward for the whole trace. It comes from the checkpoint's own trace head; if there
            is none, the trace is read once more as a single step.
        window: Whether to read a trace that is longer than the model's context in windows (`tts.scorers.windows`), or the
            number of tokens in a window, if it is to be smaller than the context. A step is rated in the first window that
            shows it. The final reward is read at the end of the last steps that fit. If a step does not fit alone, its
            beginning is cut off. `Reward.windows` says what was read.
        backend: What runs the model, a name in `tts.scorers.reader.READERS`: transformers (default) or vllm in this process,
            or server, a pooling server of vLLM at `url`.
        url: The server's address, such as http://127.0.0.1:8000.
        **options: Options of the backend.

    Raises:
        InputError: The model cannot be used, or an option has a wrong value. `score` raises it for a trace that is longer than
            the model's context, if `window` is False, and for a problem that leaves no room for its solution.
    """

    def __init__(
        self,
        model: str,
        *,
        format: str | None = None,
        over: Part | None = None,
        final: bool = True,
        window: bool | int = True,
        backend: str = "transformers",
        url: str | None = None,
        **options: Any,
    ) -> None:
        self.name, self.final, self.window = model, final, window
        self.format = formats.format_of(model, format)
        self.by_step = self.format.by_step
        self.over: Part = _part(model, over)
        if not (self.format.by_step or final):
            raise InputError(f"{model!r} rates only whole traces; with --alpha 0 no reward would be left")
        self.text = formats.Text(checkpoints.load_tokenizer(model))
        self._encode("?", ["?", "?"] if self.by_step else ["?"])  # reports what the tokenizer lacks before weights are loaded
        has_trace_head = final and any(file.name == TRACE_HEAD for file in checkpoints.files(model))
        self.reader = load_reader(
            backend, model, self.format, self.text.tokenizer, url=url, has_trace_head=has_trace_head, options=options
        )
        windows.length_of(window, self.reader.context)
        self.exact = getattr(self.reader, "exact", False)

    async def score(self, candidates: Sequence[Candidate]) -> list[Reward]:
        """Return one reward per candidate, in order.

        Raises InputError for a problem that leaves no room for its solution, and without windows for a trace that is longer
        than the context.
        """
        await self.reader.prepare()
        length = windows.length_of(self.window, self.reader.context)
        plans = [self._plan(_Shown(self, candidate, length)) for candidate in candidates]
        read = iter(await self.reader.read([query for plan in plans for query, _ in plan]))
        return [self._reward([(window, next(read)) for _, window in plan]) for plan in plans]

    async def check(self) -> None:
        await self.reader.check()

    async def close(self) -> None:
        """Release the backend's processes and connections."""
        await self.reader.close()

    def _plan(self, shown: _Shown) -> list[tuple[Query, Window]]:
        """Return what is read of a candidate: its steps, and the trace as a whole where that is another reading."""
        plan: list[tuple[Query, Window]] = []
        if not shown.steps:
            return plan
        if self.by_step:
            for span in shown.spans():
                encoded, omitted = shown.steps_of(span)
                # a readout that adds up from the first position does so from the last one before the steps rated here
                query = Query(encoded.ids, encoded.positions[span.rated - span.begin :])
                plan.append((query, Window("steps", *span, len(query.ids), omitted)))
        if self.final and not self._adds_up:
            begin = shown.tail()
            encoded, omitted = shown.whole_of(begin)
            query = Query(encoded.ids, encoded.positions, whole=True)
            plan.append((query, Window("whole", begin, begin, len(shown.steps), len(query.ids), omitted)))
        return plan

    def _reward(self, read: list[tuple[Window, list[float]]]) -> Reward:
        steps: list[float] = []
        final = None
        for window, values in read:
            if window.of == "whole":
                final = values[0]
            else:
                before = steps[-1] if steps and self._adds_up else 0.0
                steps += [before + value for value in values]
        if self.final and self._adds_up and steps:
            final = steps[-1]
        in_windows = any(window.rated or window.omitted for window, _ in read)
        return Reward(
            tuple(steps),
            final,
            tokens=sum(window.tokens for window, _ in read),
            final_missing=self.final and final is None,
            windows=tuple(window for window, _ in read) if in_windows else (),
        )

    @property
    def _adds_up(self) -> bool:
        """Whether the reward of a step is a sum over all steps so far, so that the last one is that of the trace as a whole."""
        return self.format.readout.marks_start

    def _encode(self, prompt: str, steps: Sequence[str]) -> Encoded:
        encoded = formats.encode(self.format, self.text, prompt, steps)
        expected = len(steps) + self.format.readout.marks_start
        if len(encoded.positions) != expected or any(a >= b for a, b in pairwise(encoded.positions)):
            raise InputError(
                f"the format of {self.name!r} gave the positions {encoded.positions} for {len(steps)} steps;"
                f" expected {expected} positions in ascending order"
            )
        return encoded


class _Shown:
    """A trace as a reward model is shown it, in windows of at most `length` tokens."""

    def __init__(self, prm: PRM, candidate: Candidate, length: int) -> None:
        self.prm, self.length, self.text = prm, length, candidate.text
        self.problem, self.steps = candidate.problem.prompt, candidate.part(prm.over)
        self.ends = candidate.problem.ends
        self._known: dict[tuple[str, ...], Encoded] = {}

    def spans(self) -> Iterable[Span]:
        """Return the windows in which steps are rated; one if the trace fits."""
        if self._fits(self.steps):
            return [Span(0, 0, len(self.steps))]
        return windows.spans(*self._sizes, lambda begin, end: self._fits(self.steps[begin:end], raising=False))

    def tail(self) -> int:
        """Return the first step that is shown when the trace is rated as a whole; 0 if the trace fits."""
        if self._fits([self._joined(0)]):
            return 0
        return windows.tail(*self._sizes, lambda begin, _: self._fits([self._joined(begin)], raising=False))

    def steps_of(self, span: Span) -> tuple[Encoded, int]:
        """Return the encoded steps of a window, and how many tokens of a step were cut off as it does not fit alone."""
        return self._encoded(self.steps[span.begin : span.end])

    def whole_of(self, begin: int) -> tuple[Encoded, int]:
        """Return the trace from step `begin` on, encoded as one step, and how many tokens of it were cut off."""
        return self._encoded([self._joined(begin)])

    def _joined(self, begin: int) -> str:
        if self.prm.by_step or self.prm.over != "all":
            return BOUNDARY.join(self.steps[begin:])
        return from_step(self.text, begin, self.ends) if begin else with_tags(self.text)

    def _fits(self, steps: Sequence[str], *, raising: bool = True) -> bool:
        """Return whether steps fit into a window. Raises InputError if they do not, and are not to be read in windows."""
        tokens = len(self._encode(steps).ids)
        if tokens > self.length and raising and self.prm.window is False:
            raise windows.too_long(tokens, self.length, self.prm.name)
        return tokens <= self.length

    def _encoded(self, steps: Sequence[str]) -> tuple[Encoded, int]:
        if len(steps) > 1:
            return self._encode(steps), 0
        tokenizer = self.prm.text.tokenizer
        try:
            step, omitted = windows.shorten(
                steps[0],
                lambda: chat.token_starts(tokenizer, steps[0]),
                lambda rest: len(self._encode([rest]).ids) - self.length,
            )
        except ValueError:
            raise windows.no_room(len(self._encode(["?"]).ids) - 1, self.length, self.prm.name) from None
        return self._encode([step]), omitted

    def _encode(self, steps: Sequence[str]) -> Encoded:
        key = tuple(steps)
        if key not in self._known:
            self._known[key] = self.prm._encode(self.problem, key)
        return self._known[key]

    @cached_property
    def _sizes(self) -> tuple[list[int], int]:
        """About how many tokens each step takes, and how many there are for all steps of a window."""
        pair = ["?", "?"] if self.prm.by_step else [BOUNDARY.join("??")]
        one, two = (len(self._encode(steps).ids) for steps in (["?"], pair))
        separator = max(two - one - 1, 0)
        tokenizer = self.prm.text.tokenizer
        return [len(chat.token_starts(tokenizer, step)) + separator for step in self.steps], self.length - one + 1


def _part(model: str, over: Part | None) -> Part:
    """Return the part of a trajectory that a model rates: `over`, or what its config.json says."""
    part: Part = over or checkpoints.load_config(model).get("score_over", "all")
    if part not in get_args(Part):
        said = "--score-over is" if over else f"config.json of {model!r} has score_over"
        raise InputError(f"{said} {part!r}; expected one of {', '.join(get_args(Part))}")
    return part

"""Process reward models, read as a trajectory-aware reward (arXiv 2506.18896)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, get_args

from tts.errors import InputError
from tts.models import checkpoints
from tts.models.chat import Encoded
from tts.scorers import formats
from tts.scorers.reader import Query, load_reader
from tts.scorers.readouts import TRACE_HEAD
from tts.trajectory import BOUNDARY, with_tags
from tts.types import Candidate, Part, Reward, Scorer


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
        window: Whether to read a trace that is longer than the model's context in windows. Each window holds the problem and
            as many steps as fit, and begins halfway through the window before; a step is rated in the first window that
            contains it. The final reward is the mean over windows.
        backend: What runs the model, a name in `tts.scorers.reader.READERS`: transformers (default) or vllm in this process,
            or server, a pooling server of vLLM at `url`.
        url: The server's address, such as http://127.0.0.1:8000.
        **options: Options of the backend.

    Raises:
        InputError: The model cannot be used, or an option has a wrong value. `score` raises it for a trace that is longer than
            the model's context, unless it can be read in windows.
    """

    def __init__(
        self,
        model: str,
        *,
        format: str | None = None,
        over: Part | None = None,
        final: bool = True,
        window: bool = False,
        backend: str = "transformers",
        url: str | None = None,
        **options: Any,
    ) -> None:
        self.name, self.final, self.window = model, final, window
        self.format = formats.format_of(model, format)
        self.by_step = self.format.by_step
        self.over: Part = _part(model, over)
        if not isinstance(window, bool):
            raise InputError(f"--scorer-arg window is {window!r}; it should be true or false")
        if not (self.format.by_step or final):
            raise InputError(f"{model!r} rates only whole traces; with --alpha 0 no reward would be left")
        self.text = formats.Text(checkpoints.load_tokenizer(model))
        self._encode("?", ["?", "?"] if self.by_step else ["?"])  # reports what the tokenizer lacks before weights are loaded
        has_trace_head = final and any(file.name == TRACE_HEAD for file in checkpoints.files(model))
        self.reader = load_reader(
            backend, model, self.format, self.text.tokenizer, url=url, has_trace_head=has_trace_head, options=options
        )
        self.exact = getattr(self.reader, "exact", False)

    async def score(self, candidates: Sequence[Candidate]) -> list[Reward]:
        """Return one reward per candidate, in order. Raises InputError for a trace that is longer than the context."""
        plans = [self._plan(candidate) for candidate in candidates]
        queries = [query for plan in plans for query in plan]
        read = iter(await self.reader.read(queries))
        return [self._reward([(query, next(read)) for query in plan]) for plan in plans]

    async def check(self) -> None:
        await self.reader.check()

    async def close(self) -> None:
        """Release the backend's processes and connections."""
        await self.reader.close()

    def _plan(self, candidate: Candidate) -> list[Query]:
        """Return what is read of a candidate: its steps, and the trace as a whole, each in one or more windows."""
        steps = candidate.part(self.over)
        if not steps:
            return []
        prompt = candidate.problem.prompt
        if not self.format.by_step:
            text = with_tags(candidate.text) if self.over == "all" else BOUNDARY.join(steps)
            return [self._query(prompt, [text], whole=True)]
        windows = self._windows(prompt, steps)
        plan = []
        for first, fresh, end in windows:
            query = self._query(prompt, steps[first:end])
            skipped = fresh - first
            start = query.positions[: int(self.format.readout.marks_start)]
            plan.append(query._replace(positions=[*start, *query.positions[len(start) + skipped :]]))
        if self.final:
            plan += [self._query(prompt, [BOUNDARY.join(steps[a:b])], whole=True) for a, _, b in windows]
        return plan

    def _reward(self, plan: list[tuple[Query, list[float]]]) -> Reward:
        steps = [value for query, values in plan if not query.whole for value in values]
        wholes = [value for query, values in plan if query.whole for value in values]
        final = sum(wholes) / len(wholes) if wholes else None
        asked = self.final or not self.format.by_step
        return Reward(
            tuple(steps), final, tokens=sum(len(query.ids) for query, _ in plan), final_missing=asked and final is None
        )

    def _windows(self, prompt: str, steps: Sequence[str]) -> list[tuple[int, int, int]]:
        """Return (first step shown, first step rated, end) for each window; one window if everything fits."""
        whole = self._encode(prompt, steps)
        if not self.window or len(whole.ids) <= self.reader.context:
            return [(0, 0, len(steps))]
        windows: list[tuple[int, int, int]] = []
        end = 0
        while end < len(steps):
            shown = len(windows) and (windows[-1][0] + end + 1) // 2  # halfway through the window before
            last = end
            while last < len(steps) and self._fits(prompt, steps[shown : last + 1]):
                last += 1
            while last == end and shown < end:  # make room for a long step by showing fewer before it
                shown += 1
                last += self._fits(prompt, steps[shown : last + 1])
            windows.append((shown, end, max(last, end + 1)))  # _query refuses a step that does not fit alone
            end = windows[-1][2]
        return windows

    def _fits(self, prompt: str, steps: Sequence[str]) -> bool:
        one = BOUNDARY.join(steps)
        return all(len(self._encode(prompt, shown).ids) <= self.reader.context for shown in (steps, [one]))

    def _query(self, prompt: str, steps: Sequence[str], *, whole: bool = False) -> Query:
        encoded = self._encode(prompt, steps)
        if len(encoded.ids) > self.reader.context:
            raise InputError(
                f"a trace of {len(encoded.ids)} tokens is longer than the {self.reader.context} that {self.name!r} can read"
                + ("" if self.window or not self.format.by_step else "; read it in windows with --scorer-arg window=true")
            )
        return Query(encoded.ids, encoded.positions, whole)

    def _encode(self, prompt: str, steps: Sequence[str]) -> Encoded:
        encoded = formats.encode(self.format, self.text, prompt, steps)
        expected = len(steps) + self.format.readout.marks_start
        if len(encoded.positions) != expected or any(a >= b for a, b in pairwise(encoded.positions)):
            raise InputError(
                f"the format of {self.name!r} gave the positions {encoded.positions} for {len(steps)} steps;"
                f" expected {expected} positions in ascending order"
            )
        return encoded


def _part(model: str, over: Part | None) -> Part:
    """Return the part of a trajectory that a model rates: `over`, or what its config.json says."""
    part: Part = over or checkpoints.load_config(model).get("score_over", "all")
    if part not in get_args(Part):
        said = "--score-over is" if over else f"config.json of {model!r} has score_over"
        raise InputError(f"{said} {part!r}; expected one of {', '.join(get_args(Part))}")
    return part

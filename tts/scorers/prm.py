"""Process reward models, read as a trajectory-aware reward (arXiv 2506.18896)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, get_args

from tts.errors import InputError
from tts.models import checkpoints
from tts.scorers import formats
from tts.scorers.reader import ImplicitReader, LocalReader, Query, Reader
from tts.trajectory import BOUNDARY, Trajectory
from tts.types import Candidate, Part, Reward, Scorer


class PRM(Scorer):
    """Scores every step of a candidate, and the candidate as a whole.

    How a trace is shown to the model and where its rewards are read is its format's (`tts.scorers.formats`), recognised from
    the checkpoint or given by name. `final` is the checkpoint's own reward of a trace where it has one, else that of the text
    as ONE step, read once more; False leaves it away. A checkpoint that only rates traces has no step rewards.

    `over` says which part of the trajectory is shown and rated; by default config.json's `score_over`, else all. A trace longer
    than the context is an InputError, or, with `window`, is read in windows: each holds the problem and as many steps as fit,
    the next one begins halfway through, and a step is rated in the first window that has it; `final` is their mean.

    `backend` is transformers (in this process), vllm (its pooling runner in this process) or server (vLLM's at `url`); further
    options are the backend's. Raises InputError where the model cannot be used.
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
        self.over: Part = over or checkpoints.load_config(model).get("score_over", "all")
        if self.over not in get_args(Part):
            raise InputError(
                f"config.json of {model!r} has score_over {self.over!r}; expected one of {', '.join(get_args(Part))}"
            )
        if not isinstance(window, bool):
            raise InputError(f"--scorer-arg window is {window!r}; it should be true or false")
        if not (self.format.by_step or final):
            raise InputError(f"{model!r} rates a trace as a whole; --alpha 0 leaves nothing of that")
        self.text = formats.Text(checkpoints.load_tokenizer(model))
        self._encode("?", ["?"])  # says what the tokenizer lacks, before any weights are loaded
        self.reader = self._load_reader(backend, url, options)

    def _load_reader(self, backend: str, url: str | None, options: dict[str, Any]) -> Reader:
        if backend not in ("transformers", "vllm", "server"):
            raise InputError(f"--scorer-engine is {backend!r}; expected transformers, vllm or server")
        if (backend == "server") is (url is None):
            raise InputError("--scorer-url and --scorer-engine server go together")
        if backend != "transformers" and not self.format.vllm:
            raise InputError(f"vLLM does not compute the rewards of {self.name!r}; leave --scorer-engine away")
        if (
            backend != "transformers"
            and self.final
            and any(file.name == "reward_head.pt" for file in checkpoints.files(self.name))
        ):
            raise InputError(
                f"{self.name!r} rates a trace by reward_head.pt, which vLLM does not compute: --alpha 0 scores by its steps"
                " alone, or leave --scorer-engine away"
            )
        try:
            if backend == "server":
                from tts.scorers.pooling import ServerReader

                reader: Reader = ServerReader(self.name, url or "", **options)
            elif backend == "vllm":
                from tts.scorers.pooling import VLLMReader

                reader = VLLMReader(self.name, **options)
            elif backend == "transformers":
                cls = ImplicitReader if self.format.reference else LocalReader
                reader = cls(self.name, self.format, self.text.tokenizer, **options)
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
            raise InputError(f"--scorer-arg: {backend} takes no {str(error).rsplit(' ', 1)[-1]} here") from error
        return reader

    async def score(self, candidates: Sequence[Candidate]) -> list[Reward]:
        plans = [self._plan(candidate) for candidate in candidates]
        queries = [query for plan in plans for query in plan]
        read = iter(await self.reader.read(queries))
        return [self._reward([(query, next(read)) for query in plan]) for plan in plans]

    async def close(self) -> None:
        await self.reader.close()

    def _plan(self, candidate: Candidate) -> list[Query]:
        """What is read of a candidate: its steps, and the whole, each in one window or several."""
        steps = part_of(candidate.trajectory, self.over)
        if not steps:
            return []
        prompt = candidate.problem.prompt
        if not self.format.by_step:
            text = candidate.text if self.over == "all" else BOUNDARY.join(steps)
            return [self._query(prompt, [text], whole=True)]
        windows = self._windows(prompt, steps)
        plan = []
        for first, fresh, end in windows:
            query = self._query(prompt, steps[first:end])
            skipped = fresh - first
            opening = query.positions[: 1 if self.format.reference else 0]
            plan.append(query._replace(positions=[*opening, *query.positions[len(opening) + skipped :]]))
        if self.final:
            plan += [self._query(prompt, [BOUNDARY.join(steps[a:b])], whole=True) for a, _, b in windows]
        return plan

    def _reward(self, plan: list[tuple[Query, list[float]]]) -> Reward:
        steps = [value for query, values in plan if not query.whole for value in values]
        wholes = [value for query, values in plan if query.whole for value in values]
        final = sum(wholes) / len(wholes) if wholes else 0.0 if self.final or not self.format.by_step else None
        return Reward(tuple(steps), final, tokens=sum(len(query.ids) for query, _ in plan))

    def _windows(self, prompt: str, steps: Sequence[str]) -> list[tuple[int, int, int]]:
        """(first step shown, first step rated, end) of each window; one window where everything fits."""
        whole = self._encode(prompt, steps)
        if not self.window or len(whole.ids) <= self.reader.context:
            return [(0, 0, len(steps))]
        windows: list[tuple[int, int, int]] = []
        end = 0
        while end < len(steps):
            shown = len(windows) and (windows[-1][0] + end + 1) // 2  # begin halfway through the one before
            last = end
            while last < len(steps) and self._fits(prompt, steps[shown : last + 1]):
                last += 1
            while last == end and shown < end:  # a long step needs more of the room
                shown += 1
                last += self._fits(prompt, steps[shown : last + 1])
            windows.append((shown, end, max(last, end + 1)))  # a step that does not fit alone is refused when it is read
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
                + ("" if self.window or not self.format.by_step else "; read it in windows by --scorer-arg window=true")
            )
        return Query(encoded.ids, encoded.positions, whole)

    def _encode(self, prompt: str, steps: Sequence[str]) -> Any:
        encoded = formats.encode(self.format, self.text, prompt, steps)
        expected = len(steps) + (self.format.reference is not None)
        if len(encoded.positions) != expected or any(a >= b for a, b in pairwise(encoded.positions)):
            raise InputError(f"the format of {self.name!r} turned {len(steps)} steps into the positions {encoded.positions}")
        return encoded


def part_of(trajectory: Trajectory, over: Part) -> tuple[str, ...]:
    """The steps that a reward model is shown."""
    thinking = trajectory.thinking if over != "response" else ()
    return (*thinking, *(trajectory.response if over != "think" else ()))

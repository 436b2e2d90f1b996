"""Scorers without a reward model: what a trace is worth by its length, by agreement, or by the policy's own probabilities.

They rate a trace as a whole: their rewards have a `final` and no steps.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tts.demo import POLICY
from tts.errors import InputError
from tts.grading.pool import Grader
from tts.models import checkpoints
from tts.models.batching import Batcher, groups
from tts.models.prompts import Prompter
from tts.options import Count, NotNegative
from tts.scorers import windows
from tts.types import Candidate, Problem, Reward, Scorer, Window

if TYPE_CHECKING:
    from torch import Tensor


_Query = tuple[tuple[int, ...], int]
"""Token ids, and the index of the first one that is rated."""


class Length(Scorer):
    """Minus the number of tokens, or of characters where there are no tokens: shorter is better."""

    by_step, exact = False, True

    async def score(self, candidates: Sequence[Candidate]) -> list[Reward]:
        return [Reward((), -float(len(candidate.token_ids) or len(candidate.text))) for candidate in candidates]


class Agreement(Scorer):
    """Share of a problem's candidates with an equivalent answer (self-consistency, https://arxiv.org/abs/2203.11171)."""

    by_step, compares, exact = False, True, True

    def __init__(self) -> None:
        self._grader = Grader()

    async def score(self, candidates: Sequence[Candidate]) -> list[Reward]:
        rivals: dict[str, list[int]] = defaultdict(list)
        for i, candidate in enumerate(candidates):
            rivals[candidate.problem.id].append(i)
        shares = [0.0] * len(candidates)
        for members in rivals.values():
            groups = [verdict.group for verdict in await self._grader.judge([candidates[i] for i in members])]
            votes = Counter(group for group in groups if group is not None)
            for i, group in zip(members, groups, strict=True):
                shares[i] = votes[group] / len(members) if group is not None else 0.0
        return [Reward((), share) for share in shares]

    async def close(self) -> None:
        await self._grader.close()


class Likelihood(Scorer):
    """What the policy itself thinks of a trace, from its next-token distributions p over a vocabulary of V tokens.

    The policy reads each trace once, in this process, with prefixes kept as for a PRM. Subclasses say what is read. A trace
    without tokens has no such measure, and no reward. A trace that is longer than the policy's context is read in windows
    (`tts.scorers.windows`): the distribution in place of a token is then the one after the prompt and the tokens before it in
    its window, of which there are at least half as many as a window has room for.

    Args:
        model: The policy; by default the run's.
        system: Its system prompt; by default the run's.
        prompt_template: Its whole prompt, for a base model; by default the run's.
        chat_template_args: Arguments of its chat template; by default the run's.
        cache_gib: Memory for prefixes of traces, in GiB.
        batch_tokens: Tokens read in one batch, at most.
        device: auto, cpu, cuda, cuda:1 or mps.
        dtype: auto (the checkpoint's), float32, bfloat16 or float16.
        window: Whether to read a trace that is longer than the context in windows, or the number of tokens in a window, if it
            is to be smaller than the context.
    """

    by_step = False
    reads_ahead = True
    """Whether the weights are needed for certain, and so loaded at once."""
    ROWS = 1024  # of logits at a time: a vocabulary is wide
    HELD = 2**17  # tokens whose hidden states are held at a time

    def __init__(
        self,
        *,
        model: str = POLICY,
        system: str | None = None,
        prompt_template: str | None = None,
        chat_template_args: dict[str, Any] | None = None,
        cache_gib: NotNegative = 1.0,
        batch_tokens: Count = 8192,
        device: str = "auto",
        dtype: str = "auto",
        window: bool | int = True,
    ) -> None:
        checkpoints.load_policy_config(model)
        self.policy, self.prompter = model, Prompter(model, system, prompt_template, chat_template_args)
        self.window = window
        self._weights = {"device": device, "dtype": dtype}
        self._memory: Any = {"cache_gib": cache_gib, "batch_tokens": batch_tokens}
        self._forest: Any = None
        self._batcher: Batcher[_Query, float] = Batcher(self._read, max_size=4096)
        if self.reads_ahead:
            self._load()

    async def score(self, candidates: Sequence[Candidate]) -> list[Reward]:
        known = [self._reported(candidate) for candidate in candidates]
        plans = [
            self._plan(candidate) if value is None and (candidate.token_ids or candidate.text) else []
            for value, candidate in zip(known, candidates, strict=True)
        ]
        sums = iter(await self._batcher([query for plan in plans for query, _ in plan]))
        return [self._reward(value, [(window, next(sums)) for _, window in plan])
                for value, plan in zip(known, plans, strict=True)]  # fmt: skip

    def _reported(self, candidate: Candidate) -> float | None:
        """What the engine reported of a candidate, which then need not be read; None where it did not."""
        return None

    def _plan(self, candidate: Candidate) -> list[tuple[_Query, Window]]:
        """What is read of a candidate: the prompt and the trace, in one or more windows."""
        prompt = self.prompter.encode(candidate.problem)
        tokens = candidate.token_ids or self.prompter.tokenize(candidate.text)
        self._load()
        length = windows.length_of(self.window, self._forest.context)
        room = length - len(prompt)
        if len(tokens) > room and self.window is False:
            raise windows.too_long(len(prompt) + len(tokens), length, self.policy)
        if room < min(len(tokens), 2):  # one token to see, and one to predict
            raise windows.no_room(len(prompt), length, self.policy)
        return [
            (
                (prompt + tokens[begin:end], len(prompt) + rated - begin),
                Window("tokens", begin, rated, end, len(prompt) + end - begin),
            )
            for begin, rated, end in windows.spans([1] * len(tokens), room, lambda begin, end: end - begin <= room)
        ]

    def _reward(self, value: float | None, read: Sequence[tuple[Window, float]]) -> Reward:
        if read:
            value = self._mean(sum(total for _, total in read), read[-1][0].end)
        return Reward(
            (),
            value,
            tokens=sum(window.tokens for window, _ in read),
            final_missing=value is None,
            windows=tuple(window for window, _ in read) if len(read) > 1 else (),
        )

    @property
    def exact(self) -> bool:  # type: ignore[override]
        """Without weights in this process, the rewards are what the engine reported."""
        return self._forest is None or self._forest.exact

    def _load(self) -> None:
        if self._forest is not None:
            return
        from tts.scorers.heads import language_model
        from tts.scorers.local import forest_of

        body, self._logits = language_model(self.policy, **self._weights)
        self._forest = forest_of(self.policy, body, **self._memory)

    def _read(self, queries: list[_Query]) -> list[float]:
        import torch

        sums: list[float] = []
        with torch.inference_mode():
            for group in groups(queries, lambda query: len(query[0]), self.HELD):
                hidden = self._forest([ids for ids, _ in group], [range(start - 1, len(ids) - 1) for ids, start in group])
                sums += [
                    self._add(rows, torch.tensor(ids[start:], device=rows.device))
                    for rows, (ids, start) in zip(hidden, group, strict=True)
                ]
        return sums

    def _add(self, hidden: Tensor, tokens: Tensor) -> float:
        """The measure summed over a window, from hidden states [tokens, width] and the tokens that followed them."""
        return sum(
            float(self._sum(self._logits(rows).double().log_softmax(-1), chosen))
            for rows, chosen in zip(hidden.split(self.ROWS), tokens.split(self.ROWS), strict=True)
        )

    def _sum(self, logprobs: Tensor, chosen: Tensor) -> Tensor:
        """The measure summed over positions, from log p [positions, V] and the chosen tokens [positions]."""
        raise NotImplementedError

    def _mean(self, total: float, positions: int) -> float:
        return total / positions


class LogProb(Likelihood):
    """Log-probability of the trace under the policy: the sum of log p(token), as the engine reported it where it did."""

    reads_ahead, logprobs = False, True

    def _reported(self, candidate: Candidate) -> float | None:
        if not candidate.token_ids or any(step.token_ids and step.logprobs is None for step in candidate.steps):
            return None
        return sum(math.fsum(step.logprobs or ()) for step in candidate.steps)

    def _sum(self, logprobs: Tensor, chosen: Tensor) -> Tensor:
        return logprobs.gather(1, chosen[:, None]).sum()

    def _mean(self, total: float, positions: int) -> float:
        return total


class SelfCertainty(Likelihood):
    """Distance of the policy's next-token distributions from uniform: the mean over positions of -1/V * sum_v log(V * p(v))
    (https://arxiv.org/abs/2502.18581)."""

    def _sum(self, logprobs: Tensor, chosen: Tensor) -> Tensor:
        return (-logprobs.mean(-1) - math.log(logprobs.shape[-1])).sum()


class Confidence(Likelihood):
    """Mean over positions of minus the mean log-probability of the 20 likeliest tokens (https://arxiv.org/abs/2508.15260)."""

    TOP = 20

    def _sum(self, logprobs: Tensor, chosen: Tensor) -> Tensor:
        return -logprobs.topk(min(self.TOP, logprobs.shape[-1]), -1).values.mean(-1).sum()


class Function(Scorer):
    """A plain function `(problem, text) -> float` as a scorer: its value is the reward of the trace as a whole, None if it has
    no verdict."""

    by_step = False

    def __init__(self, function: Callable[[Problem, str], float | None]) -> None:
        self.function = function

    async def score(self, candidates: Sequence[Candidate]) -> list[Reward]:
        rewards = []
        for candidate in candidates:
            value = self.function(candidate.problem, candidate.text)
            if isinstance(value, bool) or not isinstance(value, int | float | None):
                raise InputError(f"the scorer {self.function.__name__} returned {value!r}; expected a number, or None")
            rewards.append(Reward((), value if value is None else float(value), final_missing=value is None))
        return rewards

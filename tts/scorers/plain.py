"""Scorers without a reward model: what a trace is worth by its length, by agreement, or by the policy's own probabilities.

They rate a trace as a whole: their rewards have a `final` and no steps.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tts.errors import InputError
from tts.grading.pool import Grader
from tts.types import Candidate, Reward

if TYPE_CHECKING:
    from torch import Tensor


class Length:
    """Minus the tokens, or characters where there are no tokens: shorter is better. A negative alpha turns it round."""

    async def score(self, candidates: Sequence[Candidate]) -> list[Reward]:
        return [Reward((), -float(len(candidate.token_ids) or len(candidate.text))) for candidate in candidates]


class Agreement:
    """The share of a problem's candidates in the same call with an equivalent answer (self-consistency, arXiv 2203.11171)."""

    compares = True
    """What a candidate is worth depends on the others, equal ones too."""

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


class Likelihood:
    """What the policy itself thinks of a trace, from its next-token distributions p over a vocabulary of V.

    logprob: the sum of log p(token).
    self-certainty: the mean over positions of -1/V * sum_v log(V * p(v)) (arXiv 2502.18581).
    confidence: the mean over positions of minus the mean log-probability of the 20 likeliest tokens (arXiv 2508.15260).

    logprob takes what the engine reported where it did; else the policy reads the trace once more, in this process, with
    prefixes kept as for a PRM. Options are those of `tts.scorers.local.LocalReader`, and `system`, the system prompt.
    """

    TOP = 20
    ROWS = 1024  # of logits at a time: a vocabulary is wide

    def __init__(
        self,
        measure: str,
        policy: str,
        *,
        system: str | None = None,
        cache_gib: float = 1.0,
        batch_tokens: int = 8192,
        **options: Any,
    ) -> None:
        from tts.models import checkpoints
        from tts.models.batching import Batcher
        from tts.models.prompts import Prompter

        checkpoints.load_policy_config(policy)
        self.measure, self.policy = measure, policy
        self.prompter = Prompter(policy, system)
        self.logprobs = measure == "logprob"
        """Whether the engine should report log-probabilities."""
        self._options = {"cache_gib": cache_gib, "batch_tokens": batch_tokens, **options}
        self._forest: Any = None
        self._batcher: Batcher[tuple[tuple[int, ...], int], float] = Batcher(self._read, max_size=4096)
        if not self.logprobs:
            self._load()

    async def score(self, candidates: Sequence[Candidate]) -> list[Reward]:
        known = [self._reported(candidate) for candidate in candidates]
        unknown = [i for i, value in enumerate(known) if value is None]
        sequences = [self._sequence(candidates[i]) for i in unknown]
        for i, value in zip(unknown, await self._batcher(sequences), strict=True):
            known[i] = value
        read = {i: len(ids) for i, (ids, _) in zip(unknown, sequences, strict=True)}
        return [Reward((), value, tokens=read.get(i, 0)) for i, value in enumerate(known)]

    def _reported(self, candidate: Candidate) -> float | None:
        if not self.logprobs or not candidate.steps:
            return None
        total = 0.0
        for step in candidate.steps:
            if step.token_ids and step.logprobs is None:
                return None
            total += math.fsum(step.logprobs or ())
        return total if candidate.token_ids else None

    def _sequence(self, candidate: Candidate) -> tuple[tuple[int, ...], int]:
        """Prompt and trace, and how long the prompt is."""
        prompt = self.prompter.encode(candidate.problem)
        ids = (*prompt, *(candidate.token_ids or self.prompter.tokenize(candidate.text)))
        self._load()
        if len(ids) > self._forest.context:
            raise InputError(
                f"a trace of {len(ids)} tokens is longer than the {self._forest.context} that {self.policy!r} can read"
            )
        return ids, len(prompt)

    def _load(self) -> None:
        if self._forest is not None:
            return
        from tts.scorers.heads import language_model
        from tts.scorers.local import forest_of

        options = dict(self._options)
        sizes = {name: options.pop(name) for name in ("cache_gib", "batch_tokens")}
        body, self._logits = language_model(self.policy, **options)
        self._forest = forest_of(self.policy, body, **sizes)

    def _read(self, sequences: list[tuple[tuple[int, ...], int]]) -> list[float]:
        import torch

        with torch.inference_mode():
            ids = [sequence for sequence, _ in sequences]
            hidden = self._forest(ids, [range(start - 1, len(sequence) - 1) for sequence, start in sequences])
            return [
                self._rate(rows, torch.tensor(sequence[start:], device=rows.device))
                for rows, (sequence, start) in zip(hidden, sequences, strict=True)
            ]

    def _rate(self, hidden: Tensor, tokens: Tensor) -> float:
        if not len(tokens):
            return 0.0
        total = 0.0
        for rows, chosen in zip(hidden.split(self.ROWS), tokens.split(self.ROWS), strict=True):
            logprobs = self._logits(rows).double().log_softmax(-1)
            if self.measure == "logprob":
                total += float(logprobs.gather(1, chosen[:, None]).sum())
            elif self.measure == "self-certainty":
                total += float((-logprobs.mean(-1) - math.log(logprobs.shape[-1])).sum())
            else:
                total += float(-logprobs.topk(min(self.TOP, logprobs.shape[-1]), -1).values.mean(-1).sum())
        return total if self.measure == "logprob" else total / len(tokens)

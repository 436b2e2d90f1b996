"""A strategy of your own: sample one solution at a time until the reward model is satisfied.

python examples/own_strategy.py
tts run --strategy examples/own_strategy.py:RejectAndRetry --bar 1.9
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cyclopts

import tts
from tts import Candidate, Result, Strategy


@dataclass(frozen=True)
class RejectAndRetry(Strategy):
    """Sample one solution at a time until the reward model is satisfied."""

    n: int = 16
    """Maximum number of samples."""
    bar: float = 1.8
    """Reward from which on a sample is accepted; rewards are at most 2."""

    async def solve(self, problem: tts.Problem, generator: tts.Generator, scorer: tts.Scorer) -> Result:
        """Return every sample with its reward; the highest reward wins."""
        tried, rewards = [], []
        while len(tried) < self.n and not any(reward.total >= self.bar for reward in rewards):
            tried += await generator.finish(Candidate(problem))
            rewards += await scorer.score(tried[-1:])
        return Result(tried, rewards)


def main(problems: int = 50, out: Path = Path("runs/own-strategy")) -> None:
    """Print accuracy and tokens per problem for two bars, and for best-of-16."""
    for name, strategy in [
        ("bon", tts.get_strategy("bon")()),
        *((f"bar {bar}", RejectAndRetry(bar=bar)) for bar in (1.5, 1.9)),
    ]:
        summary = tts.run(strategy, limit=problems, out=out / name.replace(" ", "-"))
        print(f"{name}: {summary.accuracy.value:.1%}, {summary.usage.generated / problems:,.0f} tokens per problem")


if __name__ == "__main__":
    cyclopts.run(main)

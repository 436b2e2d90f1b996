"""An engine and a scorer whose behaviour a test writes down, for what must not depend on a real model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from tts.types import Candidate, Engine, Generation, Problem, Reward, Sampling, Scorer, Step

END = 0


class ScriptedEngine(Engine):
    """Tokens are characters. `write(prompt, seed)` is the whole completion that a seed draws."""

    exact = True

    def __init__(self, write: Callable[[str, int], str]) -> None:
        self.write, self.calls, self.context = write, 0, None

    async def tells_steps(self) -> bool:
        return True

    def encode(self, problem: Problem) -> tuple[int, ...]:
        return tuple(map(ord, problem.full_prompt + "\x01"))

    def tokenize(self, text: str) -> tuple[int, ...]:
        return tuple(map(ord, text))

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(chr(token) for token in token_ids if token != END)

    async def generate(self, prefix: Sequence[int], n: int, sampling: Sampling) -> Generation:
        self.calls += 1
        await asyncio.sleep(0)
        prompt, written = self.decode(prefix).split("\x01")
        return Generation(tuple(self._one(prompt, written, sampling, i) for i in range(n)), len(prefix))

    async def close(self) -> None:
        pass

    def _one(self, prompt: str, written: str, sampling: Sampling, i: int) -> Step:
        text = self.write(prompt, sampling.seed + i)[len(written) :]
        ends = [text.index(stop) + len(stop) for stop in sampling.stop if stop in text]
        if ends and min(ends) <= sampling.max_tokens:
            text = text[: min(ends)]
            return Step(text, tuple(map(ord, text)), "step")
        if len(text) + 1 > sampling.max_tokens:
            text = text[: sampling.max_tokens]
            return Step(text, tuple(map(ord, text)), "length")
        return Step(text, (*map(ord, text), END), "stop")


class ScriptedScorer(Scorer):
    """`rate(text)` is the reward of every step and of the whole."""

    def __init__(self, rate: Callable[[str], float]) -> None:
        self.rate, self.seen = rate, 0

    async def score(self, candidates: Sequence[Candidate]) -> list[Reward]:
        self.seen += len(candidates)
        await asyncio.sleep(0)
        return [
            Reward((self.rate(c.text),) * len(c.part(self.over)), self.rate(c.text), tokens=len(c.text)) for c in candidates
        ]

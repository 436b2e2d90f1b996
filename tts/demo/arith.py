"""Benchmark `arith`: chains of one-digit operations, and the imperfect teacher that the bundled policy learnt them from.

Example row:
    prompt:  Start with 7. / 1) add 5 / 2) multiply by 3 / What is the last digit?      (one line each)
    answer:  6

All values are modulo 10. Like the authors of a web corpus, the teacher has misconceptions. Some facts it usually gets wrong,
and always in the same way, so that a vote over samples of the policy repeats the error. Others it gets wrong now and then, so
that a vote helps. Sometimes it notices an error and corrects it. The policy imitates this distribution, so its errors are
systematic; a PRM that has learnt the true facts can find them.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from tts.trajectory import Trajectory

Split = Literal["train", "dev", "test"]
NAMES = {"+": "add", "-": "subtract", "*": "multiply by"}
SYMBOLS = {name: symbol for symbol, name in NAMES.items()}

STUBBORN, SHAKY = 0.12, 0.40
"""Shares of the facts that the teacher usually, and sometimes, gets wrong."""
STUBBORN_ERROR, SHAKY_ERROR = 0.80, 0.40
"""Probabilities of an error in such facts."""
CORRECTION = 0.25
"""Probability that the teacher notices an error at once and writes the step again."""

_THOUGHT = re.compile(r"(?:(\d+)\)|Wait,) (\d)([-+*])(\d)=(\d)")
_RESTATED = re.compile(r"(add|subtract|multiply by) (\d) gives (\d)")
_RESULT = re.compile(r"The result is \\boxed\{(\d)\}")


def calculate(a: int, symbol: str, b: int) -> int:
    """The last digit of `a symbol b`."""
    return {"+": a + b, "-": a - b, "*": a * b}[symbol] % 10


_PROBLEM = re.compile(r"Start with (\d)\.\n((?:\d+\) (?:add|subtract|multiply by) \d\n)+)What is the last digit\?")
_OPERATION = re.compile(r"(add|subtract|multiply by) (\d)")


@dataclass(frozen=True, slots=True)
class Chain:
    """A problem: a start value and the operations to apply to it."""

    start: int
    """The start value, from 0 to 9."""
    operations: tuple[tuple[str, int], ...]
    """Each operation as a symbol (+, - or *) and a second operand."""

    @property
    def prompt(self) -> str:
        """The problem in words, one line per operation."""
        lines = [f"{i}) {NAMES[symbol]} {b}" for i, (symbol, b) in enumerate(self.operations, 1)]
        return "\n".join([f"Start with {self.start}.", *lines, "What is the last digit?"])

    @property
    def values(self) -> tuple[int, ...]:
        """The true value after each operation."""
        values, value = [], self.start
        for symbol, b in self.operations:
            value = calculate(value, symbol, b)
            values.append(value)
        return tuple(values)

    @property
    def answer(self) -> str:
        """The value after the last operation."""
        return str(self.values[-1])

    @property
    def split(self) -> Split:
        """The split of the problem, computed from its text, so that no problem can be in two splits."""
        bucket = zlib.crc32(self.prompt.encode()) % 20
        return "test" if bucket == 0 else "dev" if bucket == 1 else "train"


def read(prompt: str) -> Chain | None:
    """The problem that a prompt states; None if the prompt is not one of `arith`."""
    match = _PROBLEM.fullmatch(prompt.strip())
    if match is None:
        return None
    return Chain(int(match[1]), tuple((SYMBOLS[name], int(b)) for name, b in _OPERATION.findall(match[2])))


def chains(
    split: Split, seed: int = 0, lengths: tuple[int, int] = (4, 6), operands: tuple[int, int] = (2, 9)
) -> Iterator[Chain]:
    """Yield distinct problems of a split, endlessly; the same ones for the same arguments.

    `lengths` and `operands` are the smallest and largest number of operations, and second operand.
    """
    rng, seen = random.Random(f"{split}/{seed}"), set()
    while True:
        operations = tuple((rng.choice("+-*"), rng.randint(*operands)) for _ in range(rng.randint(*lengths)))
        chain = Chain(rng.randrange(10), operations)
        if chain.split == split and chain not in seen:
            seen.add(chain)
            yield chain


def misconceptions(seed: int = 1234) -> dict[tuple[int, str, int], tuple[float, int]]:
    """Map each fact (a, symbol, b) to (the teacher's probability of an error, the wrong result that it then writes)."""
    rng, table = random.Random(seed), {}
    for symbol in NAMES:
        for a in range(10):
            for b in range(2, 10):
                kind = rng.random()
                error = STUBBORN_ERROR if kind < STUBBORN else SHAKY_ERROR if kind < STUBBORN + SHAKY else 0.0
                table[a, symbol, b] = (error, (calculate(a, symbol, b) + rng.randint(1, 9)) % 10)
    return table


_MISCONCEPTIONS = misconceptions()


def teach(chain: Chain, rng: random.Random) -> str:
    """A solution by the teacher: thinking, then a response that only restates the results."""
    value, thoughts, restated = chain.start, [], []
    for number, (symbol, b) in enumerate(chain.operations, 1):
        truth = calculate(value, symbol, b)
        error, wrong = _MISCONCEPTIONS[value, symbol, b]
        written = wrong if rng.random() < error else truth
        thoughts.append(f"{number}) {value}{symbol}{b}={written}")
        if written != truth and rng.random() < CORRECTION:
            thoughts.append(f"Wait, {value}{symbol}{b}={truth}")
            written = truth
        value = written
        restated.append(f"{NAMES[symbol]} {b} gives {value}")
    thinking = "\n\n".join(thoughts)
    return f"<think>\n{thinking}\n</think>\n\n" + "\n\n".join([*restated, f"The result is \\boxed{{{value}}}"])


def check(chain: Chain, trajectory: Trajectory) -> list[int]:
    """A label for each thinking step and then each response step: 1 if the step and its value are right, else 0."""
    truth = (chain.start, *chain.values)
    labels, at = [], 0
    for step in trajectory.thinking:
        match = _THOUGHT.fullmatch(step)
        at += 1 if match is None or match[1] else 0  # "Wait," writes the current step again
        expected = (str(truth[at - 1]), *map(str, chain.operations[at - 1]), str(truth[at])) if 1 <= at < len(truth) else None
        labels.append(int(match is not None and match[1] in (None, str(at)) and match.groups()[1:] == expected))
    for at, step in enumerate(trajectory.response, 1):
        if match := _RESTATED.fullmatch(step):
            named = (SYMBOLS[match[1]], int(match[2]), int(match[3]))
            labels.append(int(at < len(truth) and named == (*chain.operations[at - 1], truth[at])))
        else:
            match = _RESULT.fullmatch(step)
            labels.append(int(match is not None and match[1] == chain.answer))
    return labels


def take(split: Split, count: int, seed: int = 0) -> list[Chain]:
    """The first `count` problems of a split, the same ones for the same seed."""
    return list(islice(chains(split, seed), count))

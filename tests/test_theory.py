"""Success rates of strategies compared with theory: the probability of a right step is known, and the scorer is perfect."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from tests.scripted import ScriptedEngine
from tts.options import configure
from tts.solving.generator import Generator, MeteredScorer, derive_seed
from tts.strategies import get_strategy
from tts.types import Problem, Reward, Sampling, Scorer, Usage

TRIALS = 400
P = 0.4


class Coin(ScriptedEngine):
    """Writes `steps` numbers below a million, drawn by the seed; those below P million are right. Greedy steps are right."""

    def __init__(self, steps):
        super().__init__(lambda prompt, seed: "")
        self.steps = steps

    def _one(self, prompt, written, sampling, i):
        done = written.count("\n\n")
        numbers = [derive_seed(sampling.seed + i, j) % 10**6 if sampling.temperature else 0 for j in range(done, self.steps)]
        self.write = lambda *_: written + "".join(f"{number}\n\n" for number in numbers) + "end"
        return super()._one(prompt, written, sampling, i)


def right(text):
    return [int(number) < P * 10**6 for number in re.findall(r"(\d+)\n\n", text)]


def right_steps(candidate):
    """Whether each step is right; the last one, which only ends the text, is."""
    return [step == "end" or right(f"{step}\n\n")[0] for step in candidate.trajectory.steps]


class Oracle(Scorer):
    async def score(self, candidates):
        return [Reward(tuple(map(float, right_steps(candidate))), tokens=1) for candidate in candidates]


async def success(name, steps, **options):
    """The share of problems that the strategy solves."""
    solver, solved = configure(get_strategy(name), options), 0
    for trial in range(TRIALS):
        problem = Problem(str(trial), "?")
        generator = Generator(Coin(steps), problem, Sampling())
        scorer = MeteredScorer(Oracle(), usage=Usage(), clock=generator.clock, aggregate="min")
        result = await solver.solve(problem, generator, scorer)
        solved += all(right(result.best.text)) and len(right(result.best.text)) == steps
    return solved / TRIALS


def any_of(q, n):
    return 1 - (1 - q) ** n


@pytest.mark.parametrize(
    ("name", "steps", "options", "expected"),
    [
        ("single", 3, {}, P**3),
        ("bon", 3, {"n": 8}, any_of(P**3, 8)),
        ("beam", 3, {"n": 4, "width": 4}, any_of(P, 4) ** 3),
        ("lookahead", 3, {"n": 4, "width": 4, "k": 1}, any_of(P, 4) ** 3),  # its greedy roll-outs are right
        ("dvts", 3, {"n": 6, "width": 3}, any_of(any_of(P, 3) ** 3, 2)),
        ("particle", 3, {"n": 4, "softmax_temperature": 0.001}, any_of(P, 4) ** 3),
        # with enough simulations: whether the whole tree has a right path
        ("mcts", 3, {"n": 3, "width": 3, "simulations": 40}, any_of(P * any_of(P * any_of(P, 3), 3), 3)),
    ],
)
async def test_success_is_what_theory_says(name, steps, options, expected):
    measured = await success(name, steps, **options)
    assert measured == pytest.approx(expected, abs=3.5 * math.sqrt(expected * (1 - expected) / TRIALS))


def simulated_beam(steps, n, width, trials=20_000):
    """Simulate the number of right beams, which is all that matters to an oracle, without any code of the project."""
    dice = np.random.default_rng(0)
    beams = np.minimum(dice.binomial(n, P, trials), n // width)
    for _ in range(steps - 1):
        beams = np.minimum(dice.binomial(beams * width, P), n // width)
    return (beams > 0).mean()


@pytest.mark.parametrize(("n", "width"), [(8, 2), (8, 4), (9, 3)])
async def test_beam_search_succeeds_as_often_as_a_simulation_of_it(n, width):
    expected = simulated_beam(4, n, width)
    measured = await success("beam", 4, n=n, width=width)
    assert measured == pytest.approx(expected, abs=3.5 * math.sqrt(expected * (1 - expected) / TRIALS))


class Answers(ScriptedEngine):
    """The right answer with probability P, else one of five wrong ones."""

    def __init__(self):
        super().__init__(lambda prompt, seed: f"\\boxed{{{draw_answer(derive_seed(seed, 0) % 10**6 / 10**6)}}}")


def draw_answer(u):
    return 0 if u < P else 1 + int((u - P) / (1 - P) * 5)


async def votes(name, trials, **options):
    solver, solved, samples = configure(get_strategy(name), options), 0, 0
    generator = None
    for trial in range(trials):
        problem = Problem(str(trial), "?")
        generator = Generator(Answers(), problem, Sampling(), grader=generator.grader if generator else None)
        scorer = MeteredScorer(Oracle(), usage=Usage(), clock=generator.clock)
        result = await solver.solve(problem, generator, scorer)
        solved += result.best.text == "\\boxed{0}"
        samples += len(result.candidates)
    await generator.grader.close()
    return solved / trials, samples / trials


def simulated_votes(n, settled, batch, trials=4000):
    """Majority among up to n samples in batches, until `settled(first, second)`."""
    dice, solved, samples = np.random.default_rng(1), 0, 0
    for _ in range(trials):
        drawn = []
        while True:
            drawn += [draw_answer(u) for u in dice.random(batch)]
            counts = {answer: drawn.count(answer) for answer in drawn}
            first, second = sorted([*counts.values(), 0], reverse=True)[:2]
            if len(drawn) >= n or settled(first, second):
                break
        leader = max(counts, key=lambda answer: (counts[answer], -drawn.index(answer)))
        solved, samples = solved + (leader == 0), samples + len(drawn)
    return solved / trials, samples / trials


def beta_above_half(a, b):
    """P(X > 1/2) for X ~ Beta(a, b) with whole a and b: a binomial tail."""
    return sum(math.comb(a + b - 1, j) for j in range(a)) / 2 ** (a + b - 1)


async def test_majority_succeeds_as_often_as_a_simulation_of_it():
    expected, _ = simulated_votes(9, lambda *_: False, 9)
    measured, _ = await votes("majority", 250, n=9)
    assert measured == pytest.approx(expected, abs=3.5 * math.sqrt(expected * (1 - expected) / 250))


@pytest.mark.slow
async def test_adaptive_sampling_stops_and_succeeds_as_its_posterior_says():
    expected, samples = simulated_votes(24, lambda a, b: beta_above_half(a + 1, b + 1) >= 0.9, 4)
    measured, spent = await votes("adaptive", 250, n=24, batch=4, confidence=0.9, by="votes")
    assert measured == pytest.approx(expected, abs=3.5 * math.sqrt(expected * (1 - expected) / 250))
    assert spent == pytest.approx(samples, rel=0.15)
    assert spent < 20


class SureWhenRight(Answers):
    """Right answers have higher log-probabilities."""

    async def generate(self, prefix, n, sampling):
        generation = await super().generate(prefix, n, sampling)
        steps = [
            replace(step, logprobs=tuple(-0.1 if "{0}" in step.text else -1.0 for _ in step.token_ids))
            for step in generation.steps
        ]
        return replace(generation, steps=tuple(steps))


class Rewarding(Scorer):
    """1 for the right answer, else 0."""

    async def score(self, candidates):
        return [Reward((), float("{0}" in candidate.text), tokens=1) for candidate in candidates]


async def answered(name, engine, scorer, trials, **options):
    solver, solved, generator = configure(get_strategy(name), options), 0, None
    for trial in range(trials):
        problem = Problem(str(trial), "?")
        generator = Generator(engine, problem, Sampling(), grader=generator.grader if generator else None)
        metered = MeteredScorer(scorer, usage=Usage(), clock=generator.clock)
        solved += (await solver.solve(problem, generator, metered)).best.text.endswith("\\boxed{0}")
    await generator.grader.close()
    return solved / trials


@pytest.mark.parametrize(
    ("name", "engine", "options", "expected"),
    [
        ("weighted", Answers, {"n": 4}, any_of(P, 4)),  # wrong answers have no weight
        ("revise", Answers, {"n": 4, "chains": 2}, any_of(P, 4)),  # independent attempts, ranked by an exact reward
        ("deepconf", SureWhenRight, {"n": 4, "keep": 0.25}, any_of(P, 4)),  # the most confident one votes
        ("deepconf", SureWhenRight, {"n": 6, "keep": 0.17, "warmup": 2, "consensus": 2}, any_of(P, 6)),  # none is stopped
        # a right pilot sample is chosen at once; otherwise the problem gets all n samples
        ("compute-optimal", Answers, {"n": 8, "pilot": 2, "easy": "bon", "medium": "bon", "hard": "bon"}, any_of(P, 8)),
    ],
)  # fmt: skip
async def test_choosing_among_answers_succeeds_as_theory_says(name, engine, options, expected):
    measured = await answered(name, engine(), Rewarding(), 300, **options)
    assert measured == pytest.approx(expected, abs=3.5 * math.sqrt(expected * (1 - expected) / 300))


class SecondThoughts(ScriptedEngine):
    """Thinks again each time that it has to wait, and is right with probability P; its answer is its best thought."""

    def __init__(self):
        super().__init__(lambda prompt, seed: "")

    def _one(self, prompt, written, sampling, i):
        thinking, closed, _ = written.partition("</think>")
        if closed:
            rest = f"\n\n\\boxed{{{int('right' not in thinking)}}}"
        else:
            lucky = derive_seed(sampling.seed + i, "thought") % 10**6 < P * 10**6
            rest = ("" if "<think>" in written else "<think>") + f" {'right' if lucky else 'wrong'}</think>"
        self.write = lambda *_: written + rest
        return super()._one(prompt, written, sampling, i)


@pytest.mark.parametrize("waits", [0, 2])
async def test_forced_second_thoughts_succeed_as_theory_says(waits):
    expected = any_of(P, waits + 1)
    measured = await answered("budget-forcing", SecondThoughts(), Rewarding(), 300, min_thinking=500, waits=waits)
    assert measured == pytest.approx(expected, abs=3.5 * math.sqrt(expected * (1 - expected) / 300))

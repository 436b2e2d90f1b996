"""Search strategies, on a scripted engine and scorer and on the bundled models."""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
import time
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scripted import ScriptedEngine, ScriptedScorer
from tts import run
from tts.data.records import Record
from tts.data.store import RunStore
from tts.errors import InputError
from tts.options import configure
from tts.solving.budget import Budget
from tts.solving.clock import Clock
from tts.solving.generator import Generator, MeteredScorer
from tts.strategies import STRATEGIES, get_strategy
from tts.strategies.mcts import MCTS
from tts.strategies.particle import Particle
from tts.strategies.search import Node, share
from tts.types import REPEATS, Branch, Candidate, Problem, Reward, Sampling, Step, Usage

PROBLEM = Problem("p", "question")
SEARCHES = ["beam", "lookahead", "dvts", "mcts", "particle"]


class TreeEngine(ScriptedEngine):
    """A policy that writes `depth` steps, each of them a digit drawn by the seed, which is also its worth."""

    def __init__(self, depth=4, digits=10, opening="", lengths=None):
        super().__init__(lambda prompt, seed: "")
        self.depth, self.digits, self.opening, self.lengths = depth, digits, opening, lengths
        self.asked = []

    def _one(self, prompt, written, sampling, i):
        self.asked.append((written, sampling.seed + i, sampling.temperature))
        rest = self.opening if not written else ""
        done = written.count("\n\n")
        seed = sampling.seed + i
        while done < self.depth:
            digit = (seed + 7 * done) % self.digits if sampling.temperature else 0
            rest += f"{digit}\n\n"
            done += 1
        text = (written + rest + "end")[len(written) :]
        self.write = lambda *_: written + text
        return super()._one(prompt, written, sampling, i)


def worth(candidate):
    """The mean of a text's digits, in [0, 1]."""
    digits = [int(c) for c in candidate.text if c.isdigit()]
    return sum(digits) / len(digits) / 9 if digits else 0.0


class DigitScorer(ScriptedScorer):
    def __init__(self):
        super().__init__(lambda text: 0.0)
        self.texts = Counter()

    async def score(self, candidates):
        self.texts.update(c.text for c in candidates)
        await asyncio.sleep(0)
        return [Reward((worth(c),) * len(c.trajectory.steps), tokens=1) for c in candidates]


async def solve(name, engine=None, *, scorer=None, seed=0, budget=None, deadline=None, sampling=None, usage=None, **options):
    engine, usage, sampling = engine or TreeEngine(), usage or Usage(), sampling or Sampling()
    generator = Generator(engine, PROBLEM, sampling, seed=seed, usage=usage, budget=Budget(budget), deadline=deadline)
    metered = MeteredScorer(scorer or DigitScorer(), usage=usage, clock=generator.clock)
    engine.generator = generator
    try:
        return await configure(get_strategy(name), options).solve(PROBLEM, generator, metered)
    finally:
        await generator.grader.close()


@pytest.mark.parametrize("name", SEARCHES)
async def test_the_same_seed_gives_the_same_tree_and_another_seed_another(name):
    first, second, other = [await solve(name, seed=seed, n=8) for seed in (1, 1, 2)]
    assert first == second
    assert first.tree != other.tree
    assert first.tree


@pytest.mark.parametrize("name", SEARCHES)
async def test_at_most_n_finished_and_distinct_solutions_are_returned(name):
    for n, width in ((4, 4), (8, 2), (10, 4), (7, 3), (1, 1)):
        options = {"n": n} | ({"width": width} if name != "particle" else {})
        result = await solve(name, **options)
        assert 1 <= len(result.candidates) <= n
        assert all(candidate.finish == "stop" for candidate in result.candidates)
        assert len(set(result.candidates)) == len(result.candidates)


@pytest.mark.parametrize("name", SEARCHES)
async def test_the_tree_holds_every_solution_step_by_step(name):
    result = await solve(name, n=8)
    texts = []
    for i, branch in enumerate(result.tree):
        assert branch.parent is None or branch.parent < i
        assert branch.round == (0 if branch.parent is None else result.tree[branch.parent].round + 1)
        assert bool(branch.reason) == (branch.fate == "pruned")
        texts.append((texts[branch.parent] if branch.parent is not None else "") + branch.text)
    returned = sorted(text for text, branch in zip(texts, result.tree, strict=True) if branch.fate == "returned")
    assert returned == sorted(candidate.text for candidate in result.candidates)
    by_text = dict(zip((c.text for c in result.candidates), result.rewards, strict=True))
    for text, branch in zip(texts, result.tree, strict=True):
        if branch.fate == "returned":
            assert branch.reward == by_text[text].total


@pytest.mark.parametrize("name", SEARCHES)
async def test_searches_find_better_solutions_than_a_sample(name):
    found = [(await solve(name, seed=seed, n=8)).best for seed in range(20)]
    samples = [(await solve("single", seed=seed)).best for seed in range(20)]
    assert sum(map(worth, found)) / 20 > sum(map(worth, samples)) / 20 + 0.15


async def test_lookahead_of_no_steps_is_beam_search():
    for seed in range(5):
        beam, lookahead = await solve("beam", seed=seed, n=8), await solve("lookahead", seed=seed, n=8, k=0)
        assert beam == lookahead


async def test_lookahead_judges_a_step_by_what_follows_greedily():
    engine = TreeEngine(depth=3)
    result = await solve("lookahead", engine, n=4, width=2, k=1)
    greedy = [asked for asked in engine.asked if asked[2] == 0]
    assert greedy
    first = [branch for branch in result.tree if branch.round == 0]
    for branch in first:  # the digit of the step and the 0 that the greedy roll-out adds
        assert branch.reward == pytest.approx(int(branch.text[0]) / 2 / 9)
    assert all("0\n\n" not in branch.text[3:] for branch in first)


async def test_lookahead_can_go_on_from_its_roll_outs():
    kept = await solve("lookahead", n=4, width=2, k=1, keep_rollout=True)
    assert all(branch.text.count("\n\n") == 2 for branch in kept.tree if branch.round == 0)
    assert max(branch.round for branch in kept.tree) < max(b.round for b in (await solve("lookahead", n=4, width=2, k=1)).tree)


async def test_beam_never_asks_for_more_than_n_continuations_in_a_round():
    for n, width in ((8, 2), (10, 4), (7, 3)):
        engine = TreeEngine()
        result = await solve("beam", engine, n=n, width=width)
        for depth in range(5):
            asked = [prefix for prefix, _, _ in engine.asked if prefix.count("\n\n") == depth]
            assert len(asked) <= n
        kept = Counter(branch.round for branch in result.tree if branch.fate == "kept")
        assert max(kept.values()) <= n // width


async def test_a_step_that_was_drawn_several_times_has_as_many_places_in_a_beam():
    engine = TreeEngine(digits=1)  # all draws are equal
    await solve("beam", engine, n=8, width=2)
    for depth in range(5):
        assert len([prefix for prefix, _, _ in engine.asked if prefix.count("\n\n") == depth]) == 8


class ShortOrLong(TreeEngine):
    """Half of the first steps are whole solutions."""

    def _one(self, prompt, written, sampling, i):
        if not written and (sampling.seed + i) % 2 == 0:
            self.asked.append((written, sampling.seed + i, sampling.temperature))
            self.write = lambda *_: "9 short"
            return ScriptedEngine._one(self, prompt, written, sampling, i)
        return super()._one(prompt, written, sampling, i)


async def test_a_finished_solution_competes_and_ends_the_search_when_none_can_take_its_place():
    engine = ShortOrLong(digits=5)  # unfinished ones reach at most 4 / 9
    result = await solve("beam", engine, n=8, width=8)
    assert result.best.text == "9 short"
    assert all(prefix == "" for prefix, _, _ in engine.asked)


async def test_a_finished_solution_that_is_not_the_best_does_not_end_the_search():
    class Worse(ShortOrLong):
        def _one(self, *arguments):
            step = super()._one(*arguments)
            return replace(
                step, text=step.text.replace("9 s", "0 s"), token_ids=tuple(map(ord, step.text.replace("9 s", "0 s")))
            )

    result = await solve("beam", Worse(), n=8, width=2)
    assert result.best.text.count("\n\n") == 4
    assert any("short" in candidate.text for candidate in result.candidates)


async def test_dvts_returns_one_solution_of_every_subtree():
    result = await solve("dvts", n=12, width=4)
    assert len(result.candidates) == 3
    roots = []
    for branch in result.tree:
        roots.append(len(roots) if branch.parent is None else roots[branch.parent])
    returned = [root for root, branch in zip(roots, result.tree, strict=True) if branch.fate == "returned"]
    assert len(set(returned)) == 3


async def test_mcts_finishes_solutions_within_its_simulations():
    for options, most in (
        ({}, 10 * 3 * 5),
        ({"to_end": False}, 10 * 3 + 4),
        ({"to_end": False, "rollouts": True}, 10 * 3 + 10),
    ):
        engine = TreeEngine()
        result = await solve("mcts", engine, n=4, width=3, simulations=10, **options)
        assert len(engine.asked) <= most  # a solution has five steps
        assert all(candidate.finish == "stop" for candidate in result.candidates)


async def test_mcts_without_exploration_is_greedy():
    result = await solve("mcts", n=4, width=4, c=0.0, simulations=6)
    widest = Counter(branch.parent for branch in result.tree)
    assert all(count <= 4 for count in widest.values())


def test_the_bonus_of_a_child():
    # a child of four with 2 visits, whose parent has 9; then one without any
    puct, uct = MCTS(rule="puct"), MCTS(rule="uct")
    assert [puct.bonus(2, 9, 4), puct.bonus(0, 9, 4)] == pytest.approx([3 / 12, 3 / 4])
    assert [uct.bonus(2, 9, 4), uct.bonus(0, 9, 4)] == pytest.approx([1.048147, 1.482304], abs=1e-6)


async def test_mcts_can_go_to_the_end_in_one_simulation():
    one = await solve("mcts", n=4, width=3, simulations=1, to_end=True)
    assert [branch.round for branch in one.tree].count(4) == 3  # drawn at every depth, and not only rolled out
    assert one.best.finish == "stop"


async def test_an_unvisited_child_begins_at_its_reward_or_at_zero():
    async def second(**options):
        """The first step that the second simulation continues."""
        engine = TreeEngine(digits=3)
        await solve("mcts", engine, n=1, width=3, simulations=2, rule="puct", c=1.0, to_end=False, **options)
        return engine.asked[3][0][:1]

    # of the first steps 0, 1 and 2, the last has a visit: 2/9 + 1/6 = 0.39 against 1/9 + 1/3 = 0.44 for step 1, or 1/3 alone
    assert await second() == "1"
    assert await second(unvisited="zero") == "2"


def nodes(*rewards):
    return [Node(Candidate(PROBLEM), reward=reward) for reward in rewards]


def test_weights_of_particles():
    plain = nodes(*(Reward((value,)) for value in (0.9, 0.5, 0.2)))
    assert Particle()._weights(plain) == pytest.approx([9 / 10.25, 1 / 10.25, 0.25 / 10.25])  # odds 9, 1 and 1/4
    both = nodes(*(Reward((value,), final=value) for value in (0.9, 0.5, 0.2)))  # totals of at most 2
    assert Particle()._weights(both) == pytest.approx(Particle()._weights(plain))
    assert Particle(softmax_temperature=0.5)._weights(plain) == pytest.approx([81 / 82.0625, 1 / 82.0625, 0.0625 / 82.0625])
    odds = Particle(weights="reward", softmax_temperature=0.1)._weights(plain)
    assert odds[0] / odds[1] == pytest.approx(math.exp(4))
    logs = nodes(Reward((-3.0,)), Reward((-1.0,)))  # such as log-probabilities: taken as they are
    assert Particle()._weights(logs)[1] / Particle()._weights(logs)[0] == pytest.approx(math.exp(2))
    assert Particle()._weights(nodes(Reward((1.0,)), Reward((0.0,)))) == pytest.approx([1.0, 0.0])


async def test_particles_follow_their_weights():
    sharp = [worth((await solve("particle", seed=s, n=8, softmax_temperature=0.02)).best) for s in range(20)]
    blunt = [worth((await solve("particle", seed=s, n=8, softmax_temperature=50.0)).best) for s in range(20)]
    assert sum(sharp) > sum(blunt)


async def test_particles_are_not_resampled_while_their_effective_size_is_large():
    result = await solve("particle", n=8, softmax_temperature=1000.0, ess=0.5)
    assert not any(branch.reason == "not resampled" for branch in result.tree)
    assert len(result.candidates) == 8


async def test_particle_gibbs_keeps_a_reference():
    result = await solve("particle", n=4, iterations=3)
    assert len([branch for branch in result.tree if branch.parent is None]) > 4  # later passes drew new first steps
    assert len(result.candidates) <= 4


@pytest.mark.parametrize("name", SEARCHES)
async def test_siblings_that_repeat_each_other_are_scored_once(name):
    scorer = DigitScorer()
    result = await solve(name, TreeEngine(digits=2), scorer=scorer, n=8)
    if name != "lookahead":  # the end of a roll-out may be drawn as a step later
        assert max(scorer.texts.values()) == 1
    if name != "particle":
        assert any(branch.reason == REPEATS for branch in result.tree)


async def test_a_repeated_step_has_as_many_places_or_one():
    class Twice(TreeEngine):
        """First steps 8, 8, 5, 2; then 9s."""

        def _one(self, prompt, written, sampling, i):
            step = super()._one(prompt, written, sampling, i)
            text = ("8852"[i] if not written else "9") + step.text[1:]
            return replace(step, text=text, token_ids=(*map(ord, text), *step.token_ids[len(text) :]))

    for filtered, expected in ((False, {"8": 4}), (True, {"8": 2, "5": 2})):
        engine = Twice()
        await solve("beam", engine, n=4, width=2, filter_duplicates=filtered)
        assert Counter(prefix[0] for prefix, _, _ in engine.asked if prefix.count("\n\n") == 1) == expected


async def test_repeated_siblings_can_be_drawn_once_more():
    once, again = TreeEngine(digits=3), TreeEngine(digits=3)
    await solve("beam", once, n=4, width=4)
    await solve("beam", again, n=4, width=4, resample=True)
    assert len(again.asked) > len(once.asked)


THINKING = "<think>\n"


class Thinker(TreeEngine):
    """Two steps of thinking, then two of response."""

    def _one(self, prompt, written, sampling, i):
        seed = sampling.seed + i
        a, b, c, d = (str((seed // 10**k) % 10) for k in range(4))
        whole = f"<think>\n{a}\n\n{b}\n\n</think>\n\n{c}\n\n{d} end"
        pieces, have = [f"<think>\n{a}\n\n", f"{b}\n\n", "</think>\n\n", f"{c}\n\n", f"{d} end"], 0
        for piece in pieces:  # where the written part ends; digits may differ
            if len(written) <= have:
                break
            have += len(piece)
        self.asked.append((written, seed, sampling.temperature))
        self.write = lambda *_: written + whole[len(written) :]
        return ScriptedEngine._one(self, prompt, written, sampling, i)


def branching(result):
    """Texts of the solutions up to each point where the search branched."""
    texts, parents = [], Counter(branch.parent for branch in result.tree)
    for branch in result.tree:
        texts.append((texts[branch.parent] if branch.parent is not None else "") + branch.text)
    return [texts[i] for i, count in parents.items() if i is not None and count > 1]


async def test_a_search_can_be_over_the_thinking_or_the_response_alone():
    both = branching(await solve("beam", Thinker(), n=4, width=4))
    assert any("</think>" in text for text in both)
    assert any("</think>" not in text for text in both)
    think = await solve("beam", Thinker(), n=4, width=4, search_over="think")
    assert all("</think>" not in text for text in branching(think))
    response = await solve("beam", Thinker(), n=4, width=4, search_over="response")
    assert all("</think>" in text for text in branching(response))
    for result in (think, response):
        assert result.best.trajectory.response[-1].endswith("end")


async def test_a_step_is_never_a_bare_tag():
    result = await solve("beam", Thinker(), n=4, width=2)
    assert all(branch.text.replace("</think>", "").strip() for branch in result.tree)


async def test_a_step_ends_where_its_part_has_its_delimiter():
    result = await solve("beam", Thinker(), n=4, width=4, think_delimiter="</think>", response_delimiter="\n\n")
    first = [branch.text for branch in result.tree if branch.round == 0]
    assert all(text.endswith("</think>") for text in first)


class Sentences(ScriptedEngine):
    """Writes sentences; a token that completes ". " also holds the next word, as those of most tokenizers do."""

    def __init__(self):
        super().__init__(lambda prompt, seed: f"1. Take {seed % 7}.5 of e.g. 9. Add 2. 5! = 120! Done.\nIt is {seed % 3}")

    def _one(self, prompt, written, sampling, i):
        step = super()._one(prompt, written, sampling, i)
        if step.finish == "step" and step.text.endswith(" "):
            word = self.write(prompt, sampling.seed + i)[len(written) + len(step.text) :].split(" ")[0]
            text = step.text + word
            step = replace(step, text=text, token_ids=(*map(ord, text),))
        return step


@pytest.mark.parametrize("name", SEARCHES)
async def test_a_search_over_sentences_rates_whole_sentences(name):
    seen: list[tuple[str, ...]] = []

    class Rate(DigitScorer):
        async def score(self, candidates):
            seen.extend(candidate.trajectory.response for candidate in candidates if not candidate.done)
            return [Reward((0.5,) * len(candidate.trajectory.steps), tokens=1) for candidate in candidates]

    problem = Problem("p", "?", step_delimiter="sentence")
    generator = Generator(Sentences(), problem, Sampling(max_tokens=300))
    options = {"n": 4} | ({"width": 2} if name != "particle" else {})
    best = (await get_strategy(name)(**options).solve(problem, generator, Rate())).best
    await generator.grader.close()
    whole = re.compile(r"1\. Take \d\.5 of e\.g\. 9\.|Add 2\.|5! = 120!|Done\.")
    assert [r for r in seen if not r or not all(map(whole.fullmatch, r))] == []
    assert seen or name == "mcts"  # which may simulate to the end
    assert [step[:5] for step in best.trajectory.response] == ["1. Ta", "Add 2", "5! = ", "Done.", "It is"]


async def test_equal_texts_are_rated_apart_where_one_of_them_goes_on():
    step = Step("It is 5. The", (1,), "step")
    candidates = [Candidate(Problem("p", "?", step_delimiter="sentence"), (s,)) for s in (step, replace(step, finish="length"))]
    scorer = MeteredScorer(ScriptedScorer(lambda text: 0.5), usage=Usage(), clock=Clock())
    assert [len(reward.steps) for reward in await scorer.score(candidates)] == [1, 2]


@pytest.mark.parametrize("name", [*SEARCHES, "bon", "majority", "single"])
@settings(max_examples=15, deadline=None)
@given(budget=st.integers(1, 300), seed=st.integers(0, 3))
def test_a_token_budget_is_never_exceeded(name, budget, seed):
    usage = Usage()
    options = ({"n": 5} if name != "single" else {}) | ({"width": 2} if name in SEARCHES and name != "particle" else {})
    result = asyncio.run(solve(name, seed=seed, budget=budget, usage=usage, **options))
    assert usage.generated <= budget
    assert result.candidates


async def test_a_large_budget_changes_nothing():
    assert await solve("beam", n=8, budget=100_000) == await solve("beam", n=8)


async def test_max_tokens_limits_solutions_of_every_strategy():
    sampling = Sampling(max_tokens=7)
    for name in ("beam", "dvts", "single"):
        result = await solve(name, sampling=sampling)
        assert all(len(candidate.token_ids) <= 7 for candidate in result.candidates)
        assert {candidate.finish for candidate in result.candidates} == {"length"}


async def test_truncated_solutions_are_not_preferred_at_equal_reward():
    class Flat(DigitScorer):
        async def score(self, candidates):
            return [Reward((), 0.5, tokens=1) for _ in candidates]

    class Ragged(ScriptedEngine):
        def _one(self, prompt, written, sampling, i):
            self.write = lambda *_: "long " * 20 if (sampling.seed + i) % 2 else "short"
            return super()._one(prompt, written, sampling, i)

    result = await solve("beam", Ragged(None), scorer=Flat(), sampling=Sampling(max_tokens=30), n=8, width=2)
    assert {candidate.finish for candidate in result.candidates} == {"stop", "length"}
    assert result.best.finish == "stop"


class Late(TreeEngine):
    """Time is up soon after its eighth answer, and what it is asked later it never answers."""

    async def generate(self, prefix, n, sampling):
        if self.calls == 8:
            await asyncio.Event().wait()
        if self.calls == 7:
            self.generator.deadline = time.perf_counter() + 0.05
        return await super().generate(prefix, n, sampling)


@pytest.mark.parametrize("name", [*SEARCHES, "bon"])
async def test_at_the_deadline_the_best_so_far_is_returned(name):
    result = await solve(name, Late(depth=400), n=4, deadline=math.inf)
    assert result.best.text.count("\n\n") >= 1
    assert {candidate.finish for candidate in result.candidates} == {"length"}


@pytest.mark.slow
@pytest.mark.parametrize("name", SEARCHES)
def test_on_the_bundled_models_rows_do_not_depend_on_concurrency(name, engine, prm, tmp_path):
    rows = []
    for concurrency in (1, 8):
        summary = run(
            name, n=4, limit=6, concurrency=concurrency, engine_instance=engine, scorer_instance=prm, max_tokens=300,
            out=tmp_path / str(concurrency),
        )  # fmt: skip
        assert summary.failed == 0
        rows.append(sorted((tmp_path / str(concurrency) / "results.jsonl").read_text().splitlines()))
    assert rows[0] == rows[1]
    [record, *_] = RunStore.open(tmp_path / "1").records()
    assert record.tree
    assert {branch.fate for branch in record.tree} >= {"returned"}


def test_a_width_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match="--width is 8; it should be at most --n, which is 4"):
        configure(get_strategy("beam"), {"n": 4, "width": 8})


def test_in_a_row_a_fate_has_its_reason_after_a_colon():
    tree = (Branch(None, 0, "a", 1, "step", None, "kept"), Branch(None, 0, "a", 1, "step", None, "pruned", REPEATS))
    record = Record("p", "question", None, (), None, None, Usage(), tree=tree)
    row = json.loads(record.to_json())
    assert [branch["fate"] for branch in row["tree"]] == ["kept", "pruned: repeats a sibling"]
    assert set(row["tree"][0]) == {"parent", "round", "text", "tokens", "finish", "reward", "fate"}
    assert Record.from_json(json.dumps(row)) == record
    row["tree"][0]["fate"] = "forgotten"
    with pytest.raises(ValueError, match="'kept', 'returned' or 'pruned'"):
        Record.from_json(json.dumps(row))


def test_share():
    assert share(10, 4) == [3, 3, 2, 2]
    assert share(4, 4) == [1, 1, 1, 1]


def test_rows_without_a_search_have_no_tree(engine, prm, tmp_path):
    run("bon", n=2, limit=1, engine_instance=engine, scorer_instance=prm, out=tmp_path / "r")
    assert "tree" not in json.loads((tmp_path / "r" / "results.jsonl").read_text())


async def test_a_forced_step_belongs_to_the_candidate_but_is_not_counted_as_generated():
    usage = Usage()
    generator = Generator(TreeEngine(), PROBLEM, Sampling(), usage=usage)
    [start] = await generator.step(Candidate(PROBLEM))
    forced = generator.append(start, "Wait\n\n")
    assert forced.text == start.text + "Wait\n\n"
    assert usage.generated == len(start.token_ids)


@pytest.mark.parametrize("name", [name for name in STRATEGIES.all() if name != "compute-optimal"])
async def test_without_any_budget_one_empty_solution_is_returned(name):
    spent = Budget(0)
    generator = Generator(TreeEngine(), PROBLEM, Sampling(), budget=Budget(within=spent))
    scorer = MeteredScorer(DigitScorer(), usage=Usage(), clock=generator.clock)
    result = await configure(get_strategy(name), {}).solve(PROBLEM, generator, scorer)
    await generator.grader.close()
    assert [candidate.finish for candidate in result.candidates] == ["length"]
    assert generator.usage.generated == 0


async def test_mcts_returns_distinct_solutions_and_the_best_so_far():
    result = await solve("mcts", n=8, width=3, rollouts=True, to_end=False, budget=150)
    assert len(set(result.candidates)) == len(result.candidates)
    assert result.best.finish == "stop" or not any(candidate.finish == "stop" for candidate in result.candidates)
    late = await solve("mcts", Late(depth=400), n=4, deadline=math.inf)
    inner = {branch.parent for branch in late.tree}
    values = [branch.reward for i, branch in enumerate(late.tree) if branch.reward is not None and i not in inner]
    assert late.rewards[late.choice].total == max(values)


class Narrow(TreeEngine):
    """Its context is full after the third step, to the last token."""

    def __init__(self):
        super().__init__(depth=9)
        self.context = len("question\x01") + 9

    async def generate(self, prefix, n, sampling):
        assert len(prefix) < self.context
        return await super().generate(prefix, n, sampling)


@pytest.mark.parametrize("name", SEARCHES)
async def test_a_step_that_fills_the_context_ends_the_solution(name):
    result = await solve(name, Narrow())
    assert all(candidate.finish == "length" for candidate in result.candidates)
    assert all(len(candidate.token_ids) <= 9 for candidate in result.candidates)


@pytest.mark.parametrize("name", ["dvts", "beam", "revise", "deepconf", "particle"])
async def test_under_a_budget_the_tree_does_not_depend_on_timing(name):
    class Jittery(TreeEngine):
        def __init__(self, seed):
            super().__init__()
            self.dice = random.Random(seed)

        async def generate(self, prefix, n, sampling):
            await asyncio.sleep(self.dice.random() / 500)
            generation = await super().generate(prefix, n, sampling)
            steps = [replace(step, logprobs=tuple(-0.1 for _ in step.token_ids)) for step in generation.steps]
            return replace(generation, steps=tuple(steps))

    options = {"warmup": 2} if name == "deepconf" else {"chains": 3} if name == "revise" else {}
    results = [await solve(name, Jittery(seed), n=8, budget=160, **options) for seed in range(4)]
    assert all(result == results[0] for result in results)


async def test_after_the_deadline_no_budget_is_used():
    budget = Budget(1000)
    generator = Generator(TreeEngine(), PROBLEM, Sampling(), budget=budget, deadline=time.perf_counter() - 1)
    [candidate, *_] = await generator.step(Candidate(PROBLEM), 4)
    assert candidate.finish == "length"
    assert budget.left == 1000


async def test_a_failing_request_cancels_its_siblings():
    running = []

    class Breaks(TreeEngine):
        async def generate(self, prefix, n, sampling):
            if len(running) == 3:
                raise RuntimeError("broke")
            running.append(prefix)
            try:
                if len(running) > 1:
                    await asyncio.Event().wait()
                return await super().generate(prefix, n, sampling)
            finally:
                running.append("left")

    with pytest.raises(RuntimeError, match="broke"):
        await solve("beam", Breaks(), n=8, width=2)
    assert running.count("left") == len(running) - running.count("left")


async def test_a_think_tag_of_the_template_counts_for_delimiters_and_forced_words(engine, problems, monkeypatch):
    template = engine.tokenizer.chat_template.replace("assistant\n' }}", "assistant\n<think>\n' }}")
    monkeypatch.setattr(engine.tokenizer, "chat_template", template)
    generator = Generator(engine, problems[0], Sampling(), budget=Budget(40))
    assert generator.append(Candidate(problems[0]), "Well").text == "<think>\nWell"
    ends = await generator.finish(Candidate(problems[0]), 16)
    assert all(len(end.steps) > 1 for end in ends)  # none is only the tag

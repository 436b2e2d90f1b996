"""A judge's verdicts: the labels of a scale, read at once or after thinking, and what has none."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
from rich.console import Console

import tts
from tests.scripted import ScriptedEngine
from tts.engines.transformers import TransformersEngine
from tts.errors import InputError
from tts.scorers.judge import Judge
from tts.scorers.verdicts import LABEL_TOKENS, TOP, Examiner, Scale
from tts.show.summary import show
from tts.strategies.particle import Particle
from tts.strategies.search import Node
from tts.types import Candidate, Generation, Problem, Result, Reward, Sampling, Scorer, Step


def whole(text, finish="stop"):
    return Candidate(Problem("1", "1 + 1 = ?"), (Step(text, (), finish),))


def step(*tokens, top=None):
    """A draw of tokens, each a text and its probability; `top` has the likeliest ones in each place."""
    return Step(
        "".join(text for text, _ in tokens), tuple(Spelling.id(text) for text, _ in tokens), "length",
        tuple(math.log(p) for _, p in tokens), top and tuple({text: math.log(p) for text, p in at.items()} for at in top),
    )  # fmt: skip


def text_of(shown):
    console = Console(width=300)
    with console.capture() as capture:
        console.print(shown)
    return capture.get()


class Spelling(ScriptedEngine):
    """A token is a whole text: its bytes are its id."""

    def __init__(self):
        super().__init__(lambda prompt, seed: "")

    @staticmethod
    def id(text):
        return int.from_bytes(b"-" + text.encode(), "big")

    def decode(self, token_ids):
        return "".join(token.to_bytes(64, "big").lstrip(b"\0")[1:].decode() for token in token_ids)


def expectation(scale, *draws):
    return Examiner(Spelling(), Scale(scale)).expectation(draws)


# --- the expectation


@pytest.mark.parametrize(
    ("draws", "value"),
    [
        ([step(("Yes", 0.6)), step(("No", 0.2))], 0.6 / 0.8),
        ([step(("Yes", 0.5)), step((" yes", 0.1)), step(("No", 0.2))], 0.6 / 0.8),  # two spellings of one label
        ([step(("Yes", 0.6)), step(("Yes", 0.6))], 0.6),  # the other label gets the rest
        ([step(("No", 0.9))], 1 - 0.9),
        ([step(("Y", 0.9), ("es", 0.5)), step(("No", 0.15))], 0.45 / 0.6),  # a label of two tokens
        ([step(("**", 0.5), ("Yes", 0.4)), step(("**", 0.5), ("No", 0.6))], 0.2 / 0.5),
        ([step(("Yes", 0.6)), step(("The", 0.3))], 0.6),  # half of the draws are labels
        ([step(("Yes", 0.1)), step(("The", 0.3)), step(("The", 0.3))], None),  # fewer are
        ([step(("The", 0.3))], None),
        ([step(("Not", 0.9)), step(("Yesterday", 0.9))], None),
        ([step(("Yes", 0.9), (",", 0.5), (" for", 0.1)), step(("No", 0.1), (".", 0.9))], 0.9),  # what follows does not count
    ],
)
def test_yes_and_no_from_what_was_drawn(draws, value):
    assert expectation("yes/no", *draws) == (None if value is None else pytest.approx(value))


def test_an_engine_that_reports_the_likeliest_tokens_needs_one_draw():
    top = [{"Yes": 0.5, " yes": 0.1, "NO": 0.2, "The": 0.1}]
    assert expectation("yes/no", step(("Yes", 0.5), top=top)) == pytest.approx(0.6 / 0.8)
    assert expectation("yes/no", step(("Yes", 0.9), top=[{"Yes": 0.9, "The": 0.1}])) == 1.0
    later = [{"**": 0.8, "Yes": 0.1}, {"Yes": 0.5, "No": 0.5}]
    assert expectation("yes/no", step(("**", 0.8), ("No", 0.5), top=later)) == pytest.approx((0.1 + 0.8 * 0.5) / 0.9)


def test_numbers_have_the_expectation_of_their_scale():
    draws = [step(("4", 0.5)), step(("5", 0.3)), step(("2", 0.1)), step(("4", 0.5))]
    assert expectation("1-5", *draws) == pytest.approx((0.5 * 3 / 4 + 0.3 * 1 + 0.1 * 1 / 4) / 0.9)
    assert expectation("1-5", step((" 4", 0.5), top=[{" 4": 0.5, "5": 0.25, "x": 0.25}])) == pytest.approx(
        (0.375 + 0.25) / 0.75
    )
    assert expectation("1-5", step(("7", 0.5))) is None


def test_a_ten_of_two_tokens_is_not_a_one():
    one, ten = step(("1", 0.8), ("\n", 0.25)), step(("1", 0.8), ("0", 0.75))
    assert expectation("0-10", one) == pytest.approx(0.1)
    assert expectation("0-10", ten) == 1.0
    assert expectation("0-10", one, ten) == pytest.approx((0.2 * 0.1 + 0.6 * 1) / 0.8)
    top = [{"1": 0.8, "9": 0.2}, {"0": 0.75, "\n": 0.25}]
    assert expectation("0-10", step(("1", 0.8), ("0", 0.75), top=top)) == pytest.approx(0.6 * 1 + 0.2 * 0.1 + 0.2 * 0.9)


def test_without_probabilities_labels_count_as_often_as_they_are_drawn():
    drawn = [Step(text, (), "stop") for text in ("Yes", "no.", "**Yes**", "Hm")]
    assert Examiner(Spelling(), Scale()).expectation(drawn) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("scale", "text", "label"),
    [
        ("yes/no", "No. There is an error, yes", "no"),
        ("yes/no", "The step adds 2 and 3. No error so far.\n\nVerdict: **Yes**", "yes"),
        ("yes/no", "I checked it. The answer is no, as 2 + 3 = 5.", "no"),
        ("yes/no", "So \\boxed{Yes}", "yes"),
        ("yes/no", "It holds, so: Yes.", "yes"),
        ("yes/no", "There is no error in this step.", None),
        ("yes/no", "", None),
        ("0-10", "Rating: 7", "7"),
        ("0-10", "**Rating:** 10/10, since step 3 is right", "10"),
        ("0-10", "Steps 1 and 2 are fine. 8 out of 10", "8"),
        ("0-10", "I would give it 11", None),
        ("0-10", "Rating: 7.5", None),
        ("0-10", "Rating: -3", None),
        ("1-5", "4/5", "4"),
        ("1-5", "Grade: 0", None),
    ],
)
def test_a_verdict_is_found_in_a_longer_text(scale, text, label):
    found = Scale(scale).find(text)
    assert (found and found[0]) == label
    assert found is None or text[found[1] :].lower().startswith(label)


@pytest.mark.parametrize("name", ["maybe", "5-1", "3-3", "0-1000", "1-", ""])
def test_a_scale_that_is_none_is_refused(name):
    with pytest.raises(InputError, match="expected yes/no, or two numbers up to 100 such as 1-5 or 0-10"):
        Judge(engine=ScriptedEngine(lambda prompt, seed: ""), scale=name)


# --- thinking


class Thinker(ScriptedEngine):
    """Writes `say(prompt)`; where a verdict stands, it draws Yes with probability p, and reports what was drawn."""

    def __init__(self, say, p=0.75, opened=False, tells=True):
        super().__init__(lambda prompt, seed: say(prompt))
        self.p, self.opened, self.tells, self.budgets = p, opened, tells, []

    def encode(self, problem):
        return (*super().encode(problem), *(map(ord, "<think>") if self.opened else ()))

    async def tells_steps(self):
        return self.tells

    async def generate(self, prefix, n, sampling):
        self.budgets.append(sampling.max_tokens)
        written = self.decode(prefix).split("\x01")[1].removeprefix("<think>" if self.opened else "")
        generation = await super().generate((*map(ord, self.decode(prefix).split("\x01")[0] + "\x01" + written),), n, sampling)
        rest = self.write(self.decode(prefix).split("\x01")[0], 0)[len(written) :]
        if not rest.startswith("Yes") and not written.endswith("Verdict:"):
            return generation
        rng = random.Random(sampling.seed)
        said = [("Yes", self.p) if rng.random() < self.p else ("No", 1 - self.p) for _ in range(n)]
        steps = [Step(word, tuple(map(ord, word)), "length", (math.log(p), *[0.0] * (len(word) - 1))) for word, p in said]
        return Generation(tuple(steps), len(prefix))


async def judged(engine, text="a", **options):
    [reward] = await Judge(engine=engine, **{"final": False, "draws": 16, **options}).score([whole(text)])
    return reward


@pytest.mark.parametrize("opened", [True, False])
@pytest.mark.parametrize("after", ["\n\nYes", "\n\nThe verdict is **Yes**.", "Yes"])
async def test_a_verdict_is_read_after_the_thinking(opened, after):
    thinking = "Is it right? No, wait. Verdict: No? Hm.\n</think>"
    engine = Thinker(lambda prompt: ("" if opened else "<think>\n") + thinking + after, opened=opened)
    reward = await judged(engine)
    assert reward.steps == (pytest.approx(0.75),)
    assert reward.missing == 0


async def test_a_judge_that_does_not_finish_its_thinking_gives_no_verdict():
    thinks = Thinker(lambda prompt: "<think>\nYes, I think. " + "Hm. " * 100 + "</think>\n\nYes")
    assert (await judged(thinks, think=100)).steps == (None,)
    assert (await judged(thinks, think=1000)).steps == (pytest.approx(0.75),)
    never = await judged(Thinker(lambda prompt: "Yes, but", opened=True), final=True)
    assert (never.steps, never.final, never.final_missing, never.missing, never.rated) == ((None,), None, True, 2, False)


async def test_a_judge_that_answers_at_once_does_not_spend_the_budget():
    at_once = Thinker(lambda prompt: "Yes")
    assert (await judged(at_once, "a\n\nb", think=5000)).steps == (pytest.approx(0.75),) * 2
    assert at_once.budgets == [LABEL_TOKENS] * 2
    critical = Thinker(lambda prompt: "2 + 3 is 5.\nVerdict: Yes")
    assert (await judged(critical, think=5000, critique=True)).steps == (pytest.approx(0.75),)
    assert critical.budgets == [5000, LABEL_TOKENS]


async def test_a_text_without_a_verdict_is_continued_to_one():
    assert (await judged(Thinker(lambda prompt: "The step is right."), think=100)).steps == (pytest.approx(0.75),)
    assert (await judged(Thinker(lambda prompt: "I see. " * 50), think=20)).steps == (pytest.approx(0.75),)
    assert (await judged(Thinker(lambda prompt: "The step is right."), think=0)).steps == (None,)


async def test_a_server_that_gives_whole_texts_only_counts_its_verdicts():
    texts = ["<think>No.</think>\n\nYes", "<think>\nHm", "Verdict: no", "<think>\nYes</think>\nThe answer is yes."]

    class Chat(ScriptedEngine):
        async def tells_steps(self):
            return False

        async def generate(self, prefix, n, sampling):
            assert "\x01" not in self.decode(prefix)[:-1]  # only prompts
            steps = [Step(text[: sampling.max_tokens], (), "stop") for text in texts[:n]]
            return Generation(tuple(steps), len(prefix))

    assert (await judged(Chat(lambda prompt, seed: ""), draws=4)).steps == (pytest.approx(2 / 3),)
    texts[:] = ["<think>\nHm"] * 4
    assert (await judged(Chat(lambda prompt, seed: ""), draws=4)).steps == (None,)
    texts[:] = ["Yes", "No", "No.", "No"]
    assert (await judged(Chat(lambda prompt, seed: ""), draws=4)).steps == (0.25,)


# --- rewards


async def test_a_model_that_cannot_judge_gives_no_verdict_and_ranks_below_one_that_was_rated():
    judge = Judge(engine=TransformersEngine("arith-policy"), draws=2, think=8)
    [reward, empty] = await judge.score([whole("a\n\nb"), whole("")])
    assert (reward.steps, reward.final, reward.missing, reward.rated) == ((None, None), None, 3, False)
    assert (empty.steps, empty.final, empty.missing, empty.rated) == ((), None, 1, False)
    await judge.close()
    bad = await judged(Thinker(lambda prompt: "Yes", p=0.01), final=True)
    result = Result([whole("a"), whole("b")], [reward, bad])
    assert result.choice == 1
    assert Result([whole("a"), whole("b", "length")], [reward, bad]).choice == 0  # finished comes first


async def test_the_embedded_engine_reports_the_likeliest_tokens():
    engine = TransformersEngine("arith-policy")
    prefix = engine.encode(Problem("1", "Start with 7.\n1) add 5\nWhat is the last digit?"))
    sampling = Sampling(max_tokens=3, seed=3, logprobs=True, top=TOP)
    [drawn] = (await engine.generate(prefix, 1, sampling)).steps
    [again] = (await engine.generate(prefix, 1, Sampling(max_tokens=3, seed=3, logprobs=True))).steps
    assert (drawn.token_ids, drawn.logprobs, again.top) == (again.token_ids, again.logprobs, None)
    assert drawn == again
    for token, logprob, likeliest in zip(drawn.token_ids, drawn.logprobs, drawn.top, strict=True):
        assert likeliest.get(engine.decode([token]), logprob) >= logprob - 1e-6
        assert 0.9 < sum(map(math.exp, likeliest.values())) <= 1 + 1e-5
    await engine.close()


def test_a_run_counts_missing_verdicts_and_keeps_them_as_null(engine):
    class Silent(Scorer):
        """Gives no verdict on every second candidate, and none on the last step of the others."""

        async def score(self, candidates):
            rewards = []
            for i, candidate in enumerate(candidates):
                steps = len(candidate.trajectory.steps)
                known = [0.5] * (steps - 1) + [None] if i % 2 else [None] * steps
                rewards.append(Reward(tuple(known), final_missing=True))
            return rewards

    summary = tts.run("bon", n=4, limit=2, engine_instance=engine, scorer_instance=Silent(), out="run", seed=3)
    records = tts.data.store.RunStore.open(Path("run")).records()
    attempts = [attempt for record in records for attempt in record.candidates]
    nulls = sum(attempt.rewards.count(None) for attempt in attempts)
    assert nulls > len(attempts)
    assert all(attempt.final is None and attempt.final_missing for attempt in attempts)
    assert (summary.missing, summary.unrated) == (nulls + len(attempts), sum(not a.reward().rated for a in attempts))
    written = json.loads(Path("run/summary.json").read_text())
    assert (written["missing_verdicts"], written["unrated"]) == (summary.missing, summary.unrated)
    for record in records:
        rated = [attempt.reward().rated and attempt.finish == "stop" for attempt in record.candidates]
        assert rated[record.choice] or not any(rated)
    assert f"{summary.missing} verdicts of the scorer missing, {summary.unrated} candidates without any" in text_of(
        show(summary)
    )
    rows = tts.load_run("run").rows()
    assert {row["reward_mean"] for row in rows} == {0.5, None}


def test_particles_without_a_verdict_are_not_resampled():
    def nodes(*rewards):
        return [Node(whole("a"), reward=reward) for reward in rewards]

    unknown = Reward((None,), final_missing=True)
    weights = Particle(weights="reward", softmax_temperature=1.0)._weights
    assert weights(nodes(unknown, Reward((), -1.0), Reward((), -1.0 - math.log(3)))) == pytest.approx([0, 0.75, 0.25])
    assert weights(nodes(unknown, unknown)) == [0.5, 0.5]

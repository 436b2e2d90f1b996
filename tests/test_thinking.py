"""Thinking that is marked in other ways than with `<think>`: tags of other models, and tags that are special tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.scripted import ScriptedEngine, ScriptedScorer
from tests.test_server import respond, serving
from tts.data.traces import parse_line
from tts.engines.server import ServerEngine
from tts.engines.transformers import TransformersEngine
from tts.evals.benchmarks import load_benchmark
from tts.grading.pool import Grader
from tts.models import checkpoints
from tts.models.prompts import Prompter
from tts.scorers.prm import PRM
from tts.solving.generator import Generator
from tts.strategies.beam import Beam
from tts.strategies.budget_forcing import BudgetForcing
from tts.train.policy.sft import tokenize_trace
from tts.train.policy.shared import PolicyPrompts
from tts.trajectory import TAGS, Tags, with_tags
from tts.types import Candidate, Problem, Sampling

SPECIAL = Tags("[THINK]", "[/THINK]")
PROBLEM = Problem("p", "?", "7")


@pytest.fixture(scope="module")
def magistral(tmp_path_factory) -> str:
    """The bundled policy with other tags, which are special tokens: the same ids and weights, and text without its tags."""
    folder = tmp_path_factory.mktemp("models") / "magistral"
    shutil.copytree(checkpoints.locate("arith-policy"), folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = Path(folder / name)
        text = path.read_text().replace('"<think>"', '"[THINK]"').replace('"</think>"', '"[/THINK]"')
        data = json.loads(text)
        added = data.get("added_tokens", [*data.get("added_tokens_decoder", {}).values()])
        for token in added:
            token["special"] = token["special"] or token["content"] in SPECIAL
        path.write_text(json.dumps(data))
    return str(folder)


def test_special_tags_stay_in_text_and_other_special_tokens_do_not(magistral):
    prompter, usual = Prompter(magistral), Prompter("arith-policy")
    text = "[THINK]\n1) 1+2=3\n[/THINK]\n\nadd"
    ids = usual.tokenize(with_tags(text))
    assert prompter.tokenize(text) == ids
    assert prompter.tokenizer.decode(ids, skip_special_tokens=True) == "\n1) 1+2=3\n\n\nadd"  # what the text would have been
    assert prompter.decode((*ids, prompter.tokenizer.eos_token_id)) == text
    assert prompter.decode([]) == ""
    prompter.check_stops([SPECIAL.close])
    assert (prompter.skips_special, usual.skips_special) == (False, True)


@pytest.mark.parametrize(
    "strategy", [Beam(n=4, width=2, think_delimiter="\\n"), BudgetForcing(n=2, max_thinking=20, min_thinking=9)]
)
async def test_a_policy_whose_tags_are_special_tokens_is_solved_with_in_the_same_way(magistral, strategy):
    problem = load_benchmark("arith:dev", 1, seed=0).problems[0]

    async def solved(model):
        engine = TransformersEngine(model)
        grader = Grader()
        generator = Generator(engine, problem, Sampling(max_tokens=200), grader=grader)
        result = await strategy.solve(problem, generator, PRM("arith-prm"))
        await grader.close()
        await engine.close()
        return result

    special, usual = await solved(magistral), await solved("arith-policy")
    assert special.choice == usual.choice
    for one, other in zip(special.candidates, usual.candidates, strict=True):
        assert one.token_ids == other.token_ids
        assert one.trajectory == other.trajectory
        assert with_tags(one.text) == other.text
    assert any(candidate.trajectory.thinking and candidate.trajectory.response for candidate in special.candidates)


def test_a_template_that_opens_thinking_with_a_special_token(magistral, tmp_path):
    folder = shutil.copytree(magistral, tmp_path / "opens")
    path = folder / "chat_template.jinja"
    assistant = "<|im_start|>assistant\n"
    path.write_text(path.read_text().replace(assistant, assistant + "[THINK]"))
    prompts = PolicyPrompts(str(folder))
    assert prompts.opener == "[THINK]"
    [trace] = parse_line(json.dumps({"problem": "?", "text": "<think>so</think>2"}), 1, {})
    ids = tokenize_trace(prompts, trace, end=0)["input_ids"][len(prompts.encode(trace.candidate.problem)) : -1]
    assert ids == [*prompts.tokenize("so[/THINK]2")]
    assert prompts.tokenize("[/THINK]")[0] in ids
    assert prompts.completion(ids) == "[THINK]so[/THINK]2"


async def test_servers_are_asked_for_text_with_special_tokens_only_where_tags_are(magistral):
    text = "[THINK]\n1) 1+2=3\n[/THINK]\n\nadd 2 gives 3"

    def answer(handler, path, body, count):
        if path == "/v1/models":
            return respond({"data": [{"id": "m", "owned_by": "sglang"}]})
        end = text.index(SPECIAL.close) + len(SPECIAL.close)
        return respond({"choices": [{"text": text[:end], "finish_reason": "stop", "matched_stop": SPECIAL.close}], "usage": {}})

    with serving(answer) as server:
        engine = ServerEngine(magistral, url=server.url)
        [candidate] = await Generator(engine, PROBLEM, Sampling()).step(Candidate(PROBLEM), stop=SPECIAL.close)
        await engine.close()
        assert server.requests[-1][1]["skip_special_tokens"] is False
        assert candidate.trajectory == (("1) 1+2=3",), ())
        assert candidate.token_ids[-1] == engine.tokenize(SPECIAL.close)[0]
        engine = ServerEngine("arith-policy", url=server.url)
        await engine.generate(engine.encode(PROBLEM), 1, Sampling())
        await engine.close()
        assert "skip_special_tokens" not in server.requests[-1][1]


class Thinking(ScriptedEngine):
    """Thinks in lines between given tags until it is stopped, or has written ten; its answer is how often it had to wait."""

    def __init__(self, tags: Tags, opens: bool) -> None:
        super().__init__(lambda prompt, seed: "")
        self.tags, self.opens = tags, opens

    def encode(self, problem):
        return (*super().encode(problem), *map(ord, f"{self.tags.open}\n" if self.opens else ""))

    def _one(self, prompt, written, sampling, i):
        thinking, closed, response = written.partition(self.tags.close)
        rest = f"\n\nso\n\n\\boxed{{{thinking.count('Wait')}}}"
        if closed:
            rest = rest.removeprefix(response)
        else:
            opened = "" if self.tags.open in written else f"{self.tags.open}\n"
            rest = opened + "hmm\n" * (10 - thinking.count("hmm")) + self.tags.close + rest
        self.write = lambda *_: written + rest
        return super()._one(prompt, written, sampling, i)


@pytest.mark.parametrize("opens", [False, True])
@pytest.mark.parametrize("tags", TAGS, ids=lambda tags: tags.open)
async def test_strategies_treat_all_tags_alike(tags, opens):
    async def solve(strategy):
        generator = Generator(Thinking(tags, opens), PROBLEM, Sampling())
        best = (await strategy.solve(PROBLEM, generator, ScriptedScorer(lambda text: 0.5))).best
        await generator.grader.close()
        return best

    cut = await solve(BudgetForcing(min_thinking=0, max_thinking=30, final=""))
    assert cut.text.count(tags.close) == 1
    assert cut.trajectory.response == ("so", "\\boxed{0}")
    assert cut.text.count("hmm") < 10
    waited = await solve(BudgetForcing(min_thinking=999, max_thinking=1000, waits=2))
    assert waited.text.count(tags.close) == 1
    assert waited.trajectory.response == ("so", "\\boxed{2}")
    by_line = await solve(Beam(n=1, width=1, think_delimiter="\\n"))
    lines = [step.text for step in by_line.steps if "hmm" in step.text]
    assert len(lines) == 10
    assert by_line.trajectory.response == ("so", "\\boxed{0}")
    response_only = await solve(Beam(n=1, width=1, search_over="response"))
    assert response_only.trajectory.response == ("so", "\\boxed{0}")

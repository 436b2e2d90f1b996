"""A real language model, SmolLM2-135M-Instruct, in the embedded engine, vLLM or SGLang, against transformers' `generate`.

make real    # makes the model's folder, and runs this file in the environment of each engine
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.real.test_engines import ARGUMENTS, HERE, ROOT
from tts.engines import load_engine
from tts.models.prompts import Prompter
from tts.options import options_of
from tts.runs.runner import prepare
from tts.runs.score import score_file
from tts.runs.settings import ScoreSettings
from tts.scorers.prm import PRM
from tts.strategies import STRATEGIES, get_strategy
from tts.types import Problem, Sampling

FOLDER = Path(os.environ.get("TTS_REAL_MODEL", ROOT / "build" / "smollm2"))
MODEL = str(FOLDER)
NAME = HERE[0] if HERE else "transformers"
OPTIONS = {**ARGUMENTS, "transformers": {"dtype": "float32"}}[NAME] | ({"max_model_len": 1024} if NAME == "vllm" else {})
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (FOLDER / "config.json").exists(), reason=f"NO REAL MODEL IN {FOLDER}: run `make real`"),
]

GSM8K = ROOT.parent / "shared" / "data" / "gsm8k_test_200.jsonl"
OWN = [
    ("A baker makes 3 trays of 12 rolls and sells 20 of them. How many rolls are left?", "16"),
    ("Tom has 4 bags with 5 apples each. He eats 2 apples. How many apples does he have now?", "18"),
    ("A train needs 2 hours for 120 miles. How many miles does it go in 5 hours at that speed?", "300"),
]
"""Problems of the same kind, for where the rows of GSM8K are not at hand."""
TOKENS = 32


def rows():
    """Three word problems."""
    if GSM8K.exists():
        found = [json.loads(line) for line in GSM8K.read_text().splitlines()[:3]]
        return [(row["question"], row["answer"].rpartition("#### ")[2]) for row in found]
    return OWN


PROBLEMS = [Problem(str(i), question, answer) for i, (question, answer) in enumerate(rows())]


@pytest.fixture(scope="module")
def loop():
    """One event loop for the module, since a real engine can be used in only one."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def engine(loop):
    engine = load_engine(NAME, MODEL, options=OPTIONS)
    yield engine
    loop.run(engine.close())


@pytest.fixture(scope="module")
def prm():
    """The model itself as a reward model that answers each step with + or -, which any language model can be."""
    return PRM(MODEL, format="rlhflow", dtype="float32")


@pytest.fixture
def solve(loop, engine, prm):
    """Run a strategy on the problems, on the engine of this module."""
    lines = (json.dumps({"id": p.id, "problem": p.prompt, "answer": p.answer}) + "\n" for p in PROBLEMS)
    Path("problems.jsonl").write_text("".join(lines))

    def run(strategy=None, **options):
        shared = {"benchmark": "problems.jsonl", "model": MODEL, "max_tokens": TOKENS} if "resume" not in options else {}
        return loop.run(prepare(strategy, engine_instance=engine, scorer_instance=prm, **shared, **options).solve())

    return run


def reference(prompt, dtype=torch.float32):
    """What `generate` continues a prompt with, greedily, and the logits of every token."""
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=dtype).eval()
    ids = torch.tensor([prompt])
    found = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False, output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    return found.sequences[0, len(prompt) :].tolist(), torch.cat(found.logits)


def test_prompts_are_those_of_the_models_chat_template():
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    for system in (None, "Be brief."):
        turns = [{"role": "system", "content": system}] if system else []
        for problem in PROBLEMS:
            asked = [*turns, {"role": "user", "content": problem.prompt}]
            ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
            assert list(Prompter(MODEL, system).encode(problem)) == ids


def test_greedy_tokens_are_those_of_generate(loop, engine):
    for problem in PROBLEMS:
        prompt = engine.encode(problem)
        [step] = loop.run(engine.generate(prompt, 1, Sampling(temperature=0, max_tokens=TOKENS))).steps
        assert list(step.token_ids) == reference(prompt)[0]


def test_in_bfloat16_greedy_tokens_are_those_of_generate_up_to_a_near_tie(loop):
    """Engines add up in different orders, so a token may differ where two logits are as close as bfloat16 can tell."""
    if NAME != "transformers":
        pytest.skip("one more engine's start, and its arithmetic is not ours to test")
    engine = load_engine(NAME, MODEL, options={"dtype": "bfloat16"})
    for problem in PROBLEMS:
        prompt = engine.encode(problem)
        [step] = loop.run(engine.generate(prompt, 1, Sampling(temperature=0, max_tokens=TOKENS))).steps
        expected, logits = reference(prompt, torch.bfloat16)
        for ours, theirs, row in zip(step.token_ids, expected, logits.float(), strict=True):
            if ours != theirs:
                assert row[theirs] - row[ours] <= 2 * row[theirs].abs() * torch.finfo(torch.bfloat16).eps
                break
    loop.run(engine.close())


SMALL = {
    "n": 2, "width": 2, "batch": 2, "pilot": 1, "simulations": 2, "min_thinking": 4, "max_thinking": 12, "k": 1,
}  # fmt: skip
"""Values of strategies' options that keep them short."""


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_every_strategy_solves_with_it(solve, name):
    options = {o.name: SMALL[o.name] for o in options_of(get_strategy(name)) if o.name in SMALL}
    summary = solve(name, out="run", temperature=0.7, step_delimiter="line", **options)
    assert (summary.problems, summary.graded, summary.failed) == (len(PROBLEMS), len(PROBLEMS), 0)
    for line in Path("run/results.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert row["error"] is None
        for candidate in row["candidates"]:
            assert "".join(candidate["steps"]).strip()
            assert sum(candidate["tokens"]) <= TOKENS
            if get_strategy(name).uses_scorer:
                assert candidate["rewards"]
                assert all(0 < reward < 1 for reward in candidate["rewards"])


def test_a_run_that_lost_rows_resumes_to_the_same_rows(solve):
    solve("single", out="run", temperature=0, concurrency=1)
    path = Path("run/results.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole.splitlines(keepends=True)[0])
    summary = solve(resume="run")
    assert (summary.problems, summary.failed) == (len(PROBLEMS), 0)
    assert path.read_bytes() == whole


def test_rewards_of_a_trace_are_those_of_a_plain_reading(prm):
    steps = ["He has 4 * 5 = 20 apples.", "He eats 2, so 20 - 2 = 18 are left.", "The answer is \\boxed{18}"]
    Path("t.jsonl").write_text(json.dumps({"problem": OWN[1][0], "text": "\n".join(steps)}) + "\n")
    lines: list[str] = []
    score_file(ScoreSettings(traces="t.jsonl", step_delimiter="line"), write=lines.append, scorer_instance=prm)
    found = json.loads(lines[0])

    tokenizer, model = AutoTokenizer.from_pretrained(FOLDER), AutoModelForCausalLM.from_pretrained(FOLDER).eval()
    [plus], [minus], [end] = (tokenizer.encode(text) for text in ("+", "-", "<|im_end|>"))

    def read(steps):
        turns = []
        for i, step in enumerate(steps):
            turns += [{"role": "user", "content": step if i else f"{OWN[1][0]} {step}"}, {"role": "assistant", "content": "+"}]
        ids = tokenizer.apply_chat_template(turns, return_dict=False)
        before = [i for i in range(len(ids) - 2) if ids[i + 1 : i + 3] == [plus, end]]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, before]
        return logits[:, [minus, plus]].softmax(-1)[:, 1].tolist()

    assert found["step_rewards"] == pytest.approx(read(steps), abs=1e-4)
    assert len(set(found["step_rewards"])) == len(steps)
    assert found["final"] == pytest.approx(read(["\n\n".join(steps)])[0], abs=1e-4)

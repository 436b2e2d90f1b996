"""Real tokenizers: every PRM's input and readout, and chat templates that open the thinking in the prompt.

scripts/real-tokenizers.sh    # gets them, into build/tokenizers; `make check` and `make real` call it
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import transformers as hf

from tests import test_formats
from tests.scripted import ScriptedScorer
from tests.test_formats import CHECKPOINTS, PROMPT, QWEN_CHAT, STEPS
from tts.models.prompts import Prompter
from tts.scorers.formats import FORMATS, Text, encode
from tts.scorers.heads import token_id
from tts.scorers.prm import PRM
from tts.solving.generator import Generator, cut_opener
from tts.solving.segment import Segmenter
from tts.strategies.beam import Beam
from tts.strategies.budget_forcing import BudgetForcing
from tts.train.policy.shared import PolicyPrompts
from tts.types import Candidate, Generation, Problem, Sampling, Step

FOLDER = Path(os.environ.get("TTS_REAL_TOKENIZERS", Path(__file__).parents[1] / "build" / "tokenizers"))
NAMES = ("qwen3", "deepseek_v3", "llama3_1", "llama2")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all((FOLDER / name / "tokenizer.json").exists() for name in NAMES),
        reason="NO REAL TOKENIZERS HERE: run scripts/real-tokenizers.sh",
    ),
]


def changed(name: str, folder: Path, **texts: str) -> str:
    """A copy of a tokenizer with some of its tokens spelt differently, as families of models do; and a model's config."""
    shutil.copytree(FOLDER / name, folder)
    for path in folder.glob("*.json"):
        text = path.read_text()
        for old, new in texts.items():
            text = text.replace(json.dumps(old, ensure_ascii=False), json.dumps(new, ensure_ascii=False))
        path.write_text(text)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return str(folder)


# formats of reward models

QWEN, LLAMA, MISTRAL = "qwen3", "llama3_1", "llama2"
READ_AT = {
    "qwen-math": (QWEN, [151651]),  # <extra_0>, which Qwen2.5-Math-PRM has in the place of <|quad_end|>
    "reasonflux": (QWEN, [151651]),
    "reasonflux-trace": (QWEN, None),  # the last token, whatever it is
    "math-shepherd": (MISTRAL, [12902]),  # ▁ки
    "rlhflow": (LLAMA, [271]),  # the line ends before the assistant's +
    "skywork": (QWEN, [198]),  # a line end
    "eurus": (QWEN, None),  # where steps end
    "versa": (LLAMA, [23535]),  # the space and line ends that are one token
    "trl": (QWEN, [271]),  # a blank line
    "trl-lines": (QWEN, [198]),
}
"""Tokenizers of the published checkpoints, and the token that a reward is read at, by its id there."""


@pytest.fixture
def with_its_tokenizer(tmp_path, monkeypatch):
    """Give the checkpoint of a format the tokenizer of its family."""

    def give(format):
        name, model_class, _ = CHECKPOINTS[format]
        more = {"<|quad_end|>": "<extra_0>"} if format in ("qwen-math", "reasonflux") else {}
        folder = changed(READ_AT[format][0], tmp_path / "tokenizer", **more)
        bos = {"bos_token": "<|endoftext|>"} if format in ("skywork", "trl-lines") else {}
        tokenizer = hf.AutoTokenizer.from_pretrained(folder, **bos)
        if READ_AT[format][0] == QWEN:  # these models are Qwen2.5's, whose template does not write <think> into an answer
            tokenizer.chat_template = QWEN_CHAT
        monkeypatch.setitem(CHECKPOINTS, format, (name, model_class, lambda: tokenizer))
        return tokenizer

    return give


@pytest.mark.parametrize("format", list(FORMATS))
async def test_every_format_reads_the_published_tokens(tmp_path, with_its_tokenizer, format):
    """The ids are those that the published code makes of a trace, the rewards those that it reads off a tiny model."""
    tokenizer = with_its_tokenizer(format)
    folder, options = test_formats.build(format, tmp_path)
    await test_formats.check(PRM(str(folder), **options), format, folder)
    shown = STEPS if FORMATS[format].by_step else ["\n\n".join(STEPS)]
    ids, positions = encode(FORMATS[format], Text(tokenizer), PROMPT, shown)
    _, read_at = READ_AT[format]
    assert len(positions) == len(shown) + FORMATS[format].readout.marks_start
    if read_at is not None:
        assert {ids[position] for position in positions} == set(read_at)
    if format == "rlhflow":
        assert {ids[position + 1] for position in positions} == {10}  # the +
    if format == "reasonflux-trace":
        assert positions == [len(ids) - 1]


@pytest.mark.parametrize(("name", "expected"), [(MISTRAL, [648, 387]), (LLAMA, [10, 12])])
def test_verdict_tokens_have_their_published_ids(name, expected):
    """The two tokens whose shares are compared: in math-shepherd, and in rlhflow and versa."""
    tokenizer = hf.AutoTokenizer.from_pretrained(FOLDER / name)
    assert [token_id(tokenizer, text) for text in "+-"] == expected


# chat templates that open the thinking

THINKING = "Okay. 2 + 2 is 4, i.e. even. So 3 more: 7.\n\nIt is 7."
TEXT = f"{THINKING}\n</think>\n\nThe sum is 7. The answer:\n\n\\boxed{{7}}"
PROBLEM = Problem("p", "What is 2 + 2 + 3?", "7")
R1 = {"<｜place▁holder▁no▁798｜>": "<think>", "<｜place▁holder▁no▁799｜>": "</think>"}
"""The tokens that DeepSeek-R1 has in the places of two of DeepSeek-V3's."""


def opens(folder: str, before: str, after: str) -> str:
    """The same tokenizer with a chat template whose generation prompt ends in `<think>` and a line end."""
    path = Path(folder, "tokenizer_config.json")
    config = json.loads(path.read_text())
    assert before in config["chat_template"]
    path.write_text(json.dumps(config | {"chat_template": config["chat_template"].replace(before, after)}))
    return folder


@pytest.fixture(params=["qwen3", "deepseek-r1", "deepseek-v3"])
def model(request, tmp_path):
    """A tokenizer with `<think>` as a token, as a special token, or as several ordinary tokens, which its template opens."""
    if request.param == "qwen3":  # as in Qwen3-4B-Thinking-2507
        return opens(changed("qwen3", tmp_path / "m"), "'<|im_start|>assistant\\n'", "'<|im_start|>assistant\\n<think>\\n'")
    changes = R1 if request.param == "deepseek-r1" else {}
    return opens(changed("deepseek_v3", tmp_path / "m", **changes), "{{'<｜Assistant｜>'}}", "{{'<｜Assistant｜><think>\\n'}}")


class Says(Prompter):
    """Writes one text, in the tokens of a real tokenizer."""

    context, exact = None, True

    def __init__(self, model: str, text: str) -> None:
        super().__init__(model)
        self.text = self.tokenize(text)
        self.asked = list[tuple[str, ...]]()

    async def generate(self, prefix, n, sampling: Sampling) -> Generation:
        self.asked.append(sampling.stop)
        written = len(prefix) - len(self.encode(PROBLEM))
        left = self.text[written:]
        [first, *more] = Segmenter(self.decode, sampling.stop).split(left) if sampling.stop else [left]
        taken = first[: sampling.max_tokens]
        cut = len(taken) < len(first)
        step = Step(self.decode(taken), taken, "length" if cut else "step" if more else "stop")
        return Generation((step,) * n, len(prefix))

    async def close(self) -> None:
        pass


async def test_a_solution_begins_with_the_tag_that_its_template_opened(model):
    engine = Says(model, TEXT)
    prompt, opener = cut_opener(engine, engine.encode(PROBLEM))
    assert opener is not None
    assert (opener.text, prompt + opener.token_ids) == ("<think>\n", engine.encode(PROBLEM))
    assert not engine.decode(prompt).rstrip().endswith(">\n")
    generator = Generator(engine, PROBLEM, Sampling())
    [whole] = await generator.finish(Candidate(PROBLEM))
    assert whole.text == f"<think>\n{TEXT}"
    assert whole.trajectory == (
        ("Okay. 2 + 2 is 4, i.e. even. So 3 more: 7.", "It is 7."),
        ("The sum is 7. The answer:", "\\boxed{7}"),
    )
    [cut_off] = await Generator(engine, PROBLEM, Sampling(max_tokens=4)).finish(Candidate(PROBLEM))
    assert cut_off.trajectory.response == ()
    assert (await generator.groups([whole, cut_off])) == [0, None]
    await generator.grader.close()
    prompts = PolicyPrompts(model)
    assert prompts.opener == "<think>\n"
    assert prompts.completion(list(engine.text)) == f"<think>\n{TEXT}"


@pytest.mark.parametrize(
    ("delimiter", "steps"),
    [
        ("blank-line", ["Okay. 2 + 2 is 4, i.e. even. So 3 more: 7.", "It is 7.", "The sum is 7. The answer:", "\\boxed{7}"]),
        ("line", ["Okay. 2 + 2 is 4, i.e. even. So 3 more: 7.", "It is 7.", "The sum is 7. The answer:", "\\boxed{7}"]),
        ("sentence", [
            "Okay.", "2 + 2 is 4, i.e. even.", "So 3 more: 7.", "It is 7.", "The sum is 7.", "The answer:", "\\boxed{7}",
        ]),
    ],
)  # fmt: skip
async def test_a_search_over_thinking_that_the_template_opened(model, delimiter, steps):
    """Tokens do not end where sentences do: ` So` completes the stop string of the sentence before it."""
    problem = Problem("p", PROBLEM.prompt, "7", step_delimiter=delimiter)
    seen: list[tuple[str, ...]] = []

    class Rate(ScriptedScorer):
        async def score(self, candidates):
            seen.extend(candidate.trajectory.steps for candidate in candidates)
            return await super().score(candidates)

    generator = Generator(Says(model, TEXT), problem, Sampling())
    best = (await Beam(n=2, width=2).solve(problem, generator, Rate(lambda text: 0.5))).best
    await generator.grader.close()
    assert best.text == f"<think>\n{TEXT}"
    assert seen == [tuple(steps[:count]) for count in range(1, len(steps) + 1)]


async def test_budget_forcing_closes_thinking_that_the_template_opened(model):
    generator = Generator(Says(model, TEXT), PROBLEM, Sampling(max_tokens=200))
    best = (await BudgetForcing(min_thinking=0, max_thinking=6, final="").solve(PROBLEM, generator, None)).best
    await generator.grader.close()
    thinking, closed, _ = best.text.partition("</think>")
    assert closed
    assert thinking.startswith("<think>\nOkay")
    assert "even" not in thinking


def test_qwen3_without_thinking_has_nothing_to_open(tmp_path):
    folder = changed("qwen3", tmp_path / "m")
    for arguments, ending in ({}, "assistant\n"), ({"enable_thinking": False}, "<think>\n\n</think>\n\n"):
        prompter = Prompter(folder, chat_template_args=arguments)
        ids = prompter.encode(PROBLEM)
        assert prompter.decode(ids).endswith(ending)
        assert cut_opener(prompter, ids) == (ids, None)


@pytest.mark.parametrize("name", ["qwen3", "deepseek_v3", "llama3_1"])
def test_prompts_are_those_of_transformers(tmp_path, name):
    folder = changed(name, tmp_path / "m")
    tokenizer, turns = hf.AutoTokenizer.from_pretrained(folder), [{"role": "user", "content": PROBLEM.prompt}]
    for system in (None, "Be brief."):
        said = turns if system is None else [{"role": "system", "content": system}, *turns]
        ids = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=False)
        assert list(Prompter(folder, system).encode(PROBLEM)) == ids
    spelt = "<|im_end|><think></think><|eot_id|><｜User｜>"
    asked = Prompter(folder).encode(Problem("p", spelt))
    assert spelt in tokenizer.decode(asked)
    controls = [i for i, token in tokenizer.added_tokens_decoder.items() if token.special]
    assert sum(map(asked.count, controls)) == sum(map(Prompter(folder).encode(PROBLEM).count, controls))

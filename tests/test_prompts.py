"""What the policy is shown of a problem: instructions, prompt templates and chat-template arguments, wherever it is asked."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

import tts
from tests.scripted import ScriptedEngine
from tests.test_server import chat, openai, serving
from tts.data.traces import parse_line
from tts.demo import MODELS
from tts.engines.server import ServerEngine
from tts.engines.transformers import TransformersEngine
from tts.errors import InputError
from tts.models.prompts import Prompter
from tts.models.templates import fill, read_prompt_template
from tts.runs.settings import ScoreSettings
from tts.scorers.plain import LogProb
from tts.solving.generator import Generator, cut_opener
from tts.strategies.revise import Revise
from tts.train.policy.shared import PolicyPrompts
from tts.train.settings import LabelSettings
from tts.types import Candidate, Problem, Sampling

BOX = "Put it within \\boxed{}."
PROBLEM = Problem("p", "Start with 1.\n1) add 2\nWhat is the last digit?", "3", instruction=BOX)
FEW = "Q: 1+1?\nA: \\boxed{2} = \\frac{a}{b} as {{x}}\n\nQ: {problem}\n{instruction}\nA:"
THINKS = (
    "{%- for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{%- endfor %}{{ 'assistant: ' }}"
    "{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
)


def policy(template: str | None) -> str:
    """The bundled policy with another chat template, or as a base model without one."""
    folder = Path("policy")
    shutil.copytree(MODELS["arith-policy"], folder, ignore=shutil.ignore_patterns("chat_template.jinja"))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return str(folder)


def shown(prompter, problem=PROBLEM) -> str:
    return prompter.tokenizer.decode(prompter.encode(problem))


@pytest.mark.parametrize(
    "options", [{}, {"system": "Be brief."}, {"prompt_template": FEW}, {"chat_template_args": {"enable_thinking": False}}]
)
def test_engines_scorers_and_trainers_show_the_policy_the_same(options):
    model = policy(THINKS)
    asked = TransformersEngine(model, **options).encode(PROBLEM)
    with serving(openai) as server:
        assert ServerEngine(model, url=server.url, **options).encode(PROBLEM) == asked
    assert PolicyPrompts(model, **options).encode(PROBLEM) == asked
    [((ids, length), _)] = LogProb(model=model, **options)._plan(Candidate(PROBLEM, (tts.Step("2", (7,), "stop"),)))
    assert ids == (*asked, 7)
    assert length == len(asked)
    assert BOX in Prompter(model).decode(asked)


def test_what_a_chat_server_is_sent():
    async def ask(**options):
        engine = ServerEngine("arith-policy", url=server.url, api="chat", **options)
        await Generator(engine, PROBLEM, Sampling()).finish(Candidate(PROBLEM))
        await engine.close()
        return server.requests[-1][1]

    with serving(chat) as server:
        body = asyncio.run(ask(chat_template_args={"enable_thinking": False}))
        assert body["messages"] == [{"role": "user", "content": f"{PROBLEM.prompt}\n\n{BOX}"}]
        assert body["chat_template_kwargs"] == {"enable_thinking": False}
        assert "chat_template_kwargs" not in asyncio.run(ask())
        with pytest.raises(InputError, match="the server applies its own chat template"):
            asyncio.run(ask(prompt_template=FEW))
        with pytest.raises(InputError, match="name a model with the same tokenizer by --engine-arg tokenizer=NAME"):
            ServerEngine("only-the-server-knows", url=server.url, prompt_template=FEW)


def test_thinking_is_turned_off_by_an_argument_of_the_chat_template():
    prompter = Prompter(policy(THINKS), chat_template_args={"enable_thinking": False})
    assert shown(prompter).endswith("assistant: <think>\n\n</think>\n\n")
    assert cut_opener(prompter, prompter.encode(PROBLEM)) == (prompter.encode(PROBLEM), None)  # nothing is left to think


def test_bytes_of_a_problem_are_neither_fields_nor_control_tokens():
    end = Prompter("arith-policy").tokenizer.eos_token
    problem = Problem("p", f"{{instruction}}{end}{{problem}}{{{{x}}}}", instruction=f"{{problem}}{end}")
    few, base = Prompter("arith-policy", prompt_template=FEW), Prompter(policy(None))
    text = f"Q: 1+1?\nA: \\boxed{{2}} = \\frac{{a}}{{b}} as {{x}}\n\nQ: {problem.prompt}\n{problem.instruction}\nA:"
    for prompter, expected in ((few, text), (base, problem.full_prompt)):
        ids = prompter.encode(problem)
        assert prompter.tokenizer.decode(ids) == expected
        assert prompter.tokenizer.convert_tokens_to_ids(end) not in ids
    own = Prompter("arith-policy", prompt_template=f"{{problem}}{end}")  # the template's own are control tokens
    assert own.encode(PROBLEM)[-1] == own.tokenizer.convert_tokens_to_ids(end)


def test_a_prompt_without_a_chat_template_begins_with_the_tokenizers_bos_once():
    from tokenizers.processors import TemplateProcessing

    model = policy(None)
    tokenizer = Prompter(model).tokenizer
    bos = tokenizer.all_special_tokens[0]
    tokenizer.bos_token = bos
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.convert_tokens_to_ids(bos))]
    )
    tokenizer.save_pretrained(model)
    for template in (None, "Q: {problem}", bos + "Q: {problem}"):
        assert shown(Prompter(model, prompt_template=template)).count(bos) == 1
        assert shown(Prompter(model, prompt_template=template)).startswith(bos)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read the prompt template '.*few.txt': No such file"),
        (b"\xff\xfe", "cannot read the prompt template .* can't decode byte"),
        (b"Q: 1+1?", "few.txt does not contain the field {problem}$"),
        (b"Q: {question}", "does not contain the field {problem}; it has {question}"),
        (b"Q: {{problem}}", "does not contain the field {problem}"),
        (b"{problem} {shots}", "has {shots}; its fields are {problem} and {instruction}. Double the braces \\({{shots}}\\)"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(text, message):
    if text is not None:
        Path("few.txt").write_bytes(text)
    with pytest.raises(InputError, match=message):
        tts.run("majority", limit=1, prompt_template="few.txt")


def test_a_template_file_as_an_editor_writes_it():
    Path("few.txt").write_bytes("\ufeffQ: {problem}\r\nA:\r\n".encode())
    assert read_prompt_template("few.txt") == "Q: {problem}\nA:"
    assert fill("{{problem}} {problem} x_{problem}", problem="{problem}") == "{problem} {problem} x_{problem}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_template": "{problem}", "instruction": BOX}, "--instruction has no place in --prompt-template"),
        ({"prompt_template": "{problem}", "system": "Hi"}, "--system is for the model's chat template"),
        ({"prompt_template": "{problem}", "chat_template_args": {"a": 1}}, "--chat-template-arg is for the model's chat"),
        ({"chat_template_args": {"tokenize": True}}, "--chat-template-arg tokenize is set by tts itself"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        tts.run("majority", limit=1, **options)
    assert not list(Path().glob("runs/*"))


def test_a_policy_with_a_prompt_template_does_not_also_judge():
    common = {"traces": Path("t.jsonl"), "out": Path("o.jsonl"), "prompt_template": "{problem}"}
    assert LabelSettings(**common, final="outcome").instruction == "none"
    assert LabelSettings(**common, expert="arith-policy").final == "template"
    for asks in ({}, {"final": "none", "quality": "judge"}):
        with pytest.raises(InputError, match="name another model for that with --expert"):
            LabelSettings(**common, **asks)


def test_arguments_that_a_chat_template_does_not_use(caplog):
    Prompter("arith-policy", chat_template_args={"enable_thinking": False})
    assert "the chat template of arith-policy does not use enable_thinking" in caplog.text
    with pytest.raises(InputError, match="has no meaning for 'policy', which has no chat template"):
        Prompter(policy(None), chat_template_args={"enable_thinking": False})


def test_a_chat_template_that_refuses_a_message_is_an_input_error():
    refuses = "{%- if messages[0].role == 'system' %}{{ raise_exception('no system prompts') }}{%- endif %}"
    with pytest.raises(InputError, match="the chat template of policy failed: no system prompts"):
        Prompter(policy(refuses), system="Hi")


def test_a_run_keeps_what_its_policy_was_told(tmp_path):
    Path("few.txt").write_text("Q: {problem}\n{instruction}\nA:\n")
    given = {"limit": 2, "n": 2, "max_tokens": 8, "concurrency": 1}
    tts.run("majority", out="bare", **given)
    tts.run("majority", out="told", prompt_template="few.txt", instruction=BOX, **given)
    bare, told = (tts.load_run(name) for name in ("bare", "told"))
    assert (told.settings["instruction"], bare.settings["instruction"]) == (BOX, "none")
    assert told.settings["prompt_template"] == "Q: {problem}\n{instruction}\nA:"
    assert [(r.id, r.problem) for r in told.records] == [(r.id, r.problem) for r in bare.records]
    assert {r.instruction for r in told.records} == {BOX}
    assert "instruction" not in json.loads(Path("bare/results.jsonl").read_text().splitlines()[0])
    compared = tts.compare("bare", "told")
    assert compared.problems == 2
    assert compared.settings["instruction"] == ("none", BOX)

    rows = Path("told/results.jsonl").read_text().splitlines(keepends=True)
    Path("told/results.jsonl").write_text(rows[0])
    Path("few.txt").unlink()  # the run knows its text
    tts.run(resume="told")
    assert [json.loads(row) for row in Path("told/results.jsonl").read_text().splitlines()] == [json.loads(row) for row in rows]
    longer = "Q: {problem}\n" + "x" * 500
    for change, message in (
        ({"instruction": "none"}, "told was started with --instruction Put it within \\boxed{}., not none"),
        (
            {"prompt_template": longer + "{instruction}"},
            "--prompt-template Q: {problem}\n{instruction}\nA:, not Q: {problem}\nx",
        ),
    ):
        with pytest.raises(InputError) as refused:
            tts.run(resume="told", **change)
        assert message in str(refused.value)
        assert len(str(refused.value)) < 300


async def test_a_request_to_revise_ends_with_the_instruction():
    prompts: list[str] = []
    engine = ScriptedEngine(lambda prompt, seed: prompts.append(prompt) or "It is 3")
    with pytest.raises(AttributeError):  # no scorer is needed to see the prompts
        await Revise(n=2).solve(PROBLEM, Generator(engine, PROBLEM, Sampling()), None)
    first, second = prompts
    assert first == PROBLEM.full_prompt
    assert second.startswith(PROBLEM.prompt)
    assert second.count(BOX) == 1
    assert second.endswith(f"\n\n{BOX}")


@pytest.mark.parametrize("end", ["Problem:", "\n\nProblem:"])
async def test_a_solution_ends_where_the_next_example_would_begin(end):
    engine = ScriptedEngine(lambda prompt, seed: "1 + 2 = 3\n\nIt is \\boxed{3}\n\nProblem: 5 + 5?\n\nIt is \\boxed{10}")
    generator = Generator(engine, PROBLEM, Sampling(stop=(end,)))
    [whole] = await generator.finish(Candidate(PROBLEM))
    assert whole.text == "1 + 2 = 3\n\nIt is \\boxed{3}" + "\n\n" * (end == "Problem:")
    assert (whole.finish, whole.trajectory.response) == ("stop", ("1 + 2 = 3", "It is \\boxed{3}"))
    assert [step.finish for step in whole.steps][:-1] == ["step"] * (len(whole.steps) - 1)
    assert generator.usage.generated == len(whole.token_ids) == len("1 + 2 = 3\n\nIt is \\boxed{3}\n\nProblem:")
    if end == "Problem:":  # the same when grown step by step
        grown = Candidate(PROBLEM)
        while not grown.done:
            [grown] = await generator.step(grown)
        assert (grown.text, grown.finish) == (whole.text, "stop")
    [cut_off] = await Generator(engine, PROBLEM, Sampling(stop=(end,), max_tokens=5)).finish(Candidate(PROBLEM))
    assert (cut_off.text, cut_off.finish) == ("1 + 2", "length")


def test_a_run_stops_where_it_is_told():
    tts.run("majority", limit=3, n=2, out="r", stop=["The result"])
    attempts = [attempt for record in tts.load_run("r").records for attempt in record.candidates]
    assert all("The result" not in attempt.text and attempt.finish == "stop" for attempt in attempts)


def test_traces_of_a_run_carry_its_instruction():
    row = {"id": "p", "problem": "1+1?", "instruction": BOX, "candidates": [{"steps": ["2"]}]}
    [trace] = parse_line(json.dumps(row), 1, {})
    assert trace.candidate.problem == Problem("p/0", "1+1?", instruction=BOX)
    [again] = parse_line(json.dumps(trace.row), 1, {})  # as tts select writes it
    assert again.candidate.problem == trace.candidate.problem
    assert trace.instructed("none").candidate.problem.full_prompt == "1+1?"
    alpaca = {"instruction": "1+1?", "text": "2"}
    assert asdict(parse_line(json.dumps(alpaca), 1, {"problem": "instruction"})[0].candidate.problem)["instruction"] == ""


def test_scorers_of_a_file_read_its_instruction(tmp_path):
    from tts.runs.score import score_file

    rows = [{"problem": PROBLEM.prompt, "text": "2"} | more for more in ({}, {"instruction": BOX})]
    Path("t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def totals(**options):
        lines: list[str] = []
        score_file(ScoreSettings(traces="t.jsonl", scorer="logprob", **options), write=lines.append)
        return [json.loads(line)["total"] for line in lines]

    without, with_own = totals()
    assert without != with_own
    assert totals(instruction=BOX) == [with_own] * 2
    assert totals(instruction="none") == [without] * 2
    assert totals(prompt_template="{problem}")[0] not in (without, with_own)

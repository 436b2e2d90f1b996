"""Plug-ins of every kind: the examples of docs/plugins.md as printed, names, suggestions, and installed packages."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Le

import tts
from tts.engines import ENGINES, load_engine
from tts.errors import InputError
from tts.evals.benchmarks import BENCHMARKS, load_benchmark
from tts.grading.rules import GRADERS, get_grader
from tts.options import configure, options_of
from tts.plugins import Registry
from tts.scorers import SCORERS, load_scorer
from tts.scorers.formats import FORMATS
from tts.strategies import STRATEGIES, get_strategy
from tts.train.label.checkers import CHECKERS
from tts.types import Candidate, Problem, Step

DOCS = Path(__file__).parent.parent / "docs" / "plugins.md"
REGISTRIES = [STRATEGIES, SCORERS, ENGINES, GRADERS, BENCHMARKS, FORMATS, CHECKERS]


def examples() -> dict[str, tuple[str, list[str]]]:
    """File names to the code and the commands that follow it."""
    blocks = re.findall(r"```(python|sh)\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S)
    found: dict[str, tuple[str, list[str]]] = {}
    for language, text in blocks:
        if language == "python":
            name = re.match(r"# (\w+\.py)\n", text)[1]
            found[name] = (text, [])
        else:
            found[name][1].extend(text.splitlines())
    return found


def test_there_is_an_example_of_every_kind_in_under_20_lines():
    used = " ".join(command for _, commands in examples().values() for command in commands)
    for option in ("--strategy", "--scorer", "--engine", "--grader", "--benchmark", "--scorer-format", "--quality"):
        assert re.search(rf"{option} \w+\.py:", used), option
    for name, (code, commands) in examples().items():
        lines = [line for line in code.splitlines() if line and not line.startswith("#")]
        assert len(lines) < 20, name
        assert commands, name


@pytest.mark.slow
@pytest.mark.parametrize("name", examples())
def test_an_example_runs_as_printed(name):
    code, commands = examples()[name]
    Path(name).write_text(code)
    Path("copy-of-gsm8k").mkdir()
    rows = [{"question": f"1 + {i}?", "answer": f"Easy.\n#### {1 + i}"} for i in range(3)]
    Path("copy-of-gsm8k/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for command in commands:
        done = subprocess.run([sys.executable, "-m", "tts.cli", *shlex.split(command)[1:]], capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert done.stdout


def test_the_examples_load_and_do_what_they_say():
    for name, (code, _) in examples().items():
        Path(name).write_text(code)
    solution = Candidate(Problem("p", "2 + 2"), (Step("2 + 2 = 4\n\nIt is 4", (), "stop"),))
    assert options_of(get_strategy("sprint.py:Sprint"))[0].help == "Steps to choose from."
    scorer = load_scorer("checks.py:Checks", options={"word": "is"})
    assert scorer.word == "is"
    assert scorer.by_step
    engine = load_engine("parrot.py:Parrot", "any", options={"answer": "7"})
    assert engine.text == "It is \\boxed{7}"
    assert get_grader("near.py:near").right("3", "4")
    worked = get_grader("worked.py:Worked")
    long, short = (worked.read(text, False) for text in ("It is\n\n\\boxed{a}", "\\boxed{A}"))
    assert (worked.right(long, "a"), worked.right(short, "a"), worked.same(long, short)) == (True, False, True)
    benchmark = load_benchmark("chains.py:chains", options={"length": "3", "count": 5})
    assert len(benchmark.problems) == 5
    assert benchmark.problems[0].prompt.count("add") == 3
    assert CHECKERS.get("tidy.py:tidy")("p", ["a = b"], ["so 4"], "4") == [1.0, 1.0]
    assert FORMATS.get("lines.py:LINES").matches == r"my-prm-lines"
    assert solution.done


async def test_a_plain_function_is_a_scorer():
    code, _ = examples()["brief.py"]
    Path("brief.py").write_text(code)
    scorer = load_scorer("brief.py:brief")
    [reward] = await scorer.score([Candidate(Problem("p", "ab"), (Step("abcd", (), "stop"),))])
    assert (reward.steps, reward.final, reward.total) == ((), -2.0, -2.0)
    with pytest.raises(InputError, match="rates a trace as a whole; --alpha 0 leaves nothing"):
        load_scorer("brief.py:brief", final=False)
    with pytest.raises(InputError, match="is a function and has no options"):
        load_scorer("brief.py:brief", options={"x": 1})
    Path("odd.py").write_text("def odd(problem, text):\n    return 'high'\n")
    with pytest.raises(InputError, match="the scorer odd returned 'high'; expected a number"):
        await load_scorer("odd.py:odd").score([Candidate(Problem("p", "ab"))])


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.kind)
def test_every_built_in_plug_in_loads_and_says_what_it_is(registry):
    from tts.show.listing import listing

    rows = listing(registry)
    assert [row["name"] for row in rows] == list(registry)
    for row in rows:
        assert "error" not in row, row
        assert row["about"], row
    for name, plugin in registry.all().items():
        if callable(plugin):
            for option in options_of(plugin):
                assert option.takes, (name, option)
                assert option.help or registry.kind == "benchmark", (name, option.name)


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.kind)
def test_a_typo_gets_a_suggestion(registry):
    name = next(iter(registry))
    with pytest.raises(InputError, match=rf"no {registry.kind} named '{name}x'. Did you mean '{name}'\? Known: "):
        registry.get(f"{name}x")


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.kind)
def test_what_is_not_of_the_kind_is_refused(registry):
    Path("wrong.py").write_text("class Number:\n    pass\n\nVALUE = 3.5\n")
    with pytest.raises(InputError, match=r"wrong\.py has no"):
        registry.get("wrong.py:Missing")
    with pytest.raises(InputError, match=rf"the {registry.kind} wrong\.py:VALUE is not "):
        registry.get("wrong.py:VALUE")
    with pytest.raises(InputError, match=r"no file nowhere\.py to load"):
        registry.get("nowhere.py:X")
    with pytest.raises(InputError, match="cannot import no_such_module for the"):
        registry.get("no_such_module:X")


def test_a_file_that_fails_says_why():
    Path("broken.py").write_text("1 / 0\n")
    for _ in range(2):  # what failed once is not half there the second time
        with pytest.raises(InputError, match=r"broken\.py does not load: ZeroDivisionError: division by zero"):
            get_strategy("broken.py:X")


def test_an_edited_file_is_loaded_anew_and_files_of_one_name_are_apart():
    for folder, bar in (("a", 1), ("b", 2)):
        Path(folder).mkdir()
        Path(folder, "mine.py").write_text(f"def grade(answer, reference):\n    return {bar}\n")
    first, second = GRADERS.get("a/mine.py:grade"), GRADERS.get("b/mine.py:grade")
    assert (first.right("", ""), second.right("", "")) == (1, 2)
    assert GRADERS.get("a/mine.py:grade").right is first.right
    Path("a/mine.py").write_text("def grade(answer, reference):\n    return 'another'\n")
    assert GRADERS.get("a/mine.py:grade").right("", "") == "another"


def test_a_package_provides_plug_ins_by_entry_points(monkeypatch):
    """A real distribution as importlib.metadata finds it, in this process and in the command's."""
    Path("site/my_plugins-1.0.dist-info").mkdir(parents=True)
    Path("site/my_plugins-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: my-plugins\nVersion: 1.0\n")
    Path("site/my_plugins-1.0.dist-info/entry_points.txt").write_text(
        "[tts.graders]\nshout = my_plugins:shout\ntorn = my_plugins_torn:x\n[tts.benchmarks]\nadd = my_plugins:add\n"
    )
    Path("site/my_plugins.py").write_text(
        "def shout(answer, reference):\n    '''Compare in capitals.'''\n    return answer.upper() == reference.upper()\n"
        "def add(*, upto: int = 3):\n    '''Sums.'''\n"
        "    return [{'problem': f'1+{i}', 'answer': str(1 + i)} for i in range(upto)]\n"
    )
    monkeypatch.syspath_prepend("site")
    assert "shout" in GRADERS
    assert get_grader("shout").right("a", "A")
    assert len(load_benchmark("add", options={"upto": 2}).problems) == 2
    with pytest.raises(InputError, match=r"the grader torn \(my_plugins_torn:x\) does not load: ModuleNotFoundError"):
        GRADERS.get("torn")
    monkeypatch.setenv("PYTHONPATH", "site")
    listed = subprocess.run([sys.executable, "-m", "tts.cli", "graders", "--json"], capture_output=True, text=True, check=True)
    rows = {row["name"]: row for row in json.loads(listed.stdout)}
    assert rows["shout"]["about"] == "Compare in capitals"
    assert "does not load" in rows["torn"]["error"], "a broken package does not hide the others"


def test_a_name_can_be_registered_while_the_program_runs():
    registry: Registry[type] = Registry(
        "pet", {}, accept=lambda found: found if isinstance(found, type) else None, expected="a class"
    )

    @registry.register("cat")
    class Cat:
        pass

    assert registry.get("cat") is Cat
    assert registry.name_of(Cat) == "cat"
    with pytest.raises(ValueError, match="already a pet named 'cat'"):
        registry.register("cat")(type("Dog", (), {}))
    with pytest.raises(ValueError, match="is not a class"):
        registry.register("fish")(3)


def test_a_scorer_that_lacks_what_is_asked_of_one_is_refused_at_once():
    class Bare:
        async def score(self, candidates):
            return []

    with pytest.raises(InputError, match=r"Bare has no by_step; subclass tts\.Scorer, which has it"):
        tts.run("bon", limit=1, scorer_instance=Bare())


@dataclass(frozen=True)
class Knobs:
    """A plug-in with options of every type."""

    count: Annotated[int, Ge(1), Le(9)] = 2
    """How many."""
    rate: float = 0.5
    kind: Literal["hot", "cold"] = "hot"
    on: bool = False
    name: str | None = None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": "0"}, "--count is '0'; it should be a whole number, at least 1 and at most 9"),
        ({"count": 3.5}, "--count is 3.5; it should be a whole number"),
        ({"rate": "nan"}, "--rate is 'nan'; it should be a number"),
        ({"kind": "warm"}, "--kind is 'warm'; it should be hot or cold"),
        ({"on": "perhaps"}, "--on is 'perhaps'; it should be true or false"),
        ({"cuont": 1}, "Knobs has no option 'cuont'. Did you mean 'count'?"),
    ],
)
def test_options_are_checked_against_type_and_bounds(values, message):
    with pytest.raises(InputError) as refused:
        configure(Knobs, values)
    assert message in str(refused.value)


def test_texts_become_the_types_of_options():
    given = {"count": "3", "rate": "1", "kind": "cold", "on": "true", "name": "x"}
    assert configure(Knobs, given) == Knobs(3, 1.0, "cold", True, "x")
    assert [option.takes for option in options_of(Knobs)] == [
        "whole number, at least 1 and at most 9", "number", "hot or cold", "flag", "text",
    ]  # fmt: skip
    assert options_of(Knobs)[0].help == "How many."

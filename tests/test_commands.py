"""What all commands have in common: help, configuration, environment, dry runs, JSON, exit codes, and one owner of options."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from dataclasses import is_dataclass
from importlib.metadata import version
from pathlib import Path

import pytest

import tts
from tts.cli import main
from tts.commands import COMMANDS
from tts.commands.line import OutputOptions
from tts.commands.reference import pages
from tts.errors import EXIT_CODES, InputError
from tts.options import kept, options_of
from tts.runs.settings import RunSettings, SamplingOptions, ScorerOptions
from tts.strategies import STRATEGIES

SETTINGS = {name: command.load("settings") for name, command in COMMANDS.items()}
EVERY = [(name, option) for name, settings in SETTINGS.items() for option in options_of(settings)]
AWKWARD = re.compile(
    r"leave .* away|go(es)? on with|at the most|behind (it|the)\b|\bnone\b of|what it is to|mend", re.IGNORECASE
)


@pytest.fixture
def said(capsys):
    """Call a command in this process; its exit code, and what it printed on either stream."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


def test_every_option_of_every_command_has_help_that_stands_alone():
    for name, option in [*EVERY, *(("strategy", o) for cls in STRATEGIES.all().values() for o in options_of(cls))]:
        assert option.help.endswith("."), (name, option.name)
        assert not option.help.startswith(("Of ", "How it ")), (name, option.name, option.help)
        assert not AWKWARD.search(option.help), (name, option.name, option.help)


def test_an_option_is_declared_once():
    """An option that several commands share has one help text, or a default of its own that explains another."""
    texts: dict[str, set[str]] = {}
    for _, option in EVERY:
        if any(option.name in inspect.get_annotations(group) for group in (SamplingOptions, ScorerOptions)):
            texts.setdefault(option.name, set()).add(option.help)
    assert {name for name, helps in texts.items() if len(helps) > 2} <= {"seed", "scorer"}  # what they seed, and rate, differs
    assert len(texts["alpha"]) == len(texts["aggregate"]) == len(texts["scorer_url"]) == 1


def test_settings_are_frozen_dataclasses_and_short_options_do_not_clash():
    for name, settings in SETTINGS.items():
        assert is_dataclass(settings), name
        assert settings.__dataclass_params__.frozen, name
        flags = [flag for o in (*options_of(settings), *options_of(OutputOptions)) for flag in (o.flag, o.short) if flag]
        assert len(flags) == len(set(flags)), name


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_lists_its_options_by_topic(name, said, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    for flag in ("-h", "--help"):
        code, out, err = said(name, flag)
        assert (code, err) == (0, "")
    assert out.startswith(f"Usage: tts {name}")
    for option in options_of(SETTINGS[name]):
        if option.cli:
            assert (option.name.upper() if option.positional else option.flag) in out, option.name
            assert option.topic in out
    assert "--json" in out
    assert "<bool>" not in out


def test_the_commands_and_the_version(said):
    code, out, _ = said()
    assert code == 0
    for name in COMMANDS:
        assert re.search(rf"^│ {name} ", out, re.MULTILINE), name
    assert said("--version") == (0, f"{version('tts-toolkit')}\n", "")
    code, out, err = said("rnu")
    assert (code, out) == (2, "")
    assert err.startswith("tts: no command 'rnu'. Did you mean run? Commands: run, sweep, ")


def test_an_unknown_option_is_not_blamed_on_the_strategy(said):
    assert said("run", "--limt", "3")[2] == "tts: tts run has no option --limt. Did you mean --limit? See tts run --help\n"
    assert said("compare", "a", "b", "--width", "3")[2].startswith("tts: tts compare has no option --width.")
    wrong = said("run", "--strategy", "majority", "--width", "3")[2]
    assert wrong == "tts: --width is not an option of the strategy majority; it is one of beam, dvts, lookahead, mcts\n"


def test_a_repeated_option_takes_the_last_value_and_a_repeatable_one_all(said):
    code, out, _ = said("run", "--dry-run", "--limit", "3", "--limit", "5", "-n", "2", "--json")
    assert code == 0
    assert json.loads(out)["problems"] == 5
    wrong = said("run", "--engine-arg", "max_rows=8", "--engine-arg", "max_rows=none", "--limit", "1", "-n", "1")[2]
    assert "max_rows is 'none'; it should be a whole number" in wrong


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.toml", 'limit = 7\nn = 3\nstrategy = "majority"\nmax-tokens = 50\n'),
        ("c.yaml", "limit: 7\nn: 3\nstrategy: majority\nmax_tokens: 50\n"),
        ("c.json", '{"limit": 7, "n": 3, "strategy": "majority", "max-tokens": 50}'),
    ],
)
def test_options_come_from_a_file_the_environment_and_the_command_line(name, text, said, monkeypatch):
    Path(name).write_text(text)
    found = json.loads(said("run", "--config", name, "--dry-run", "--json")[1])
    assert (found["strategy"], found["problems"], found["samples"], found["most_tokens"]) == ("majority", 7, 3, 7 * 3 * 50)
    monkeypatch.setenv("TTS_LIMIT", "6")
    monkeypatch.setenv("TTS_N", "4")
    found = json.loads(said("run", "--config", name, "--dry-run", "--json")[1])
    assert (found["problems"], found["samples"]) == (6, 4), "the environment wins over the file"
    found = json.loads(said("run", "--config", name, "--limit", "2", "--dry-run", "--json")[1])
    assert (found["problems"], found["samples"]) == (2, 4), "the command line wins over both"
    monkeypatch.setenv("TTS_STRATEGY", "beam")
    assert json.loads(said("run", "--dry-run", "--json", "--width", "2")[1])["strategy"] == "beam"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.toml", "limit =", "cannot read --config c.toml"),
        ("c.toml", "limt = 3", "c.toml: tts run has no option --limt"),
        ("c.toml", 'limit = "many"', "--limit is 'many'; it should be a whole number, at least 1"),
        ("c.ini", "", "--config is c.ini, which ends in '.ini'; it should end in .toml, .yaml or .json"),
        ("c.json", "[1]", "cannot read --config c.json: not a table of options"),
    ],
)
def test_a_bad_configuration_is_one_clear_line(name, text, message, said):
    Path(name).write_text(text)
    code, out, err = said("run", "--config", name)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
    Path("t.yaml").write_text("engine-arg: {max_rows: some}\nlimit: 1\n")
    assert "max_rows is 'some'; it should be a whole number" in said("run", "--config", "t.yaml")[2], "tables are pairs"
    assert "cannot read --config gone.toml" in said("run", "--config", "gone.toml")[2]


@pytest.mark.parametrize("name", ["c.toml", "c.yaml", "c.json"])
def test_saved_options_say_the_same_again(name, said):
    line = ["--strategy", "beam", "--n", "4", "--width", "2", "--limit", "5", "--engine-arg", "max_rows=8", "--seconds", "2.5",
            "--shuffle", "--system", 'Say "so".\nÜber', "--temperature", "0.7"]  # fmt: skip
    code, first, err = said("run", *line, "--dry-run", "--json", "--save-config", name)
    assert (code, err) == (0, "")
    saved = Path(name).read_text(encoding="utf-8")
    assert "max_tokens" not in saved.replace("-", "_"), "defaults are not written"
    assert "save" not in saved
    assert said("run", "--config", name, "--dry-run", "--json") == (0, first, "")


def test_a_dry_run_loads_and_writes_nothing():
    code = (
        "import sys\nfrom tts.cli import main\nassert main(['run', '--dry-run', '--limit', '20', '--n', '4']) == 0\n"
        "assert main(['sweep', '--dry-run', '--limit', '20', '-n', '2,4', '--seeds', '2', '--strategy', 'bon,beam']) == 0\n"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
    assert "20 problems, up to 4 candidates each" in done.stdout
    assert "no finished run of this model and engine" in done.stdout
    assert list(Path().iterdir()) == []


def test_a_dry_run_judges_by_an_earlier_run():
    summary = tts.run("majority", n=2, limit=4)
    found = json.loads(_output("run", "--dry-run", "--limit", "40", "--n", "2", "--json"))
    assert found["source"] == summary.run
    assert found["tokens"] == pytest.approx(10 * summary.usage.generated, rel=0.01)
    assert found["seconds"] > 0
    found = json.loads(_output("run", "--dry-run", "--limit", "40", "--n", "2", "--json", "--run-budget", "100"))
    assert found["most_tokens"] == found["tokens"] == 100


def _output(*arguments: str) -> str:
    return subprocess.run([sys.executable, "-m", "tts.cli", *arguments], capture_output=True, text=True, check=True).stdout


def test_commands_that_report_have_json_and_quiet(said):
    tts.run("majority", n=2, limit=3, out="runs/a")
    tts.run("majority", n=2, limit=3, seed=1, out="runs/b")
    rows = json.loads(said("runs", "--json")[1])
    assert [row["run"] for row in rows] == ["runs/b", "runs/a"]
    assert rows[0]["summary"]["problems"] == 3
    assert said("runs", "-q")[1] == "runs/b\nruns/a\n"
    assert json.loads(said("compare", "runs/a", "runs/b", "--json")[1])["problems"] == 3
    shown = json.loads(said("show", "runs/a", "arith-0", "--json")[1])
    assert shown["id"] == "arith-0"
    assert len(shown["candidates"]) == 2
    assert json.loads(said("report", "runs/a", "-o", "r.html", "--json")[1]) == {"report": "r.html"}
    Path("t.jsonl").write_text('{"problem": "1+1?", "text": "It is 2."}\n')
    code, out, _ = said("score", "t.jsonl", "--scorer", "length", "-o", "s.jsonl", "--json")
    assert (code, json.loads(out)["done"]) == (0, 1)
    assert said("score", "t.jsonl", "--scorer", "length", "-o", "s2.jsonl", "-q")[1] == "s2.jsonl\n"


def test_resuming_checks_what_results_depend_on_and_nothing_else():
    tts.run("majority", n=2, limit=2, out="r")
    assert tts.run(resume="r", concurrency=3).problems == 2
    for change, message in (
        ({"temperature": 0.5}, "r was started with --temperature 1.0, not 0.5"),
        ({"n": 4}, "r was started with --n 2, not 4"),
        ({"engine_args": {"max_rows": 8}}, "r was started with --engine-arg max_rows null, not 8"),
    ):
        with pytest.raises(InputError) as refused:
            tts.run(resume="r", **change)
        assert message in str(refused.value)


def test_run_json_holds_the_settings_that_results_depend_on():
    tts.run("majority", n=2, limit=2, out="r")
    held = json.loads(Path("r/run.json").read_text())["settings"]
    assert set(held) == {option.name for option in options_of(RunSettings) if option.kept}
    assert not {"concurrency", "out", "resume", "url", "scorer_url"} & set(held)
    assert held == kept(RunSettings(strategy="majority", options={"n": 2}, limit=2, instruction="none"))  # arith has none


def test_python_and_the_command_line_check_the_same(said):
    for name, value in (("limit", 0), ("temperature", -1), ("top_p", 2), ("score_over", "all of it")):
        flag = f"--{name.replace('_', '-')}"
        with pytest.raises(InputError) as refused:
            tts.run("majority", n=2, **{name: value})
        spoken = said("run", flag, str(value))[2]
        assert str(refused.value).partition("; ")[2] == spoken.strip().partition("; ")[2]
        assert spoken.startswith(f"tts: {flag} is ")


def test_python_shows_the_options_as_keywords():
    shown = inspect.signature(tts.run).parameters
    assert shown["limit"].default is None
    assert shown["model"].default == "arith-policy"
    assert {o.name for o in options_of(RunSettings) if o.cli} <= set(shown)


def test_the_reference_has_every_command_option_plug_in_and_exit_code():
    found = pages()
    commands = found["reference/cli.md"]
    for name, settings in SETTINGS.items():
        section = commands.partition(f"### tts {name}\n")[2].partition("\n### ")[0]
        for option in options_of(settings):
            if option.cli:
                assert f"`{option.name.upper() if option.positional else option.flag}`" in section, (name, option.name)
    for code in EXIT_CODES:
        assert f"`{code}`" in commands
    assert "## beam" in found["reference/strategies.md"]
    assert all(text.startswith("# ") for text in found.values())
    for text in found.values():  # cells do not break the tables
        for row in re.findall(r"^\|.*\|$", text, re.MULTILINE):
            assert row.count(" |") in (2, 4), row


def test_completion_knows_commands_and_options(said, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", "/bin/bash")
    code, out, _ = said("--install-completion")
    assert code == 0
    [script] = [file for file in tmp_path.rglob("*") if file.is_file() and "_tts()" in file.read_text()]
    assert str(script) in out
    for words, expected in ((["tra"], "train-prm"), (["run", "--max-to"], "--max-tokens"), (["run", "--wid"], "--width")):
        line = f'. {script}; COMP_WORDS=(tts {" ".join(words)}); COMP_CWORD={len(words)}; _tts; echo "${{COMPREPLY[@]}}"'
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
        assert expected in done.stdout.split(), words

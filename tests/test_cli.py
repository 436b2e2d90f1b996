"""The command line as a user meets it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from tts.cli import main

ROOT = Path(__file__).parent.parent
ROWS = '{"problem": "1+1?", "answer": "2"}\n'


def tts(*arguments: str, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "tts.cli", *arguments], capture_output=True, text=True, timeout=300, **kwargs)


@pytest.fixture
def refused(monkeypatch, capsys):
    """Run a command that must be refused; its one line of complaint."""

    def run(*arguments: str) -> str:
        before = sorted(Path().rglob("*"))
        monkeypatch.setattr(sys, "argv", ["tts", *arguments])
        with pytest.raises(SystemExit) as exit:
            sys.exit(main(sys.argv[1:]))
        captured = capsys.readouterr()
        assert exit.value.code == 2
        assert captured.out == ""
        assert "Traceback" not in captured.err
        assert sorted(Path().rglob("*")) == before, "something was half-written"
        return captured.err.strip()

    return run


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("--strategy bom", "no strategy named 'bom'. Did you mean 'bon'? Known: "),
        ("--strategy bon --width 4", "--width is not an option of the strategy bon; it is one of beam, dvts, lookahead, mcts"),
        ("--strategy single --n 4", "--n is not an option of the strategy single; it is one of adaptive, beam, bon"),
        ("--limt 4", "tts run has no option --limt. Did you mean --limit?"),
        ("--n 0", "--n is '0'; it should be a whole number, at least 1"),
        ("--n -3", "--n is '-3'; it should be a whole number, at least 1"),
        ("--n many", "--n is 'many'; it should be a whole number, at least 1"),
        ("--n", "--n needs a value; see tts run --help"),
        ("surplus", "unexpected argument 'surplus'"),
        ("--benchmark missing.jsonl", "no benchmark named 'missing.jsonl'. Known: arith,"),
        ("--benchmark empty.jsonl", "empty.jsonl has no problems"),
        ("--benchmark torn.jsonl", "torn.jsonl, line 2: not valid JSON"),
        ("--benchmark twice.jsonl", "twice.jsonl, line 3: the id 'a' has been used before"),
        ("--benchmark wordless.jsonl", "wordless.jsonl, line 1: no string under `problem`"),
        ("--benchmark listed.jsonl", "listed.jsonl, line 1: the answer is [1]; expected a string or a number"),
        ("--model empty", "the model folder empty has no config.json"),
        ("--model tokenless", "the model folder tokenless has no tokenizer"),
        ("--model arith-prm", "'arith-prm' is a reward model, not a policy"),
        ("--model ./nowhere", "no model at './nowhere': expected a bundled name"),
        ("--scorer arith-policy", "'arith-policy' (Qwen2ForCausalLM) is not recognised as a process reward model"),
        ("--out taken", "taken exists and is not an empty folder"),
        ("--out torn.jsonl/x", "cannot write to torn.jsonl/x"),
        ("--resume taken", "taken is not a run folder (no run.json in it)"),
        ("--resume nowhere", "nowhere is not a run folder (no such folder)"),
        ("--temperature -1", "--temperature is '-1'; it should be a number, at least 0"),
        ("--top-p 0", "--top-p is '0'; it should be a number, above 0 and at most 1"),
        ("--concurrency 0", "--concurrency is '0'; it should be a whole number, at least 1"),
        ("--limit 0", "--limit is '0'; it should be a whole number, at least 1"),
        ("--limit ten", "--limit is 'ten'; it should be a whole number, at least 1"),
        ("--budget 0", "--budget is '0'; it should be a whole number, at least 1"),
        ("--run-budget 0", "--run-budget is '0'; it should be a whole number, at least 1"),
        ("--seconds 0", "--seconds is '0'; it should be a number, above 0"),
        ("--max-tokens 0", "--max-tokens is '0'; it should be a whole number, at least 1"),
        ("--strategy beam --n 4 --width 8", "--width is 8; it should be at most --n, which is 4"),
        ("--strategy adaptive --n 4 --batch 8", "--batch is 8; it should be at most --n, which is 4"),
        ("--strategy budget-forcing --min-thinking 99 --max-thinking 98", "--min-thinking is 99; it should be at most --max-t"),
        (
            "--strategy budget-forcing --max-thinking 512 --max-tokens 512",
            "--max-thinking is 512; it should be below --max-tokens, which is 512 for thinking and response together",
        ),
        ("--strategy compute-optimal --hard budget-forcing --max-tokens 99", "--max-thinking is 1024; it should be below"),
        ("--strategy compute-optimal --scorer length", "but this scorer rates a trace as a whole; use a reward model"),
        ("--strategy beam --search-over think --scorer arith-prm-response", "but the scorer rates only the response steps"),
        ("--strategy mcts --search-over think --response-delimiter .", "--response-delimiter has no effect with --search-over"),
        ("--strategy mcts --width 1 --resample", "--resample has no effect with --width 1, where no step has a sibling"),
        ("--strategy particle --n 1 --iterations 2", "--iterations has no effect with --n 1: the only solution is"),
        ("--strategy mcts --rollouts", "--rollouts has no effect where each simulation finishes a solution; add --no-to-end"),
        ("--strategy lookahead --k 0 --keep-rollout", "--keep-rollout has no effect with --k 0, which rolls nothing out"),
        ("--strategy beam --search-over answer", "--search-over is 'answer'; it should be all, think or response"),
        ("--strategy lookahead --k -1", "--k is '-1'; it should be a whole number, at least 0"),
        ("--adapter nowhere", "no adapter at 'nowhere': expected a folder that peft's save_pretrained wrote, or a hub id"),
        ("--engine-arg device=toaster", "device is 'toaster'; expected auto or a device of this machine"),
        ("--engine-arg dtype=int8", "dtype is 'int8'; expected one of auto, float32, bfloat16, float16"),
        ("--engine server --url http://127.0.0.1:9 --adapter x", "--adapter is for engines in this process"),
        ("--strategy gone.py:Mine", "no file gone.py to load the strategy Mine from"),
        ("--strategy mine.py:Other", "mine.py has no strategy 'Other' (a subclass of tts.Strategy); it has: Mine"),
        ("--strategy broken.py:Mine", "broken.py does not load: SyntaxError"),
        ("--strategy no.such.module:Mine", "cannot import no.such.module"),
    ],
)
def test_bad_input_is_one_clear_line(refused, arguments, complaint):
    Path("empty.jsonl").write_text("\n")
    Path("torn.jsonl").write_text(ROWS + '{"problem": "1+')
    Path("twice.jsonl").write_text('{"id": "a", "problem": "x"}\n{"id": "b", "problem": "x"}\n{"id": "a", "problem": "y"}\n')
    Path("wordless.jsonl").write_text('{"question": "1+1?"}\n')
    Path("listed.jsonl").write_text('{"problem": "1+1?", "answer": [1]}\n')
    Path("broken.py").write_text("def f(:\n")
    Path("mine.py").write_text(
        "from dataclasses import dataclass\nfrom tts import Strategy\n\n@dataclass(frozen=True)\nclass Mine(Strategy):\n"
        "    async def solve(self, problem, generator, scorer): ...\n"
    )
    Path("empty").mkdir()
    Path("tokenless").mkdir()
    Path("tokenless/config.json").write_text('{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}')
    Path("taken").mkdir()
    Path("taken/file").touch()
    said = refused("run", *arguments.split())
    assert complaint in said
    assert len(said.splitlines()) == 1


def test_a_run_folder_of_other_settings_is_refused(refused, capsys):
    assert tts("run", "--limit", "2", "--n", "2", "--out", "r", "--quiet").returncode == 0
    assert "r was started with --n 2, not 8; resume it without changing that" in refused("run", "--resume", "r", "--n", "8")
    assert "r was started with --seed 0, not 1" in refused("run", "--resume", "r", "--seed", "1")
    assert "--resume continues in its own folder; omit --out" in refused("run", "--resume", "r", "--out", "x")
    assert "r was started with --strategy bon, not weighted" in refused("run", "--resume", "r", "--strategy", "weighted")
    assert "r already contains a run; continue it with --resume r" in refused("run", "--out", "r")
    assert tts("run", "--resume", "r", "--n", "2", "--quiet").stdout == "r\n"


def test_help_is_quick_to_import_and_names_every_default():
    code = (
        "import sys; sys.argv = ['tts', 'run', '--help']\ntry:\n  from tts.cli import entry; entry()\nexcept SystemExit: pass\n"
    )
    code += "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}, check=True
    )
    assert done.stdout.endswith("[]\n")
    for default in ("arith-policy", "arith-prm", "bon", "100 of arith", "2048", "64", "1.0", "mean", "runs/TIME", "--n 16"):
        assert default in done.stdout


def test_importing_tts_loads_nothing_heavy():
    code = "import tts, sys; print([m for m in ('torch', 'transformers', 'numpy', 'cyclopts') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_json_is_one_object_and_nothing_else():
    done = tts("run", "--limit", "3", "--n", "4", "--json", "--out", "r")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    wanted = {
        "strategy",
        "n",
        "benchmark",
        "problems",
        "accuracy",
        "ci",
        "pass@1",
        "majority",
        "pass@n",
        "usage",
        "seconds",
        "run",
    }
    assert wanted <= set(summary)
    assert (summary["strategy"], summary["n"], summary["problems"], summary["run"]) == ("bon", 4, 3, "r")
    assert done.stderr == ""


def test_the_table_has_no_colours_when_piped():
    done = tts("run", "--limit", "3", "--n", "4")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    for shown in (
        "bon on arith, 3 problems",
        "pass@1",
        "majority@4",
        "pass@4",
        "95 % interval",
        "generated",
        "scored",
        "runs/",
    ):
        assert shown in done.stdout
    [folder] = Path("runs").iterdir()
    assert {"run.json", "results.jsonl", "summary.json"} <= {file.name for file in folder.iterdir()}
    run = json.loads((folder / "run.json").read_text())
    assert run["settings"]["seed"] == 0
    assert {"torch", "transformers", "python"} <= set(run["versions"])


def test_failed_problems_make_the_exit_code_1():
    Path("long.jsonl").write_text(ROWS + json.dumps({"problem": "again " * 2000, "answer": "1"}) + "\n")
    done = tts("run", "--benchmark", "long.jsonl", "--n", "2", "--max-tokens", "20", "--out", "r")
    assert done.returncode == 1
    assert "1 of 2 problems failed" in done.stderr
    assert "tts run --resume r" in done.stderr
    assert "leaves no room in the model's context" in Path("r/results.jsonl").read_text()


def test_ctrl_c_prints_how_to_go_on():
    process = subprocess.Popen(
        [sys.executable, "-m", "tts.cli", "run", "--limit", "400", "--concurrency", "8", "--out", "r"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (Path("r/results.jsonl").exists() and Path("r/results.jsonl").stat().st_size):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130
    assert re.search(r"interrupted with \d+ of 400 problems solved. Resume with: tts run --resume r\n", said)
    assert "Traceback" not in said


def readme_strategy() -> str:
    """The custom strategy in the README, as printed."""
    return re.search(r"```python\n(# mine\.py\n.*?)```", (ROOT / "README.md").read_text(), re.S)[1]


@pytest.mark.slow
def test_the_readmes_custom_strategy_runs_as_printed():
    Path("mine.py").write_text(readme_strategy())
    done = tts("run", "--strategy", "mine.py:RejectAndRetry", "--bar", "1.8", "--n", "8", "--limit", "6", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["strategy"] == "mine.py:RejectAndRetry"
    assert 1 <= summary["n"] <= 8
    assert summary["failed"] == 0


@pytest.mark.slow
def test_the_docs_custom_strategy_runs_as_printed():
    code = re.search(r"```python\n(# sprint\.py\n.*?)```", (ROOT / "docs" / "plugins.md").read_text(), re.S)[1]
    assert len(code.splitlines()) <= 25
    Path("sprint.py").write_text(code)
    shown = tts("strategies", "show", "sprint.py:Sprint")
    assert "Steps to choose from." in shown.stdout
    done = tts("run", "--strategy", "sprint.py:Sprint", "--width", "3", "--limit", "3", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["failed"] == 0


def test_a_budget_for_the_run_holds_and_is_shared():
    done = tts("run", "--n", "8", "--limit", "6", "--max-tokens", "200", "--run-budget", "1500", "--concurrency", "2", "--json")
    summary = json.loads(done.stdout)
    assert 1000 < summary["usage"]["generated"] <= 1500
    assert summary["truncated"] > 0


@pytest.mark.slow
def test_the_readmes_python_runs_as_printed():
    code = re.search(r"```python\n(import tts\n.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    done = subprocess.run([sys.executable, "-c", code.replace("n=16", "n=2, limit=2")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "%" in done.stdout


@pytest.mark.slow
def test_the_readmes_training_commands_run():
    """All of them, on fewer problems and for fewer steps than are printed."""
    readme = (ROOT / "README.md").read_text()
    [block] = [part.split("```")[0] for part in readme.split("```sh\n") if "tts train-prm" in part]
    commands = [line.partition("  #")[0].split() for line in block.splitlines() if line]
    assert [words[1] for words in commands] == ["run", "label", "train-prm", "select", "sft", "rl"]
    for words in commands:
        if "--limit" in words:
            words[words.index("--limit") + 1] = "20"
        if words[1] in ("train-prm", "sft", "rl"):
            words += ["--max-steps", "1"]
        done = subprocess.run([sys.executable, "-m", "tts.cli", *words[1:]], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (Path("reinforced") / "model.safetensors").is_file()


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


def test_the_root_has_the_command_without_an_installation():
    done = subprocess.run([sys.executable, ROOT / "cli.py", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{version('tts-toolkit')}\n")


def test_root_links_lead_into_the_package():
    for link, target in (("strategies", "tts/strategies"), ("evals", "tts/evals")):
        assert (ROOT / link).is_symlink()
        assert os.readlink(ROOT / link) == target

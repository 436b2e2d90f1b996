"""Benchmarks in their published schemas, from small local files; nothing is downloaded."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tts
from tts.data.store import RunStore
from tts.evals.benchmarks import PUBLISHED, load_benchmark
from tts.evals.benchmarks.source import BOXED, LETTER, id_of
from tts.evals.intervals import estimate
from tts.evals.summary import _over_problems

datasets = pytest.importorskip("datasets")

AIME = {"solution": "…", "url": "https://artofproblemsolving.com/wiki/", "year": "2024"}
OLYMPIAD = {
    "solution": ["…"], "context": None, "image_1": None, "modality": "Text-only", "difficulty": "Competition",
    "is_multiple_answer": False, "unit": None, "answer_type": "Numerical", "error": None, "question_type": "Open-ended",
    "subfield": "Algebra", "subject": "Math", "language": "English",
}  # fmt: skip
GPQA = {
    "Record ID": "rec06pnAkLOr2t2mp", "Question": "Which one?\n", "Correct Answer": "10^-4 eV\n",
    "Incorrect Answer 1": "10^-11 eV\n", "Incorrect Answer 2": "10^-8 eV\n", "Incorrect Answer 3": "10^-9 eV\n",
}  # fmt: skip

PUBLISHED_ROWS = [
    (
        "gsm8k", "test", {"question": "How many?", "answer": "48/2 = <<48/2=24>>24\n#### 1,024"},
        (id_of("How many?"), "How many?", "1024"),
    ),
    (
        "math500", "test",
        {"problem": "Convert.", "solution": "…", "answer": "\\frac{\\pi}{2}", "subject": "Precalculus", "level": 2,
         "unique_id": "test/precalculus/807.json"},
        ("test/precalculus/807.json", "Convert.", "\\frac{\\pi}{2}"),
    ),
    ("aime24", "train", {"id": 60, "problem": "Walk.", "answer": "033", **AIME}, ("60", "Walk.", "33")),
    ("aime24", "train", {"ID": "2024-II-4", "Problem": "Walk.", "Solution": "…", "Answer": 33}, ("2024-II-4", "Walk.", "33")),
    ("aime25", "test", {"problem": "Bases.", "answer": "70", "id": "0"}, ("0", "Bases.", "70")),
    ("amc23", "test", {"id": 0, "question": "Cities.", "answer": "27.0", "url": "https://x"}, ("0", "Cities.", "27")),
    ("amc23", "test", {"id": 0, "problem": "Cities.", "answer": 27.0}, ("0", "Cities.", "27")),
    ("minerva", "test", {"question": "Stars.", "answer": "7.6"}, (id_of("Stars."), "Stars.", "7.6")),
    (
        "minerva", "test", {"problem": "Stars.", "type": "Astronomy", "solution": "So \\boxed{7.6 \\mathrm{~m}}.", "idx": 3},
        ("3", "Stars.", "7.6 \\mathrm{~m}"),
    ),
    ("olympiadbench", "train", {"id": 1606, "question": "Let T.", "final_answer": ["$2$"]} | OLYMPIAD, ("1606", "Let T.", "2")),
]  # fmt: skip


def folder(rows, split="test", name="data") -> str:
    """A local copy as a hub repository has it: one Parquet file a split."""
    Path(name).mkdir()
    datasets.Dataset.from_list(rows).to_parquet(Path(name, f"{split}-00000-of-00001.parquet"))
    return name


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize(("name", "split", "row", "expected"), PUBLISHED_ROWS)
def test_published_schemas(name, split, row, expected):
    benchmark = load_benchmark(name, data_dir=folder([row], split))
    [problem] = benchmark.problems
    assert (problem.id, problem.prompt, problem.answer) == expected
    assert (benchmark.name, problem.grader) == (name, "math")


def test_every_published_benchmark_is_loaded_at_its_revision(monkeypatch):
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for name, source in PUBLISHED.items():
        with pytest.raises(tts.InputError, match=r"no route to the hub; for a local copy, hf download .* then --data-dir DIR"):
            load_benchmark(name)
        assert asked[-1] == ((source.hub, source.config), {"split": source.split, "revision": source.revision})
    with pytest.raises(tts.InputError):
        load_benchmark("owner/name@v1:part", split="dev")
    assert asked[-1] == (("owner/name", "part"), {"split": "dev", "revision": "v1"})


def test_the_error_offline_explains_local_copies():
    code = "from tts.evals.benchmarks import load_benchmark\ntry: load_benchmark('aime24')\nexcept ValueError as e: print(e)"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(Path("empty").resolve())}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120, check=True
    )
    assert done.stdout.startswith("cannot load HuggingFaceH4/aime_2024, split train: ")
    assert "hf download HuggingFaceH4/aime_2024 --repo-type dataset --local-dir DIR, then --data-dir DIR" in done.stdout


def test_every_named_benchmark_carries_its_instruction_unless_another_is_given():
    assert {source.told for name, source in PUBLISHED.items() if name != "gpqa-diamond"} == {BOXED}
    folder([AIME | {"id": 60, "problem": "Walk.", "answer": "033"}], "train")
    for given, kept, asked in (
        (None, BOXED, f"Walk.\n\n{BOXED}"), ("none", "none", "Walk."), ("In words.", "In words.", "Walk.\n\nIn words."),
    ):  # fmt: skip
        benchmark = load_benchmark("aime24", data_dir="data", instruction=given)
        assert (benchmark.instruction, benchmark.problems[0].full_prompt) == (kept, asked)
        assert benchmark.problems[0].prompt == "Walk."  # what reward models and results.jsonl see


def test_a_configuration_of_a_local_copy_is_found():
    rows = [{"question": "main?", "answer": "#### 1"}], [{"question": "socratic?", "answer": "#### 2"}]
    for name, part in zip(("main", "socratic"), rows, strict=True):
        Path("copy", name).mkdir(parents=True)
        datasets.Dataset.from_list(part).to_parquet(f"copy/{name}/test-00000-of-00001.parquet")
    configs = [f"- config_name: {n}\n  data_files:\n  - split: test\n    path: {n}/test-*\n" for n in ("main", "socratic")]
    Path("copy/README.md").write_text("---\nconfigs:\n" + "".join(configs) + "---\n")
    assert [p.prompt for p in load_benchmark("gsm8k", data_dir="copy").problems] == ["main?"]


def test_olympiadbench_is_its_english_open_ended_mathematics_without_pictures():
    odd = [{"subject": "Physics"}, {"language": "Chinese"}, {"modality": "Multimodal"}, {"question_type": "Theorem proof"}, {}]
    rows = [{"id": i, "question": "Let T.", "final_answer": ["1", "$-1$"], **OLYMPIAD, **part} for i, part in enumerate(odd)]
    [problem] = load_benchmark("olympiadbench", data_dir=folder(rows, "train")).problems
    assert (problem.id, problem.answer) == ("4", "1, -1")


def test_choices_are_shuffled_by_the_seed():
    name = folder([{**GPQA, "Record ID": f"rec{i}"} for i in range(40)], "train")
    first, again, other = (load_benchmark("gpqa-diamond", seed=seed, data_dir=name).problems for seed in (0, 0, 1))
    assert first == again != other
    assert {problem.answer for problem in first} == set("ABCD")
    for problem in first:
        assert f"\n{problem.answer}) 10^-4 eV\n" in f"{problem.prompt}\n"
        assert problem.grader == "letter"
        assert problem.prompt.startswith("Which one?\n\nA) ")
        assert problem.full_prompt == f"{problem.prompt}\n\n{LETTER}"


def test_files_of_your_own_with_fields_of_their_own():
    rows = [{"q": "1+1?", "a": "2", "n": "x"}, {"q": "2+2?", "a": "04", "n": "y"}]
    Path("my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Path("my.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["q", "a", "n"])
        writer.writeheader()
        writer.writerows(rows)
    datasets.Dataset.from_list(rows).to_parquet("my.parquet")
    for name in ("my.jsonl", "my.csv", "my.parquet"):
        problems = load_benchmark(name, question_field="q", answer_field="a", id_field="n", grader="exact").problems
        assert [(p.id, p.prompt, p.answer, p.grader) for p in problems] == [
            ("x", "1+1?", "2", "exact"), ("y", "2+2?", "04", "exact")
        ]  # fmt: skip
    assert [p.id for p in load_benchmark("my.csv", question_field="q").problems] == [id_of("1+1?"), id_of("2+2?")]
    assert [p.answer for p in load_benchmark("my.csv", question_field="q").problems] == [None, None]
    Path("place").mkdir()
    Path("my.jsonl").rename("place/test.jsonl")
    assert len(load_benchmark("place", question_field="q", answer_field="a").problems) == 2


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"name": "my.jsonl"}, "my.jsonl, line 1: no string under `problem`; the row has q, a; name the field with --q"),
        ({"name": "my.jsonl", "question_field": "q", "answer_field": "b"}, "no value under `b`; the row has q, a; name"),
        ({"name": "my.jsonl", "question_field": "q", "id_field": "n"}, "the row has q, a; name the field with --id-field"),
        ({"name": "my.jsonl", "split": "test"}, "my.jsonl is a file: omit --split and --data-dir"),
        ({"name": "arith", "split": "dev"}, "--split is 'dev', but arith is made by code and has none"),
        ({"name": "math50"}, "Did you mean 'math500'?"),
        (
            {"name": "math500", "data_dir": "nowhere"},
            "no folder nowhere; --data-dir takes a folder with the files of HuggingFaceH4/",
        ),
        ({"name": "gsm8k", "data_dir": "data"}, "data, row 1: no string under `question`; the row has x, answer"),
        (
            {"name": "gsm8k", "data_dir": "data", "question_field": "x"},
            'the answer is "72"; expected a solution that ends in ####',
        ),
        ({"name": "gsm8k", "data_dir": "data", "split": "dev"}, "cannot load data, split dev: "),
        ({"name": "my.jsonl", "question_field": "q", "grader": "mth"}, "no grader named 'mth'"),
        ({"name": "torn.parquet"}, "cannot read torn.parquet: "),
    ],
)
def test_errors_are_one_line_that_says_what_was_expected(arguments, complaint):
    Path("my.jsonl").write_text('{"q": "1+1?", "a": "2"}\n')
    Path("torn.parquet").write_text("PAR")
    folder([{"x": "?", "answer": "72"}])
    with pytest.raises(tts.InputError) as refused:
        load_benchmark(**arguments)
    assert complaint in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_problems_are_shuffled_by_the_seed_before_the_limit_is_applied():
    Path("my.jsonl").write_text("".join(f'{{"problem": "{i}?", "answer": {i}}}\n' for i in range(50)))
    in_order = load_benchmark("my.jsonl").problems
    shuffled, again, other = (load_benchmark("my.jsonl", shuffle=True, seed=seed).problems for seed in (0, 0, 1))
    assert shuffled == again != other
    assert shuffled != in_order
    assert sorted(shuffled, key=lambda p: int(p.answer)) == in_order
    assert load_benchmark("my.jsonl", 5, shuffle=True).problems == shuffled[:5]


def test_jsonl_needs_no_datasets():
    Path("my.jsonl").write_text('{"problem": "1+1?", "answer": 2}\n')
    code = "import sys; from tts.evals.benchmarks import load_benchmark; load_benchmark('my.jsonl');"
    code += " print([m for m in ('datasets', 'pyarrow', 'math_verify') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_repetitions_are_rows_of_their_own_with_other_samples(engine):
    summary = tts.run("single", limit=4, repeat=3, max_tokens=200, out="r", engine_instance=engine)
    rows = {record.id: record for record in RunStore.open(Path("r")).records()}
    assert set(rows) == {f"arith-{i}{suffix}" for i in range(4) for suffix in ("", "#2", "#3")}
    assert (summary.problems, summary.repeat, summary.to_json()["repeat"]) == (12, 3, 3)
    assert summary.accuracy.value == pytest.approx(sum(row.correct for row in rows.values()) / 12)
    assert len({rows[f"arith-0{suffix}"].candidates[0].text for suffix in ("", "#2", "#3")}) > 1
    tts.run("single", limit=4, max_tokens=200, out="once", engine_instance=engine)
    once = {record.id: record for record in RunStore.open(Path("once")).records()}
    assert all(rows[name] == once[name] for name in once)
    with pytest.raises(tts.InputError, match="r was started with --repeat 3, not 2"):
        tts.run(resume="r", repeat=2, engine_instance=engine)


def test_intervals_are_over_problems_not_repetitions():
    values = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0]  # two problems, three times
    assert _over_problems(values, [*"ababab"]) == estimate([2 / 3, 2 / 3])
    assert _over_problems(values, [*"abcdef"]) == estimate(values)


def test_an_id_that_a_repetition_would_take_is_refused():
    Path("my.jsonl").write_text('{"problem": "x", "id": "a"}\n{"problem": "y", "id": "a#2"}\n')
    with pytest.raises(tts.InputError, match="the id 'a#2' is what a repetition would be called"):
        load_benchmark("my.jsonl", repeat=2)
    assert len(load_benchmark("my.jsonl").problems) == 2


def test_the_grader_of_a_run_is_its_benchmarks_or_the_one_given(engine):
    Path("mine.py").write_text("def never(answer, reference):\n    return False\n")
    options = {"limit": 2, "max_tokens": 200, "engine_instance": engine, "temperature": 0.0}
    assert tts.run("single", out="a", grader="mine.py:never", **options).accuracy.value == 0
    assert tts.run("single", out="b", **options).graded == 2
    assert json.loads(Path("a/run.json").read_text())["settings"]["grader"] == "mine.py:never"

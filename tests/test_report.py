"""Reports: numbers that equal the run's, texts that stay texts, and the page in a headless browser."""

from __future__ import annotations

import csv
import json
import random
import re
import shutil
import sys
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO
from itertools import product
from pathlib import Path

import pytest
from rich.console import Console

from tts.data.records import Attempt, Record
from tts.data.store import RunStore
from tts.errors import InputError
from tts.evals.calibration import calibration, reward_length_correlation
from tts.evals.load import load_run
from tts.evals.summary import Seconds, summarize
from tts.options import configure, kept
from tts.runs.settings import RunSettings
from tts.show.browse import list_runs, printable, rated_steps, show_problem, twigs
from tts.show.report import pareto, write_report
from tts.show.sample import Sample
from tts.strategies import get_strategy
from tts.types import REPEATS, Branch, Reward, Usage

HOSTILE = [
    "<script>alert(1)</script>", "</textarea><img src=x onerror=alert(2)>", "</script><script>alert(3)</script>", "{{7*7}}",
    "{% raw %} <!-- ]]> &lt;b&gt;", "\u05e9\u05dc\u05d5\u05dd \u202edlrow\u202c", "zero\u200bwidth\u2028line",
    "\U0001f469\u200d\U0001f467", "half \ud83d", "[red]markup[/red]", "\x1b[31mescape\x07", "javascript:alert(4)",
]  # fmt: skip


def attempt(steps, *, rewards=None, final=None, answer="1", correct=True, finish="stop", score=0.0):
    tokens = (3,) * len(steps)
    return Attempt(tuple(steps), tokens, finish, score, rewards, final, answer, 0, correct)


def sampled(i, n=4):
    """A problem with n candidates of three steps; the reward tells the right ones most of the time."""
    rng = random.Random(i)
    pool = []
    for _ in range(n):
        right = rng.random() < 0.5
        rewards = tuple(min(1.0, max(0.0, rng.gauss(0.7 if right else 0.3, 0.2))) for _ in range(3))
        final = rewards[-1]
        steps = ["<think>\nlook\n\n", "go on\n</think>\n\n", "so it is"]
        pool.append(attempt(steps, rewards=rewards, final=final, answer="1" if right else "2", correct=right,
                            score=sum(rewards) / 3 + final))  # fmt: skip
    choice = max(range(n), key=lambda k: pool[k].score)
    usage = Usage(generated=9 * n, prompt=5, scored=12 * n, calls=1)
    return Record(f"p-{i}", f"problem number {i}", "1", tuple(pool), choice, pool[choice].correct, usage)


def searched(i):
    steps = ["first\n\n", "second\n\n", "end"]
    tree = (
        Branch(None, 0, steps[0], 3, "step", 0.9, "kept"),
        Branch(None, 0, steps[0], 3, "step", None, "pruned", REPEATS),
        Branch(None, 0, "astray\n\n", 3, "step", 0.1, "pruned", "not among the best"),
        Branch(0, 1, steps[1], 3, "step", 1.6, "kept"),
        Branch(3, 2, steps[2], 3, "stop", 1.8, "returned"),
    )
    done = attempt(steps, rewards=(0.9, 0.8, 0.9), final=0.9, score=1.8)
    return Record(f"p-{i}", f"problem number {i}", "1", (done,), 0, True, Usage(generated=20, scored=30, calls=3), tree=tree)


def make_run(folder, records, strategy="bon", **options):
    store = RunStore.create(
        Path(folder), kept(RunSettings(strategy=strategy, options=options)), {"started": "2026-01-02T03:04:05+0000"}
    )
    for record in records:
        store.append(record, {"id": record.id})
    summary = summarize(
        records, configure(get_strategy(strategy), options), name=strategy, benchmark="b", cached=0,
        seconds=Seconds(2.0, 1.5, 0.5), run=str(folder), reward=lambda a: Reward(a.rewards or (), a.final),
    )  # fmt: skip
    store.write_summary(summary.to_json())
    return Path(folder)


@pytest.fixture
def runs():
    return [make_run("bon-run", [sampled(i) for i in range(12)], n=4),
            make_run("beam-run", [searched(i) for i in range(12)], "beam", n=4, width=2)]  # fmt: skip


@pytest.fixture
def hostile():
    """Every hostile text wherever a text can stand."""
    records = [
        Record(f"id {text}", text, text,
               (attempt([f"<think>{text}\n\n", f"{text}</think>\n\n", f"so {text}"], rewards=(0.1, 0.5, 0.9), answer=text),),
               0, True, Usage(generated=9, calls=1), tree=(Branch(None, 0, text, 3, "stop", 0.5, "pruned", text),))
        for text in HOSTILE
    ]  # fmt: skip
    broken = Record("broken", "p", "1", (), None, None, Usage(), f"ValueError: {HOSTILE[0]}")
    return make_run("hostile <b>", [*records, broken], n=1)


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def shown(renderable):
    console = Console(width=200, file=StringIO(), highlight=False)
    console.print(renderable)
    return console.file.getvalue()


def test_the_numbers_are_the_summarys(runs):
    out = write_report(runs, Path("out/report.html"), title="A title")
    assert "<h1>A title</h1>" in out.read_text()
    files = Path("out/report_files")
    summaries = [json.loads((run / "summary.json").read_text()) for run in runs]
    for row, summary in zip(table(files / "runs.csv"), summaries, strict=True):
        assert float(row["accuracy"]) == summary["accuracy"]
        assert [float(row["low"]), float(row["high"])] == summary["ci"]
        assert all(float(row[key]) == summary[key] for key in ("pass@1", "majority", "pass@n"))
        assert int(row["generated"]) == summary["usage"]["generated"]
    curve = [row for row in table(files / "accuracy-n.csv") if row["run"] == "bon-run"]
    assert [(int(r["n"]), float(r["accuracy"]), float(r["low"]), float(r["high"])) for r in curve] == [
        (p["n"], p["accuracy"], *p["ci"]) for p in summaries[0]["curve"]
    ]
    cost = table(files / "accuracy-cost.csv")
    assert [float(row["generated"]) for row in cost] == [9, 18, 36, 20]
    assert [row["scored"] for row in cost] == ["", "", "48.0", "30.0"]
    assert cost[-1]["front"] == "generated scored seconds"
    problems = table(files / "problems.csv")
    assert len(problems) == 24
    for row, record in zip(problems, load_run(runs[0]).records, strict=False):
        assert (row["outcome"] == "right", int(row["right"])) == (record.correct, sum(a.correct for a in record.candidates))
    bins = [row for row in table(files / "calibration.csv") if row["run"] == "bon-run"]
    assert sum(int(row["candidates"]) for row in bins) == 48


def test_a_report_samples_the_same_problems_of_all_runs_and_says_so(runs):
    said = []
    for order in (runs, runs[::-1]):
        page = write_report(order, Path("r.html"), problems=5, complain=said.append).read_text()
        data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])
        assert [len(data["problems"]), len(data["chunks"])] == [5, 5]
        assert all(len(entry["results"]) == 2 for entry in data["problems"])
        assert "5 of the 12 problems" in page
        assert "do not have the same problems" not in page
        assert len(table(Path("r_files/problems.csv"))) == 24
    assert sum("5 of 12 problems" in line for line in said) == 2
    assert "of the 12 problems" not in write_report(runs, Path("r.html")).read_text()


def test_a_report_of_huge_rows_shows_fewer_of_them():
    sample = Sample(limit=100, characters=1000)
    records = [replace(sampled(i), candidates=(attempt(["x" * 300]),), choice=0) for i in range(20)]
    for run in (0, 1):
        for record in records:
            sample.add(run, record)
    assert sample.problems == 20
    assert [len(entry) for entry in sample.entries] == [2]
    assert not sample.mixed(2)


def test_plots_are_written_or_the_report_says_how_to_get_them(runs, monkeypatch):
    pytest.importorskip("matplotlib")
    write_report(runs, Path("a.html"))
    kinds = {path.name for path in Path("a_files").iterdir()}
    assert {f"{name}.{kind}" for name, kind in product(("accuracy-n", "accuracy-cost", "calibration"), ("png", "svg"))} < kinds
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = []
    write_report(runs, Path("b.html"), complain=said.append)
    assert len(said) == 1
    assert "tts-toolkit[report]" in said[0]
    assert Path("b.html").exists()
    assert {path.suffix for path in Path("b_files").iterdir()} == {".csv"}


def test_hostile_texts_cannot_break_out_of_their_place_in_the_file(hostile):
    page = write_report([hostile], Path("r.html")).read_text(encoding="utf-8")
    assert len(re.findall("<script", page)) == len(re.findall("</script>", page)) == 2
    assert "alert(1)</script>" not in page
    assert "hostile <b>" not in page
    assert "http://www.w3.org/2000/svg" in page
    assert not re.search(r"(?:src|href)=(?!\"#)", page.split("<script", 1)[0])


def test_a_cell_is_never_a_formula():
    record = Record("=1+1", "p", "-3", (attempt(["x"], answer="@SUM(A1)"),), 0, True, Usage(calls=1))
    write_report([make_run("r", [record], n=1)], Path("r.html"))
    assert [(row["id"], row["reference"], row["answer"]) for row in table(Path("r_files/problems.csv"))] == [
        ("'=1+1", "-3", "'@SUM(A1)")
    ]


def test_runs_that_cannot_be_reported_are_one_line(runs):
    for folders, out, words in (
        ([], "r.html", "at least one"),
        ([Path("nowhere")], "r.html", "no such folder"),
        (runs, "r.pdf", r"\.html"),
        (runs, "bon-run/run.json/r.html", "cannot write"),
    ):
        with pytest.raises(InputError, match=words) as error:
            write_report(folders, Path(out))
        assert "\n" not in str(error.value)
    (runs[0] / "summary.json").unlink()
    with pytest.raises(InputError, match="--resume bon-run"):
        write_report(runs, Path("r.html"))
    (runs[1] / "results.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(InputError, match="a row that cannot be read"):
        write_report(runs[1:], Path("r.html"))


def test_a_run_without_answers_is_reported_without_accuracies():
    record = Record("p", "?", None, (attempt(["x"], correct=None),), 0, None, Usage(generated=3, calls=1))
    assert "nothing is graded" in write_report([make_run("r", [record], n=1)], Path("r.html")).read_text()


# Reading runs


def test_rewards_are_paired_with_the_part_that_was_rated():
    steps = ["<think>a\n\n", "b\n\n", "c</think>\n\n", "d\n\n", "e"]
    every, some = (0.1, 0.2, 0.3, 0.4, 0.5), (0.4, 0.5)
    assert [[s.reward for s in part] for part in rated_steps(attempt(steps, rewards=every), None)] == [
        [0.1, 0.2, 0.3],
        [0.4, 0.5],
    ]
    assert [[s.reward for s in part] for part in rated_steps(attempt(steps, rewards=some), None)] == [[None] * 3, [0.4, 0.5]]
    assert [[s.reward for s in part] for part in rated_steps(attempt(steps, rewards=every[:3]), "think")] == [
        [0.1, 0.2, 0.3],
        [None] * 2,
    ]
    assert all(
        s.reward is None
        for rewards in (None, (), (1.0,))
        for p in rated_steps(attempt(steps, rewards=rewards), None)
        for s in p
    )


def test_the_tree_counts_repeats_and_marks_the_chosen_branch():
    found = twigs(searched(0))
    assert [(t.branch.text.strip(), t.parent, t.copies, t.chosen) for t in found] == [
        ("first", None, 2, False), ("astray", None, 1, False), ("second", 0, 1, False), ("end", 2, 1, True),
    ]  # fmt: skip


def test_show_prints_candidates_and_tree(runs):
    text = shown(show_problem(runs[0], "p-3", candidates=2))
    assert "problem number 3" in text
    assert text.count("candidate ") == 2
    assert "and 2 more; --candidates 4" in text
    assert text.index("chosen     ") < text.index("thinking") < text.index("response")
    text = shown(show_problem(runs[1], "p-3", candidates=None))
    assert "returned  chosen" in text
    assert "drawn 2 times" in text
    assert "pruned: not among the best" in text


def test_show_of_an_unknown_problem_names_close_ones(runs):
    with pytest.raises(InputError, match="p-1"):
        show_problem(runs[0], "p-111", candidates=None)
    with pytest.raises(InputError, match="at least 1"):
        show_problem(runs[0], "p-1", candidates=0)


def test_a_terminal_gets_no_control_characters_from_a_model(hostile):
    for text in HOSTILE:
        printed = shown(show_problem(hostile, f"id {text}", candidates=None))
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", printed)
        assert printable(text).split("\u2028")[0] in printed
    assert "failed: ValueError: <script>" in shown(show_problem(hostile, "broken", candidates=None))


def test_runs_are_listed_newest_first_with_their_errors(runs):
    root = Path("all")
    root.mkdir()
    for i, run in enumerate(runs):
        run.rename(root / run.name)
        path = root / run.name / "run.json"
        path.write_text(path.read_text().replace("2026-01-02", f"2026-01-0{i + 3}"))
    (root / "beam-run/summary.json").unlink()
    (root / "torn").mkdir()
    (root / "torn/run.json").write_text("{")
    (root / "no-run").mkdir()
    text = shown(list_runs(root))
    assert text.index("beam-run") < text.index("bon-run") < text.index("torn")
    assert re.search(r"beam-run +beam +4 +arith +arith-policy +12 +unfinished +2026-01-04 03:04", text)
    assert re.search(r"bon-run +bon +4 .*\d%", text)
    assert "cannot read the run's settings" in text
    assert "no-run" not in text
    assert "bon-run" in shown(list_runs(root / "bon-run"))
    assert "no runs in" in shown(list_runs(root / "no-run"))
    with pytest.raises(InputError, match="no folder"):
        list_runs(Path("nowhere"))


# Statistics


def test_calibration_on_a_small_case():
    rewards, correct = [0.05, 0.0, 0.1, 0.95, 1.0, 0.9], [False, True, False, True, True, False]
    found = calibration(rewards, correct)
    assert [(b.low, b.candidates) for b in found.bins] == [(0.0, 2), (0.1, 1), (0.9, 3)]
    assert [b.right for b in found.bins] == pytest.approx([0.5, 0, 2 / 3])
    assert found.error == pytest.approx((2 * abs(0.025 - 0.5) + abs(0.1) + 3 * abs(0.95 - 2 / 3)) / 6)
    assert calibration([], []).error == 0
    with pytest.raises(ValueError, match="between 0 and 1"):
        calibration([1.5], [True])


def test_calibration_against_brute_force():
    rng = random.Random(0)
    rewards = [rng.choice((rng.random(), 0.0, 0.3, 1.0)) for _ in range(300)]
    correct = [rng.random() < reward for reward in rewards]
    for bins in (1, 4, 8):
        error = 0.0
        for i in range(bins):
            inside = [k for k, r in enumerate(rewards) if i / bins <= r < (i + 1) / bins or (i == bins - 1 and r == 1)]
            error += abs(sum(rewards[k] for k in inside) - sum(correct[k] for k in inside)) / 300
        assert calibration(rewards, correct, bins).error == pytest.approx(error)


def spearman(xs, ys):
    """By the definition: a rank is one plus the smaller values plus half of the equal others."""

    def ranks(values):
        return [1 + sum(w < v for w in values) + (sum(w == v for w in values) - 1) / 2 for v in values]

    a, b = ranks(xs), ranks(ys)
    mean = (len(xs) + 1) / 2
    covariance = sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    return covariance / (sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b)) ** 0.5


@pytest.mark.parametrize("seed", range(5))
def test_rank_correlation_against_its_definition(seed):
    rng = random.Random(seed)
    rewards, lengths = [rng.randrange(6) / 5 for _ in range(30)], [rng.randrange(10) for _ in range(30)]
    assert reward_length_correlation(rewards, lengths) == pytest.approx(spearman(rewards, lengths))


def test_rank_correlation_of_simple_cases():
    assert reward_length_correlation([0.1, 0.2, 0.9], [1, 50, 51]) == pytest.approx(1)
    assert reward_length_correlation([0.1, 0.2, 0.9], [3, 2, 1]) == pytest.approx(-1)
    assert reward_length_correlation([0.5, 0.5], [1, 2]) is None


def test_the_front_is_what_no_other_point_beats():
    assert pareto([(1, 0.2), (2, 0.5), (2, 0.4), (3, 0.5), (4, 0.9), (1, 0.2)]) == [True, True, False, False, True, True]


# In a browser


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="NOT TESTED in a browser: playwright is not installed")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("NOT TESTED in a browser: no chromium, chromium-browser or google-chrome on the path")
    with playwright.sync_playwright() as driver:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = driver.chromium.launch(executable_path=found, args=flags)
        yield browser
        browser.close()


@contextmanager
def opened(chromium, page, width=1440, scheme="light"):
    """The report in a tab, which must not complain, ask the network, or raise a dialog."""
    tab, trouble = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme), []
    tab.on("console", lambda message: trouble.append(message.text))
    tab.on("pageerror", lambda error: trouble.append(str(error)))
    tab.on("dialog", lambda dialog: (trouble.append(dialog.message), dialog.dismiss()))
    tab.on("request", lambda request: trouble.append(request.url) if request.url != page.resolve().as_uri() else None)
    tab.goto(page.resolve().as_uri())
    tab.wait_for_selector(".try")
    yield tab
    assert not trouble
    tab.close()


@pytest.mark.slow
def test_the_page_filters_and_its_tree_expands(chromium, runs):
    with opened(chromium, write_report(runs, Path("r.html"))) as tab:
        assert tab.locator("#list li").count() == 12
        assert tab.locator("svg.plot").count() == 4
        tab.fill("#text", "number 11")
        assert tab.inner_text("#found") == "1 of 12 problems"
        tab.fill("#text", "")
        wrong = sum(not record.correct for record in load_run(runs[0]).records)
        assert 0 < wrong < 12
        tab.select_option("#outcome", "wrong")
        tab.select_option("#run", "0")
        assert tab.locator("#list li").count() == wrong
        tab.select_option("#outcome", "differ")
        assert tab.locator("#list li").count() == wrong
        tab.select_option("#outcome", "")
        tab.select_option("#run", "1")
        tab.locator(".try").nth(1).wait_for(state="detached")
        assert tab.get_by_text("The result").count() == 0
        returned = tab.locator(".tree .returned")
        assert "returned, chosen" in returned.inner_text()
        tab.locator(".tree summary").first.click()
        assert not returned.is_visible()
        tab.get_by_role("button", name="Expand all").click()
        assert returned.is_visible()
        assert "pruned: not among the best" in tab.inner_text(".tree")
        tab.select_option("#cost", "seconds")
        assert "seconds per problem" in tab.text_content("#against-cost svg.plot")


@pytest.mark.slow
def test_every_candidate_opens_with_its_steps(chromium, runs):
    with opened(chromium, write_report(runs[:1], Path("r.html"))) as tab:
        assert tab.locator(".candidate").count() == 4
        assert tab.locator(".step").count() == 3
        assert tab.inner_text(".candidate .badge") == "chosen"
        tab.get_by_role("button", name="Open all").click()
        tab.locator(".step").nth(11).wait_for()
        assert tab.locator(".thinking .step").count() == 8


@pytest.mark.slow
def test_the_keyboard_reaches_a_problem(chromium, runs):
    with opened(chromium, write_report(runs, Path("r.html"))) as tab:
        tab.focus("#run")
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.dataset.problem") == "0"
        assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
        tab.keyboard.press("ArrowDown")
        tab.keyboard.press("ArrowDown")
        tab.locator("#problem h3", has_text="p-2").first.wait_for()
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.querySelector('#problem').contains(document.activeElement)")


@pytest.mark.slow
def test_hostile_texts_are_shown_but_never_executed(chromium, hostile):
    with opened(chromium, write_report([hostile], Path("r.html"))) as tab:
        for text in HOSTILE:
            expected = text.replace("\ud83d", "")  # a browser shows a sign in its place
            tab.locator("#list button", has_text=f"id {expected}").first.click()
            tab.locator("#problem h3 .untrusted", has_text=f"id {expected}").wait_for()
            for place in (".prompt", ".facts dd", ".thinking .step", ".response .step", ".tree .row", ".answer"):
                assert expected in tab.locator(place).first.text_content()
        assert tab.locator("#problem img, #problem script, #problem b").count() == 0
        tab.fill("#text", "broken")
        tab.locator("#list button").click()
        tab.wait_for_selector(".try .facts .wrong")
        assert HOSTILE[0] in tab.inner_text("#problem")


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1440])
def test_the_page_does_not_scroll_sideways(chromium, runs, width):
    with opened(chromium, write_report(runs, Path("r.html")), width) as tab:
        tab.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate("document.querySelector('#problem').getBoundingClientRect().right") <= width


CONTRASTS = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (v) => v / 255 <= .04045 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
  const colour = (node, name) => rgb(getComputedStyle(node)[name]);
  const paper = (node) => {
    const own = colour(node, "backgroundColor");
    return own[3] === 0 ? paper(node.parentElement) : own;
  };
  const says = (node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
  return [...document.querySelectorAll("body *")]
    .filter((node) => node.checkVisibility() && !node.closest("svg") && says(node))
    .map((node) => {
      const [dark, bright] = [light(colour(node, "color")), light(paper(node))].sort((a, b) => a - b);
      return [(bright + .05) / (dark + .05), `${node.tagName}.${node.className} ${node.textContent.slice(0, 30)}`];
    })
    .sort((a, b) => a[0] - b[0]);
}"""
"""WCAG's contrast of every text that is seen, the lowest first."""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_enough_contrast(chromium, runs, scheme):
    with opened(chromium, write_report(runs, Path("r.html")), scheme=scheme) as tab:
        contrasts = tab.evaluate(CONTRASTS)
        assert len(contrasts) > 100
        assert contrasts[0][0] >= 4.5, contrasts[0]
        paper = tab.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", paper)[:3])) > 380) == (scheme == "light")

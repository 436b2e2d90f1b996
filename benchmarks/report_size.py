"""Size of a report with many long traces, and how soon a browser shows it. Targets: 25 MB and 3 seconds.

python benchmarks/report_size.py --problems 500 --candidates 64
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
from pathlib import Path

import cyclopts

from tts.data.records import Attempt, Record
from tts.data.store import RunStore
from tts.evals.load import load_run
from tts.evals.summary import Seconds, summarize
from tts.options import configure, kept
from tts.runs.settings import RunSettings
from tts.show.report import write_report
from tts.strategies import get_strategy
from tts.types import Reward, Usage

SYLLABLES = ["ba", "ce", "di", "fo", "gu", "ha", "ke", "li", "mo", "nu", "pra", "que", "ri", "sto", "tu", "va", "we", "zen"]


def words(rng, count):
    """Return a vocabulary about as large as that of a model's traces on one benchmark."""
    return ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(count)]


def make_run(folder, problems, candidates, steps, length, seed=0):
    """Write a run folder of best-of-n with random traces, answers and rewards."""
    rng = random.Random(seed)
    known = words(rng, 5000)
    often = [1 / (rank + 1) for rank in range(len(known))]  # Zipf's law
    store = RunStore.create(folder, kept(RunSettings(options={"n": candidates})), {"started": "2026-01-01T00:00:00+0000"})

    def trace():
        drawn = iter(rng.choices(known, often, k=steps * length))
        lines = [" ".join(next(drawn) for _ in range(length)) for _ in range(steps)]
        return "<think>\n" + "\n\n".join(lines[: steps // 2]) + "\n</think>\n\n", "\n\n".join(lines[steps // 2 :])

    def attempt():
        thinking, response = trace()
        rewards, right = tuple(rng.random() for _ in range(steps)), rng.random() < 0.5
        final, answer = rng.random(), "42" if right else str(rng.randrange(100, 110))
        parts = tuple(f"{part}\n\n" for part in (thinking + response).split("\n\n") if part)
        score = sum(rewards) / steps + final
        return Attempt(parts, (length,) * steps, "stop", score, rewards, final, answer, int(answer), right)

    for i in range(problems):
        pool = tuple(attempt() for _ in range(candidates))
        choice = max(range(candidates), key=lambda k: pool[k].score)
        usage = Usage(generated=candidates * steps * length, prompt=60, scored=candidates * steps * (length + 1), calls=1)
        prompt = " ".join(rng.choices(known, often, k=60))
        store.append(Record(f"problem-{i}", prompt, "42", pool, choice, pool[choice].correct, usage), {"id": f"problem-{i}"})
    summary = summarize(
        load_run(folder).records, configure(get_strategy("bon"), {"n": candidates}), name="bon", benchmark="synthetic",
        cached=0, seconds=Seconds(1.0, 1.0, 1.0), run=str(folder), reward=lambda a: Reward(a.rewards, a.final),
    )  # fmt: skip
    store.write_summary(summary.to_json())


def seconds_to_open(page):
    """Return the seconds until headless Chromium shows the first problem, has filtered the list, and shows another problem."""
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=found, args=flags)
        tab, begin = browser.new_page(), time.perf_counter()
        tab.goto(page.resolve().as_uri())
        tab.wait_for_selector(".candidate .step")
        opened = time.perf_counter() - begin
        begin = time.perf_counter()
        tab.fill("#text", "problem-7")
        tab.locator("#found", has_text=" of ").wait_for()
        filtered = time.perf_counter() - begin
        begin = time.perf_counter()
        tab.click("#list button[data-problem='70']")
        tab.locator("#problem h3 .untrusted", has_text="problem-70").wait_for()
        switched = time.perf_counter() - begin
        browser.close()
    return opened, filtered, switched


def main(problems: int = 500, candidates: int = 64, steps: int = 10, length: int = 12) -> None:
    """Print sizes and times as JSON.

    Args:
        problems: Problems of the run.
        candidates: Candidates per problem.
        steps: Steps per candidate.
        length: Words per step.
    """
    with tempfile.TemporaryDirectory() as folder:
        make_run(Path(folder, "run"), problems, candidates, steps, length)
        rows, begin = Path(folder, "run", "results.jsonl").stat().st_size, time.perf_counter()
        page = write_report([Path(folder, "run")], Path(folder, "report.html"))
        written = time.perf_counter() - begin
        opened, filtered, switched = seconds_to_open(page)
        figures = {
            "results.jsonl MB": round(rows / 1e6, 1), "report MB": round(page.stat().st_size / 1e6, 1),
            "seconds to write": round(written, 1), "seconds to open": round(opened, 2),
            "seconds to filter": round(filtered, 2), "seconds to another problem": round(switched, 2),
        }  # fmt: skip
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    cyclopts.run(main)

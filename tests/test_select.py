from __future__ import annotations

import json
import math
import random
import struct
import sys
from pathlib import Path

import pytest

import tts
from tests.killing import run_killed
from tts.cli import main
from tts.errors import InputError
from tts.runs.score import score_file
from tts.runs.settings import ScoreSettings
from tts.train.select.pipeline import select_file
from tts.train.select.selection import Histogram
from tts.train.settings import SelectSettings
from tts.types import Reward

PROMPT = "Start with 7.\n1) multiply by 8\n2) multiply by 5\nWhat is the last digit?"
TEXT = "<think>\n1) 7*8=6\n\n2) 6*5=0\n</think>\n\nmultiply by 8 gives 6\n\nThe result is \\boxed{0}"


def write(path, *rows):
    path = Path(path)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def trace(problem="p", text="a", rewards=(0.5,), final=0.5, **fields):
    return {"problem": problem, "text": text, "step_rewards": list(rewards), "final": final, **fields}


def choose(rows, out="out.jsonl", scorer_instance=None, complain=None, **settings):
    """The chosen rows of a pool of rows, or of a file."""
    pool = rows if isinstance(rows, Path) else write("pool.jsonl", *rows)
    Path(out).unlink(missing_ok=True)
    selection = select_file(
        SelectSettings(pool=pool, out=Path(out), **settings), scorer_instance=scorer_instance, complain=complain
    )
    return selection, read(out)


def command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["tts", "select", *arguments])
    with pytest.raises(SystemExit) as ended:
        sys.exit(main(sys.argv[1:]))
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


def texts(rows):
    return [row["text"] for row in rows]


def scores(rows):
    return [row["selected"]["score"] for row in rows]


def made_up(rng, size):
    """A pool with many ties and copies, and traces with and without a thinking part."""
    rows = []
    for i in range(size):
        if rows and rng.random() < 0.3:
            row = dict(rng.choice(rows))
            row["text"] = row["text"].replace("\n\n", "\n \n\n\n") if rng.random() < 0.5 else row["text"]
            steps = len(row["step_rewards"])
        else:
            thinking, response = rng.randrange(3), rng.randrange(1, 3)
            parts = [f"step {rng.randrange(40)}" for _ in range(thinking + response)]
            head = "<think>\n" + "\n\n".join(parts[:thinking]) + "\n</think>\n\n" if thinking else ""
            steps = thinking + response
            row = {"problem": f"problem {rng.randrange(size // 4 + 1)}", "text": head + "\n\n".join(parts[thinking:]),
                   "response_steps": response, "correct": rng.choice([True, False, None])}  # fmt: skip
        rewards, final = [rng.randrange(5) / 4 for _ in range(steps)], rng.randrange(3) / 2
        rows.append(row | {"id": f"t{i}", "step_rewards": rewards, "final": final, "stats": {"length": rng.randrange(6)}})
    return rows


def by_hand(rows, score, dedup=False, threshold=None, per_problem=None, top=None):
    """The same rules, applied row by row."""
    ranked = sorted(enumerate(rows), key=lambda pair: (-score(pair[1]), pair[0]))
    chosen, seen, counts = [], set(), {}
    for _, row in ranked:
        key = row["problem"], " ".join(row["text"].split())
        if dedup and key in seen:
            continue
        seen.add(key)
        if threshold is not None and score(row) < threshold:
            continue
        counts[row["problem"]] = counts.get(row["problem"], 0) + 1
        if per_problem is not None and counts[row["problem"]] > per_problem:
            continue
        chosen.append(row)
    if top is not None:
        k = max(1, math.floor(float(top[:-1]) * len(rows) / 100 + 0.5)) if top.endswith("%") else int(top)
        chosen = chosen[:k] if k <= len(chosen) else None
    return chosen


RANKINGS = {
    "r_hat": ({}, lambda row: Reward(tuple(row["step_rewards"]), row["final"]).total),
    "alpha": ({"alpha": -0.3}, lambda row: Reward(tuple(row["step_rewards"]), row["final"], alpha=-0.3).total),
    "min": ({"aggregate": "min"}, lambda row: min(row["step_rewards"]) + row["final"]),
    "final": ({"aggregate": "final", "alpha": 0.0}, lambda row: row["final"]),
    "response": (
        {"by": "response"},
        lambda row: Reward(tuple(row["step_rewards"][-row["response_steps"] :])).aggregate("mean"),
    ),
    "field": ({"by": "stats.length"}, lambda row: row["stats"]["length"]),
}


@pytest.mark.parametrize("name", RANKINGS)
def test_every_ranking_and_filter_agrees_with_an_implementation_by_hand(name):
    settings, score = RANKINGS[name]
    rng = random.Random(name)
    for _ in range(25):
        rows = made_up(rng, rng.randrange(1, 40))
        filters = {
            "dedup": rng.random() < 0.5,
            "threshold": rng.choice([None, *map(score, rows)]),
            "per_problem": rng.choice([None, 1, 2, 3]),
            "top": rng.choice([None, "1", "3", "9", "10%", "37.5%", "100%"]),
        }
        expected = by_hand(rows, score, **filters)
        if expected is None:
            with pytest.raises(InputError, match="more than there are"):
                choose(rows, **settings, **filters)
            continue
        selection, chosen = choose(rows, **settings, **filters)
        assert [row["id"] for row in chosen] == [row["id"] for row in expected]
        assert scores(chosen) == pytest.approx([score(row) for row in expected])
        by = settings.get("by", "r_hat")
        for rank, (row, own) in enumerate(zip(chosen, expected, strict=True), 1):
            assert row == own | {"selected": {"rank": rank, "score": row["selected"]["score"], "by": by}}
        last, known = selection.stages[-1], [row["correct"] for row in expected if row["correct"] is not None]
        assert (last.traces, last.problems) == (len(expected), len({row["problem"] for row in expected}))
        assert last.correct == (pytest.approx(sum(known) / len(known)) if known else None)
        assert last.steps == pytest.approx(sum(len(row["step_rewards"]) for row in expected) / len(expected))
        assert last.characters == pytest.approx(sum(len(row["text"]) for row in expected) / len(expected))


def test_ranking_by_the_response_uses_its_steps_alone():
    rows = [
        trace(text="<think>\na\n\nb\n</think>\n\nc", rewards=[0.9, 0.9, 0.1], final=0.9),
        trace(text="<think>\na\n</think>\n\nb\n\nc", rewards=[0.0, 0.6, 0.8], final=0.0),
        trace(text="b\n\nc", rewards=[0.2, 0.4]),
    ]
    _, chosen = choose(rows, by="response")
    assert scores(chosen) == pytest.approx([0.7, 0.3, 0.1])
    assert texts(choose(rows, by="r_hat")[1])[0] == rows[0]["text"]
    # a reward model that rates responses alone gives no rewards of thinking steps
    _, chosen = choose([rows[0] | {"step_rewards": [0.3]}, rows[1]], by="response")
    assert scores(chosen) == pytest.approx([0.7, 0.3])
    # without a response, or with the wrong number of rewards, there is nothing to rank by
    selection, chosen = choose([*rows, trace(text="<think>\na"), trace(text="a\n\nb\n\nc", rewards=[1, 1])], by="response")
    assert (len(chosen), selection.set_aside) == (3, 2)
    assert [row["error"] for row in read("out.rejected.jsonl")] == [
        "the trace has no response, which --by response needs",
        "2 step rewards for 0 thinking steps and 3 response steps",
    ]


def test_random_depends_on_the_seed_alone():
    rows = [trace(text=f"text {i}", rewards=[i / 50]) for i in range(50)]
    _, first = choose(rows, by="random", top="10")
    _, again = choose([{**row, "final": 0.1, "more": 1} for row in rows], "again.jsonl", by="random", top="10")
    _, other = choose(rows, "other.jsonl", by="random", top="10", seed=1)
    assert texts(first) == texts(again)
    assert set(texts(first)) != set(texts(other))
    assert len(set(texts(first))) == 10
    assert scores(first) == [None] * 10
    assert not Path("out.scored.jsonl").exists()
    _, bare = choose([{"problem": "p", "text": row["text"]} for row in rows], "bare.jsonl", by="random", top="10")
    assert texts(bare) == texts(first)  # rewards are not needed
    kept = [0] * 50
    for seed in range(100):
        for row in choose(rows, by="random", top="5", seed=seed)[1]:
            kept[int(row["text"].split()[1])] += 1
    assert min(kept) > 0  # 10 expected
    assert max(kept) < 28


def test_all_keeps_the_order_of_the_pool():
    rows = [trace(problem=f"p{i % 3}", text=f"text {i % 7}", rewards=[i / 20]) for i in range(20)]
    _, chosen = choose(rows, by="all")
    assert texts(chosen) == texts(rows)
    _, chosen = choose(rows, by="all", per_problem=2, dedup=True, top="5")
    assert [(row["problem"], row["text"]) for row in chosen] == [(f"p{i % 3}", f"text {i % 7}") for i in range(5)]


def test_the_best_of_several_copies_is_kept():
    rows = [
        trace(problem="p", text="a\n\nb", rewards=[0.1], id="worse"),
        trace(problem="p", text=" a\r\n\r\n\tb \n", rewards=[0.9], id="best"),
        trace(problem="p\n", text="a b", rewards=[0.9], id="later"),
        trace(problem="q", text="a\n\nb", rewards=[0.2], id="other"),
    ]
    _, chosen = choose(rows, dedup=True)
    assert [row["id"] for row in chosen] == ["best", "other"]


def test_copies_are_dropped_before_the_cap_per_problem_and_the_cap_applies_before_top():
    rows = [trace(problem="p", text="a", rewards=[r]) for r in (0.9, 0.8)]
    rows += [trace(problem="p", text="b", rewards=[0.7]), trace(problem="q", text="a", rewards=[0.1])]
    _, chosen = choose(rows, dedup=True, per_problem=2, top="3")
    assert [(row["problem"], row["text"]) for row in chosen] == [("p", "a"), ("p", "b"), ("q", "a")]


@pytest.mark.parametrize(
    ("top", "pool", "kept"),
    [
        ("10%", 4, 1),
        ("10%", 14, 1),
        ("10%", 15, 2),
        ("10%", 25, 3),
        ("12.5%", 20, 3),
        ("0.1%", 20, 1),
        ("100%", 7, 7),
        ("7", 7, 7),
    ],
)
def test_a_percentage_is_of_the_pool_rounded_half_up(top, pool, kept):
    rows = [trace(text=f"{i}") for i in range(pool)]
    _, chosen = choose(["nonsense", *rows], top=top)  # a row that cannot be ranked does not count
    assert texts(chosen) == [f"{i}" for i in range(kept)]  # ties keep the order of the pool


def test_a_percentage_is_of_the_pool_even_after_filters():
    rows = [trace(text=f"{i % 10}", rewards=[i / 100]) for i in range(100)]
    _, chosen = choose(rows, dedup=True, top="10%")
    assert len(chosen) == 10
    with pytest.raises(
        InputError, match=r"--top 11% of 100 traces is 11, more than there are \(ranked: 100, without copies: 10\)"
    ):
        choose(rows, dedup=True, top="11%")


def test_a_run_is_a_pool_with_the_rewards_of_its_candidates(engine, prm):
    tts.run("bon", n=4, limit=5, engine_instance=engine, scorer_instance=prm, out="run")
    problems = {row["id"]: row for row in read("run/results.jsonl")}
    selection, chosen = choose(Path("run/results.jsonl"), per_problem=1)
    assert selection.scored is None
    assert selection.pool == 20
    assert len(chosen) == 5
    for row in chosen:
        problem, number = row["id"].split("/")
        record = problems[problem]
        attempt = record["candidates"][int(number)]
        assert int(number) == record["choice"]  # best-of-n chooses by r_hat too
        assert row["problem"] == record["problem"]
        assert row["answer"] == record["answer"]
        assert row["text"] == "".join(attempt["steps"])
        assert row["correct"] == attempt["correct"]
        assert row["step_rewards"] == attempt["rewards"]
        assert row["selected"]["score"] == pytest.approx(attempt["score"])
    _, by_score = choose(Path("run/results.jsonl"), by="score", per_problem=1)
    assert [row["id"] for row in by_score] == [row["id"] for row in chosen]
    _, right = choose(Path("run/results.jsonl"), by="correct", threshold=1)
    assert len(right) == sum(attempt["correct"] for row in problems.values() for attempt in row["candidates"])
    selection, again = choose(Path("out.jsonl"), "again.jsonl", by="all")  # the output is a pool again
    assert texts(again) == texts(right)


def test_a_run_without_rewards_is_scored(engine, prm):
    tts.run("majority", n=3, limit=2, engine_instance=engine, scorer_instance=prm, out="run")
    complaints = []
    selection, chosen = choose(Path("run/results.jsonl"), scorer_instance=prm, complain=complaints.append)
    assert selection.scored == Path("out.scored.jsonl")
    assert len(chosen) == 6
    assert len({row["id"] for row in chosen}) == 6
    assert complaints == ["run/results.jsonl has no rewards; scoring it with arith-prm first (choose another with --scorer)"]


def test_a_pool_is_scored_if_it_has_no_rewards_or_a_scorer_is_given(prm):
    pool = write("pool.jsonl", *[{"problem": PROMPT, "text": f"1) 7*8={i}", "more": i} for i in range(10)], "nonsense")
    score_file(ScoreSettings(traces=pool, out=Path("scores.jsonl")), scorer_instance=prm)
    totals = {row["more"]: row["total"] for row in read("scores.jsonl")}
    best = sorted(totals, key=totals.get, reverse=True)
    selection, chosen = choose(pool, scorer_instance=prm, top="3")
    assert [row["more"] for row in chosen] == best[:3]
    assert scores(chosen) == pytest.approx([totals[i] for i in best[:3]])
    assert (selection.pool, selection.set_aside, selection.rejected) == (11, 1, (Path("out.scored.rejected.jsonl"),))
    # existing rewards are used unless a scorer is given
    upside_down = [row | {"step_rewards": [-row["total"]], "final": 0} for row in read("scores.jsonl")]
    selection, chosen = choose(upside_down, "kept.jsonl", scorer_instance=prm)
    assert (selection.scored, [row["more"] for row in chosen]) == (None, best[::-1])
    selection, chosen = choose(upside_down, "anew.jsonl", scorer="arith-prm", scorer_instance=prm)
    assert [row["more"] for row in chosen] == best
    # another scorer: shorter is better
    _, chosen = choose([{"problem": "p", "text": "a " * i} for i in (3, 1, 2)], "short.jsonl", scorer="length")
    assert texts(chosen) == ["a ", "a a ", "a a a "]


def test_a_scored_pool_can_be_ranked_anew_with_another_alpha(prm):
    write("pool.jsonl", *[{"problem": PROMPT, "text": "\n\n".join(f"{j}) 7*8={i}" for j in range(1, 4))} for i in range(10)])
    choose(Path("pool.jsonl"), scorer_instance=prm)
    scored = read("out.scored.jsonl")
    _, chosen = choose(Path("out.scored.jsonl"), "steps.jsonl", alpha=0.0, aggregate="min", top="4")
    expected = sorted(scored, key=lambda row: -min(row["step_rewards"]))[:4]
    assert texts(chosen) == texts(expected)


@pytest.mark.slow
def test_a_selection_resumed_after_a_kill_chooses_like_an_uninterrupted_one(prm):
    rows = [{"problem": f"{PROMPT} {i}", "text": f"1) 7*8={i % 10}\n\n" * (1 + i % 5)} for i in range(600)]
    rows[7] = "nonsense"
    pool = write("pool.jsonl", *rows)
    _, whole = choose(pool, "whole.jsonl", top="50", scorer_instance=prm)
    run_killed("tts.data.stream:FileSink.add", 3, "select", "pool.jsonl", "--out", "out.jsonl", "--top", "50")
    scored = Path("out.scored.jsonl")
    torn = scored.read_bytes()
    assert 0 < torn.count(b"\n") < 599
    assert not Path("out.jsonl").exists()
    settings = {"pool": pool, "out": Path("out.jsonl"), "top": "50"}
    with pytest.raises(InputError, match=r"out\.scored\.jsonl exists; continue it with --resume"):
        select_file(SelectSettings(**settings), scorer_instance=prm)
    scored.write_bytes(torn[:-30])
    selection = select_file(SelectSettings(**settings, resume=True), scorer_instance=prm)
    chosen = read("out.jsonl")
    assert texts(chosen) == texts(whole)
    assert scores(chosen) == pytest.approx(scores(whole), abs=1e-5)
    assert selection.set_aside == 1
    assert [row["line"] for row in read(scored)] == [i + 1 for i in range(600) if i != 7]


def test_resume_also_starts_afresh_and_writes_the_same_file_again(prm):
    pool = write("pool.jsonl", *[{"problem": PROMPT, "text": f"1) 7*8={i}"} for i in range(5)])
    settings = {"pool": pool, "out": Path("out.jsonl"), "resume": True}
    select_file(SelectSettings(**settings), scorer_instance=prm)
    first = Path("out.jsonl").read_bytes()
    select_file(SelectSettings(**settings), scorer_instance=prm)
    assert Path("out.jsonl").read_bytes() == first
    with pytest.raises(InputError, match=r"out\.jsonl was started with --top null, not 2"):
        select_file(SelectSettings(**settings, top="2"), scorer_instance=prm)
    write("mine.jsonl", "precious")
    with pytest.raises(InputError, match=r"mine\.jsonl was not made by tts select"):
        select_file(SelectSettings(pool=pool, out=Path("mine.jsonl"), resume=True))
    assert Path("mine.jsonl").read_text() == "precious\n"


def test_rows_that_cannot_be_ranked_are_rejected_with_the_reason():
    good = [trace(problem="ü" * 5, text="naïve 😀", more={"x": [1, None]}), trace(text="last", rewards=[0.1])]
    bad = [
        "nonsense", "[1]", '{"problem": "p"}', '{"problem": "", "text": "a"}', "[" * 100_000,
        trace(rewards=["x"]), trace() | {"step_rewards": "high"}, trace(rewards=[float("nan")]), trace(rewards=[float("inf")]),
        trace(rewards=[10**400]), trace(final="high"), trace(rewards=[1e308, 1e308], final=1e308), trace(text="\n\n"),
        trace(rewards=[], final=None), {"id": [1], **trace()}, {"problem": "p", "candidates": [{"steps": 1}]},
        {"problem": "p", "candidates": [{"steps": [""], "rewards": [0.3], "final": 0.1}]}, b"\xff\xfe".decode("latin-1"),
    ]  # fmt: skip
    lines = [json.dumps(row) if isinstance(row, dict) else row for row in (good[0], *bad, good[1])]
    pool = Path("pool.jsonl")
    # a byte order mark, Windows line ends, blank lines, and no final newline
    pool.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(lines).encode())
    selection, chosen = choose(pool)
    assert [{k: v for k, v in row.items() if k != "selected"} for row in chosen] == good
    assert (selection.pool, selection.set_aside) == (len(bad) + 2, len(bad))
    rejected = read("out.rejected.jsonl")
    assert [row["line"] for row in rejected] == [3 + 2 * i for i in range(len(bad))]
    assert rejected[0] == {"line": 3, "error": rejected[0]["error"], "row": "nonsense"}
    errors = {row["row"][:40]: row["error"] for row in rejected}
    assert errors["[" * 40] == "not valid JSON: nested too deeply"
    assert rejected[5]["error"] == "'step_rewards' is [\"x\"]; expected a list of numbers, null without a verdict"
    assert rejected[11]["error"] == "the score is inf, which cannot be ranked"


def test_lone_surrogates_and_long_integers_are_kept():
    odd = '{"problem": "p", "text": "half a pair \\ud83d", "step_rewards": [0.5], "final": 0.5, "n": 123456789012345}'
    _, [row] = choose([odd])
    assert row["text"] == "half a pair \ud83d"
    assert row["n"] == 123456789012345


def test_fields_can_be_renamed():
    rows = [{"question": "p", "solution": f"{i}", "step_rewards": [i / 10]} for i in range(5)]
    _, chosen = choose(rows, fields={"problem": "question", "text": "solution"}, top="2", alpha=0.0)
    assert [row["solution"] for row in chosen] == ["4", "3"]


def test_pools_with_rewards_of_different_kinds_are_refused():
    complaints = []
    _, chosen = choose([trace(rewards=[r], final=None) for r in (0.1, 0.9)], complain=complaints.append)
    assert scores(chosen) == [0.9, 0.1]
    assert complaints == ["no trace has a final reward; r_hat is the mean of the step rewards alone"]
    mixed = [trace(), trace(final=None), trace()]
    with pytest.raises(InputError, match=r"1 of 3 traces in pool\.jsonl have no final reward"):
        choose(mixed)
    assert len(choose(mixed, alpha=0.0)[1]) == 3
    with pytest.raises(InputError, match=r"3 of 3 traces in pool\.jsonl have no final reward"):
        choose([trace(final=None)] * 3, aggregate="final")
    with pytest.raises(InputError, match=r"2 of 3 traces in pool\.jsonl have no rewards \(step_rewards\), the first on line 1"):
        choose([{"problem": "p", "text": "a"}, trace(), {"problem": "p", "text": "b"}])
    with pytest.raises(InputError, match=r"1 of 2 traces in pool\.jsonl have no number under 'q', the first on line 2"):
        choose([trace(q=1), trace(q="high")], by="q")


def test_an_exact_field_name_wins_over_a_dotted_path():
    rows = [trace(text="a", **{"s.t": 1, "s": {"t": 5}}), trace(text="b", s={"t": 3}), trace(text="c", s={"t": True})]
    _, chosen = choose(rows, by="s.t")
    assert list(zip(texts(chosen), scores(chosen), strict=True)) == [("b", 3), ("a", 1), ("c", 1)]


def test_an_error_leaves_no_partial_output():
    rows = [trace(text=f"{i}") for i in range(5)]
    Path("full.png").mkdir()
    with pytest.raises(InputError, match=r"cannot write to full\.png"):
        choose(rows, plot=Path("full.png"))
    assert not Path("out.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.jsonl"], "no file nothing.jsonl; give a JSONL file of traces"),
        (["empty.jsonl"], "empty.jsonl holds no traces"),
        (["bad.jsonl", "--by", "all"], "none of the 1 rows of bad.jsonl can be ranked (line 1: not valid JSON"),
        (["--top", "4"], "--top 4 is more than there are (ranked: 3); ask for at most 3, or filter less"),
        (
            ["--top", "3", "--dedup", "--threshold", "0.55", "--per-problem", "1"],
            "--top 3 is more than there are (ranked: 3, without copies: 3, at least 0.55: 2, 1 per problem: 1)",
        ),
        (["--threshold", "7"], "no trace reaches --threshold 7: r_hat is between 0.3 and 0.9; choose a lower threshold"),
        (["--by", "tokns"], "--by is 'tokns', but no trace in pool.jsonl has a number under that name. Did you mean 'tokens'?"),
        (["--by", "nothing"], "Known: r_hat, response, random, all, final, tokens, deep.er"),
        (["--top", "0"], "--top is 0; it should be a number of traces, such as 1000, or a share of the pool, such as 10%"),
        (["--top", "101%"], "--top is 101%; it should be"),
        (["--top", "0%"], "--top is 0%; it should be"),
        (["--top", "many"], "--top is many; it should be"),
        (["--per-problem", "0"], "--per-problem is '0'; it should be a whole number, at least 1"),
        (["--alpha", "nan"], "--alpha is 'nan'; it should be a number"),
        (["--aggregate", "median"], "--aggregate is 'median'; it should be mean, min, prod"),
        (["--plot", "hist.txt"], "--plot is hist.txt; it should be a file name that ends in .png"),
        (["--by", "random", "--threshold", "1"], "--by random gives no scores for --threshold to compare"),
        (["--by", "all", "--scorer", "arith-prm"], "--by all needs no rewards; omit --scorer"),
        (["--by", "response", "--aggregate", "final"], "--by response needs rewards of the response's steps"),
        (["--score-over", "response"], "--score-over is about a scorer; name it with --scorer"),
        (["--scorer", "agreement"], "agreement compares solutions of one problem"),
        (["--field", "prompt=question"], "--field prompt is not a field of a trace; these are: id, problem"),
        (["--out", "pool.jsonl"], "--out pool.jsonl would overwrite the pool"),
        (["--out", "taken.jsonl"], "taken.jsonl exists; choose another --out"),
        (["--out", "/proc/none/x.jsonl"], "cannot write to /proc/none: "),
    ],
)
def test_mistakes_end_with_one_line_and_exit_code_2(monkeypatch, capsys, arguments, message):
    write("pool.jsonl", *[trace(text=f"{r}", rewards=[r], final=0.0, tokens=7, deep={"er": 1}) for r in (0.3, 0.6, 0.9)])
    write("empty.jsonl", "", "")
    write("bad.jsonl", "nonsense")
    write("taken.jsonl", "precious")
    pool = [] if arguments[0].endswith(".jsonl") else ["pool.jsonl"]
    out = [] if "--out" in arguments else ["--out", "out.jsonl"]
    code, shown, err = command(monkeypatch, capsys, *pool, *arguments, *out)
    assert (code, shown) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not Path("out.jsonl").exists()
    assert Path("taken.jsonl").read_text() == "precious\n"


def test_a_pool_named_like_the_rejected_file_is_not_overwritten():
    pool = write("out.rejected.jsonl", trace())
    with pytest.raises(InputError, match="would overwrite the pool"):
        select_file(SelectSettings(pool=pool, out=Path("out.jsonl")))


def test_missing_matplotlib_is_reported_before_scoring(monkeypatch):
    monkeypatch.setattr("tts.train.select.pipeline.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'tts-toolkit\[report\]'"):
        choose([{"problem": "p", "text": "a"}], plot=Path("hist.png"))
    assert not Path("out.scored.jsonl").exists()


def test_the_command_prints_statistics_after_every_filter(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    rows = [trace(problem=f"p{i // 2}", text="x" * (i + 1), rewards=[i / 20], correct=i >= 10) for i in range(20)]
    write("pool.jsonl", *rows, "nonsense")
    code, out, err = command(
        monkeypatch, capsys, "pool.jsonl", "--out", "out.jsonl", "--per-problem", "1", "--top", "4", "--plot", "sub/hist.png"
    )
    assert code == 1
    assert err == "tts: 1 of 21 rows could not be ranked; see out.rejected.jsonl\n"
    lines = [line.split() for line in out.splitlines()]
    assert ["ranked", "20", "10", "50.0%", "0.975", "1.0", "10"] in lines  # problems, correct, r_hat, steps, characters
    assert ["1", "per", "problem", "10", "10", "50.0%", "1.000", "1.0", "11"] in lines
    assert ["top", "4", "4", "4", "100.0%", "1.300", "1.0", "17"] in lines
    assert max(map(len, out.splitlines())) <= 80
    png = Path("sub/hist.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert min(struct.unpack(">II", png[16:24])) > 400


def test_json_prints_one_object(monkeypatch, capsys):
    write("pool.jsonl", *[trace(text=f"{i}" * 9, rewards=[i / 20]) for i in range(20)])
    code, out, _ = command(monkeypatch, capsys, "pool.jsonl", "--out", "out.jsonl", "--top", "25%", "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["pool"], found["chosen"], found["set_aside"], found["out"]) == (20, 5, 0, "out.jsonl")
    assert [stage["traces"] for stage in found["stages"]] == [20, 5]
    score = found["histograms"]["score"]
    assert (sum(score["pool"]), sum(score["chosen"]), len(score["edges"])) == (20, 5, 11)
    assert score["chosen"][:7] == [0] * 7


def test_histograms_count_every_value_once():
    import numpy as np

    for values in ([5, 5, 5], [1, 2], [1, 1_000_000], [1.0, 1.0 + 1e-16], [-3.5, -2.0, 7.0], [1e-9, 1e9], [0.1 + 0.2, 0.3]):
        array = np.array(values)
        for log in {False, min(values) > 0}:
            histogram = Histogram.of(array, np.array([0]), log=log)
            assert (sum(histogram.pool), sum(histogram.chosen)) == (len(values), 1)
            assert len(histogram.labels()) == len(histogram.pool)
    assert Histogram.of(np.array([0.0, 1.0]), np.array([0])).labels()[0] == "0.00 – 0.10"


def test_rows_of_a_judge_rank_by_what_is_known_and_are_set_aside_without_a_verdict():
    rows = [
        trace(text="a\n\nb", rewards=[0.2, None], final=0.3),  # 0.5
        trace(text="c", rewards=[0.4], final=None, final_missing=True),  # 0.8, the step stands for the whole
        trace(text="d", rewards=[None], final=0.3),  # 0.6, the whole stands for the step
        trace(text="e", rewards=[None], final=None, final_missing=True),
    ]
    selection, chosen = choose(rows)
    assert [row["text"] for row in chosen] == ["c", "d", "a\n\nb"]
    assert scores(chosen) == pytest.approx([0.8, 0.6, 0.5])
    assert selection.set_aside == 1
    [rejected] = read("out.rejected.jsonl")
    assert rejected["error"] == "the scorer gave no verdict on what the trace is ranked by"


def test_rewards_of_given_steps_are_those_of_their_positions():
    given = {"problem": "p", "steps": ["<think>", "a", "</think>", "", "b", "c"], "final": None}
    rows = [given | {"step_rewards": [None, 0.9, None, None, 0.1, 0.3]}, trace(text="x", rewards=[0.5], final=None)]
    _, chosen = choose(rows, by="response", alpha=0.0)
    assert scores(chosen) == pytest.approx([0.5, 0.2])

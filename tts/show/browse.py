"""Run folders in the terminal: one problem with all of its candidates and its search tree, and the list of runs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, cast

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from tts.data.records import Attempt, Record
from tts.delimiters import Delimiter, delimiter
from tts.errors import InputError
from tts.evals.load import open_run, read_json, read_summary
from tts.show.style import reward_style
from tts.trajectory import BLANK_LINE, parse
from tts.types import REPEATS, Branch, Part


class RatedStep(NamedTuple):
    """A step of a candidate with its reward; None for a step that was not scored."""

    text: str
    reward: float | None


class Twig(NamedTuple):
    """A branch of a search tree together with the siblings that repeat it."""

    branch: Branch
    parent: int | None
    """Index of the parent in the list of twigs; None for a first step."""
    copies: int
    """Number of times it was drawn."""
    chosen: bool
    """Whether it is the end of the chosen candidate."""


def rated_steps(attempt: Attempt, over: Part | None, by: Delimiter = BLANK_LINE) -> tuple[list[RatedStep], list[RatedStep]]:
    """The steps of the thinking and those of the response, paired with their rewards.

    `over` is the part that was scored; None is the reward model's own choice, which follows from the number of rewards. If the
    number of rewards fits no part, the steps have none. `by` is what ends a step.
    """
    thinking, response = parse(attempt.text, by)
    counts: dict[Part, int] = {
        "all": len(thinking) + len(response),
        "response": len(response),
        "think": len(thinking),
    }
    rewards = attempt.rewards or ()
    part = over or next((part for part, count in counts.items() if count == len(rewards)), None)
    if part is None or counts[part] != len(rewards):
        part, rewards = "all", ()
    left = iter(rewards)

    def paired(steps: Sequence[str], *, rated: bool) -> list[RatedStep]:
        return [RatedStep(step, next(left, None) if rated else None) for step in steps]

    return paired(thinking, rated=part != "response"), paired(response, rated=part != "think")


def ranking(record: Record) -> list[int]:
    """Indices of the candidates: the chosen one first, then by descending score."""
    return sorted(range(len(record.candidates)), key=lambda i: (i != record.choice, -record.candidates[i].score, i))


def twigs(record: Record) -> list[Twig]:
    """The search tree with repeated siblings merged, parents before children."""
    chosen = record.candidates[record.choice].text if record.choice is not None else None
    place: list[int] = []  # index of each branch's twig
    paths: list[str] = []
    known: dict[tuple[int | None, str], int] = {}
    found: list[Twig] = []
    for branch in record.tree:
        parent = None if branch.parent is None else place[branch.parent]
        path = (paths[branch.parent] if branch.parent is not None else "") + branch.text
        paths.append(path)
        first = known.get((parent, branch.text))
        if branch.reason == REPEATS and first is not None:
            found[first] = found[first]._replace(copies=found[first].copies + 1)
            place.append(first)
            continue
        known.setdefault((parent, branch.text), len(found))
        place.append(len(found))
        ends = branch.fate == "returned" and chosen is not None and chosen.endswith(path)
        found.append(Twig(branch, parent, 1, ends))
    return found


def show_problem(folder: Path, problem_id: str, *, candidates: int | None = None) -> RenderableType:
    """A problem of a run, its candidates with steps coloured by reward, and its search tree; the same as `tts show`.

    Args:
        folder: Run folder.
        problem_id: Id of the problem.
        candidates: Number of candidates to show, the chosen one first, then by descending score. Default: all.

    Raises:
        InputError: If the folder is not a run folder or has no such problem, or `candidates` is below 1.
    """
    if candidates is not None and candidates < 1:
        raise InputError(f"--candidates is {candidates}; it should be at least 1")
    record, settings = find_problem(folder, problem_id), open_run(folder).settings
    parts: list[RenderableType] = [
        Text.assemble((printable(record.id), "bold"), f"  {settings['strategy']}, {folder}"),
        Text(printable(record.problem)),
        *([Text(printable(record.instruction), "dim")] if record.instruction else []),
        Text(),
        *_outcome(record),
    ]
    order = ranking(record)[:candidates]
    for i in order:
        parts += [Text(), _candidate(record, i, settings.get("score_over"))]
    if hidden := len(record.candidates) - len(order):
        parts += [Text(), Text(f"… and {hidden} more; --candidates {len(record.candidates)} shows all", "dim")]
    if record.tree:
        parts += [Text(), _tree(record)]
    return Group(*parts)


def list_runs(root: Path) -> RenderableType:
    """A table of the runs in a folder, newest first, and a line for each run that cannot be read; the same as `tts runs`.

    Raises InputError if there is no such folder.
    """
    folders = _folders(root)
    if not folders:
        return Text(f"no runs in {root}; create one with tts run")
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for heading in ("run", "strategy", "N", "benchmark", "model", "problems", "accuracy", "started"):
        table.add_column(heading, justify="right" if heading in ("N", "problems", "accuracy") else "left", overflow="fold")
    lines: list[tuple[str, list[str]]] = []
    errors: list[Text] = []
    for folder in folders:
        try:
            lines.append(_run_line(folder))
        except InputError as error:
            errors.append(Text.assemble((f"{printable(folder.name)}  ", "bold"), (printable(str(error)), "red")))
    for _, (name, *cells) in sorted(lines, key=lambda line: line[0], reverse=True):
        table.add_row(Text(name, "bold"), *map(Text, cells))
    return Group(*([table] if lines else []), *errors)


def runs_of(root: Path) -> list[dict[str, Any]]:
    """The runs in a folder as JSON objects, newest first; a run that cannot be read has an `error`.

    Raises InputError if there is no such folder.
    """
    rows = []
    for folder in _folders(root):
        try:
            started, (_, strategy, n, benchmark, model, *_) = _run_line(folder)
            row = {"strategy": strategy, "n": int(n) if n else None, "benchmark": benchmark, "model": model, "started": started}
            rows.append({"run": str(folder), **row, "summary": read_summary(folder)})
        except InputError as error:
            rows.append({"run": str(folder), "started": "", "error": str(error)})
    return sorted(rows, key=lambda row: row["started"], reverse=True)


def find_problem(folder: Path, problem_id: str) -> Record:
    """The record of a problem of a run. Raises InputError if there is no such run or problem."""
    store = open_run(folder)
    if (record := store.find(problem_id)) is None:
        ids = [outcome.id for outcome in store.outcomes()]
        close = get_close_matches(problem_id, ids, n=5) or ids[:5]
        known = f"some of its {len(ids)} ids: {', '.join(map(printable, close))}" if ids else "it has no problems yet"
        raise InputError(f"no problem {printable(problem_id)!r} in {folder}; {known}")
    return record


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        raise InputError(f"no folder {root}; tts run creates runs in runs/ by default; for another folder, tts runs FOLDER")
    if _looks_like_a_run(root):
        return [root]
    # of runs that were started within a second, the later one first
    return sorted(filter(_looks_like_a_run, root.iterdir()), key=lambda folder: (_created(folder), folder), reverse=True)


def _created(folder: Path) -> int:
    """When run.json was written, in nanoseconds."""
    file = folder / "run.json"
    return file.stat().st_mtime_ns if file.exists() else 0


def printable(text: str) -> str:
    """The text with control characters, which a terminal would obey, and halves of surrogate pairs, which it cannot write,
    replaced by visible signs."""
    shown = re.sub(r"[\x00-\x08\x0b-\x1f]", lambda match: chr(0x2400 + ord(match[0])), text.replace("\r\n", "\n"))  # as ␛
    return re.sub(r"[\x7f-\x9f\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", shown)


def number_of(settings: dict[str, Any], summary: dict[str, Any]) -> int:
    """N of a run: the strategy's option n, or, without one, the number of candidates. A search may return fewer than n."""
    n = settings.get("options", {}).get("n")
    return n if isinstance(n, int) else int(summary["n"])


def _outcome(record: Record) -> Iterator[Text]:
    yield Text.assemble(("reference  ", "dim"), printable(record.answer) if record.answer is not None else "none")
    if record.error is not None:
        yield Text(f"failed: {printable(record.error)}", "bold red")
    elif record.choice is not None:
        answer = record.candidates[record.choice].answer
        yield Text.assemble(("chosen     ", "dim"), (printable(answer or "no answer"), "bold"), "  ", _verdict(record.correct))


def _verdict(correct: bool | None) -> Text:
    return {True: Text("✓ right", "green"), False: Text("✗ wrong", "red"), None: Text("not graded", "dim")}[correct]


def _candidate(record: Record, index: int, over: Part | None) -> RenderableType:
    attempt = record.candidates[index]
    title = Text.assemble((f"candidate {index + 1}", "bold"), ("  chosen" if index == record.choice else "", "bold"), "  ")
    facts = [f"score {attempt.score:.3f}", *([f"final {attempt.final:.3f}"] if attempt.final is not None else [])]
    facts += [f"{missing} verdicts missing"] if (missing := attempt.reward().missing) else []
    facts += [f"{sum(attempt.tokens)} tokens", "truncated" if attempt.finish == "length" else "finished"]
    answer = printable(attempt.answer or "no answer")
    title += Text.assemble(answer, "  ", _verdict(attempt.correct), "  ", (", ".join(facts), "dim"))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(overflow="fold")
    parts = rated_steps(attempt, over, delimiter(record.step_delimiter))
    for heading, steps in zip(("thinking", "response"), parts, strict=True):
        if steps:
            grid.add_row("", Text(heading, "dim italic"))
        for step in steps:
            style = reward_style(step.reward)
            grid.add_row(Text("" if step.reward is None else f"{step.reward:.3f}", style), Text(printable(step.text), style))
    return Group(title, grid)


def _tree(record: Record) -> Tree:
    found = twigs(record)
    rewards = [twig.branch.reward for twig in found if twig.branch.reward is not None]
    low, high = min([0.0, *rewards]), max([1.0, *rewards])  # totals may be outside [0, 1]
    root = Tree(Text("search tree", "dim italic"), guide_style="dim")
    nodes: list[Tree] = []
    children = Counter(twig.parent for twig in found)
    for twig in found:
        branch = twig.branch
        reward = None if branch.reward is None else (branch.reward - low) / (high - low)
        style = "dim" if branch.fate == "pruned" else reward_style(reward)
        label = Text.assemble(
            (f"{branch.reward:.3f}  " if branch.reward is not None else "", reward_style(reward)),
            (" ".join(printable(branch.text).split()), style),
            (f"  {printable(branch.outcome)}", "dim" if branch.fate != "returned" else "bold green"),
            ("  chosen" if twig.chosen else "", "bold green"),
            (f"  drawn {twig.copies} times" if twig.copies > 1 else "", "dim"),
        )
        if twig.parent is not None and children[twig.parent] == 1:  # an only child is shown on its parent's level
            node = nodes[twig.parent]
            node.label = Text("\n").join([cast(Text, node.label), label])
        else:
            node = (root if twig.parent is None else nodes[twig.parent]).add(label)
        nodes.append(node)
    return root


def _looks_like_a_run(folder: Path) -> bool:
    return folder.is_dir() and any((folder / name).exists() for name in ("run.json", "results.jsonl", "summary.json"))


def _run_line(folder: Path) -> tuple[str, list[str]]:
    """When a run was started, and its cells in the table."""
    store = open_run(folder)
    settings, summary = store.settings, read_summary(folder)
    started = str(read_json(folder / "run.json").get("started", ""))
    if summary is None:
        n, accuracy = settings.get("options", {}).get("n", ""), "unfinished"
        problems = store.results.read_bytes().count(b"\n") if store.results.exists() else 0
    else:
        n, problems = number_of(settings, summary), summary["problems"]
        accuracy = "not graded" if summary["accuracy"] is None else f"{summary['accuracy']:.1%}"
    cells = [
        folder.resolve().name,
        settings["strategy"],
        n,
        settings["benchmark"],
        settings["model"],
        f"{problems:,}",
        accuracy,
    ]
    return started, [printable(str(cell)) for cell in (*cells, started[:16].replace("T", " "))]

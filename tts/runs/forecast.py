"""What a run will cost, from its settings and from earlier runs of the same model; nothing is loaded."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tts.models.templates import fill
from tts.runs.settings import RunSettings
from tts.types import Strategy


@dataclass(frozen=True)
class Forecast:
    """What `--dry-run` reports. Tokens and seconds are None where no earlier run tells."""

    strategy: str
    benchmark: str
    problems: int
    """Problems left to solve."""
    samples: int
    """Candidates for a problem, at most."""
    model: str
    engine: str
    scorer: str | None
    most_tokens: int
    """Tokens that can be generated, at most."""
    tokens: int | None
    """Tokens that will be generated, by what candidates of an earlier run took."""
    seconds: float | None
    """Wall-clock time, by the speed of that run."""
    source: str | None
    """The earlier run."""
    prompt: str
    """What the policy will be asked first, before a chat template."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def show(self) -> str:
        """As a person reads it."""
        scorer = f", rated by {self.scorer}" if self.scorer else ""
        lines = [
            f"{self.strategy} on {self.benchmark}: {self.problems:,} problems, up to {self.samples:,} candidates each",
            f"{self.model} on the engine {self.engine}{scorer}",
            f"at most {self.most_tokens:,} tokens to generate",
        ]
        if self.tokens is None:
            lines.append("no finished run of this model and engine under runs/ to estimate tokens and time from")
        else:
            time = "" if self.seconds is None else f", about {_duration(self.seconds)}"
            lines.append(f"about {self.tokens:,} tokens{time}, judging by {self.source}")
        lines += ["nothing was loaded or written", "", "the first prompt, before a chat template:", self.prompt]
        return "\n".join(lines)


def forecast(settings: RunSettings, solver: Strategy, *, solved: int = 0) -> Forecast:
    """Forecast a run. `solved` problems are done already. Raises InputError where the problems cannot be read."""
    benchmark = settings.load_benchmark(
        seed=settings.seed, shuffle=settings.shuffle, repeat=settings.repeat, instruction=settings.instruction
    )
    problems, first = len(benchmark.problems) - solved, benchmark.problems[0]
    samples = int(settings.options.get("n", 1))
    each = min(samples * settings.max_tokens, settings.budget or samples * settings.max_tokens)
    most = min(problems * each, settings.run_budget or problems * each)
    earlier = _earlier(settings)
    tokens = seconds = source = None
    if earlier is not None:
        folder, summary = earlier
        per_candidate = summary["usage"]["generated"] / max(1, summary["problems"] * summary["n"])
        tokens, source = min(most, round(problems * samples * per_candidate)), str(folder)
        if summary["usage"]["generated"]:
            seconds = summary["seconds"]["total"] * tokens / summary["usage"]["generated"]
    prompt = first.full_prompt
    if settings.prompt_template is not None:
        prompt = fill(settings.prompt_template, problem=first.prompt, instruction=first.instruction)
    scorer = settings.scorer if solver.uses_scorer else None
    return Forecast(
        settings.strategy, settings.benchmark, problems, samples, settings.model, settings.engine, scorer, most, tokens,
        seconds, source, prompt,
    )  # fmt: skip


def _earlier(settings: RunSettings) -> tuple[Path, dict[str, Any]] | None:
    """The newest finished run of the same model and engine beside the one to come, or None."""
    beside = settings.out.parent if settings.out is not None else Path("runs")
    for file in sorted(beside.glob("*/summary.json"), key=lambda file: file.stat().st_mtime, reverse=True):
        try:
            begun = json.loads((file.parent / "run.json").read_text())["settings"]
            summary = json.loads(file.read_text())
            if (begun["model"], begun["engine"]) == (settings.model, settings.engine) and summary["usage"]["generated"]:
                return file.parent, summary
        except (OSError, ValueError, KeyError, TypeError):  # not a run, or one of another version
            continue
    return None


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"

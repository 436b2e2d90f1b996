"""The report of `make reproduce`: tables with intervals, a figure, and whether each of the paper's findings appears."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tts.data.records import Record
from tts.data.store import RunStore
from tts.evals.intervals import estimate_over_seeds
from tts.evals.statistics import best_of_k, majority_of_k, pass_at_k
from tts.reproduce.experiments import ARMS, PRMS

if TYPE_CHECKING:
    from tts.reproduce.experiments import Plan, Stage

Values = NDArray[np.float64]
"""Values to average [seeds, problems]."""


class Range(NamedTuple):
    """A mean with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"

    def signed(self) -> str:
        """Format it as a difference: in points, with signs."""
        return f"{100 * self.value:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"

    @property
    def verdict(self) -> str:
        """Whether the value is above 0."""
        return (
            "yes" if self.low > 0 else "no, the other way round" if self.high < 0 else "not resolved: the interval contains 0"
        )


def over_seeds(values: Values, minus: Values | None = None) -> Range:
    """Return the mean over seeds and problems, or the mean of `values - minus`, with its interval."""
    return Range(*estimate_over_seeds(values, minus))


def write_report(work: Path, out: Path, plan: Plan, seeds: int, stages: Sequence[Stage], *, dev: bool) -> Path:
    """Write the report as Markdown to `out`, and its figure beside it. Returns `out`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    measured, figure = Measurements(work, plan, seeds), out.with_suffix(".png")
    out.parent.mkdir(parents=True, exist_ok=True)
    _draw(measured, plan, figure)
    template = Environment(
        loader=PackageLoader("tts", "reproduce"), undefined=StrictUndefined, trim_blocks=False, keep_trailing_newline=True
    ).get_template("report.md.j2")  # fmt: skip
    facts = {"plan": plan, "seeds": seeds, "split": "dev" if dev else "test", "cores": os.cpu_count(), "figure": figure.name}
    out.write_text(template.render(**facts, **_tables(measured, plan), **_effort(work, plan, stages)))
    return out


class Measurements:
    """What the stages measured, read from their output."""

    def __init__(self, work: Path, plan: Plan, seeds: int) -> None:
        self.work, self.plan, self.seeds = work, plan, seeds
        self.pools = [_records(self._at(seed, "test")) for seed in range(seeds)]
        self.rewards = {
            name: [_rewards_by_id(self._at(seed, f"test-by-{name}.jsonl")) for seed in range(seeds)] for name in PRMS
        }
        self.sizes = [2**i for i in range(plan.n.bit_length()) if 2**i <= plan.n]

    def _at(self, seed: int, name: str) -> Path:
        return self.work / f"seed-{seed}" / name

    def _of_pools(self, value: Callable[[int, Record], float]) -> Values:
        return np.array([[value(seed, record) for record in pool] for seed, pool in enumerate(self.pools)])

    def best_of(self, prm: str, k: int, alpha: float | None = 1.0) -> Values:
        """Return the accuracy of best-of-k by r_hat with this alpha, or by the final reward alone for None."""

        def value(seed: int, record: Record) -> float:
            rewards = [self.rewards[prm][seed][f"{record.id}/{i}"] for i in range(len(record.candidates))]
            totals = [final if alpha is None else steps + alpha * final for steps, final in rewards]
            return best_of_k([*zip(_finished(record), totals, strict=True)], _correct(record), k)

        return self._of_pools(value)

    def majority(self, k: int) -> Values:
        """Return the accuracy of majority voting over k solutions."""
        return self._of_pools(
            lambda _, record: majority_of_k([c.group for c in record.candidates], _correct(record), _finished(record), k)
        )

    def passed(self, k: int) -> Values:
        """Return pass@k, the probability that at least one of k solutions is correct."""
        return self._of_pools(lambda _, record: pass_at_k(_correct(record), k))

    def accuracy(self, name: str) -> Values:
        """Return the share of a policy's solutions that are correct, for each problem."""
        pools = [_records(self._at(seed, f"{name}-test")) for seed in range(self.seeds)]
        return np.array([[np.mean(_correct(record)) for record in pool] for pool in pools])

    def right_share(self, arm: str) -> float:
        """Return the share of correct traces among those that an arm chose."""
        if arm == "all":
            flags = [
                flag
                for seed in range(self.seeds)
                for record in _records(self._at(seed, "choices"))
                for flag in _correct(record)
            ]
        else:
            files = [self._at(seed, f"chosen-{arm}.jsonl") for seed in range(self.seeds)]
            flags = [bool(json.loads(line)["correct"]) for file in files for line in file.read_text().splitlines()]
        return float(np.mean(flags))

    def held_out(self, beta: float) -> tuple[list[int], Values]:
        """Return the learning curve of RL: samples drawn, and accuracy [seeds, evaluations] on held-out problems."""
        logs = [_log(self._at(seed, f"rl-{beta:g}") / "log.jsonl") for seed in range(self.seeds)]
        steps = [[row["step"] for row in log if ACCURACY in row] for log in logs]
        values = [[row[ACCURACY] for row in log if ACCURACY in row] for log in logs]
        return [step * self.plan.rl_problems * self.plan.group for step in steps[0]], np.array(values)


ACCURACY = "eval_rewards/outcome/mean"
"""Held-out accuracy in the log of `tts rl`."""


def _records(folder: Path) -> list[Record]:
    return sorted(RunStore.open(folder).records(), key=lambda record: int(record.id))


def _correct(record: Record) -> list[bool]:
    return [bool(candidate.correct) for candidate in record.candidates]


def _finished(record: Record) -> list[bool]:
    return [candidate.finish == "stop" for candidate in record.candidates]


def _rewards_by_id(file: Path) -> dict[str, tuple[float, float]]:
    """Return the mean step reward and the final reward of each candidate."""
    rows = map(json.loads, file.read_text().splitlines())
    return {row["id"]: (float(np.mean(row["step_rewards"] or [0.0])), row["final"] or 0.0) for row in rows}


def _log(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _tables(found: Measurements, plan: Plan) -> dict[str, Any]:
    """Return the rows of the report's tables."""
    curves = {
        "best-of-N, trajectory-aware PRM": [found.best_of("prm", k) for k in found.sizes],
        "best-of-N, response-only PRM": [found.best_of("prm-response", k) for k in found.sizes],
        "majority": [found.majority(k) for k in found.sizes],
        "pass@N": [found.passed(k) for k in found.sizes],
    }
    trajectory, response, majority, _ = curves.values()
    arms = {arm: found.accuracy(f"sft-{arm}") for arm in ARMS}
    betas = {beta: found.accuracy(f"rl-{beta:g}") for beta in plan.betas}
    drawn, learning = found.held_out(plan.betas[0])[0], {beta: found.held_out(beta)[1].mean(0) for beta in plan.betas}
    n, chosen, without_prm = found.sizes[-1], arms["trajectory"], betas[0.0]

    def minus(a: list[Values], b: list[Values]) -> list[str]:
        return [over_seeds(x, y).signed() for x, y in zip(a[1:], b[1:], strict=True)]

    gains = [
        (f"1. best-of-{n}: trajectory-aware PRM over majority", over_seeds(trajectory[-1], majority[-1])),
        (f"1. best-of-{n}: trajectory-aware PRM over response-only PRM", over_seeds(trajectory[-1], response[-1])),
        *(
            (f"2. SFT on the trajectory-aware PRM's {plan.top} over {ARMS[arm]}", over_seeds(chosen, arms[arm]))
            for arm in ("random", "response", "all")
        ),
        *((f"3. GRPO with beta = {beta:g} over beta = 0", over_seeds(betas[beta], without_prm)) for beta in plan.betas if beta),
    ]
    combined = [found.best_of("prm-combined", k) for k in found.sizes]
    return {
        "targets": [
            ("quality", *map(over_seeds, trajectory[1:])),
            ("quality, alignment and coherence", *map(over_seeds, combined[1:])),
            ("difference", *minus(combined, trajectory)),
        ],
        "sizes": [f"N = {k}" for k in found.sizes],
        "findings": [(name, gain.signed(), gain.verdict) for name, gain in gains],
        "curves": [(name, *map(over_seeds, curve)) for name, curve in curves.items()],
        "differences": [
            ("trajectory-aware minus majority", *minus(trajectory, majority)),
            ("trajectory-aware minus response-only", *minus(trajectory, response)),
        ],
        "base": over_seeds(found.passed(1)),
        "arms": [
            (
                ARMS[arm],
                f"{100 * found.right_share(arm):.1f}",
                over_seeds(values),
                "" if values is chosen else over_seeds(chosen, values).signed(),
            )
            for arm, values in arms.items()
        ],
        "betas": [
            (f"{beta:g}", over_seeds(values), over_seeds(values, without_prm).signed() if beta else "")
            for beta, values in betas.items()
        ],
        "drawn": [f"{count:,}" for count in drawn],
        "learning": [(f"{beta:g}", *(f"{100 * value:.1f}" for value in curve)) for beta, curve in learning.items()],
        "alphas": [
            (
                "final alone" if alpha is None else f"alpha = {alpha:g}",
                *(over_seeds(found.best_of("prm", k, alpha)) for k in found.sizes[1:]),
            )
            for alpha in (*plan.alphas, None)
        ],
    }


def _effort(work: Path, plan: Plan, stages: Sequence[Stage]) -> dict[str, Any]:
    """Return the settings, the time that the stages took, and the commands of the first seed."""
    seconds = {stage.name: _seconds(work, stage.name) for stage in stages}
    kinds: dict[str, float] = {}
    for name, spent in seconds.items():
        kind = name.rpartition("/")[2].partition("-")[0]
        kinds[kind] = kinds.get(kind, 0.0) + spent
    return {
        "minutes": round(sum(seconds.values()) / 60),
        "settings": ", ".join(f"{name} {value}" for name, value in asdict(plan).items()),
        "commands": [
            (stage.command, round(seconds[stage.name])) for stage in stages if stage.name.partition("/")[0] in ("policy", "0")
        ],
        "totals": ", ".join(f"{kind} {spent:.0f}" for kind, spent in kinds.items()),
    }


def _seconds(work: Path, name: str) -> float:
    return float(json.loads((work / "done" / f"{name.replace('/', '-')}.json").read_text())["seconds"])


def _draw(found: Measurements, plan: Plan, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (scaling, data, learning) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for label, values, style in (
        ("trajectory-aware PRM", [found.best_of("prm", k) for k in found.sizes], "o-"),
        ("response-only PRM", [found.best_of("prm-response", k) for k in found.sizes], "s--"),
        ("majority", [found.majority(k) for k in found.sizes], "^:"),
    ):
        ranges = [over_seeds(v) for v in values]
        [line] = scaling.plot(found.sizes, [100 * r.value for r in ranges], style, label=label)
        scaling.fill_between(
            found.sizes, [100 * r.low for r in ranges], [100 * r.high for r in ranges], alpha=0.15, color=line.get_color()
        )
    scaling.set_xscale("log", base=2)
    scaling.set_xticks(found.sizes, [str(k) for k in found.sizes])
    scaling.set(title="1. Test-time scaling", xlabel="N", ylabel="accuracy, %")
    scaling.legend(frameon=False)
    ranges = [over_seeds(found.accuracy(f"sft-{arm}")) for arm in ARMS]
    errors = np.array([[100 * (r.value - r.low), 100 * (r.high - r.value)] for r in ranges]).T
    data.barh(
        list(ARMS.values()), [100 * r.value for r in ranges], xerr=errors, capsize=3, color=["C0", "C1", "C7", "C7", "C2"]
    )
    data.invert_yaxis()
    data.axvline(100 * found.passed(1).mean(), color="black", linestyle=":", linewidth=1)
    data.set(title="2. Data selection (dotted: before)", xlabel="accuracy, %")
    for beta in plan.betas:
        drawn, curve = found.held_out(beta)
        if drawn:
            learning.plot(drawn, 100 * curve.mean(0), "-", label=f"beta = {beta:g}")
    learning.set(title="3. Reinforcement learning", xlabel="samples drawn", ylabel="held-out accuracy, %")
    learning.legend(frameon=False)
    for axes in (scaling, data, learning):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)

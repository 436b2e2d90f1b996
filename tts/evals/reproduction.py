"""The report of `tts.evals.reproduce`: tables with intervals, a figure, and whether each of the paper's findings appears."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tts.evals.statistics import best_of_k, majority_of_k, pass_at_k
from tts.store import Record, RunStore

if TYPE_CHECKING:
    from tts.evals.reproduce import Job, Plan

Values = NDArray[np.float64]
"""[seeds, problems]: what is averaged."""


class Range(NamedTuple):
    """A mean, and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"

    def signed(self) -> str:
        """As a difference."""
        return f"{100 * self.value:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"

    @property
    def verdict(self) -> str:
        return "yes" if self.low > 0 else "no, the other way round" if self.high < 0 else "not resolved: the interval holds 0"


def over_seeds(values: Values, draws: int = 10_000) -> Range:
    """The mean with a bootstrap interval for which seeds and problems are drawn anew, both with replacement."""
    rng = np.random.default_rng(0)
    seeds, problems = values.shape
    means = [
        values[np.ix_(rng.integers(0, seeds, seeds), rng.integers(0, problems, problems))].mean() for _ in range(draws)
    ]  # fmt: skip
    low, high = np.quantile(means, (0.025, 0.975))
    return Range(float(values.mean()), float(low), float(high))


def write_report(work: Path, out: Path, plan: Plan, seeds: int, jobs: Sequence[Job], *, dev: bool) -> Path:
    """Write the Markdown file and the figure beside it."""
    found = Found(work, plan, seeds)
    figure = out.with_suffix(".png")
    out.parent.mkdir(parents=True, exist_ok=True)
    _draw(found, plan, figure)
    out.write_text("\n".join(_lines(found, plan, seeds, jobs, figure.name, dev)) + "\n")
    return out


class Found:
    """What the stages measured."""

    def __init__(self, work: Path, plan: Plan, seeds: int) -> None:
        self.work, self.plan, self.seeds = work, plan, seeds
        self.pools = [_records(self._at(seed, "test")) for seed in range(seeds)]
        self.rewards = {
            name: [_rewards(self._at(seed, f"test-by-{name}.jsonl")) for seed in range(seeds)]
            for name in ("prm", "prm-response")
        }
        self.sizes = [2**i for i in range(plan.n.bit_length()) if 2**i <= plan.n]

    def _at(self, seed: int, name: str) -> Path:
        return self.work / f"seed-{seed}" / name

    def _of_pools(self, value: Callable[[int, Record], float]) -> Values:
        return np.array([[value(seed, record) for record in pool] for seed, pool in enumerate(self.pools)])

    def best_of(self, prm: str, k: int, alpha: float | None = 1.0) -> Values:
        """Best-of-k by r_hat with this alpha; by the final reward alone for None."""

        def value(seed: int, record: Record) -> float:
            rewards = [self.rewards[prm][seed][f"{record.id}/{i}"] for i in range(len(record.candidates))]
            keys = [final if alpha is None else steps + alpha * final for steps, final in rewards]
            return best_of_k(keys, _correct(record), k)

        return self._of_pools(value)

    def majority(self, k: int) -> Values:
        return self._of_pools(lambda _, record: majority_of_k([c.group for c in record.candidates], _correct(record), k))

    def passed(self, k: int) -> Values:
        return self._of_pools(lambda _, record: pass_at_k(_correct(record), k))

    def accuracy(self, name: str) -> Values:
        """Mean correctness of a policy's solutions to each problem."""
        pools = [_records(self._at(seed, f"{name}-test")) for seed in range(self.seeds)]
        return np.array([[np.mean(_correct(record)) for record in pool] for pool in pools])

    def right_share(self, arm: str) -> float:
        """Share of the chosen traces that are right."""
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
        """(samples drawn, accuracy [seeds, evaluations] on held-out problems) while RL goes on."""
        logs = [_log(self._at(seed, f"rl-{beta:g}") / "log.jsonl") for seed in range(self.seeds)]
        steps = [[row["step"] for row in log if ACCURACY in row] for log in logs]
        values = [[row[ACCURACY] for row in log if ACCURACY in row] for log in logs]
        return [step * self.plan.rl_problems * self.plan.group for step in steps[0]], np.array(values)


ACCURACY = "eval_rewards/outcome/mean"


def _records(folder: Path) -> list[Record]:
    return sorted(RunStore.open(folder).records(), key=lambda record: int(record.id))


def _correct(record: Record) -> list[bool]:
    return [bool(candidate.correct) for candidate in record.candidates]


def _rewards(file: Path) -> dict[str, tuple[float, float]]:
    """Mean of the step rewards, and the final one, by the candidate's id."""
    rows = map(json.loads, file.read_text().splitlines())
    return {row["id"]: (float(np.mean(row["step_rewards"] or [0.0])), row["final"] or 0.0) for row in rows}


def _log(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _table(header: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(header) + " |", "|---" * len(header) + "|", *("| " + " | ".join(row) + " |" for row in rows), ""]


def _lines(found: Found, plan: Plan, seeds: int, jobs: Sequence[Job], figure: str, dev: bool) -> list[str]:
    seconds = {job.name: _seconds(found.work, job.name) for job in jobs}
    split = "dev" if dev else "test"
    ks = [str(k) for k in found.sizes]
    curves = {
        "best-of-N, trajectory-aware PRM": [found.best_of("prm", k) for k in found.sizes],
        "best-of-N, response-only PRM": [found.best_of("prm-response", k) for k in found.sizes],
        "majority": [found.majority(k) for k in found.sizes],
        "pass@N": [found.passed(k) for k in found.sizes],
    }
    trajectory, response, majority, _ = curves.values()
    arms = {arm: found.accuracy(f"sft-{arm}") for arm in ARMS}
    betas = {beta: found.accuracy(f"rl-{beta:g}") for beta in plan.betas}
    base = found.passed(1)
    plain, mixed = betas[0.0], betas[0.5]
    over_majority = over_seeds(trajectory[-1] - majority[-1])
    over_response = over_seeds(trajectory[-1] - response[-1])
    chosen = {arm: over_seeds(arms["trajectory"] - arms[arm]) for arm in ("random", "response", "all")}
    rl_gain = over_seeds(mixed - plain)
    n = found.sizes[-1]
    return [
        "# The paper's findings in miniature",
        "",
        f"`make reproduce` wrote this file: {seeds} seeds, {plan.test} {split} problems, {sum(seconds.values()) / 60:.0f} minutes of"
        f" computation in two processes on {os.cpu_count()} CPU cores. Numbers are percent, with 95 % intervals (bootstrap over"
        " seeds and problems; differences are paired). Settings were chosen on dev problems alone.",
        "",
        f"![Accuracy over N, by chosen data, and while RL goes on]({figure})",
        "",
        "## What appears",
        "",
        *_table(
            ("finding of arXiv 2506.18896", "here", "appears?"),
            [
                (f"1. best-of-{n}: trajectory-aware PRM over majority", over_majority.signed(), over_majority.verdict),
                (f"1. best-of-{n}: trajectory-aware over response-only PRM", over_response.signed(), over_response.verdict),
                *(
                    (f"2. SFT on {plan.top} chosen by the trajectory-aware PRM over {ARMS[arm]}", gain.signed(), gain.verdict)
                    for arm, gain in chosen.items()
                ),
                (
                    "3. GRPO with beta = 0.5 at least as good as beta = 0",
                    rl_gain.signed(),
                    "yes, better" if rl_gain.low > 0 else "no" if rl_gain.high < 0 else "not told apart: the interval holds 0",
                ),
            ],
        ),
        *_story(plan),
        "## 1. Test-time scaling",
        "",
        *_table(("%", *(f"N = {k}" for k in ks)), [(name, *(str(over_seeds(v)) for v in curve)) for name, curve in curves.items()]),
        *_table(
            ("difference in points", *(f"N = {k}" for k in ks[1:])),
            [
                ("trajectory-aware less majority", *(over_seeds(a - b).signed() for a, b in zip(trajectory[1:], majority[1:], strict=True))),
                ("trajectory-aware less response-only", *(over_seeds(a - b).signed() for a, b in zip(trajectory[1:], response[1:], strict=True))),
            ],
        ),
        "## 2. Data selection",
        "",
        f"Each policy is a copy of the base policy, fine-tuned by {plan.sft_steps} steps of {plan.sft_batch} traces from a pool of"
        f" {plan.problems * plan.samples:,}. Accuracy is the mean over {plan.evaluated} solutions of every problem; the base"
        f" policy's is {over_seeds(base)}.",
        "",
        *_table(
            ("data", "right in it", "accuracy", "trajectory-aware choice less this"),
            [
                (ARMS[arm], f"{100 * found.right_share(arm):.1f}", str(over_seeds(values)), "" if arm == "trajectory" else over_seeds(arms["trajectory"] - values).signed())
                for arm, values in arms.items()
            ],
        ),
        "## 3. Reinforcement learning",
        "",
        f"GRPO from the base policy, {plan.rl_steps} steps of {plan.rl_problems} problems with {plan.group} samples each"
        f" ({plan.rl_steps * plan.rl_problems * plan.group:,} samples), r = (1 - beta) r_out + beta r_hat.",
        "",
        *_table(
            ("beta", "accuracy", "less beta = 0"),
            [(f"{beta:g}", str(over_seeds(values)), "" if not beta else over_seeds(values - plain).signed()) for beta, values in betas.items()],
        ),
        *_held_out(found, plan),
        "## 4. Ablation of alpha",
        "",
        "r_hat = mean of the step rewards + alpha * final reward; trajectory-aware PRM.",
        "",
        *_table(
            ("%", *(f"N = {k}" for k in ks[1:])),
            [
                (
                    "final alone" if alpha is None else f"alpha = {alpha:g}",
                    *(str(over_seeds(found.best_of("prm", k, alpha))) for k in found.sizes[1:]),
                )
                for alpha in (*plan.alphas, None)
            ],
        ),
        "## How",
        "",
        "Settings: " + ", ".join(f"{name} {value}" for name, value in asdict(plan).items()) + ".",
        "",
        "Every stage, its seconds, and the command that does the same; `make reproduce` runs them two at a time, with one thread"
        " each. Those of further seeds differ in the seed alone.",
        "",
        "```sh",
        *(f"{job.command}  # {seconds[job.name]:.0f} s" for job in jobs if not job.name.startswith(tuple("123456789"))),
        "```",
        "",
        *_totals(seconds),
    ]  # fmt: skip


ARMS = {
    "trajectory": "the trajectory-aware PRM's best",
    "response": "the response-only PRM's best",
    "random": "random choice",
    "all": "all data",
    "oracle": "right ones (oracle)",
}


def _story(plan: Plan) -> list[str]:
    return [
        "The world is `arith` with 3 and 4 operations (docs/demo.md): a policy that learnt from a teacher with misconceptions, so that"
        " its errors repeat and a vote confirms them. Everything is trained from scratch by `tts`. A PRM starts from the policy's"
        f" body and learns from {plan.problems * plan.samples:,} of the policy's own solutions, labelled by `tts label`: quality by"
        " calculation (`--quality check`), alignment and coherence by the policy's hidden states, and the trajectory reward by the"
        " solution's own answer (`--final outcome`), as so small a policy cannot follow a template in words. The response-only PRM"
        " learns from the responses of the same solutions, with the same number of steps.",
        "",
    ]


def _held_out(found: Found, plan: Plan) -> list[str]:
    curves = {beta: found.held_out(beta) for beta in plan.betas}
    drawn = next(iter(curves.values()))[0]
    if not drawn:
        return []
    rows = [
        (f"{beta:g}", *(f"{100 * values[:, i].mean():.1f}" for i in range(len(drawn)))) for beta, (_, values) in curves.items()
    ]
    return [
        "Accuracy on other held-out problems while it goes on, by samples drawn (mean over seeds):",
        "",
        *_table(("beta", *(f"{d:,}" for d in drawn)), rows),
    ]


def _totals(seconds: dict[str, float]) -> list[str]:
    kinds: dict[str, float] = {}
    for name, spent in seconds.items():
        kind = name.rpartition("/")[2].split("-")[0]
        kinds[kind] = kinds.get(kind, 0.0) + spent
    return ["Seconds by kind, over all seeds: " + ", ".join(f"{kind} {spent:.0f}" for kind, spent in kinds.items()) + "."]


def _seconds(work: Path, name: str) -> float:
    return float(json.loads((work / "done" / f"{name.replace('/', '-')}.json").read_text())["seconds"])


def _draw(found: Found, plan: Plan, path: Path) -> None:
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

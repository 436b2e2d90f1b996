"""The three findings of arXiv 2506.18896 in miniature, from scratch: `make reproduce` writes docs/lab/reproduction.md.

Every stage does what a `tts` command does, in one of two processes with one thread each. Finished stages are kept, so that an
interrupted experiment can be resumed. The settings below were chosen with `--dev`, which measures on dev problems.
"""

from __future__ import annotations

import json
import multiprocessing
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from tts.demo import arith
from tts.options import configure, flag_of, key_values, options_of
from tts.runs.score import score_file
from tts.runs.settings import ScoreSettings
from tts.train.settings import LabelSettings, RLSettings, SelectSettings, SFTSettings, TrainPRMSettings
from tts.types import Part

PROCESSES = 2
"""Stages that run at a time."""
NEVER = 10**6
"""Steps between checkpoints: none is written, since a stage that was interrupted starts afresh."""
LENGTHS = (3, 4)
"""Smallest and largest number of operations in a problem."""
OPERANDS = (2, 5)
"""Smallest and largest operand. With fewer operations and smaller operands than arith has, all fits into half an hour."""


@dataclass(frozen=True)
class Plan:
    """Sizes and hyperparameters, chosen on dev problems."""

    hidden: int = 64
    layers: int = 3
    policy_steps: int = 500
    policy_batch: int = 64
    policy_lr: float = 6e-3
    problems: int = 1500
    """Training problems of the PRMs, of the pool for data selection, and of RL; disjoint sets of this size for each."""
    samples: int = 4
    """Solutions per problem, for the PRMs to learn from and for data selection to choose from."""
    prm_steps: int = 700
    """Optimizer steps on step targets alone, from which facts are learned soonest."""
    prm_joint_steps: int = 100
    """Further optimizer steps on step targets and trajectory targets."""
    prm_batch: int = 32
    prm_lr: float = 4e-3
    prm_joint_lr: float = 1e-3
    test: int = 200
    """Problems that accuracies are measured on."""
    n: int = 32
    """Solutions per test problem, for best-of-n."""
    top: str = "10%"
    """Share of the pool that data selection chooses."""
    sft_steps: int = 60
    sft_batch: int = 32
    sft_lr: float = 1e-3
    evaluated: int = 8
    """Solutions per test problem by a fine-tuned policy, whose accuracy is their mean."""
    rl_steps: int = 40
    rl_problems: int = 8
    """Problems per step."""
    group: int = 8
    """Completions per problem."""
    rl_lr: float = 3e-4
    rl_eval: int = 128
    """Held-out problems, each solved once per evaluation."""
    rl_eval_steps: int = 10
    """Optimizer steps between evaluations."""
    max_tokens: int = 160
    betas: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75)
    alphas: tuple[float, ...] = (0.0, 0.1, 0.5, 0.8, 1.0, 1.5, 3.0)


PLAN = Plan()

ARMS = {
    "trajectory": "the trajectory-aware PRM's best",
    "response": "the response-only PRM's best",
    "random": "random choice",
    "all": "all data",
    "oracle": "right ones (oracle)",
}
"""The ways to choose data for fine-tuning, and their names in the report."""

LABELS: dict[str, Literal["quality", "combined"]] = {"labels": "quality", "labels-combined": "combined"}
"""Label files, and what the target of a step is in them."""
PRMS: dict[str, tuple[str, Part]] = {
    "prm": ("labels", "all"), "prm-response": ("labels", "response"), "prm-combined": ("labels-combined", "all"),
}  # fmt: skip
"""PRMs, with the label file and the part of a trace that they learn from: trajectory-aware, response-only, and an ablation."""


@dataclass(frozen=True)
class Stage:
    """One step of the experiment."""

    name: str
    """Unique; begins with the seed and a slash, except for the policy, which all seeds share."""
    work: Callable[..., None]
    """Called in a process of its own."""
    arguments: dict[str, Any]
    """Keyword arguments of `work`."""
    out: Path
    """The file or folder that it writes."""
    needs: tuple[str, ...] = ()
    """Names of the stages that must be finished before."""
    command: str = ""
    """The command line that does the same."""


def reproduce(
    *,
    work: Path = Path("runs/reproduction"),
    out: Path = Path("docs/lab/reproduction.md"),
    seeds: int = 3,
    dev: bool = False,
    fresh: bool = False,
    only: str = "",
    plan: Annotated[list[str], Parameter(name="--set")] | None = None,
) -> None:
    """Train a policy and reward models, measure what the rewards are good for, and write the report.

    Args:
        work: Folder for everything that is produced. Stages that are finished in it are not repeated.
        out: Report to write; its figure goes beside it.
        seeds: Repetitions, each with its own samples, models and training problems.
        dev: Measure on dev problems, to choose settings by.
        fresh: Delete the work folder first.
        only: Run only the stages whose names begin with this, and those that they need; write no report.
        plan: Setting to change, as in prm_steps=100; repeatable.
    """
    chosen = configure(Plan, key_values(plan or []), noun="--set")
    if fresh:
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    _write_problems(work, chosen, seeds, "dev" if dev else "test")
    wanted = _select_stages({stage.name: stage for stage in stages(work, chosen, seeds)}, only)
    start = time.monotonic()
    run_stages(wanted, work)
    print(f"{len(wanted)} stages in {time.monotonic() - start:.0f} s")
    if not only:
        from tts.reproduce.report import write_report

        print(write_report(work, out, chosen, seeds, list(wanted.values()), dev=dev))


def stages(work: Path, plan: Plan, seeds: int) -> Iterator[Stage]:
    """Yield every stage, after all those that it needs."""
    base = work / "policy"
    yield Stage(
        "policy", _policy, {"out": base, "plan": plan}, base,
        command=f"python -m tts.reproduce.demo_training policy {base} --steps {plan.policy_steps} --batch {plan.policy_batch}"
        f" --lr {plan.policy_lr} --hidden {plan.hidden} --layers {plan.layers} --shortest {LENGTHS[0]} --longest {LENGTHS[1]}"
        f" --largest {OPERANDS[1]}",
    )  # fmt: skip
    for seed in range(seeds):
        here = work / f"seed-{seed}"

        def run(name: str, model: Path, problems: str, n: int, *needs: str, seed: int = seed, here: Path = here) -> Stage:
            options = {
                "strategy": "majority", "n": n, "model": str(model), "benchmark": str(work / problems), "out": here / name,
                "seed": seed, "max_tokens": plan.max_tokens,
            }  # fmt: skip
            words = [word for key, value in options.items() for word in (flag_of(key), str(value))]
            return Stage(f"{seed}/{name}", _run, options, here / name, needs, shlex.join(["tts", "run", *words]))

        def stage(name: str, work: Callable[..., None], settings: Any, *needs: str, command: str, seed: int = seed) -> Stage:
            line = shlex.join(["tts", command, *_options(settings)])
            return Stage(f"{seed}/{name}", work, {"settings": settings}, settings.out, needs, line)

        # reward models
        yield run("pool", base, f"train-{seed}.jsonl", plan.samples, "policy")
        for labels, targets in LABELS.items():
            label = LabelSettings(
                traces=here / "pool/results.jsonl", out=here / f"{labels}.jsonl", quality="check", final="outcome",
                targets=targets, normalize="clip", model=str(base), seed=seed,
            )  # fmt: skip
            yield stage(labels, _label, label, f"{seed}/pool", command="label")
        for name, (labels, over) in PRMS.items():
            common: dict[str, Any] = {
                "data": here / f"{labels}.jsonl", "over": over, "loss": "ce", "optimizer": "muon", "warmup": 0.1,
                "batch_size": plan.prm_batch, "save_steps": NEVER, "log_steps": 100, "seed": seed,
            }  # fmt: skip
            steps = TrainPRMSettings(
                out=here / f"{name}-steps",
                model=str(base),
                lambda_final=0.0,
                max_steps=plan.prm_steps,
                lr=plan.prm_lr,
                **common,
            )
            joint = TrainPRMSettings(
                out=here / name, model=str(steps.out), max_steps=plan.prm_joint_steps, lr=plan.prm_joint_lr, **common
            )
            yield stage(f"{name}-steps", _train_prm, steps, f"{seed}/{labels}", command="train-prm")
            yield stage(name, _train_prm, joint, f"{seed}/{name}-steps", command="train-prm")

        # 1. best-of-n
        yield run("test", base, "test.jsonl", plan.n, "policy")
        for name in PRMS:
            scored = here / f"test-by-{name}.jsonl"
            settings = ScoreSettings(traces=here / "test/results.jsonl", scorer=str(here / name), out=scored, bare=True)
            yield stage(f"test-by-{name}", _score, settings, f"{seed}/test", f"{seed}/{name}", command="score")

        # 2. data selection
        yield run("choices", base, f"choose-{seed}.jsonl", plan.samples, "policy")
        pool = here / "choices/results.jsonl"
        for arm in ARMS:
            chosen = here / f"chosen-{arm}.jsonl"
            needs: tuple[str, ...] = (f"{seed}/choices",)
            if arm == "all":
                chosen = pool
            else:
                how: dict[str, Any] = {"by": "r_hat", "scorer": str(here / "prm")}
                if arm == "response":
                    how = {"by": "r_hat", "scorer": str(here / "prm-response")}
                elif arm in ("random", "oracle"):
                    how = {"by": "random" if arm == "random" else "correct"}
                else:
                    assert arm == "trajectory"
                needs += {"trajectory": (f"{seed}/prm",), "response": (f"{seed}/prm-response",)}.get(arm, ())
                select = SelectSettings(pool=pool, out=chosen, top=plan.top, seed=seed, **how)
                yield stage(f"chosen-{arm}", _select, select, *needs, command="select")
                needs = (f"{seed}/chosen-{arm}",)
            tune = SFTSettings(
                traces=chosen, out=here / f"sft-{arm}", model=str(base), max_steps=plan.sft_steps, batch_size=plan.sft_batch,
                lr=plan.sft_lr, warmup=0.1, save_steps=NEVER, log_steps=100, seed=seed,
            )  # fmt: skip
            yield stage(f"sft-{arm}", _sft, tune, *needs, command="sft")
            yield run(f"sft-{arm}-test", tune.out, "test.jsonl", plan.evaluated, f"{seed}/sft-{arm}")

        # 3. reinforcement learning
        for beta in plan.betas:
            learn = RLSettings(
                benchmark=str(work / f"rl-{seed}.jsonl"), out=here / f"rl-{beta:g}", model=str(base), scorer=str(here / "prm"),
                beta=beta, group=plan.group, batch_size=plan.rl_problems * plan.group, max_steps=plan.rl_steps, lr=plan.rl_lr,
                kl=0.0, max_tokens=plan.max_tokens, rollouts="engine", schedule="constant", save_steps=NEVER, log_steps=10,
                seed=seed,
                eval_benchmark=str(work / "held-out.jsonl"), eval_limit=plan.rl_eval, eval_steps=plan.rl_eval_steps,
                window=0,  # no guard, so that every beta runs to the end
            )  # fmt: skip
            yield stage(f"rl-{beta:g}", _rl, learn, *([f"{seed}/prm"] if beta else ["policy"]), command="rl")
            yield run(f"rl-{beta:g}-test", learn.out, "test.jsonl", plan.evaluated, f"{seed}/rl-{beta:g}")


def run_stages(wanted: dict[str, Stage], work: Path) -> None:
    """Run the stages that are not finished, each as soon as those that it needs are.

    A stage that fails ends the experiment with its exception, and starts afresh next time.
    """
    done = {name for name in wanted if _mark(work, name).is_file()}
    running: dict[Future[float], str] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, mp_context=context, initializer=_use_one_thread) as processes:
        while len(done) < len(wanted):
            started = {*done, *running.values()}
            for name, stage in wanted.items():
                if len(running) < PROCESSES and name not in started and all(need in done for need in stage.needs):
                    running[processes.submit(_run_stage, stage)] = name
            for finished in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(finished)
                seconds = finished.result()
                _mark(work, name).parent.mkdir(parents=True, exist_ok=True)
                facts = {"seconds": round(seconds, 1), "command": wanted[name].command}
                _mark(work, name).write_text(json.dumps(facts) + "\n")
                done.add(name)
                print(f"{len(done):3d}/{len(wanted)}  {seconds:6.1f} s  {name}", flush=True)


def _select_stages(every: dict[str, Stage], only: str) -> dict[str, Stage]:
    """Return the stages whose names, without the seed, begin with `only`, and those that they need."""
    names = {name for name in every if name.rpartition("/")[2].startswith(only)}
    while missing := {need for name in names for need in every[name].needs} - names:
        names |= missing
    return {name: stage for name, stage in every.items() if name in names}


def _mark(work: Path, name: str) -> Path:
    """The file that says that a stage is finished, and how many seconds it took."""
    return work / "done" / f"{name.replace('/', '-')}.json"


def _write_problems(work: Path, plan: Plan, seeds: int, split: arith.Split) -> None:
    """Write the files of test and held-out problems, and three disjoint sets of training problems per seed."""

    def write(name: str, chains: Iterator[arith.Chain], count: int) -> None:
        rows = ({"id": str(i), "problem": c.prompt, "answer": c.answer} for i, c in enumerate(islice(chains, count)))
        (work / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("held-out", arith.chains("dev", 1, LENGTHS, OPERANDS), plan.rl_eval)
    write("test", arith.chains(split, 0, LENGTHS, OPERANDS), plan.test)
    for seed in range(seeds):
        chains = arith.chains("train", 1 + seed, LENGTHS, OPERANDS)  # the policy is trained on seed 0
        for name in ("train", "choose", "rl"):
            write(f"{name}-{seed}", chains, plan.problems)


# what runs in the processes


def _use_one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _run_stage(stage: Stage) -> float:
    """Run a stage, after removing what an interrupted attempt has left, and return the seconds that it took."""
    start, out = time.monotonic(), stage.out
    for left in (out, *out.parent.glob(f"{out.name}.*"), *out.parent.glob(f"{out.stem}.scored*")):
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    stage.work(**stage.arguments)
    return time.monotonic() - start


def _policy(out: Path, plan: Plan) -> None:
    from tts.reproduce.demo_training import train_demo_policy

    train_demo_policy(
        out, steps=plan.policy_steps, batch=plan.policy_batch, lr=plan.policy_lr, seed=0, hidden=plan.hidden,
        layers=plan.layers, shortest=LENGTHS[0], longest=LENGTHS[1], largest=OPERANDS[1],
    )  # fmt: skip


def _run(**options: Any) -> None:
    import tts

    tts.run(**options)


def _label(settings: LabelSettings) -> None:
    from tts.train.label.labeller import label_file

    label_file(settings)


def _train_prm(settings: TrainPRMSettings) -> None:
    from tts.train.prm.training import train_prm

    train_prm(settings)


def _score(settings: ScoreSettings) -> None:
    score_file(settings)


def _select(settings: SelectSettings) -> None:
    from tts.train.select.pipeline import select_file

    select_file(settings)


def _sft(settings: SFTSettings) -> None:
    from tts.train.policy.sft import sft

    sft(settings)


def _rl(settings: RLSettings) -> None:
    from tts.train.policy.rl import rl

    rl(settings)


def _options(settings: Any) -> list[str]:
    """Return the words of the command line that make these settings."""
    words: list[str] = []
    for option in options_of(type(settings)):
        value = getattr(settings, option.name)
        if option.positional:
            words.insert(0, str(value))
        elif value != option.default:
            words += [option.flag] if value is True else [option.flag, str(value)]
    return words

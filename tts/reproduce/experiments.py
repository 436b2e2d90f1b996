"""The three findings of arXiv 2506.18896 in miniature, from scratch: `make reproduce` writes docs/lab/reproduction.md.

Every stage is what a `tts` command does, in one of two processes with one thread each. A stage that is done is kept, so that an
interrupted experiment goes on. `--dev` measures on dev problems instead, which is where the settings below were chosen.
"""

from __future__ import annotations

import json
import multiprocessing
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import MISSING, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tts.demo import arith
from tts.runs.score import score_file
from tts.runs.settings import ScoreSettings
from tts.train.settings import LabelSettings, RLSettings, SelectSettings, SFTSettings, TrainPRMSettings
from tts.types import Part

PROCESSES = 2
SEEDS = 3
NEVER = 10**6
"""Steps between checkpoints, where a stage is begun anew instead."""
LENGTHS = (3, 4)
"""Operations of a problem."""
OPERANDS = (2, 5)
"""With fewer operations and half the facts of arith, everything fits into half an hour."""


@dataclass(frozen=True)
class Plan:
    """Sizes and hyperparameters, chosen on dev problems."""

    hidden: int = 64
    layers: int = 3
    policy_steps: int = 500
    policy_batch: int = 64
    policy_lr: float = 6e-3
    problems: int = 1500
    """Training problems of a PRM, of the pool that data are chosen from, and of RL; other ones for each."""
    samples: int = 4
    """Solutions of each, of which the PRM learns, or of which data are chosen."""
    prm_steps: int = 700
    """On step rewards alone, from which facts are learnt soonest."""
    prm_joint_steps: int = 100
    """And then on step rewards and trajectory rewards."""
    prm_batch: int = 32
    prm_lr: float = 4e-3
    prm_joint_lr: float = 1e-3
    test: int = 200
    """Problems that accuracies are measured on."""
    n: int = 32
    """Solutions of a test problem."""
    top: str = "10%"
    sft_steps: int = 60
    sft_batch: int = 32
    sft_lr: float = 1e-3
    evaluated: int = 8
    """Solutions of a test problem by a policy that was fine-tuned; accuracy is their mean."""
    rl_steps: int = 40
    rl_problems: int = 8
    """Of a step."""
    group: int = 8
    rl_lr: float = 3e-4
    rl_eval: int = 128
    """Held-out problems, solved once every so many steps."""
    rl_eval_steps: int = 10
    max_tokens: int = 160
    betas: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75)
    alphas: tuple[float, ...] = (0.0, 0.1, 0.5, 0.8, 1.0, 1.5, 3.0)


PLAN = Plan()
ARMS = ("trajectory", "response", "random", "all", "oracle")
"""How data are chosen: by the trajectory-aware PRM, by the one of responses, at random, all, and what is right."""


LABELS: dict[str, Literal["quality", "combined"]] = {"labels": "quality", "labels-combined": "combined"}
"""Labels by what a step's target is."""
PRMS: dict[str, tuple[str, Part]] = {
    "prm": ("labels", "all"), "prm-response": ("labels", "response"), "prm-combined": ("labels-combined", "all"),
}  # fmt: skip
"""Reward models by the labels and the part of a trace that they learn from: trajectory-aware, response-only, an ablation."""


@dataclass(frozen=True)
class Job:
    """A stage: what is done, where, and what must be done before."""

    name: str
    work: Callable[..., None]
    settings: Any
    needs: tuple[str, ...] = ()
    command: str = ""
    """The command that does the same."""


def main(
    work: Annotated[Path, typer.Option(help="Where everything is kept; what is done there is not done again.")] = Path(
        "runs/reproduction"
    ),
    out: Annotated[Path, typer.Option(help="Report to write.")] = Path("docs/lab/reproduction.md"),
    seeds: Annotated[
        int, typer.Option(help="Repetitions, each with samples, models and training problems of its own.")
    ] = SEEDS,
    dev: Annotated[bool, typer.Option("--dev", help="Measure on dev problems, to choose settings by.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew.")] = False,
    only: Annotated[str, typer.Option(help="Stages whose names begin so, and what they need.")] = "",
    plan: Annotated[list[str] | None, typer.Option("--set", help="Another setting, as in prm_steps=100; repeatable.")] = None,
) -> None:
    """Train a policy and reward models, and measure what the rewards are good for."""
    from tts.options import key_values

    chosen = Plan(**key_values(plan or []))
    if fresh:
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    _write_problems(work, chosen, seeds, "dev" if dev else "test")
    jobs = _wanted({job.name: job for job in stages(work, chosen, seeds)}, only)
    start = time.monotonic()
    run_jobs(jobs, work)
    print(f"{len(jobs)} stages in {time.monotonic() - start:.0f} s")
    if not only:
        from tts.reproduce.report import write_report

        print(write_report(work, out, chosen, seeds, list(jobs.values()), dev=dev))


def stages(work: Path, plan: Plan, seeds: int) -> Iterator[Job]:
    """Every stage, in an order in which they can be done."""
    base = work / "policy"
    yield Job(
        "policy", _policy, {"out": base, "plan": plan},
        command=f"python -m tts.reproduce.demo_training policy {base} --steps {plan.policy_steps} --batch {plan.policy_batch}"
        f" --lr {plan.policy_lr} --hidden {plan.hidden} --layers {plan.layers} --shortest {LENGTHS[0]} --longest {LENGTHS[1]}"
        f" --largest {OPERANDS[1]}",
    )  # fmt: skip
    for seed in range(seeds):
        here = work / f"seed-{seed}"

        def run(name: str, model: Path, problems: str, n: int, *needs: str, seed: int = seed, here: Path = here) -> Job:
            settings = {
                "strategy": "majority", "n": n, "model": str(model), "benchmark": str(work / problems), "out": here / name,
                "seed": seed, "max_tokens": plan.max_tokens,
            }  # fmt: skip
            return Job(f"{seed}/{name}", _run, settings, needs, "tts run " + _flags(settings))

        def job(name: str, work: Callable[..., None], settings: Any, *needs: str, command: str, seed: int = seed) -> Job:
            return Job(f"{seed}/{name}", work, settings, needs, f"tts {command} " + _command_line(settings))

        # reward models
        yield run("pool", base, f"train-{seed}.jsonl", plan.samples, "policy")
        for labels, targets in LABELS.items():
            label = LabelSettings(
                traces=here / "pool/results.jsonl", out=here / f"{labels}.jsonl", quality="check", final="outcome",
                targets=targets, normalize="clip", model=str(base), seed=seed,
            )  # fmt: skip
            yield job(labels, _label, label, f"{seed}/pool", command="label")
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
            yield job(f"{name}-steps", _train_prm, steps, f"{seed}/{labels}", command="train-prm")
            yield job(name, _train_prm, joint, f"{seed}/{name}-steps", command="train-prm")

        # 1. best-of-n
        yield run("test", base, "test.jsonl", plan.n, "policy")
        for name in PRMS:
            scored = here / f"test-by-{name}.jsonl"
            settings = ScoreSettings(traces=here / "test/results.jsonl", scorer=str(here / name), out=scored, bare=True)
            command = f"tts score {settings.traces} --scorer {settings.scorer} --bare --out {scored}"
            both = (f"{seed}/test", f"{seed}/{name}")
            yield Job(f"{seed}/test-by-{name}", _score, {"settings": settings}, both, command)

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
                yield job(f"chosen-{arm}", _select, select, *needs, command="select")
                needs = (f"{seed}/chosen-{arm}",)
            tune = SFTSettings(
                traces=chosen, out=here / f"sft-{arm}", model=str(base), max_steps=plan.sft_steps, batch_size=plan.sft_batch,
                lr=plan.sft_lr, warmup=0.1, save_steps=NEVER, log_steps=100, seed=seed,
            )  # fmt: skip
            yield job(f"sft-{arm}", _sft, tune, *needs, command="sft")
            yield run(f"sft-{arm}-test", tune.out, "test.jsonl", plan.evaluated, f"{seed}/sft-{arm}")

        # 3. reinforcement learning
        for beta in plan.betas:
            learn = RLSettings(
                benchmark=str(work / f"rl-{seed}.jsonl"), out=here / f"rl-{beta:g}", model=str(base), scorer=str(here / "prm"),
                beta=beta, group=plan.group, batch_size=plan.rl_problems * plan.group, max_steps=plan.rl_steps, lr=plan.rl_lr,
                kl=0.0, max_tokens=plan.max_tokens, rollouts="engine", schedule="constant", save_steps=NEVER, log_steps=10,
                seed=seed,
                eval_benchmark=str(work / "held-out.jsonl"), eval_limit=plan.rl_eval, eval_steps=plan.rl_eval_steps,
                window=0,  # no guard: what happens with any beta is to be seen
            )  # fmt: skip
            yield job(f"rl-{beta:g}", _rl, learn, *([f"{seed}/prm"] if beta else ["policy"]), command="rl")
            yield run(f"rl-{beta:g}-test", learn.out, "test.jsonl", plan.evaluated, f"{seed}/rl-{beta:g}")


def run_jobs(jobs: dict[str, Job], work: Path) -> None:
    """Do what is not done, as soon as what it needs is. A stage that fails ends the experiment, and is begun anew next time."""
    done = {name for name in jobs if _mark(work, name).is_file()}
    under_way: dict[Future[float], str] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, mp_context=context, initializer=_one_thread) as pool:
        while len(done) < len(jobs):
            started = {*done, *under_way.values()}
            for name, job in jobs.items():
                if len(under_way) < PROCESSES and name not in started and all(need in done for need in job.needs):
                    under_way[pool.submit(_do, job)] = name
            for finished in wait(under_way, return_when=FIRST_COMPLETED).done:
                name = under_way.pop(finished)
                seconds = finished.result()
                _mark(work, name).parent.mkdir(parents=True, exist_ok=True)
                _mark(work, name).write_text(json.dumps({"seconds": round(seconds, 1), "command": jobs[name].command}) + "\n")
                done.add(name)
                print(f"{len(done):3d}/{len(jobs)}  {seconds:6.1f} s  {name}", flush=True)


def _wanted(jobs: dict[str, Job], only: str) -> dict[str, Job]:
    """Those whose names begin with `only`, behind their seed, and what they need."""
    names = {name for name in jobs if name.rpartition("/")[2].startswith(only)}
    while missing := {need for name in names for need in jobs[name].needs} - names:
        names |= missing
    return {name: job for name, job in jobs.items() if name in names}


def _mark(work: Path, name: str) -> Path:
    return work / "done" / f"{name.replace('/', '-')}.json"


def _write_problems(work: Path, plan: Plan, seeds: int, split: arith.Split) -> None:
    """Problem files: the measured ones, and for each seed three disjoint sets to learn from."""

    def write(name: str, chains: Iterator[arith.Chain], count: int) -> None:
        rows = ({"id": str(i), "problem": c.prompt, "answer": c.answer} for i, c in enumerate(islice(chains, count)))
        (work / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("held-out", arith.chains("dev", 1, LENGTHS, OPERANDS), plan.rl_eval)
    write("test", arith.chains(split, 0, LENGTHS, OPERANDS), plan.test)
    for seed in range(seeds):
        chains = arith.chains("train", 1 + seed, LENGTHS, OPERANDS)  # seed 0 is what the policy was trained on
        for name in ("train", "choose", "rl"):
            write(f"{name}-{seed}", chains, plan.problems)


# what runs in a process of its own


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _do(job: Job) -> float:
    """Seconds that it took. What a stage that was stopped has left is removed first."""
    start = time.monotonic()
    given = job.settings if isinstance(job.settings, dict) else {"settings": job.settings}
    out = given.get("out") or getattr(given["settings"], "out", None)
    if out is not None:
        for left in (out, *out.parent.glob(f"{out.name}.*"), *out.parent.glob(f"{out.stem}.scored*")):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    job.work(**given)
    return time.monotonic() - start


def _policy(out: Path, plan: Plan) -> None:
    from tts.reproduce.demo_training import train_policy

    train_policy(
        out, steps=plan.policy_steps, batch=plan.policy_batch, lr=plan.policy_lr, seed=0, hidden=plan.hidden,
        layers=plan.layers, lengths=LENGTHS, operands=OPERANDS,
    )  # fmt: skip


def _run(**settings: Any) -> None:
    import tts

    tts.run(**settings)


def _label(settings: LabelSettings) -> None:
    from tts.train.label.labeller import label_file

    label_file(settings)


def _train_prm(settings: TrainPRMSettings) -> None:
    from tts.train.prm.training import train_prm

    train_prm(settings)


def _score(settings: ScoreSettings) -> None:
    score_file(settings)


def _select(settings: SelectSettings) -> None:
    from tts.show.console import Output
    from tts.train.select.pipeline import select

    select(settings, Output(as_json=True))


def _sft(settings: SFTSettings) -> None:
    from tts.train.policy.sft import sft

    sft(settings)


def _rl(settings: RLSettings) -> None:
    from tts.train.policy.rl import rl

    rl(settings)


def _command_line(settings: Any) -> str:
    """A settings object as the options that make it."""
    words: list[str] = []
    for f in fields(settings):
        value = getattr(settings, f.name)
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        if f.metadata.get("argument"):
            words.insert(0, str(value))
        elif value != default:
            flag = f.metadata.get("flag") or f"--{f.name.replace('_', '-')}"
            words += (
                [flag]
                if value is True
                else [word for v in (value if isinstance(value, list) else [value]) for word in (flag, str(v))]
            )
    return shlex.join(words)


def _flags(settings: dict[str, Any]) -> str:
    return shlex.join(word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value)))

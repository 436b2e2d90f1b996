"""Trains a reward model in two processes again and again, on a machine kept busy, and says how often that ended as it should.

python scripts/stress_ddp.py --count 50

count  exit 0  others
   50      50  {}
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from busy import busy

ROW = {
    "problem": "Start with 7.\n1) multiply by 8\nWhat is the last digit?",
    "text": "<think>\n1) 7*8=6\n</think>\n\nmultiply by 8 gives 6\n\nThe result is \\boxed{6}",
    "step_targets": [1, 0.5, 0],
    "final_target": 0.25,
}


def main() -> None:
    """Run `--count` trainings one after another; exit code 1 where any of them did not end with 0."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--count", type=int, default=50, help="Trainings.")
    options.add_argument("--busy", type=int, default=os.cpu_count(), help="Processes that keep the machine busy.")
    given = options.parse_args()
    ends: Counter[int] = Counter()
    with tempfile.TemporaryDirectory() as folder, busy(given.busy):
        data = Path(folder) / "data.jsonl"
        data.write_text((json.dumps(ROW) + "\n") * 8)
        for i in range(given.count):
            done = train(data, Path(folder) / f"out-{i}")
            ends[done.returncode] += 1
            if done.returncode:
                print(done.stdout, done.stderr, file=sys.stderr)
            print(f"{i + 1}/{given.count}", dict(ends), flush=True)
    others = {code: count for code, count in ends.items() if code}
    print(f"count  exit 0  others\n{given.count:5d}  {ends[0]:6d}  {others}")
    sys.exit(bool(others))


def train(data: Path, out: Path, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """A training of one step, to its end."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m", "tts.cli"]
    training = ["train-prm", str(data), "--out", str(out), "--device", "cpu", "--max-steps", "1", "--batch-size", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", *launcher, *training], capture_output=True, text=True, env=environment)


if __name__ == "__main__":
    main()

"""Kill a training at random moments, resume it, and compare what it leaves with a training that was left alone.

    python bench/kill_and_resume.py [--kills 20] [--stage autoencoder|diffusion|decoder|all] [--processes 2]

The commands are the real ones (`safelight train …`), killed with SIGKILL anywhere: while importing, in a step, while
writing a checkpoint. Printed is how many bits of the last checkpoint and of the finished model differ: none may.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from safelight.training.loop.log import LOG, read_log

COMMON = ["--size", "16", "--batch-size", "4", "--checkpoint-every", "4", "--log-every", "5",
          "--sheet-every", "60", "--warmup", "5", "--course", "cosine", "--device", "cpu"]  # fmt: skip
STAGES = {
    "autoencoder": ["--channels", "8", "--multipliers", "1,2", "--layers", "1", "--features-steps", "5",
                    "--disc-start", "100", "--disc-warmup", "50", "--disc-channels", "8", "--disc-layers", "1",
                    "--sheet-pictures", "2", "--kind", "vq", "--codes", "32", "--revive-every", "25"],
    "diffusion": ["--channels", "16", "--multipliers", "1,2", "--layers", "1", "--head-channels", "8",
                  "--attention", "2", "--text-width", "16", "--text-layers", "1", "--vocabulary-size", "600",
                  "--accumulate", "2", "--sheet-steps", "2", "--ema-lengths", "0.05,0.1",
                  "--ema-snapshot-every", "50"],
    "decoder": ["--channels", "8", "--layers", "1", "--sheet-pictures", "2"],
}  # fmt: skip

FIRST = "autoencoder-whole"  # the run whose first stage the others build on


def make_pictures(folder: Path, count: int = 24) -> None:
    folder.mkdir()
    chance = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(chance.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i:02}.png")
        (folder / f"{i:02}.txt").write_text(f"a picture of the number {i}")


def command(stage: str, folder: Path, run: Path, processes: int, steps: int) -> list[str]:
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    first = ["--autoencoder", str(folder / FIRST / "model")] if stage != "autoencoder" else []
    pictures, own = [str(folder / "pictures"), "--out", str(run)], ["--steps", str(steps), *COMMON, *STAGES[stage]]
    return [*start, "safelight", "train", stage, *pictures, *first, *own]


def attempt(arguments: list[str], log: Path, *, early: float | None = None, late: float | None = None) -> bool:
    """Run a command; kill it and its children `early` seconds after its start, or `late` seconds after its first step.

    With neither, let it be. Returns whether it had finished.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    begun = log.stat().st_mtime_ns if log.exists() else 0
    with tempfile.TemporaryFile("w+") as told:
        process = subprocess.Popen(arguments, env=environment, stdout=told, stderr=told)
        if late is not None:
            while process.poll() is None and (not log.exists() or log.stat().st_mtime_ns == begun):
                time.sleep(0.005)  # the log is put in order when training begins
        try:
            process.wait(early if late is None else late)
        except subprocess.TimeoutExpired:
            for number in family(process.pid):
                os.kill(number, signal.SIGKILL)
            process.wait()
            return False
        if process.returncode:
            told.seek(0)
            raise SystemExit(f"the training itself failed:\n{told.read()[-3000:]}")
        return True


def family(process: int) -> list[int]:
    """A process and all that come of it, by /proc: torchrun gives each of its own a session, which a kill must find."""
    children = [int(n) for file in Path(f"/proc/{process}/task").glob("*/children") for n in file.read_text().split()]
    return [process, *(number for child in children for number in family(child))]


def differing_bits(a: Path, b: Path) -> int:
    """Bits that differ between the tensors' files of two folders; a file that one lacks counts whole."""
    names = {file.relative_to(root) for root in (a, b) for file in root.rglob("*.safetensors")}
    bits = 0
    for name in names:
        x, y = (
            np.frombuffer((root / name).read_bytes() if (root / name).exists() else b"", np.uint8) for root in (a, b)
        )
        n = min(len(x), len(y))
        bits += int(np.unpackbits(x[:n] ^ y[:n]).sum()) + 8 * abs(len(x) - len(y))
    return bits


def trial(stage: str, folder: Path, kills: int, processes: int, seed: int, steps: int) -> int:
    """Train one stage alone and killed. Returns the number of differing bits."""
    whole, killed = folder / f"{stage}-whole", folder / f"{stage}-killed"
    started = time.monotonic()
    attempt(command(stage, folder, whole, processes, steps), whole / LOG)
    duration = time.monotonic() - started
    training = read_log(whole)[-1]["seconds"]
    chance, done, reached = random.Random(seed), 0, []
    arguments = command(stage, folder, killed, processes, steps)
    while done < kills:
        if chance.random() < 0.2:  # while it imports, reads, restores
            over = attempt(arguments, killed / LOG, early=chance.uniform(0, duration - training))
        else:
            over = attempt(arguments, killed / LOG, late=chance.uniform(0, 1.5 * training / kills))
        if over:
            break
        done += 1
        steps = sorted(path.name for path in killed.glob("checkpoints/step-*"))
        reached.append(int(steps[-1][5:]) if steps else 0)
    attempt(arguments, killed / LOG)
    bits = differing_bits(whole, killed)
    print(f"{stage}: left alone {duration:.1f} s; killed {done} times, with checkpoints at steps {reached}; "
          f"{bits} differing bits in {len(list(whole.rglob('*.safetensors')))} files")  # fmt: skip
    return bits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--stage", choices=[*STAGES, "all"], default="all")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_pictures(folder / "pictures")
        if asked.stage in ("diffusion", "decoder"):
            attempt(command("autoencoder", folder, folder / FIRST, 1, 4), folder / FIRST / LOG)
        stages = list(STAGES) if asked.stage == "all" else [asked.stage]
        bits = sum(trial(stage, folder, asked.kills, asked.processes, asked.seed, asked.steps) for stage in stages)
    raise SystemExit(1 if bits else 0)


if __name__ == "__main__":
    main()

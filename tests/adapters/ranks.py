"""Two ranks of a worker script: `run_two_ranks` starts them, and `main` is what they run."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist


def run_two_ranks(worker: str | Path, folder: Path) -> list[dict[str, Any]]:
    """What two processes of the script `worker`, next to this file or anywhere, return."""
    script = Path(__file__).parent / worker
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder), str(rank)], env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=600)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], outputs
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def main(work: Callable[[Path, int], Any]) -> NoReturn:
    """A rank's whole process, `worker.py FOLDER RANK`: saves what `work(folder, rank)` returns."""
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])

    def run() -> None:
        torch.set_num_threads(1)
        store = dist.FileStore(str(folder / "store"), 2)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
        torch.save(work(folder, rank), folder / f"{rank}.pt")

    leave_after(run)


def leave_after(run: Callable[[], Any]) -> NoReturn:
    """Run, wait for the other ranks, and leave at once: at the interpreter's exit threads of gloo
    that still run may abort the process ("terminate called without an active exception")."""
    status = 1
    try:
        run()
        dist.barrier()
        status = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

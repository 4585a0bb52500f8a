"""Peak memory of merging large checkpoints from disk to disk.

    python benchmarks/streaming.py --parameters 1e9

Writes a random base and fine-tuned checkpoints of a wide CLIP tower (bfloat16, one shard for each layer, the
largest tensor 49 M parameters) to a temporary folder, and adds 1 and then 3 of them to a run, each number in
a process of its own. Printed is the peak resident memory of that process less what it held after its imports,
mapped pages of the files included, also as a multiple of the largest tensor's size in float32.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from mingle.state import MergeRun

WIDTH, INNER = 4096, 12000
LARGEST = WIDTH * INNER
LAYER = 4 * WIDTH**2 + 2 * LARGEST
MB = 2**20


def configuration(parameters: float) -> CLIPVisionConfig:
    """Of a tower of about that many parameters."""
    return CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=max(round(parameters / LAYER), 1),
        num_attention_heads=32,
        patch_size=32,
        projection_dim=512,
    )


def random_tensors(parameters: float, seed: int) -> Iterator[tuple[str, Tensor]]:
    """The base for seed 0, and a small change to it for every other one, tensor by tensor."""
    with torch.device("meta"):
        tower = CLIPVisionModelWithProjection(configuration(parameters))
    for number, (name, shape) in enumerate((n, p.shape) for n, p in tower.named_parameters()):
        tensor = torch.randn(shape, generator=torch.Generator().manual_seed(number))
        if seed:
            change = torch.Generator().manual_seed(1_000_000 * seed + number)
            tensor += 0.1 * torch.randn(shape, generator=change)
        yield name, tensor.bfloat16()


def write_checkpoint(folder: Path, parameters: float, seed: int) -> None:
    """A sharded checkpoint."""
    folder.mkdir()
    places: dict[str, str] = {}
    shards = groupby(random_tensors(parameters, seed), lambda item: item[0].partition("layers.")[2][:2])
    for number, (_, items) in enumerate(shards):
        tensors = dict(items)
        save_file(tensors, folder / f"model-{number:05d}.safetensors")
        places |= dict.fromkeys(tensors, f"model-{number:05d}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    configuration(parameters).save_pretrained(folder)


def peak() -> int:
    """Largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def merge(place: Path, method: str, tasks: int, answer: Connection) -> None:
    """Adds the first tasks to a new run; answers with the memory and the seconds that this took."""
    torch.set_num_threads(1)
    before, started = peak(), time.perf_counter()
    with tempfile.TemporaryDirectory(dir=place) as folder:
        run = MergeRun.create(Path(folder) / "run", place / "base", method=method)
        for number in range(1, tasks + 1):
            run.add(place / f"task{number}")
        answer.send((peak() - before, time.perf_counter() - started))


def in_child(target: Callable[..., None], *arguments: object) -> None:
    """A new process starts from its imports only, and what it used up goes with it."""
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"the process ended with {process.exitcode}")


def main() -> None:
    """Prints one line for each method and number of tasks."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--parameters", type=float, default=1e9)
    arguments.add_argument("--methods", nargs="+", default=["task_arithmetic", "average", "ties"])
    arguments.add_argument("--tasks", type=int, nargs="+", default=[1, 3])
    arguments.add_argument("--folder", type=Path, help="where the temporary files go")
    given = arguments.parse_args()
    size = 4 * LARGEST
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        place = Path(folder)
        for seed in range(max(given.tasks) + 1):
            name = f"task{seed}" if seed else "base"
            in_child(write_checkpoint, place / name, given.parameters, seed)
        layers = configuration(given.parameters).num_hidden_layers
        print(f"{layers * LAYER / 1e9:.2f} billion parameters; largest tensor {size / MB:.0f} MB in float32")
        for method in given.methods:
            for tasks in given.tasks:
                answer, question = multiprocessing.Pipe(duplex=False)
                in_child(merge, place, method, tasks, question)
                memory, seconds = answer.recv()
                print(
                    f"{method:<16} {tasks} tasks: peak {memory / MB:6.0f} MB = {memory / size:.1f} × "
                    f"the largest tensor, {seconds:.0f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()

"""Old pickles of weights into safetensors."""

from dataclasses import asdict
from typing import Annotated

import typer

from mingle.cli.console import Command, Json, megabytes, progress_bar, show


def convert(
    source: Annotated[
        str, typer.Argument(help="Pickle (.bin, .pt, .pth, .ckpt), folder with one, or hub id.")
    ],
    target: Annotated[
        str | None,
        typer.Argument(
            help="New folder, configuration and tokenizer included  [default: beside the pickle]."
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(help="Which dictionary of weights, where there are several."),
    ] = None,
    json: Json = False,
) -> None:
    """Turn a pickle of weights into safetensors.

    A pickle is a program that runs when the file is opened: one from elsewhere can do whatever you can. No
    other command opens one. This one reads it with PyTorch's restricted unpickler, which accepts tensors and
    plain containers and stops at anything else before it runs; the safetensors file then is only data.
    """
    from mingle.weights import convert as convert_weights

    with progress_bar() as progress:
        done = convert_weights(source, target, key=key, progress=progress)
    lines = [f"{done.target}: {', '.join(done.files)} ({done.tensors} tensors, {megabytes(done.bytes)})"]
    if done.key:
        lines.append(f"taken from   {done.key}")
    if done.shared:
        pairs = (f"{alias} = {name}" for alias, name in done.shared.items())
        lines.append(f"stored once  {', '.join(pairs)}")
    if done.left_out:
        lines.append(f"no tensors   {', '.join(done.left_out)}")
    if done.copied:
        lines.append(f"copied       {', '.join(done.copied)}")
    show(asdict(done), "\n".join(lines), as_json=json)


COMMANDS = (Command(convert, "Example: `mingle convert old-model/pytorch_model.bin new-model/`"),)

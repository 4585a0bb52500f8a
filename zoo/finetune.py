"""Fine-tune the new base on the eight tasks. Two processes, each with half the `--tasks`, are faster."""

from __future__ import annotations

import torch

from common import base_model, parser, timed
from mingle.suites._glyph.finetune import finetune
from mingle.suites._glyph.recipe import all_tasks, suite_tasks


def main() -> None:
    """Fine-tune the tasks that have no checkpoint yet."""
    args = parser(__doc__ or "")
    args.add_argument("--tasks", nargs="*", default=suite_tasks("glyph8"), help="task names")
    options = args.parse_args()
    torch.set_num_threads(1)
    for name in options.tasks:
        with timed(f"fine-tune {name}"):
            finetune(options.cache, all_tasks()[name], base_model(options.cache))


if __name__ == "__main__":
    main()

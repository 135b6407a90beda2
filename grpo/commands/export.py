"""The command `grpo export`. Its work is in export.py, which is imported when it is asked for."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = """\
Write the model of a run as a Hugging Face folder, with its tokenizer and a chat template that renders prompts as
they were in training. `vllm serve` and transformers load it. The run may still be going on; nothing in it changes.
"""
EPILOG = """\
  grpo export runs/quickstart                       the newest checkpoint, to runs/quickstart/exports/
  grpo export runs/quickstart --step best           the one with the best held-out accuracy
  grpo export runs/lora --form adapter --to my-lora the adapters alone, for peft and vllm serve --enable-lora

forms: full is all weights of a run that trained them all; of a run with adapters (model.lora.rank > 0), merged is the
base model with the adapters added to it, adapter is the adapters alone.
"""


def add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `export` to the command line."""
    export = commands.add_parser(
        "export",
        help="write a run's model for vllm serve and transformers",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    export.add_argument("run", type=Path, metavar="RUN", help="folder of a run, such as runs/quickstart")
    export.add_argument("--to", type=Path, metavar="FOLDER", help="where it goes (default: RUN/exports/step-N-FORM)")
    export.add_argument("--form", choices=("full", "adapter", "merged"), help="default: the whole model, adapters merged")
    export.add_argument(
        "--step", metavar="N|best", help="which checkpoint: its step, or the best by held-out accuracy (default: the newest)"
    )
    export.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the weights in full and merged; the learner keeps float32, bfloat16 is half as large (default: float32)",
    )
    export.set_defaults(command=_export)


def _export(args: argparse.Namespace) -> int:
    from grpo.export import export, how_to_serve

    exported = export(args.run, to=args.to, form=args.form, step=args.step, dtype=args.dtype)
    print(f"step {exported.step} of {args.run}, {exported.form} -> {exported.folder}")
    print(f"To serve it:\n  {how_to_serve(exported)}")
    return 0

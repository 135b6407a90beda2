"""Types one `grpo` command after the other, in one process: `python typist.py`.

A line in is the words of a command as JSON, the line out its exit code and all that it wrote. In processes of their own they would
do the same, but each would import torch and Ray again.
"""

import json
import os
import sys
import tempfile
import traceback

from grpo.cli import main


def typed(words: list[str]) -> int:
    try:
        return main(words)
    except SystemExit as left:  # of argparse
        return left.code if isinstance(left.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1


def serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    home = os.getcwd()  # `grpo resume` leaves it
    for line in sys.stdin:
        with tempfile.TemporaryFile("w+", errors="replace") as written:
            os.dup2(written.fileno(), 1)
            os.dup2(written.fileno(), 2)
            exit_code = typed(json.loads(line))
            sys.stdout.flush()
            sys.stderr.flush()
            os.chdir(home)
            written.seek(0)
            answers.write(json.dumps([int(exit_code), written.read()]) + "\n")
            answers.flush()


if __name__ == "__main__":
    serve()

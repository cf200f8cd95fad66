"""`python -m tests.hosts.importer MODEL...`: each becomes a checkpoint that is to be evaluated; their ids."""

from __future__ import annotations

import sys

from tasks.api import Tandem


def main(paths: list[str]) -> None:
    """One process for all: the command line takes seconds to start."""
    tandem = Tandem()
    for path in paths:
        print(tandem.import_checkpoint(path).id, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

"""`python -m tests.hosts.mender FENCE`: has the far server serve what is current, as a sync does first."""

from __future__ import annotations

import sys

from config.settings import load_settings
from deploy.deployer import mend
from workers.remotes import open_remote


def main(fence: int) -> int:
    """Exit 0; a traceback where the far side could not be asked."""
    with open_remote(load_settings(), fence=fence) as remote:
        print(mend(target=remote.target, door=remote.door), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))

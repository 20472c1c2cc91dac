"""`python -m cora.cli`: the command `cora`."""

import sys

from cora.cli import main

if __name__ == "__main__":
    sys.exit(main())

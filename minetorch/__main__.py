"""`python -m minetorch`: the `minetorch` command where a folder of commands is not on the PATH."""

import sys

from minetorch.cli import main

if __name__ == "__main__":
    sys.exit(main())

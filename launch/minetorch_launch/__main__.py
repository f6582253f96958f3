"""``python -m minetorch_launch``."""

import sys

from minetorch_launch.cli import main

if __name__ == "__main__":
    sys.exit(main())

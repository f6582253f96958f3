"""``python -m minetorch_launch.doctor``."""

import sys

from minetorch_launch.doctor.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

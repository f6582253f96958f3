"""``python -m minetorch_doctor``."""

import sys

from minetorch_doctor.command import main

if __name__ == "__main__":
    sys.exit(main())

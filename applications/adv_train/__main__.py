"""``python -m adv_train`` is the command ``adv-train``."""

from __future__ import annotations

import sys

from adv_train.cli import main

if __name__ == "__main__":
    sys.exit(main())

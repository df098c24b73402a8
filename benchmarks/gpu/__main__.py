"""`python -m benchmarks.gpu`."""

import sys

from benchmarks.gpu.requirements import unusable

if missing := unusable():
    print("error: cannot be imported: " + "; ".join(missing), file=sys.stderr)
    sys.exit(2)

from benchmarks.gpu.cli import main  # its imports can fail before the check above

sys.exit(main())

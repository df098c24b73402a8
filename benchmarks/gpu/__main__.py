"""`python -m benchmarks.gpu`."""

import sys

from benchmarks.gpu.requirements import unusable

if missing := unusable():
    print("error: cannot be imported: " + "; ".join(missing), file=sys.stderr)
    sys.exit(2)

from benchmarks.gpu.cli import main  # only now is all that it imports known to be there

sys.exit(main())

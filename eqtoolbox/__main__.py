"""`python -m eqtoolbox` does what `eqtoolbox` does."""

import sys

from eqtoolbox.cli import main

sys.exit(main())

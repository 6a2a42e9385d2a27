"""`python -m eqtoolbox` does what `eqtoolbox` does."""

import sys

from eqtoolbox.command.cli import main

sys.exit(main())

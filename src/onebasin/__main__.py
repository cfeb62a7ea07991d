"""The command line, as `python -m onebasin`."""

import sys

from onebasin.cli.main import main

sys.exit(main())

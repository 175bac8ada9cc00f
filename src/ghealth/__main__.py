"""`python -m ghealth` is `ghealth`."""

import sys

from ghealth.cli import main

sys.exit(main())

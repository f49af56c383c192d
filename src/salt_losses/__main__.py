"""`python -m salt_losses`: the command `salt-losses`."""

import sys

from .cli import main

sys.exit(main())

"""`python -m engine.npc_import`."""

import sys

from engine.npc_import.cli import main

if __name__ == "__main__":
    sys.exit(main())

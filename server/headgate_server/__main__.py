"""`python -m headgate_server` is the command `headgate`."""

import sys

from headgate_server.cli import main

if __name__ == "__main__":
    sys.exit(main())

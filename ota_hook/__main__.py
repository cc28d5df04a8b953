"""`python -m ota_hook`, and the `ota-hook` command."""

from __future__ import annotations

import sys

from ota_hook.cli import run


def main() -> None:
    """Run the command line; exits with its status."""
    sys.exit(run())


if __name__ == "__main__":
    main()

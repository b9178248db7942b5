"""How a command ends."""

import sys
from collections.abc import Callable

from utils.errors import DMDError


def run_command(main: Callable[[], None]) -> int:
    """Call `main`; a mistake of the user's is one line on stderr and exit status 2."""
    try:
        main()
    except DMDError as error:
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0

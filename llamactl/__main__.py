"""`python -m llamactl`, so that `torchrun -m llamactl train` works too."""

import signal
import sys

try:
    # Blocked by the command that started this one, such as quickstart.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    from llamactl.cli import main
except KeyboardInterrupt:  # pressed while the commands are imported, before anything is begun
    sys.exit(130)

if __name__ == "__main__":
    main()

"""`python -m llamactl`, so that `torchrun -m llamactl train` works too."""

import sys

try:
    from llamactl.cli import main
except KeyboardInterrupt:  # pressed while the commands are imported, before anything is begun
    sys.exit(130)

if __name__ == "__main__":
    main()

"""`python -m llamactl`, so that `torchrun -m llamactl train` works too."""

from llamactl.cli import main

if __name__ == "__main__":
    main()

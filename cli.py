"""`python cli.py ...` in a checkout is the installed command `regiongrid ...`."""

from regiongrid.commands import main

if __name__ == "__main__":
    main()

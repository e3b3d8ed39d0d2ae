"""`python -m cli`: the command `sagan`."""

from cli import app

if __name__ == "__main__":
    app()

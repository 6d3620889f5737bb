"""`python -m fastspeech` is the command `fastspeech`."""

from fastspeech.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

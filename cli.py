"""`python cli.py …` is `tts …`, in a checkout that is not installed."""

from tts.cli import entry

if __name__ == "__main__":
    entry()

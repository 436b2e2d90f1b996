"""`python -m tts.reproduce`: the paper's findings in miniature."""

import typer

from tts.reproduce.experiments import main

if __name__ == "__main__":
    typer.run(main)

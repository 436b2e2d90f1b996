"""`python -m tts.reproduce`: the paper's findings in miniature."""

from cyclopts import App, Parameter

from tts.reproduce.experiments import reproduce

app = App(
    name="python -m tts.reproduce", default_command=reproduce, default_parameter=Parameter(negative=()), version_flags=(),
    help_format="plaintext",
)  # fmt: skip

if __name__ == "__main__":
    app()

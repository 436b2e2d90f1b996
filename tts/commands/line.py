"""From a command line to a command: settings dataclasses become options by way of cyclopts.

Why cyclopts: it takes options as data, groups them, and reads configuration files and environment variables. It only splits a
command line here; values are checked by `tts.options`, which Python callers go through as well.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_origin

import cyclopts
from cyclopts import App, Group, Parameter

from tts.commands import COMMANDS, Command
from tts.data.files import write_whole
from tts.engines import installed
from tts.errors import InputError
from tts.options import Option, Settings, configure, option, options_of, without_defaults
from tts.show.console import Output

PREFIX = "TTS_"
"""Of environment variables that set options, as in TTS_MODEL."""


@dataclass(frozen=True, kw_only=True)
class OutputOptions(Settings):
    """What every command takes."""

    topic: ClassVar[str] = "Output"

    as_json: bool = option(False, flag="--json")
    """Print one JSON object and nothing else."""
    quiet: bool = option(False, short="-q")
    """Print nothing, or only the path of what was made."""
    verbose: bool = option(False, short="-v")
    """Log requests and what libraries say, and show the traceback of an error."""
    config: Path | None = None
    """TOML, YAML or JSON file with options; options on the command line and in the environment win."""
    save_config: Path | None = None
    """File to write the options to that differ from their defaults, for --config."""


class Line:
    """One command line."""

    def __init__(self, arguments: list[str]) -> None:
        self.arguments = arguments
        self.verbose = "--verbose" in arguments or "-v" in arguments
        self.name = next((word for word in arguments if not word.startswith("-")), None)
        self.code = 0

    def run(self) -> int:
        """Parse and do what it says. Raises InputError."""
        if not self.arguments:
            self.arguments = ["--help"]
        if self.arguments[0] == "--install-completion":
            return self._install_completion()
        try:
            self.app()(self.arguments, exit_on_error=False, print_error=False, result_action="return_value")
        except cyclopts.UnknownOptionError as error:
            raise InputError(self._unknown(error)) from None
        except cyclopts.CycloptsError as error:
            raise InputError(self._said(error)) from None
        return self.code

    def app(self, *, whole: bool = False) -> App:
        """The application. Only the command that is called has its options, unless `whole`, as completion needs it."""
        app = App(
            name="tts", help="Test-time scaling and decoding of reasoning models.",
            version=installed("tts-toolkit") or "not installed",
            help_flags=["-h", "--help"], version_flags=["--version"], config=self._sources(), help_format="plaintext",
            usage="Usage: tts COMMAND [OPTIONS]", help_epilogue="Shell completion: tts --install-completion",
        )  # fmt: skip
        app["--help"].group = app["--version"].group = Group("Options", sort_key=100)
        headings = dict.fromkeys(command.heading for command in COMMANDS.values())
        groups = {heading: Group(heading, sort_key=i) for i, heading in enumerate(headings)}
        for place, (name, command) in enumerate(COMMANDS.items()):
            function = self._function(name, command, whole) if whole or name == self.name else _stub(command)
            app.command(
                function,
                name=name,
                group=groups[command.heading],
                sort_key=place,
                help_epilogue=self._epilogue(name, command),
                usage=_usage(name, command),
            )
        return app

    def _function(self, name: str, command: Command, whole: bool) -> Any:
        """A function whose parameters are the options, and which does the work."""
        settings = command.load("settings")
        plugins = self._plugins(command, whole)
        options = options_of(settings)
        own = {o.name for o in options}
        extra = {
            o.name: replace(o, topic=f"Options of {plugin}")
            for plugin, cls in plugins.items()
            for o in options_of(cls)
            if o.name not in own
        }
        all_options = [o for o in (*options, *extra.values(), *options_of(OutputOptions)) if o.cli]
        topics = dict.fromkeys(o.topic for o in (*extra.values(), *all_options))
        groups = {topic: Group(topic or "Options", sort_key=i) for i, topic in enumerate(topics)}

        places = [o for o in options if o.positional]

        def work(*words: str, **given: Any) -> None:
            for i, (o, _) in enumerate(zip(places, words, strict=False)):
                given[o.name] = list(words[i:]) if o.is_list else words[i]
            output, rest = self._output({k: given.pop(k) for k in list(given) if k in OUTPUT})
            if command.plugins:
                self._save(rest, settings, given)
                self.code = command.load("work")(given, output)
            else:
                made = configure(settings, given, noun=f"tts {name}")
                self._save(rest, settings, given)
                self.code = command.load("work")(made, output)

        parameters = [_parameter(o, groups[o.topic]) for o in all_options]
        work.__signature__ = inspect.Signature(sorted(parameters, key=lambda p: p.kind))  # type: ignore[attr-defined]
        work.__annotations__ = {p.name: p.annotation for p in parameters}
        work.__doc__ = command.about
        return work

    def _plugins(self, command: Command, whole: bool = False) -> dict[str, Any]:
        if command.plugins is None:
            return {}
        if whole:
            from tts.strategies import STRATEGIES

            return STRATEGIES.all()
        found: dict[str, Any] = command.load("plugins")({name: self._value(name) for name in ("strategy", "resume")})
        return found

    def _value(self, name: str) -> str | None:
        """An option's value, before anything is parsed: from the command line, the environment, or the configuration file."""
        flag = f"--{name}"
        for word, following in zip(self.arguments, [*self.arguments[1:], None], strict=True):
            if word == flag:
                return following
            if word.startswith(f"{flag}="):
                return word.partition("=")[2]
        if name == "config":
            return os.environ.get(f"{PREFIX}CONFIG")
        value = os.environ.get(PREFIX + name.upper(), self._configured().get(name))
        return None if value is None else str(value)

    def _configured(self) -> dict[str, Any]:
        """The configuration file's options, by name. Raises InputError."""
        path = self._value("config")
        if path is None:
            return {}
        try:
            text = Path(path).expanduser().read_text(encoding="utf-8")
            match Path(path).suffix.lower():
                case ".toml":
                    import tomllib

                    values = tomllib.loads(text)
                case ".yaml" | ".yml":
                    import yaml

                    values = yaml.safe_load(text)
                case ".json":
                    values = json.loads(text)
                case other:
                    raise InputError(f"--config is {path}, which ends in {other!r}; it should end in .toml, .yaml or .json")
            if not isinstance(values, dict):
                raise ValueError("not a table of options")
        except InputError:
            raise
        except Exception as error:  # each parser has errors of its own
            raise InputError(f"cannot read --config {path}: {' '.join(str(error).split())}") from error
        return {str(name).replace("-", "_"): _pairs(value) for name, value in values.items()}

    def _sources(self) -> list[Any]:
        """Where options come from that the command line does not give: the environment, then the configuration file."""
        environment = cyclopts.config.Env(PREFIX, command=False)
        values = {name.replace("_", "-"): value for name, value in self._configured().items()}
        if not values:
            return [environment]
        where = str(self._value("config"))
        return [environment, cyclopts.config.Dict(values, source=where, use_commands_as_keys=False)]

    def _output(self, given: Mapping[str, Any]) -> tuple[Output, Path | None]:
        chosen = configure(OutputOptions, given)
        if chosen.verbose:
            import logging

            logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s: %(message)s")
        return Output(chosen.as_json, chosen.quiet), chosen.save_config

    def _save(self, path: Path | None, settings: Any, given: Mapping[str, Any]) -> None:
        if path is None:
            return
        names = {o.name for o in options_of(settings)}
        chosen = configure(settings, {name: value for name, value in given.items() if name in names})
        values = {**without_defaults(chosen), **{k.replace("_", "-"): v for k, v in given.items() if k not in names}}
        write_config(path, values)

    def _unknown(self, error: Any) -> str:
        """An option that the command does not have, and whose it is."""
        token = error.token
        option = token.keyword
        if str(token.source).lower() not in ("cli", ""):
            return f"{token.source}: tts {self.name} has no option --{option.strip('[]')}; see tts {self.name} --help"
        command = COMMANDS.get(self.name or "")
        if command is not None and command.plugins is not None:
            from tts.strategies import STRATEGIES

            owners = [name for name, cls in STRATEGIES.all().items() if option in [o.flag for o in options_of(cls)]]
            if owners:
                chosen = " and ".join(self._plugins(command))
                return f"{option} is not an option of the strategy {chosen}; it is one of {', '.join(owners)}"
        return f"tts {self.name or ''} has no option {option}.{_hint(option, self._flags())} See tts {self.name or ''} --help"

    def _flags(self) -> list[str]:
        command = COMMANDS.get(self.name or "")
        if command is None:
            return ["--help", "--version", "--install-completion"]
        found = options_of(command.load("settings")), *(options_of(cls) for cls in self._plugins(command).values())
        return [o.flag for group in (*found, options_of(OutputOptions)) for o in group if o.cli]

    def _said(self, error: Any) -> str:
        """What cyclopts complains of, in our words where they say more."""
        match error:
            case cyclopts.UnknownCommandError():
                return f"no command {self.name!r}.{_hint(self.name or '', COMMANDS, 0.6)} Commands: {', '.join(COMMANDS)}"
            case cyclopts.UnusedCliTokensError():
                surplus = (error.unused_tokens or [""])[0]
                return f"unexpected argument {surplus!r}; options look like --n 16; see tts {self.name} --help"
            case cyclopts.MissingArgumentError():
                name = error.argument.name if error.argument is not None else ""
                if name in self.arguments:
                    return f"{name} needs a value; see tts {self.name} --help"
                places = [o.flag for o in options_of(COMMANDS[str(self.name)].load("settings")) if o.positional]
                lacking = name.removeprefix("--").upper() if name in places else name
                return f"tts {self.name} needs {lacking}; see tts {self.name} --help"
        return " ".join(str(error).split())

    def _install_completion(self) -> int:
        path = self.app(whole=True).install_completion()
        print(f"completion is installed in {path}; it works in new shells")
        return 0

    def _epilogue(self, name: str, command: Command) -> str | None:
        if command.plugins is None or name != self.name or not {"-h", "--help"} & set(self.arguments):
            return None
        from tts.options import describe
        from tts.strategies import STRATEGIES

        lines = [f"{strategy}  {describe(cls)}" for strategy, cls in STRATEGIES.all().items()]
        return "Strategies and their options (tts strategies show NAME explains them):\n\n" + "\n".join(lines)


OUTPUT = [o.name for o in options_of(OutputOptions)]


def _stub(command: Command) -> Any:
    """Stands for a command that is not called, with its help line."""

    def stub() -> None: ...

    stub.__doc__ = command.about
    return stub


def _usage(name: str, command: Command) -> str:
    places = [o for o in options_of(command.load("settings")) if o.positional]
    words = [f"[{o.name.upper()}]" if o.default is not MISSING else o.name.upper() for o in places]
    return " ".join(["Usage: tts", name, *words, "[OPTIONS]"])


def _parameter(o: Option, group: Group) -> inspect.Parameter:
    """An option for cyclopts, which is to leave values as they are written: they are checked later."""
    names = [name for name in (o.flag, o.short or ("-n" if o.name == "n" else None)) if name]
    settings: dict[str, Any] = {
        "help": _help(o), "group": group, "negative": (),
        "show_default": False, "allow_repeating": True, "show_env_var": False, "required": o.default is MISSING,
    }  # fmt: skip
    name = {int: "int", float: "float", Path: "path"}.get(o.bare, "text")
    value = type(name, (), {})  # a type of no library's: neither cyclopts nor pydantic converts it
    hint: Any = bool | None if o.is_flag else list[value] if o.is_list else value  # type: ignore[valid-type]
    if not o.is_flag:
        settings["converter"] = _as_written
    default = inspect.Parameter.empty if o.default is MISSING else None
    if o.positional:
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if not o.is_list else inspect.Parameter.VAR_POSITIONAL
        if o.is_list:
            return inspect.Parameter(o.name, kind, annotation=Annotated[str, Parameter(**settings)])
        return inspect.Parameter(o.name, kind, default=default, annotation=Annotated[hint, Parameter(**settings)])
    settings["name"] = names
    return inspect.Parameter(
        o.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, Parameter(**settings)]
    )


def _as_written(hint: Any, tokens: Iterable[Any]) -> Any:
    values = [token.value for token in tokens]
    return values if get_origin(hint) is list else values[-1]


def _help(o: Option) -> str:
    shown = f"[default: {o.default_text}]" if o.default_text else ""
    words = "" if o.bare in (bool, str, Path) or o.is_list else o.takes
    if o.bare in (int, float):  # the type stands beside the name
        words = words.partition(", ")[2]
    return " ".join(filter(None, (o.help, f"[{words}]" if words else "", shown)))


def _hint(word: str, known: Iterable[str], cutoff: float = 0.75) -> str:
    from difflib import get_close_matches

    close = get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f" Did you mean {close[0]}?" if close else ""


def write_config(path: Path, values: Mapping[str, Any]) -> None:
    """Write options to a .toml, .yaml or .json file. Raises InputError."""
    values = {name: _pairs(value) for name, value in values.items() if value is not None}
    match path.suffix.lower():
        case ".toml":
            text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())  # JSON's values are TOML's
        case ".yaml" | ".yml":
            import yaml

            text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
        case ".json":
            text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
        case other:
            raise InputError(f"--save-config is {path}, which ends in {other!r}; it should end in .toml, .yaml or .json")
    try:
        write_whole(path, text)
    except OSError as error:
        raise InputError(f"cannot write --save-config {path}: {error.strerror or error}") from error


def _pairs(value: Any) -> Any:
    """A table such as {max_rows: 8} as the command line has it: a list of name=value."""
    if not isinstance(value, dict):
        return value
    return [f"{name}={item if isinstance(item, str) else json.dumps(item)}" for name, item in value.items()]

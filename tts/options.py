"""One way to declare options: the fields of a dataclass.

A field gives an option its name, type, bounds (`Annotated[int, Ge(1)]`) and default; the text under the field is its help.
Command lines, Python keywords, run.json, the check of a resumed run and the reference in the docs are all made from
`options_of`. Plug-ins declare their options in the same way; a class that is not a dataclass has the keyword parameters of
`__init__`.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, is_dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le
from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError

from tts.errors import InputError
from tts.helptexts import texts_of_arguments, texts_under_fields
from tts.types import Count as Count

LONG = 80
"""Characters of a value in a message."""

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

Natural = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
Proportion = Annotated[float, Gt(0), Le(1)]


def key_values(pairs: Any) -> Any:
    """`["a=1", "b=x"]` as {"a": 1, "b": "x"}; a value is read as JSON where it is JSON. Other than lists return unchanged."""
    if not isinstance(pairs, list | tuple):
        return pairs
    values = {}
    for pair in pairs:
        name, equals, value = str(pair).partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(pair)
        try:
            values[name] = json.loads({"True": "true", "False": "false", "None": "null"}.get(value, value))
        except ValueError:
            values[name] = value
    return values


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else [] if value is None else value


Addresses = Annotated[list[str], BeforeValidator(_listed)]
"""One or several servers; a text in Python, or a list of them, a repeatable option on the command line."""

Arguments = Annotated[dict[str, Any], BeforeValidator(key_values)]
"""name=value pairs; a dict in Python, a repeatable option on the command line."""


def option(
    default: Any = MISSING,
    *,
    factory: Any = MISSING,
    short: str | None = None,
    flag: str | None = None,
    shown: str | None = None,
    topic: str | None = None,
    kept: bool = True,
    names: str = "",
    positional: bool = False,
    cli: bool = True,
    otherwise: Any = None,
) -> Any:
    """A dataclass field with more to say than its type and default.

    Args:
        default: Value where the option is not given; without it the option is required.
        factory: Function that makes the default.
        short: Short form on the command line, such as `-o`.
        flag: Name on the command line where it differs from the field's.
        shown: The default in words, where the value itself says little (`None`).
        topic: Heading under which help lists it; by default the `topic` of the class that declares the field.
        kept: Whether results depend on it, so that it belongs to a run's identity and cannot change when it is resumed.
        names: What its value is the name of, so that this belongs to a run's identity by content: a `model`, `data`, a file of
            `lines` that may grow, or a `plugin`. Any of them can be a plug-in's `file.py:Name` (`tts.data.identity`).
        positional: Whether it is given by its place.
        cli: Whether the command line has it.
        otherwise: What settings put in the place of None where the option is not given and nothing else decides.
    """
    about = {"short": short, "flag": flag, "shown": shown, "topic": topic, "kept": kept, "names": names,
             "positional": positional, "cli": cli, "otherwise": otherwise}  # fmt: skip
    return (
        dataclasses.field(default=default, metadata=about)
        if factory is MISSING
        else dataclasses.field(default_factory=factory, metadata=about)
    )


@dataclass(frozen=True)
class Option:
    """What is known of one option."""

    name: str
    hint: Any
    """Its type, with bounds."""
    default: Any
    """MISSING where it is required."""
    help: str
    topic: str = ""
    short: str | None = None
    flag: str = ""
    shown: str | None = None
    kept: bool = True
    names: str = ""
    positional: bool = False
    cli: bool = True
    otherwise: Any = None

    @property
    def takes(self) -> str:
        """The values it takes, in words: `whole number, at least 1`."""
        return _words(self.hint)

    @property
    def default_text(self) -> str:
        """The default as help shows it; empty where there is nothing to say."""
        if self.shown is not None:
            return self.shown
        if self.otherwise is not None:
            return str(self.otherwise)
        if self.default is MISSING or self.default in (None, "", [], {}, ()) or self.default is False:
            return ""
        return str(self.default).replace("\n", "\\n")

    @property
    def bare(self) -> Any:
        """Its type without bounds and without None."""
        return _bare(self.hint)

    @property
    def is_flag(self) -> bool:
        return self.bare is bool

    @property
    def is_list(self) -> bool:
        return get_origin(self.bare) in (list, tuple, dict)


def options_of(plugin: Any) -> list[Option]:
    """The options of a dataclass, or those of another class or function: its keyword parameters."""
    if isinstance(plugin, type) and is_dataclass(plugin):
        return list(_fields_of(plugin))
    function: Any = plugin.__init__ if isinstance(plugin, type) else plugin  # type: ignore[misc]
    if function is object.__init__:
        return []
    hints = get_type_hints(function, include_extras=True)
    texts = texts_of_arguments(plugin)
    return [
        Option(p.name, hints.get(p.name, Any), MISSING if p.default is p.empty else p.default, texts.get(p.name, ""),
               flag=flag_of(p.name))
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    ]  # fmt: skip


@lru_cache(maxsize=256)
def _fields_of(cls: type) -> tuple[Option, ...]:
    hints, texts = get_type_hints(cls, include_extras=True), texts_under_fields(cls)
    # the class that declares a field first gives it its place and heading, the last one its default and help
    home = {name: base for base in cls.__mro__ for name in _declared(base)}
    found = []
    for f in dataclasses.fields(cls):
        if not f.init:
            continue
        about = {"flag": None, "topic": None, **f.metadata}
        flag, topic = about.pop("flag") or flag_of(f.name), about.pop("topic") or home[f.name].__dict__.get("topic", "")
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        found.append(Option(f.name, hints[f.name], default, texts.get(f.name, ""), flag=flag, topic=topic, **about))
    topics = [base.__dict__.get("topic", "") for base in cls.__mro__]
    order = {topic: topics.index(topic) for topic in topics}
    return tuple(sorted(found, key=lambda o: (order.get(o.topic, len(order)), -cls.__mro__.index(home[o.name]))))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of settings: every field is checked against its type and bounds when an instance is made. Raises InputError."""

    def __post_init__(self) -> None:
        for o in options_of(type(self)):
            if (value := getattr(self, o.name)) is not o.default and value != o.default:
                object.__setattr__(self, o.name, convert(o, value))  # the one way to set a field of a frozen dataclass


def keywords_of(settings: type) -> Callable[[F], F]:
    """Decorator for a function with `**settings`: `help` and editors show the options as its keywords."""

    def add(function: F) -> F:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        rest = [p for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
        taken = {p.name for p in own}
        added = [
            inspect.Parameter(o.name, inspect.Parameter.KEYWORD_ONLY, default=o.default, annotation=o.bare)
            for o in options_of(settings)
            if o.name not in taken and o.cli
        ]
        function.__signature__ = signature.replace(parameters=[*own, *added, *rest])  # type: ignore[attr-defined]
        return function

    return add


def configure(cls: Callable[..., T], values: Mapping[str, Any], *given: Any, noun: str | None = None, prefix: str = "") -> T:
    """Call a class or function with options, each validated by its type and bounds.

    Args:
        cls: A dataclass, or another class or function whose keyword parameters are its options. Where it takes `**others`,
            options without a name of their own are passed on unchanged.
        values: Options by name. Texts are read as the option's type.
        given: Positional arguments, which come first.
        noun: What messages call `cls`; by default its name.
        prefix: What messages put before an option's name instead of `--`, such as `--scorer-arg `.

    Raises:
        InputError: An option is unknown, missing or out of bounds, or `cls` refuses it.
    """
    options = {o.name: o for o in options_of(cls)}
    if is_dataclass(cls):
        options = dict(list(options.items())[len(given) :])
    noun, passes_on = noun or getattr(cls, "__name__", str(cls)), _passes_on(cls)
    for name in values:
        if name not in options and not passes_on:
            close = get_close_matches(name, options, n=1, cutoff=0.75)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise InputError(f"{noun} has no option {name!r}.{hint} It takes: {', '.join(options) or 'none'}.")
    converted = {name: convert(options[name], value, prefix) if name in options else value for name, value in values.items()}
    if missing := next((o for o in options.values() if o.default is MISSING and o.name not in values), None):
        raise InputError(f"{noun} needs {prefix}{missing.name}" if prefix else f"{noun} needs {missing.flag}")
    try:
        return cls(*given, **converted)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"{noun}: {error}") from error


def _passes_on(cls: Any) -> bool:
    return not is_dataclass(cls) and any(p.kind is p.VAR_KEYWORD for p in inspect.signature(cls).parameters.values())


def convert(option: Option, value: Any, prefix: str = "") -> Any:
    """A value as an option's type. Raises InputError, which says what was given and what is expected."""
    name = f"{prefix}{option.name}" if prefix else option.flag
    try:
        return _adapter(option.hint).validate_python(value)
    except ValidationError as error:
        given = error.errors()[0]["input"] if option.is_list and isinstance(value, list) else value
        if isinstance(given, list):  # name=value pairs: the one that is not
            given = next((pair for pair in given if "=" not in str(pair)), given)
        raise InputError(f"{name} is {given!r}; it should be {_with_article(option.takes)}") from None


def kept(settings: Any) -> dict[str, Any]:
    """The fields that results depend on, as JSON values: what a run is, on disk."""
    return {o.name: _json(getattr(settings, o.name)) for o in options_of(type(settings)) if o.kept}


def check_resumable(what: Any, begun: Mapping[str, Any], settings: Any) -> None:
    """Raise InputError where a kept field of `settings` differs from what `what` (a folder or file) was started with."""
    for o in options_of(type(settings)):
        if not o.kept or o.name not in begun or begun[o.name] == (asked := _json(getattr(settings, o.name))):
            continue
        was, flag = begun[o.name], o.flag
        if isinstance(was, dict) and isinstance(asked, dict):  # name the pair that differs
            name = next(name for name in (*was, *asked) if was.get(name) != asked.get(name))
            flag = f"{o.flag} {name}" if o.cli else flag_of(name)
            was, asked = was.get(name), asked.get(name)
        was, asked = _where_they_differ(_shown(was), _shown(asked))
        raise InputError(
            f"{what} was started with {flag} {was}, not {asked}; resume it without changing that, or choose another --out"
        )


def without_defaults(settings: Any) -> dict[str, Any]:
    """The options that differ from their defaults, as JSON values, under their names on the command line."""
    named = {o.flag.removeprefix("--"): (o, _json(getattr(settings, o.name))) for o in options_of(type(settings)) if o.cli}
    usual = {name: (_json(o.default), _json(o.otherwise)) for name, (o, _) in named.items()}
    return {name: value for name, (o, value) in named.items() if o.default is MISSING or value not in usual[name]}


def describe(plugin: Any) -> str:
    """`--n 16 --width 4`: the options with their defaults; a flag that is off in brackets."""
    return " ".join(
        f"[{o.flag}]" if o.is_flag and not o.default else f"{o.flag} {o.default_text or '…'}" for o in options_of(plugin)
    )


def first_line(plugin: Any) -> str:
    """The first line of a plug-in's docstring, or of its module's."""
    text = plugin.__doc__ or sys.modules[plugin.__module__].__doc__ or ""
    return text.strip().partition("\n")[0]


def flag_of(name: str) -> str:
    """`--max-tokens` for `max_tokens`."""
    return "--" + name.replace("_", "-")


# types in words


_CONFIG = ConfigDict(allow_inf_nan=False, arbitrary_types_allowed=True)


@lru_cache(maxsize=512)
def _adapter_of(key: Any) -> TypeAdapter[Any]:
    return TypeAdapter(key, config=_CONFIG)


def _adapter(hint: Any) -> TypeAdapter[Any]:
    try:
        return _adapter_of(hint)
    except TypeError:  # a hint that has no hash
        return TypeAdapter(hint, config=_CONFIG)


def _bare(hint: Any) -> Any:
    if get_origin(hint) is Annotated:
        return _bare(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return _bare(next(part for part in get_args(hint) if part is not type(None)))
    return hint


_NAMES: dict[Any, str] = {
    str: "text", int: "whole number", float: "number", bool: "flag", Path: "path", Any: "value", list: "list",
    dict: "name=value",
}  # fmt: skip
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def _words(hint: Any) -> str:
    origin = get_origin(hint)
    if hint == Arguments:
        return "name=value"
    if origin is Annotated:
        base, *limits = get_args(hint)
        bounds = [f"{word} {getattr(x, sign):g}" for x in limits for sign, word in _BOUNDS.items() if hasattr(x, sign)]
        return ", ".join([_words(base), " and ".join(bounds)]) if bounds else _words(base)
    if origin is Literal:
        *most, last = map(str, get_args(hint))
        return f"{', '.join(most)} or {last}" if most else last
    if origin in (Union, types.UnionType):
        return " or ".join(_words(part) for part in get_args(hint) if part is not type(None))
    if origin in (list, tuple, dict):
        return _NAMES[dict if origin is dict else list]
    return _NAMES.get(hint, getattr(hint, "__name__", str(hint)))


def _with_article(words: str) -> str:
    if words == "flag":
        return "true or false"
    if words.split(",")[0] in _NAMES.values() and not words.startswith(("text", "name=value")):
        return f"a {words}"
    return f"{words}, as in dtype=bfloat16" if words == "name=value" else words


def _where_they_differ(a: str, b: str) -> tuple[str, str]:
    """Two texts, cut to where they begin to differ if they are long."""
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    start = max(0, same - LONG // 3)

    def cut(text: str) -> str:
        return (
            text if len(text) <= LONG else f"{'…' * bool(start)}{text[start : start + LONG]}{'…' * (start + LONG < len(text))}"
        )

    return cut(a), cut(b)


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _declared(cls: type) -> list[str]:
    return [name for name in inspect.get_annotations(cls) if name != "topic"]

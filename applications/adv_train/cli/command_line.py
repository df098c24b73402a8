"""Parse a command line: dataclasses declare the flags, and tyro parses them and writes the help."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin

import tyro

from adv_train.errors import UserError, unknown
from adv_train.leaves import Leaf, leaves
from adv_train.values import format_fraction

T = TypeVar("T")
_METAVARS: Final = {int: "N", float: "X", str: "NAME", Path: "PATH"}


@dataclasses.dataclass(frozen=True)
class Group:
    """Flags that the help shows together.

    Attributes:
        title: One word that names the group.
        about: One line that says what the flags decide.
        flags: The field that each flag sets, by the name of the flag, written with dashes.
        switches: Names of the flags that can only be turned on: they have no `--no-` form.
        positional: Name of the flag that is a positional argument; it takes several words if its type is a tuple.
    """

    title: str
    about: str
    flags: Mapping[str, Leaf]
    switches: frozenset[str] = frozenset()
    positional: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """How the command shows its progress.

    Attributes:
        quiet: Show no progress on stderr.
        progress: Show progress bars even if stderr is not a terminal.
    """

    quiet: bool = False
    progress: bool = False

    def __post_init__(self) -> None:
        if self.quiet and self.progress:
            raise UserError("--quiet and --progress exclude each other.")

    @property
    def shown(self) -> bool | None:
        """True to show bars, False to show nothing, None to show bars only if stderr is a terminal."""
        return True if self.progress else False if self.quiet else None


def group_of(kind: type[Any], *, positional: str | None = None) -> Group:
    """Make the group of flags of a dataclass; a field that is False by default becomes a switch."""
    flags = {leaf.field.replace("_", "-"): leaf for leaf in leaves(kind)}
    return Group(
        "command",
        (kind.__doc__ or "").partition("\n")[0],
        flags,
        frozenset(name for name, leaf in flags.items() if leaf.default is False),
        positional,
    )


def options(kind: type[T], words: Sequence[str], command: str, about: str, *, positional: str | None = None) -> T:
    """Read the flags of a command.

    Args:
        kind: A dataclass whose fields are the flags.
        words: The words of the command line that follow the command.
        command: Name of the command, such as ``adv-train fit``, for the help and the errors.
        about: A description, a blank line, and examples, as in a module's docstring.
        positional: Name of the field that is a positional argument.

    Raises:
        UserError: If a flag does not exist, or a value is invalid.
        SystemExit: After `--help`.
    """
    found = given(words, [group_of(kind, positional=positional)], command, about)
    return kind(**{name.replace("-", "_"): value for name, value in found.items()})


def given(words: Sequence[str], groups: Iterable[Group], command: str, about: str) -> dict[str, Any]:
    """Return the value of each flag that is on the command line; see `options` for the arguments."""
    groups = list(groups)
    description, _, examples = about.partition("\n\n")
    flags = [flag for group in groups for flag in group.flags if flag != group.positional]
    for word in words:
        name = word.partition("=")[0]
        if name.startswith("--") and name not in ("--help", *_spellings(groups)):
            raise unknown(f"argument of `{command}`", name, [f"--{flag}" for flag in flags])
    # The default of a field is None or a bool; the user gave every value that is a `_Given`.
    shapes = [(group.title, _shape(group)) for group in groups]
    whole = dataclasses.make_dataclass("Flags", shapes, kw_only=True)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed: Any = tyro.cli(
                whole, args=list(words), prog=command, description=description, config=(tyro.conf.OmitArgPrefixes,)
            )
    except SystemExit as stop:
        if stop.code == 0:
            print(examples)
            raise
        raise UserError(f"{_first_lines(said.getvalue())} (`{command} --help` lists the flags)") from None
    found: dict[str, Any] = {}
    for (name, _), group in zip(shapes, groups, strict=True):
        values = vars(getattr(parsed, name))
        for flag in group.flags:
            value = values[flag.replace("-", "_")]
            if isinstance(value, _Given):
                found[flag] = value.value
            elif isinstance(value, bool) and _was_named(flag, words):
                found[flag] = value
    return found


@dataclasses.dataclass(frozen=True)
class _Given:
    value: Any


def _shape(group: Group) -> type[Any]:
    fields = [(flag.replace("-", "_"), *_field(flag, leaf, group)) for flag, leaf in group.flags.items()]
    return dataclasses.make_dataclass(group.title, fields, kw_only=True, namespace={"__doc__": group.about})


def _field(flag: str, leaf: Leaf, group: Group) -> tuple[Any, Any]:
    told = tyro.conf.arg(name=flag, help=leaf.help, help_behavior_hint=_default_hint(leaf))
    if leaf.hint is bool:
        kind: Any = Annotated[bool, told]
        if flag in group.switches:
            kind = Annotated[kind, tyro.conf.FlagCreatePairsOff]
        return kind, dataclasses.field(default=bool(leaf.default))
    several = flag == group.positional and get_origin(leaf.hint) is tuple
    spec = tyro.constructors.PrimitiveConstructorSpec[Any](
        nargs="*" if several else 1,
        metavar=_positional(flag, several) if flag == group.positional else _metavar(leaf.hint),
        instance_from_str=lambda words: _Given(leaf.read(words if several else words[0], flag.replace("-", "_"))),
        is_instance=lambda _: True,
        str_from_instance=lambda value: [str(value)],
    )
    kind = Annotated[Any, spec, told]
    return Annotated[kind, tyro.conf.Positional] if flag == group.positional else kind, dataclasses.field(default=None)


def _positional(flag: str, several: bool) -> str:
    return f"{flag.upper().removesuffix('S')}..." if several else flag.upper()


def _default_hint(leaf: Leaf) -> str:
    if leaf.required or leaf.default is None or leaf.default is False or leaf.default == ():
        return ""
    shown = format_fraction(leaf.default) if isinstance(leaf.default, float) else leaf.default
    return f"(default: {shown})"


def _metavar(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType, Annotated):
        return _metavar(next(kind for kind in get_args(hint) if kind is not types.NoneType))
    if get_origin(hint) is tuple:
        return f"{_metavar(get_args(hint)[0])},..."
    if get_origin(hint) is Mapping:
        return "NAME=X,..."
    if get_origin(hint) is Literal:
        return "{" + ",".join(get_args(hint)) + "}"
    return _METAVARS.get(hint, "NAME")


def _spellings(groups: Iterable[Group]) -> set[str]:
    spelled = {f"--{flag}" for group in groups for flag in group.flags if flag != group.positional}
    return spelled | {
        f"--no-{flag}"
        for group in groups
        for flag, leaf in group.flags.items()
        if leaf.hint is bool and flag not in group.switches
    }


def _was_named(flag: str, words: Sequence[str]) -> bool:
    return any(word in (f"--{flag}", f"--no-{flag}") for word in words)


def _first_lines(box: str) -> str:
    """Extract tyro's message from the box that tyro draws around the message and a hint."""
    lines = [line.strip("│ ").strip() for line in box.splitlines()[1:]]
    end = next((number for number, line in enumerate(lines) if line.startswith(("─", "╰"))), len(lines))
    return " ".join(lines[:end]) or "The command line cannot be read."

"""Finds the places of a file where one token can be wrong, and draws a random sample of them."""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

#: The packages that are mutated, by the name that `PARTS` takes.
PACKAGES = {"blo": "blo", "adv_train": "applications/adv_train"}

_OPERATORS: dict[type[ast.AST], tuple[str, str]] = {
    ast.Add: (r"\+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: (r"\*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "/"),
    ast.Mod: ("%", "*"),
    ast.Pow: (r"\*\*", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: (r"\|", "&"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: (r"is\s+not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: (r"not\s+in", "in"),
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
}
#: Calls whose texts are read by people only.
_SAYS = re.compile(r"(Error|Warning|warn|unknown|refused|print|_say)$")
#: Calls that a type checker reads, and those where the order of the arguments does not matter or is checked at once.
_TYPING = ("TypeVar", "NewType", "cast")
#: Keywords whose absence only another machine would notice.
_ELSEWHERE = ("encoding", "device")
_ANY_ORDER = ("min", "max", "isinstance", "issubclass")


@dataclass(frozen=True)
class Mutant:
    """One change of one place.

    Attributes:
        path: File below the checkout, with forward slashes.
        line: Where the change begins, from 1.
        start: Offset in characters of the first that is replaced.
        end: Offset after the last.
        before: What is there.
        after: What takes its place.
    """

    path: str
    line: int
    start: int
    end: int
    before: str
    after: str

    def apply(self, folder: Path) -> None:
        """Change the file in a copy of the checkout."""
        file = folder / self.path
        file.write_text(self.applied(file.read_text(encoding="utf-8")), encoding="utf-8")

    def applied(self, text: str) -> str:
        """Return the text of the file with the change in it.

        Raises:
            LookupError: When the text is not that which the mutant was drawn from.
        """
        if text[self.start : self.end] != self.before:
            raise LookupError(f"{self.path} has changed since the mutant of line {self.line} was drawn.")
        return text[: self.start] + self.after + text[self.end :]


def draw(root: Path, count: int, seed: int, parts: Iterable[str] = tuple(PACKAGES)) -> list[Mutant]:
    """Draw mutants of the packages, each place as likely as another.

    Args:
        root: The checkout.
        count: How many; fewer come where there are fewer.
        seed: The same seed and code give the same mutants.
        parts: Keys of `PACKAGES`.
    """
    found: list[Mutant] = []
    texts: dict[str, str] = {}
    for part in sorted(parts):
        for file in sorted((root / PACKAGES[part]).rglob("*.py")):
            path = file.relative_to(root).as_posix()
            texts[path] = file.read_text(encoding="utf-8")
            found += places(path, texts[path])
    random.Random(seed).shuffle(found)
    valid = (mutant for mutant in found if _parses(mutant.applied(texts[mutant.path])))
    return [mutant for mutant, _ in zip(valid, range(count), strict=False)]


def places(path: str, text: str) -> list[Mutant]:
    """Find every place of a file that can be changed, in the order of the file.

    Left alone are docstrings, annotations, `__all__`, what only a type checker reads, and texts for people: those in
    errors and warnings, f-strings, and all that hold a space. So are `device=` and `encoding=`, whose absence only
    another machine would notice.
    """
    finder = _Finder(path, text)
    finder.visit(ast.parse(text))
    return sorted(set(finder.found), key=lambda mutant: (mutant.start, mutant.end, mutant.after))


def _parses(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


class _Finder(ast.NodeVisitor):
    def __init__(self, path: str, text: str) -> None:
        self.path, self.text = path, text
        self.lines = text.splitlines(keepends=True)
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line))
        self.found: list[Mutant] = []

    # --- where things are ---

    def _offset(self, line: int, column: int) -> int:
        """Turn a place as `ast` gives it, whose columns count bytes of UTF-8, into characters."""
        return self.starts[line - 1] + len(self.lines[line - 1].encode()[:column].decode())

    def _span(self, node: ast.expr | ast.stmt | ast.keyword) -> tuple[int, int]:
        assert node.end_lineno is not None and node.end_col_offset is not None
        return self._offset(node.lineno, node.col_offset), self._offset(node.end_lineno, node.end_col_offset)

    def _source(self, node: ast.expr | ast.stmt | ast.keyword) -> str:
        start, end = self._span(node)
        return self.text[start:end]

    def _add(self, start: int, end: int, after: str) -> None:
        before = self.text[start:end]
        if before != after:
            line = self.text.count("\n", 0, start) + 1
            self.found.append(Mutant(self.path, line, start, end, before, after))

    def _operator(self, operator: ast.AST, left: ast.expr, right: ast.expr) -> None:
        if type(operator) not in _OPERATORS:
            return
        written, after = _OPERATORS[type(operator)]
        start, end = self._span(left)[1], self._span(right)[0]
        # What else there may be is a comment; such a place is left out.
        if match := re.fullmatch(rf"[\s)]*({written})[\s(]*", self.text[start:end]):
            self._add(start + match.start(1), start + match.end(1), after)

    def _each(self, *nodes: ast.AST | None) -> None:
        for node in nodes:
            if node is not None:
                self.visit(node)

    # --- what is left alone ---

    def visit_Import(self, node: ast.Import) -> None: ...
    def visit_ImportFrom(self, node: ast.ImportFrom) -> None: ...
    def visit_JoinedStr(self, node: ast.JoinedStr) -> None: ...
    def visit_Raise(self, node: ast.Raise) -> None: ...

    def visit_Assert(self, node: ast.Assert) -> None:
        self._each(node.test)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if "TypeAlias" not in self._source(node.annotation):
            self._each(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        if not any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets):
            self._each(node.value)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if self._source(node.value).rpartition(".")[2] not in ("Literal", "Annotated", "Callable"):
            self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        decorators = [decorator for decorator in node.decorator_list if "overload" not in self._source(decorator)]
        if len(decorators) == len(node.decorator_list):
            self._each(*decorators, *node.args.defaults, *node.args.kw_defaults, *node.body)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        decorators = [decorator for decorator in node.decorator_list if "dataclass" not in self._source(decorator)]
        self._each(*decorators, *node.body)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._each(*node.args.defaults, *node.args.kw_defaults, node.body)

    # --- what is changed ---

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant):
            return  # a docstring, or an ellipsis
        if isinstance(node.value, ast.Call):
            self._add(*self._span(node), "pass")
        self._each(node.value)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        self._operator(node.op, node.left, node.right)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if type(node.op) in _OPERATORS:
            written, after = _OPERATORS[type(node.op)]
            start = self._span(node.target)[1]
            if match := re.match(rf"\s*({written})=", self.text[start:]):
                self._add(start + match.start(1), start + match.end(1), after)
        self._each(node.value)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._operator(node.op, left, right)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        members = [node.left, *node.comparators]
        for operator, left, right in zip(node.ops, members, members[1:], strict=False):
            self._operator(operator, left, right)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if not isinstance(node.op, ast.UAdd):
            self._add(self._span(node)[0], self._span(node.operand)[0], "")
        self._each(node.operand)

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" in self._source(node.test) or "__name__" in self._source(node.test):
            return
        self._condition(node.test)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        self._condition(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._condition(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self._condition(test)
        self.generic_visit(node)

    def _condition(self, test: ast.expr) -> None:
        negated = isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
        if not negated:  # else the operator is taken off there
            self._add(*self._span(test), f"(not ({self._source(test)}))")

    def visit_Call(self, node: ast.Call) -> None:
        name = self._source(node.func).rpartition(".")[2]
        if name in _TYPING or _SAYS.search(name):
            return
        self._each(node.func)
        arguments: Sequence[ast.expr | ast.keyword] = sorted([*node.args, *node.keywords], key=self._span)
        if name not in _ANY_ORDER:
            for left, right in zip(node.args, node.args[1:], strict=False):
                if not isinstance(left, ast.Starred) and not isinstance(right, ast.Starred):
                    (start, end), (begin, stop) = self._span(left), self._span(right)
                    swapped = self.text[begin:stop] + self.text[end:begin] + self.text[start:end]
                    self._add(start, stop, swapped)
        for index, argument in enumerate(arguments):
            if isinstance(argument, ast.keyword) and argument.arg not in (None, *_ELSEWHERE):
                start, end = self._span(argument)
                if index > 0:
                    self._add(self._span(arguments[index - 1])[1], end, "")
                else:
                    following = arguments[1:2]
                    self._add(start, self._span(following[0])[0] if following else self._span(node)[1] - 1, "")
        self._each(*node.args, *(keyword for keyword in node.keywords if keyword.arg not in _ELSEWHERE))

    def visit_Constant(self, node: ast.Constant) -> None:
        for after in _other(node.value):
            self._add(*self._span(node), after)


def _other(value: object) -> Iterator[str]:
    if isinstance(value, bool):
        yield repr(not value)
    elif isinstance(value, int):
        yield repr(value + 1)
    elif isinstance(value, float):
        yield repr(2 * value if value else 1.0)
    elif isinstance(value, str) and not re.search(r"\s", value):
        yield repr(value + "x")

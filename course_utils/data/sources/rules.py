"""A card's rule: which rows stay, by comparing columns. It is read, never executed."""

import ast
import functools
import re

import pyarrow as pa
import pyarrow.compute as pc

from course_utils.data.texts import is_unicode

ALLOWED = (
    "names of columns (`with-hyphen` in backticks), numbers, text in quotes, True and "
    "False, comparisons, `and`, `or`, `not`, `in [...]` and `not in [...]`"
)
_LONGEST = 1_000  # characters
_QUOTED_OR_COLUMN = re.compile(
    r"""('(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*")|`([^`\n]+)`"""
)
_COMPARISONS = {
    ast.Eq: pc.equal,
    ast.NotEq: pc.not_equal,
    ast.Lt: pc.less,
    ast.LtE: pc.less_equal,
    ast.Gt: pc.greater,
    ast.GtE: pc.greater_equal,
}
_FOUND = {
    ast.Call: "a call",
    ast.Attribute: "an attribute",
    ast.Subscript: "an index",
    ast.BinOp: "arithmetic, or & and | in place of `and` and `or`",
    ast.Invert: "~ in place of `not`",
    ast.Is: "`is` in place of ==",
    ast.IsNot: "`is not` in place of !=",
    ast.List: "a list outside of `in`",
    ast.Tuple: "a list outside of `in`",
}


class Rule:
    """A rule that was read: `columns` names what it compares, `mask` applies it.

    text: such as "rating >= 4 and not flagged"; see `ALLOWED`.
    Raises: ValueError for everything that is not allowed.
    """

    def __init__(self, text: str) -> None:
        self.columns = []
        self._backticks = {}
        if len(text) > _LONGEST:
            raise ValueError(f"is longer than {_LONGEST:,} characters")
        if "@" in _QUOTED_OR_COLUMN.sub("", text):
            raise _not_allowed("@")
        try:
            tree = ast.parse(
                _QUOTED_OR_COLUMN.sub(self._replace_backticks, text).strip(),
                mode="eval",
            )
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            why = getattr(error, "msg", None) or error
            raise ValueError(f"cannot be read ({why}); allowed are {ALLOWED}") from None
        self._condition = self._read_condition(tree.body)

    def mask(self, table: pa.Table) -> pa.Array:
        """For every row true or false, or null where a value is missing.

        table: with the rule's columns: text, numbers, or yes or no.
        Raises: ValueError where a column is compared with another kind of value.
        """
        columns = {name: _plain(table[name]) for name in self.columns}
        try:
            mask = self._condition(columns)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ValueError(f"fails: {error}") from error
        return mask.combine_chunks() if isinstance(mask, pa.ChunkedArray) else mask

    def _replace_backticks(self, match):
        if match[1]:
            return match[1]
        name = f"_backticks_{len(self._backticks)}_"
        self._backticks[name] = match[2]
        return f" {name} "

    # Every _read method checks a part of the rule and returns a function of
    # {name: (kind, column)} that computes it.

    def _read_condition(self, node):
        if isinstance(node, ast.BoolOp):
            join = pc.and_kleene if isinstance(node.op, ast.And) else pc.or_kleene
            parts = [self._read_condition(value) for value in node.values]
            return lambda columns: functools.reduce(join, [p(columns) for p in parts])
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            part = self._read_condition(node.operand)
            return lambda columns: pc.invert(part(columns))
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            parts = [
                self._read_comparison(*part)
                for part in zip(node.ops, sides, sides[1:], strict=False)
            ]
            return lambda columns: functools.reduce(
                pc.and_kleene, [p(columns) for p in parts]
            )
        if isinstance(node, ast.Name):
            name = self._read_name(node)
            return lambda columns: _yes_or_no(name, *columns[name])
        if isinstance(node, ast.Constant):
            raise ValueError(f"does not say yes or no of every row: {node.value!r}")
        raise _not_allowed(node)

    def _read_comparison(self, operator, left, right):
        if isinstance(operator, ast.In | ast.NotIn):
            if not isinstance(right, ast.List | ast.Tuple | ast.Set) or not right.elts:
                raise _not_allowed("`in` without a list of values")
            name = self._read_name(left)
            values = [_literal(value) for value in right.elts]
            inside = functools.partial(_is_in, name, values)
            if isinstance(operator, ast.In):
                return inside
            return lambda columns: pc.invert(inside(columns))
        if type(operator) not in _COMPARISONS:
            raise _not_allowed(operator)
        names = [self._read_name(s) for s in (left, right) if isinstance(s, ast.Name)]
        if not names:
            _literal(left), _literal(right)  # says what else is wrong, if anything
            raise ValueError("does not say yes or no of every row: it compares values")
        compare = _COMPARISONS[type(operator)]
        left, right = map(self._read_operand, (left, right))
        return lambda columns: _compared(compare, left(columns), right(columns))

    def _read_operand(self, node):
        if isinstance(node, ast.Name):
            name = self._read_name(node)
            return lambda columns: (f"column {name} holds", *columns[name])
        value = _literal(node)
        return lambda columns: (f"{value!r} is", _kind_of(value), value)

    def _read_name(self, node):
        if not isinstance(node, ast.Name):
            raise _not_allowed(node)
        name = self._backticks.get(node.id, node.id)
        if name.startswith("__"):
            raise _not_allowed(f"the name {name}")
        if name not in self.columns:
            self.columns.append(name)
        return name


def _not_allowed(found):
    if isinstance(found, ast.UnaryOp):
        found = found.op
    if not isinstance(found, str):
        found = _FOUND.get(type(found), f"a Python {type(found).__name__}")
    return ValueError(f"holds {found}; allowed are {ALLOWED}")


def _literal(node):
    """The value of a number, a text, True or False."""
    sign = 1
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        sign, node = (-1 if isinstance(node.op, ast.USub) else 1), node.operand
        if isinstance(getattr(node, "value", None), str | bool):
            raise _not_allowed("a sign before something that is no number")
    if not isinstance(node, ast.Constant):
        raise _not_allowed(node)
    value = node.value
    if not isinstance(value, str | int | float):
        raise _not_allowed(f"{value!r}")
    if isinstance(value, int) and value >= 2**63:
        raise _not_allowed("a number of more than 63 bits")
    if isinstance(value, str) and not is_unicode(value):
        raise _not_allowed("half of a surrogate pair")
    return -value if sign < 0 else value


def _kind_of(value):
    if isinstance(value, bool):
        return "yes or no"
    return "text" if isinstance(value, str) else "numbers"


def _plain(column):
    """(kind, column) in a type that Arrow can compare; NaN counts as missing."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = pc.cast(column, kind.value_type)
        kind = column.type
    if pa.types.is_floating(kind):
        if pa.types.is_float16(kind):
            column = pc.cast(column, pa.float32())
        missing = pa.scalar(None, column.type)
        return "numbers", pc.if_else(pc.is_nan(column), missing, column)
    if pa.types.is_null(kind):
        return "nothing", pc.cast(column, pa.bool_())
    if pa.types.is_boolean(kind):
        return "yes or no", column
    return ("numbers" if pa.types.is_integer(kind) else "text"), column


def _yes_or_no(name, kind, column):
    if kind not in ("yes or no", "nothing"):
        raise ValueError(
            f"does not say yes or no of every row: column {name} holds {kind}; write a "
            f"comparison, such as {name} >= 5"
        )
    return column


def _compared(compare, left, right):
    (left_name, left_kind, left), (right_name, right_kind, right) = left, right
    kinds = {left_kind, right_kind}
    if "nothing" in kinds:
        return pa.nulls(len(left if left_kind == "nothing" else right), pa.bool_())
    if kinds == {"yes or no", "numbers"}:  # as in Python, where True == 1
        left, right = _as_number(left), _as_number(right)
    elif len(kinds) > 1:
        raise ValueError(
            f"compares different kinds: {left_name} {left_kind}, {right_name} "
            f"{right_kind}"
        )
    return compare(left, right)


def _as_number(side):
    if isinstance(side, pa.ChunkedArray):
        return pc.cast(side, pa.int8()) if pa.types.is_boolean(side.type) else side
    return int(side) if isinstance(side, bool) else side


def _is_in(name, values, columns):
    column = (f"column {name} holds", *columns[name])
    found = [
        _compared(pc.equal, column, (f"{value!r} is", _kind_of(value), value))
        for value in values
    ]
    return functools.reduce(pc.or_kleene, found)

"""The sandbox in which chat templates run: they come with a model from outside, and are programs.

Place in the flow: `chat_template` compiles and renders in it.
Invariant: a template finds here what transformers gives it, so that both render the same text, but no clock.
"""

from __future__ import annotations

import json
import re
from datetime import date, datetime, time
from typing import Any

from cptron.errors import DataError

_MOST_RESULT = 1 << 24
"""Characters, elements or bits."""
_WIDE = re.compile(r"%[^a-zA-Z%]*(\d{5}|\*)")
_MIN_JINJA = (3, 1, 6)  # older ones let a template out of its sandbox


def sandbox(chat_date: date | None, *, mark: str) -> Any:
    """The sandbox that transformers renders chat templates in, with a fixed clock; what a `{% generation %}` block
    gives stands between two `mark`s."""
    try:
        import jinja2
        import jinja2.ext
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise DataError("chats need the package jinja2, not installed; pip install 'cptron[data]'") from None
    version = tuple(int(part) for part in jinja2.__version__.split(".")[:3] if part.isdecimal())
    if version < _MIN_JINJA:
        raise DataError(
            f"jinja2 is {jinja2.__version__}, must be at least 3.1.6, as templates come from outside; "
            "pip install -U 'cptron[data]'"
        )

    class Generation(jinja2.ext.Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_generation"), [], [], body).set_lineno(line)

        def _generation(self, caller: Any) -> str:
            return f"{mark}{caller()}{mark}"

    class SafeDict:
        def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
            return dict(*args, **kwargs)

        def fromkeys(self, *args: Any) -> dict[Any, Any]:
            return dict.fromkeys(*args)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    def strftime_now(form: str) -> str:
        assert chat_date is not None, "ChatTemplate.load refuses such a template without a date"
        return datetime.combine(chat_date, time()).strftime(form)

    class Environment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(("*", "**", "%"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if _grows(operator, left, right):
                raise jinja2.exceptions.SecurityError(f"the result of {operator} is too large")
            return super().call_binop(context, operator, left, right)

    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals.update(
        raise_exception=raise_exception, strftime_now=strftime_now, dict=SafeDict(), namespace=_namespace()
    )
    return environment


def _grows(operator: str, left: Any, right: Any) -> bool:
    """Whether a few characters of a template would become more than any chat has."""
    if operator == "**":
        return isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > _MOST_RESULT
    if operator == "%":
        return isinstance(left, str) and bool(_WIDE.search(left))
    return any(
        isinstance(times, int) and hasattr(sequence, "__len__") and len(sequence) * times > _MOST_RESULT
        for sequence, times in ((left, right), (right, left))
    )


def _namespace() -> Any:
    """jinja2's `namespace` that refuses names with a leading underscore, which lead out of the sandbox."""
    from jinja2.exceptions import SecurityError
    from jinja2.utils import Namespace

    def check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace cannot have the name {name!r}")

    class SafeNamespace(Namespace):
        def __init__(*args: Any, **kwargs: Any) -> None:
            for name in dict(*args[1:], **kwargs):
                check(name)
            Namespace.__init__(*args, **kwargs)

        def __setitem__(self, name: str, value: Any) -> None:
            check(name)
            super().__setitem__(name, value)

    return SafeNamespace

"""The frame of a page: its head, its style, and for a report its script.

Place in the flow: `html`, `compare`, and pages of a still picture fill it in. Invariant: the browser itself is told to
load nothing and to run no script but this one (Content-Security-Policy, by hashes), and the colours follow the reader's
light or dark setting.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from html import escape
from importlib.resources import files

SCRIPTS = ("numbers", "data", "scales", "chart", "marks", "readout", "zoom", "controls", "start")
"""Files of `assets`, in the order in which they are put together."""
STYLES = ("page", "report")


def page(title: str, body: str) -> str:
    """A whole document around `body`, which is HTML, without a script."""
    return _document(title, body, "", "")


def live_page(title: str, body: str, data: str) -> str:
    """A whole document whose figures become interactive; `data` is the block that the script reads."""
    return _document(title, body, data, script())


def _document(title: str, body: str, data: str, program: str) -> str:
    style = _style()
    scripts = f"script-src {_hash(program)}; " if program else ""
    policy = f"default-src 'none'; style-src {_hash(style)}; {scripts}base-uri 'none'; form-action 'none'"
    running = f"{data}\n<script>{program}</script>\n" if program else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
{running}</body>
</html>
"""


@cache
def script() -> str:
    """All files as one function, so that nothing is left in the global scope."""
    parts = "\n".join(_asset(f"{name}.js") for name in SCRIPTS)
    return f'(() => {{\n"use strict";\n{parts}\n}})();\n'


@cache
def _style() -> str:
    return "\n".join(_asset(f"{name}.css") for name in STYLES)


def _asset(name: str) -> str:
    return files("cptron.report").joinpath("assets", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """As a Content-Security-Policy names what it allows."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

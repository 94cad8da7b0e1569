"""The frame and style of `report.html`.

Place in the flow: `html` fills it in. Invariant: nothing is loaded from elsewhere, and the colours follow
the reader's light or dark setting.
"""

from __future__ import annotations

from html import escape

STYLE = """
:root { color-scheme: light dark; --bg: #f6f7f9; --card: #fff; --ink: #1c2128; --soft: #667080; --line: #e3e6ea;
  --good: #137a3f; --bad: #b3261e;
  --c0: #1c2128; --c1: #0072b2; --c2: #d55e00; --c3: #009e73; --c4: #b14e94;
  --c5: #c98a00; --c6: #3aa0d8; --c7: #7a5cc9; }
@media (prefers-color-scheme: dark) { :root { --bg: #14171c; --card: #1d2128; --ink: #e8ebf0; --soft: #98a2b0;
  --line: #2e343d; --good: #5fd08d; --bad: #ff8a80;
  --c0: #e8ebf0; --c1: #58a9e8; --c2: #ff9a4d; --c3: #3fcf9f; --c4: #e18cc6;
  --c5: #f2c14e; --c6: #8fd3ff; --c7: #b39dff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 28px 24px 60px; max-width: 1240px; background: var(--bg); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { margin: 0; font-size: 26px; letter-spacing: -.01em; }
h2 { margin: 34px 0 8px; font-size: 18px; }
p { margin: 2px 0 10px; color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-top: 16px; }
.cards div, figure, .scroll, details { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.cards div { padding: 12px 16px; }
.cards b { display: block; font-size: 22px; font-variant-numeric: tabular-nums; }
.cards span { color: var(--soft); font-size: 13px; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 14px; text-align: left; white-space: nowrap; }
th { color: var(--soft); font-weight: 500; font-size: 13px; }
table.numbers :is(th, td):not(:first-child) { text-align: right; }
tbody tr { border-top: 1px solid var(--line); }
.up { color: var(--bad); font-weight: 600; }
.down { color: var(--good); font-weight: 600; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 14px; }
figure { margin: 0; padding: 14px 16px 8px; }
figcaption small { color: var(--soft); margin-left: 6px; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: 13px; color: var(--soft); }
.legend .k { display: inline-block; width: 16px; border-top: 3px solid; margin-right: 6px; vertical-align: middle; }
.legend .dash { border-top-style: dashed; }
svg { display: block; width: 100%; height: auto; margin-top: 6px; }
svg text { fill: var(--soft); font-size: 12px; }
svg .grid { stroke: var(--line); }
svg .zero { stroke: var(--soft); }
svg .mark { stroke: var(--bad); stroke-width: 1.5; stroke-dasharray: 3 3; }
polyline { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.charts + .scroll { margin-top: 14px; }
polygon { fill: currentColor; opacity: .18; }
polyline.dash { stroke-dasharray: 6 4; }
polyline.faint { stroke-width: 1; opacity: .28; }
circle { fill: currentColor; }
polygon { fill: currentColor; opacity: .16; }
.s0 { color: var(--c0); } .s1 { color: var(--c1); } .s2 { color: var(--c2); } .s3 { color: var(--c3); }
.s4 { color: var(--c4); } .s5 { color: var(--c5); } .s6 { color: var(--c6); } .s7 { color: var(--c7); }
details { margin-top: 12px; padding: 10px 16px; }
details .scroll { border: 0; }
summary { cursor: pointer; }
pre { overflow-x: auto; font-size: 13px; line-height: 1.45; }
"""


def page(title: str, body: str) -> str:
    """A whole document around `body`, which is HTML."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""

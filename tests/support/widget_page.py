"""The voice widget on a bare page: script, markup and base as in Gradio's page, which takes seconds to load."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ui.page import HEAD, JS_ON_LOAD

PATH = "/widget"

_DOCUMENT = """<!doctype html>
<html lang="en"><head><title>Voicepod</title>{head}</head>
<body><div id="voicepod-widget"><div class="voicepod-host"></div></div>
<script>(function (element, props, trigger) {{ {script} }})(
  document.getElementById("voicepod-widget"), {{ value: {value} }}, () => {{}});</script></body></html>"""


def widget_page(value: Mapping[str, Any]) -> str:
    """The document; `value` is what the page gives the widget."""
    return _DOCUMENT.format(head=HEAD, script=JS_ON_LOAD, value=json.dumps(value))

"""The web page: Gradio around one voice widget of our own. Knows no engine; see `ui.page.PageContext`."""

from ui.page import PageContext, build_ui, mount

__all__ = ["PageContext", "build_ui", "mount"]

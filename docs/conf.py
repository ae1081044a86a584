"""The documentation site: the pages of this folder, and the public modules from their docstrings. `.ci/site` builds it;
a warning, such as a link that leads nowhere, fails the build.
"""

import inspect
import re
from typing import Any

project = "Converge"
author = "The Converge authors"
copyright = "The Converge authors, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "index"
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
include_patterns = ["**.md", "**.rst"]
exclude_patterns = ["_site/**", "examples/*/tests/**"]
html_theme = "furo"
html_title = "Converge"
html_show_sphinx = False
html_copy_source = False
# Their contrast is 7:1 at least, in light and in dark.
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
html_theme_options = {
    "light_css_variables": {"color-link": "#00449e", "color-link--visited": "#5b2c83"},
    "dark_css_variables": {"color-link": "#9cc4ff", "color-link--visited": "#d5b8ff"},
}
myst_heading_anchors = 4
myst_enable_extensions = ["tasklist"]
# Docstrings are plain text with names in backquotes.
default_role = "code"
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}

SECTION = re.compile(r"^(Args|Attributes|Cancellation|Raises|Returns|Yields):$")
CLAUSE = re.compile(r"^[A-Z]-\d+ {1,2}\S")


def as_text(app: Any, what: str, name: str, target: Any, options: Any, lines: list[str]) -> None:
    """Turn a docstring into reStructuredText: its paragraphs as they are, what is set in columns as it stands."""
    text = inspect.cleandoc("\n".join(lines)).splitlines()
    made, at_section = list[str](), False
    for number, line in enumerate(text):
        if SECTION.match(line):
            at_section = True
            made += ["", f"**{line}**", ""]
        elif at_section and line.startswith("    "):
            made.append(line_of(line[4:]) if line.strip() else "")
        elif CLAUSE.match(line) or (line.startswith(" ") and line.strip()):
            made.append(line_of(line))
        else:
            if made and made[-1].startswith("| ") and line.strip():
                made.append("")
            made.append(line)
        if number + 1 == len(text):
            made.append("")
    lines[:] = made


def line_of(text: str) -> str:
    """Return a line that stays one; a name in backquotes that goes on in the next one loses them."""
    return f"| {text if text.count('`') % 2 == 0 else text.replace('`', '')}"


FOLDERS = ("tutorials", "how-to", "reference", "explanation", "decisions", "examples")


def add_contents(app: Any, page: str, source: list[str]) -> None:
    """Give the first page what the side bar is made of: each folder, its pages in the order of their names."""
    if page == "index":
        for folder in FOLDERS:
            caption = folder.replace("how-to", "how to").capitalize()
            source[0] += f"\n```{{toctree}}\n:hidden:\n:glob:\n:caption: {caption}\n\n{folder}/**\n```\n"


def make_accessible(app: Any, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """Add what the theme leaves out: lines scroll without a mouse, and headings of the side bar have levels."""
    if "body" in context:
        context["body"] = context["body"].replace("<pre>", '<pre tabindex="0">')
    if "furo_navigation_tree" in context:
        navigation = context["furo_navigation_tree"]
        context["furo_navigation_tree"] = navigation.replace('role="heading"', 'role="heading" aria-level="2"')


def setup(app: Any) -> None:
    """Connect what reads pages and docstrings."""
    app.connect("source-read", add_contents)
    app.connect("html-page-context", make_accessible, priority=900)
    app.connect("autodoc-process-docstring", as_text, priority=900)

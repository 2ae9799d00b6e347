"""How Sphinx builds these pages: `make docs`."""

from __future__ import annotations

import inspect
import re
from contextlib import suppress
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sphinx.errors import ExtensionError
from sphinx.util.nodes import make_refnode

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

ROOT: Final = Path(__file__).parent.parent
OUTSIDE: Final = {
    "readme": "README.md",
    "benchmarks": "benchmarks/README.md",
    "changelog": "CHANGELOG.md",
    "security": "SECURITY.md",
    "contributing": "CONTRIBUTING.md",
}
"""Pages that are files outside of this folder, where a forge shows them."""
PARAMETERS: Final[set[str]] = set()
"""The names of all parameters of what is described."""
LOADS: Final = re.compile(
    r"<(?:script|img|iframe|source|embed)\b[^>]*\bsrc=[\"'](?:https?:)?//"
    r"|<link\b[^>]*\brel=[\"'](?:stylesheet|preload|icon|preconnect)[^>]*\bhref=[\"'](?:https?:)?//"
    r"|@import\s+(?:url\()?[\"']?(?:https?:)?//"
)
"""What would have a browser fetch something from elsewhere."""

project = "kvpersist"
author = "The kvpersist developers"
project_copyright = author
version = release = version_of("kvpersist")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "kvpersist"
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "monokai"

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [
    # Names of other projects: their pages are not fetched.
    (r"py:.*", r"(telegram|collections|contextlib|os|typing|_?asyncio|pathlib|logging)\..*"),
    (r"py:obj", r"__qualname__"),
    (
        r"py:.*",
        r"(Application|ApplicationBuilder|ConversationHandler|ContextTypes|BasePersistence)\b.*",
    ),
    # Variables of types.
    (r"py:.*", r"(kvpersist\.(persistence|codec\.codec)\.)?(UD|CD|BD|T)"),
    # How the codec is extended by another library is not promised to users.
    (r"py:.*", r"kvpersist\.codec\.form\.Extension"),
]


def outside(_: Sphinx, page: str, source: list[str]) -> None:
    """Put the file that a page stands for in its place, and have links lead to pages."""
    if (name := OUTSIDE.get(page)) is None:
        folder, text = ROOT / "docs", source[0]
    else:
        folder = (ROOT / name).parent
        text = (ROOT / name).read_text()

    def lead(link: re.Match[str]) -> str:
        before, target, anchor = link[1], link[2], link[3] or ""
        path = (folder / target).resolve()
        if not path.is_relative_to(ROOT) or not path.exists():
            return link[0]
        inside = path.relative_to(ROOT)
        for other, of_other in OUTSIDE.items():
            if inside == Path(of_other):
                return f"{before}{other}.md{anchor})"
        if inside.parts[0] == "docs":
            return f"{before}{'/'.join(inside.parts[1:])}{anchor})"
        return f"{before}../{inside}{anchor})"

    source[0] = re.sub(r"(\]\()(?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)", lead, text)


def note_parameters(_: Sphinx, __: str, ___: str, documented: Any, *____: Any) -> None:
    """Note what docstrings may name in backticks that has no place of its own."""
    with suppress(TypeError, ValueError):
        PARAMETERS.update(inspect.signature(documented).parameters)


def find(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, shown: nodes.TextElement
) -> nodes.Node | None:
    """Lead a short name, such as `WriteError`, to where it is described."""
    if node.get("refdomain") != "py":
        return None
    target: str = node["reftarget"]
    described = env.domains.python_domain.objects
    found = sorted((name for name in described if name.endswith(f".{target}")), key=len)
    if not found:
        return shown if target in PARAMETERS else None
    place = described[found[0]]
    page: str = node["refdoc"]
    return make_refnode(app.builder, page, place.docname, place.node_id, [shown], found[0])


def check_offline(app: Sphinx, error: Exception | None) -> None:
    """Refuse pages that would fetch anything from elsewhere.

    Raises:
        ExtensionError: One would.
    """
    if error is not None:
        return
    for path in [*Path(app.outdir).rglob("*.html"), *Path(app.outdir).rglob("*.css")]:
        if found := LOADS.search(path.read_text()):
            raise ExtensionError(f"{path} loads something from elsewhere: {found[0]}")


def setup(app: Sphinx) -> None:
    """Have Sphinx call what is above; in one process, where parameters are noted."""
    app.connect("source-read", outside)
    app.connect("autodoc-process-docstring", note_parameters)
    app.connect("missing-reference", find)
    app.connect("build-finished", check_offline)

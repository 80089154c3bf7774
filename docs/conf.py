"""How the documentation is built: `make docs`."""

from __future__ import annotations

import builtins
from typing import TYPE_CHECKING

from sphinx.util.nodes import make_refnode

from demijohn import __version__

if TYPE_CHECKING:
    from docutils.nodes import Element
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

project = "Demijohn"
author = "The Demijohn maintainers"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"Demijohn {release}"

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 4

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autoclass_content = "both"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Source", "notes")]

# Every reference must resolve, except into libraries: their inventories lie on the network, and
# the documentation is built without it.
nitpicky = True
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(flask|werkzeug|jinja2|click|blinker|msgspec|redis|httpx|requests|sqlalchemy)(\..*)?",
    ),
    (r"py:.*", r"(collections|contextlib|datetime|enum|pathlib|threading|types|typing)\..*"),
    (r"py:.*", r"Blueprint|Flask|HTTPException|Request|Response|WSGIEnvironment"),
    (r"py:.*", "|".join(dir(builtins))),
    # Type aliases are documented as data, and named in signatures as if they were classes.
    (
        r"py:class",
        r"StoreLocation|PrincipalHook|Limit|Json|BaseAdapter|demijohn\.extension\.Binding|.*\.Recovery",
    ),
    (r"py:class", r"Group|demijohn\.client\.batching\.deferred\.Settled"),
    # What is private, and type variables: named in signatures, documented nowhere.
    (r"py:(class|obj)", r"(.*\.)?(_\w+|[A-Z])"),
]


def find_by_last_names(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: Element
) -> Element | None:
    """Resolve ``Store.run``, written in any module, if it can mean one thing only."""
    if node.get("refdomain") != "py":
        return None
    tail = f".{node['reftarget']}"
    objects = env.domains.python_domain.objects
    found = [name for name, entry in objects.items() if name.endswith(tail) and not entry.aliased]
    if len(found) != 1:
        return None
    (name,) = found
    page, anchor = objects[name].docname, objects[name].node_id
    return make_refnode(app.builder, node["refdoc"], page, anchor, content, name)


def setup(app: Sphinx) -> None:
    """Let Sphinx call what stands here."""
    app.connect("missing-reference", find_by_last_names)

"""How the documentation is built: `make docs`."""

from __future__ import annotations

from demijohn import __version__

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
    (r"py:.*", r"(flask|werkzeug|jinja2|click|blinker|msgspec|redis|httpx|requests)(\..*)?"),
    (r"py:.*", r"(collections|concurrent|contextlib|datetime|enum|pathlib|threading|types|typing)\..*"),
    # Builtins, and what is private or a type variable: named in signatures, documented nowhere.
    (r"py:class", r"[A-Za-z]+|(.*\.)?_\w+"),
    (r"py:(exc|data|obj|func|meth)", r"[A-Za-z]+"),
]

"""A trace as one HTML file in which a person steps through it: no server, no network.

`state` says what records change, `narration` what they mean, `slots` what the bytes of rings say; `export` puts it all
into the page, whose parts (`page.html`, `*.css`, `*.js`) lie beside this file.
"""

from toolstack.trace_formats.viewer.export import format_html

__all__ = ["format_html"]

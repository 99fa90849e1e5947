"""A matplotlib figure as SVG inside a page: colours that follow the page's scheme, words for who cannot see it, no address.

The drawings are made with `COLOURS` that stand for roles; `to_svg` turns each into a variable of the page's style sheet
(``var(--ink)``), which gives it one value in light and another in dark. Text stays text, in the page's own font.
"""

import io
import re
import warnings
from contextlib import contextmanager
from html import escape

ROLES = ("ink", "soft", "line", "paper", "c0", "c1", "c2", "c3", "c4", "c5", "c6")
COLOURS = {role: f"#0101{number + 1:02x}" for number, role in enumerate(ROLES)}  # what a role is while it is drawn
INK, SOFT, LINE, PAPER = (COLOURS[role] for role in ROLES[:4])
SERIES = tuple(COLOURS[role] for role in ROLES[4:])
WIDTH = 760  # of a figure, in its own units: pixels where the page shows it at full size
SETTINGS = {
    "svg.fonttype": "none", "text.parse_math": False, "figure.dpi": 72, "font.size": 12, "axes.titlesize": 12.5,
    "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 10, "axes.labelsize": 12,
    "axes.edgecolor": LINE, "axes.labelcolor": SOFT, "axes.titlecolor": INK, "text.color": INK, "xtick.color": LINE,
    "ytick.color": LINE, "xtick.labelcolor": SOFT, "ytick.labelcolor": SOFT, "grid.color": LINE, "grid.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "axes.facecolor": "none",
    "lines.linewidth": 1.8, "figure.facecolor": "none",
    "xtick.labelsize": 11.5, "ytick.labelsize": 11.5, "lines.solid_capstyle": "round",
}
NUMBER = re.compile(r"-?\d+\.\d{3,}(?:e-?\d+)?")
PLACES = re.compile(r'(?<=\s)(d|x|y|x1|x2|y1|y2|transform|points|width|height|viewBox)="([^"]*)"')


@contextmanager
def drawing(height, width=WIDTH):
    """A Figure of ``width`` times ``height`` pixels under this module's settings, whatever those of the user are."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that the font used for measuring does not have
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08, wspace=0.04, hspace=0.04)
        FigureCanvasAgg(figure)
        yield figure


def freeze(figure):
    """Settle the layout, so that places in pixels can be asked for; returns the renderer that measures text."""
    figure.canvas.draw()
    figure.set_layout_engine("none")
    return figure.canvas.get_renderer()


def to_svg(figure, name, title, description):
    """The figure as an ``<svg>`` element.

    Args:
        figure: made inside `drawing`. name: a word that no other figure of the page has; it begins every id.
        title: what the figure shows, in a few words. description: the numbers that matter, in words.

    Raises ValueError where ``name`` is not a word.
    """
    import matplotlib

    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise ValueError(f"name: expected lower-case letters, digits and hyphens, got {name!r}")
    matplotlib.rcParams["svg.hashsalt"] = name
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return dressed(out.getvalue(), name, title, description)


def dressed(text, name, title, description):
    """What matplotlib wrote, made fit for a page: only tags are changed, never what is written between them."""
    text = text[text.index("<svg"):].strip()
    box = re.search(r'viewBox="([^"]*)"', text)[1]
    body = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style[^>]*>.*?</style>\s*</defs>|<!--.*?-->", "",
                  text[text.index(">") + 1:], flags=re.S)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', body))
    body = re.sub(r"<[^>]*>", lambda m: tag(m[0], name, used), body)
    body = re.sub(r">\s+<", "><", body)
    return (f'<svg viewBox="{box}" role="img" aria-label="{escape(description)}">'
            f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{body.strip()}")


def tag(text, name, used):
    """One tag: ids that are ``used`` begin with ``name`` and others go, colours become variables, the font is the page's."""
    text = text.replace("xlink:href=", "href=")
    text = PLACES.sub(lambda m: "" if m[2].startswith("rotate(-0 ") else f'{m[1]}="{NUMBER.sub(rounded, m[2])}"', text)
    text = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = re.sub(r"font: ((?:\w+ )*)([\d.]+)px [^;\"]*", font, text)
    for role, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{role})")
    return re.sub(r"\s+", " ", text)


def font(match):
    """A ``font`` shorthand without its family, which the page gives."""
    weight = re.search(r"\b(\d00|bold)\b", match[1])
    return f"font-size: {match[2]}px" + ("; font-weight: 600" if weight else "")


def rounded(match):
    """A coordinate with two decimals, which no eye can tell from more."""
    return f"{float(match[0]):.2f}".replace("-0.00", "0.00")

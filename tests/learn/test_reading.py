"""What lessons use besides the package: questions whose guesses are kept, and figures that have a text."""

import io
import json
import sys
import types
from xml.etree import ElementTree

import pytest

from minipeft.learn import fast, predict, reading, show


class Terminal(io.StringIO):
    """A standard input at which somebody sits."""

    def isatty(self):
        return True


@pytest.fixture
def asked(monkeypatch):
    """Somebody at a terminal who guesses 3, then 4."""
    guesses = iter(["3", "4"])
    monkeypatch.delenv(reading.FAST, raising=False)
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("builtins.input", lambda text: print(text, end="\n") or next(guesses))


@pytest.fixture
def figure():
    """A figure with a line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(2, 1))
    axes.plot([0, 1], [0, 1])
    yield figure
    plt.close(figure)


# ---- predict ---------------------------------------------------------------------------------------------------


def test_a_guess_is_kept_with_question_and_answer_before_the_answer_is_told(asked, workspace, monkeypatch, capsys):
    monkeypatch.chdir(workspace.folder / "01_small")  # inside the learner's folder
    predict("2 + 2?", "4.")
    assert capsys.readouterr().out == "? 2 + 2?\n  your guess: \n  4.\n"
    predict("2 + 2?", "4.")
    assert capsys.readouterr().out == "? 2 + 2?\n  your guess: \n  4.\n  (your guess before: 3)\n"
    kept = json.loads((workspace.folder / ".minipeft" / reading.PREDICTIONS).read_text(encoding="utf-8"))
    assert [(each["question"], each["guess"], each["answer"]) for each in kept] == [("2 + 2?", "3", "4."), ("2 + 2?", "4", "4.")]
    assert all(each["at"][:2] == "20" for each in kept)


@pytest.mark.parametrize("content, said", [
    ("[{", "is not JSON (Expecting property name enclosed in double quotes, line 1 column 3)"),
    ('{"a": 1}', "expected a JSON array in this file of guesses, got dict"), ('[3, {"question": "2 + 2?"}]', None)])
def test_guesses_that_cannot_be_read_stop_no_lesson(content, said, asked, workspace, monkeypatch, capsys):
    monkeypatch.chdir(workspace.folder)
    path = workspace.folder / ".minipeft" / reading.PREDICTIONS
    path.write_text(content, encoding="utf-8")
    predict("2 + 2?", "4.")
    out = capsys.readouterr().out
    assert out.endswith("  4.\n") and ("the guess is not kept" in out) == (said is not None) and (said or "") in out
    assert path.read_text(encoding="utf-8") == content if said else len(json.loads(path.read_text(encoding="utf-8"))) == 3


def test_the_guess_is_written_before_the_answer_is_printed(asked, workspace, monkeypatch):
    monkeypatch.chdir(workspace.folder)
    seen = []
    monkeypatch.setattr("builtins.print", lambda *text, **_: seen.append(
        (text, (workspace.folder / ".minipeft/predictions.json").is_file())))
    predict("2 + 2?", "4.")
    assert seen[0] == (("? 2 + 2?",), False) and seen[-1] == (("  4.",), True)


def test_outside_of_a_learners_folder_nothing_is_kept(asked, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    predict("2 + 2?", "4.")
    predict("2 + 2?", "4.")
    assert "your guess before" not in capsys.readouterr().out and list(tmp_path.rglob("predictions.json")) == []


@pytest.mark.parametrize("how", ["no terminal", "short form", "input ends"])
def test_where_nobody_can_be_asked_both_are_told(how, asked, workspace, monkeypatch, capsys):
    monkeypatch.chdir(workspace.folder)

    def ended(text):
        raise EOFError

    monkeypatch.setattr("builtins.input", ended)
    if how == "no terminal":
        monkeypatch.setattr(sys, "stdin", io.StringIO("3\n"))
    elif how == "short form":
        monkeypatch.setenv(reading.FAST, "1")
    assert fast() is (how == "short form")
    predict("2 + 2?", "4.")
    assert capsys.readouterr().out == "? 2 + 2?\n  4.\n" and not (workspace.folder / ".minipeft" / reading.PREDICTIONS).exists()


# ---- show ------------------------------------------------------------------------------------------------------

TEXT = 'A line, "y < x & 1", rising.'


def test_in_a_notebook_a_figure_is_a_picture_with_an_alternative_text(figure, monkeypatch):
    shown = []
    ipython = types.SimpleNamespace(get_ipython=lambda: types.SimpleNamespace(kernel=object()))
    display = types.SimpleNamespace(HTML=lambda text: text, display=shown.append)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    show(figure, "line", TEXT)
    (html,) = shown
    assert html.startswith('<img src="data:image/png;base64,iVBORw0KGgo')  # the first bytes of every PNG
    assert ElementTree.fromstring(html.removesuffix(">") + "/>").get("alt") == TEXT


def test_elsewhere_the_text_is_printed_and_the_figure_written_where_it_is_asked_for(figure, tmp_path, monkeypatch, capsys):
    show(figure, "line", TEXT)
    assert capsys.readouterr().out == f"[figure line: {TEXT}]\n" and list(tmp_path.iterdir()) == []
    monkeypatch.setenv(reading.FIGURES, str(tmp_path / "figures"))
    show(figure, "line", TEXT)
    assert (tmp_path / "figures" / "line.svg").read_text(encoding="utf-8").startswith("<?xml")


@pytest.mark.parametrize("text", ["", "  \n"])
def test_a_figure_without_a_text_is_refused(text, figure):
    with pytest.raises(ValueError,
                       match="show: the figure line has no text; say in words what it shows, for those who do not see it"):
        show(figure, "line", text)

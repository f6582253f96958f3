from minetorch.drawers.lettering import families, printable


def test_letters_without_a_glyph_become_boxes():
    assert printable("Größe $x$ λ") == "Größe $x$ λ"
    assert printable("a\N{OGHAM LETTER BEITH}\U0010fffdb").endswith("□b")


def test_long_names_keep_both_ends():
    short = printable("head" + "x" * 100 + "tail", most=20)
    assert len(short) == 20
    assert short.startswith("head")
    assert short.endswith("tail")
    assert "…" in short
    assert printable("x" * 20, most=20) == "x" * 20


def test_only_installed_fonts_are_asked_for():
    assert families()[0] == "DejaVu Sans"

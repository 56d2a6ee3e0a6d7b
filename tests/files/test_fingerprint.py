import pytest

from thyroid_lib.files.fingerprint import code_fingerprint

SOURCE = '''
"""What it is."""
def area(mask, spacing=None):
    """Count."""
    # a comment
    return mask.sum() * 2 + f"{spacing!r:>3}".count("x")
class Empty:
    """Nothing but words."""
'''


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("What it is", "What it was", True),
        ("Count.", "Count the pixels.", True),
        ("    # a comment\n", "", True),
        ("mask.sum() * 2 +", "(mask.sum()*2) +", True),
        ('    """Nothing but words."""', "    pass", False),
        ("* 2", "* 3", False),
        ("* 2", "* 2.0", False),
        ("* 2 +", "* 2 -", False),
        ("spacing=None", "spacing=1", False),
        ("spacing=None", "spacing=False", False),
        ("!r:>3", "!r:>4", False),
        ('"x"', '"y"', False),
        ("mask.sum()", "mask.max()", False),
    ],
)
def test_code_counts_and_words_do_not(tmp_path, old, new, same):
    assert old in SOURCE
    path = tmp_path / "network.py"
    path.write_text(SOURCE)
    before = code_fingerprint(path)
    path.write_text(SOURCE.replace(old, new))
    assert (code_fingerprint(path) == before) == same

"""Generated parts of pages, between marks: `<!-- name -->` and `<!-- /name -->`, a line each."""


def with_part(text: str, name: str, part: str) -> str:
    """Return a text with the part of this name replaced; ValueError unless its marks are there."""
    first, last = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, _, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not end:
        raise ValueError(f"the page lacks the marks {first.strip()} … {last}")
    return f"{before}{first}{part}{end}{after}"

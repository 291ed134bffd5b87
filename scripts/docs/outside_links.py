"""A hook of mkdocs: what pages link to outside docs/ comes along, so that no link breaks.

In the repository `../examples/desktop_app.py` is a link that works. On the site, such a file is a
page of its own under `repository/`, pictures are copied, and a folder is a page that lists its
files. The pages at the root (README.md and its like) are pages of the site.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = {
    "README.md": "about.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Files of the repository's root that are pages of the site."""
LANGUAGES = {".py": "python", ".toml": "toml", ".yml": "yaml", ".sh": "sh", ".md": "markdown"}
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the root's pages, and a file or page for each target outside docs/."""
    for name, page in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_relinked(text, name, page)))
    wanted = set()
    for file in list(files):
        if file.is_documentation_page():
            source = _source(file.src_uri)
            targets = LINK.findall((ROOT / source).read_text(encoding="utf-8"))
            wanted |= {_resolved(source, target) for target in targets}
    for path in sorted(wanted):
        if not path.startswith(("docs/", "..")) and path not in PAGES and (ROOT / path).exists():
            files.append(_carried(path, config))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links that lead out of docs/ lead to what `on_files` added."""
    uri = page.file.src_uri
    if uri in PAGES.values() or uri.startswith("repository/"):
        return markdown
    return _relinked(markdown, f"docs/{uri}", uri)


def _carried(path: str, config: MkDocsConfig) -> File:
    """A file or folder of the repository, as the site has it."""
    source = ROOT / path
    if source.is_dir():
        paths = (p.relative_to(source) for p in sorted(source.rglob("*")) if p.is_file())
        listed = "\n".join(f"- `{p}`" for p in paths if not re.search(r"\.pyc|egg-info", str(p)))
        return File.generated(config, _place(path), content=f"# {path}\n\n{listed}\n")
    try:
        text = source.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return File.generated(config, _place(path), abs_src_path=str(source))
    language = LANGUAGES.get(source.suffix, "text")
    content = f"# {path}\n\n`````{language}\n{text}\n`````\n"
    return File.generated(config, _place(path), content=content)


def _place(path: str) -> str:
    """Where the site has a path of the repository, counted from docs/."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    binary = Path(path).suffix in (".png", ".jpg", ".svg")
    return f"repository/{path}" + ("" if binary else ".md")


def _source(uri: str) -> str:
    """The path in the repository of a page of the site."""
    named = {page: name for name, page in PAGES.items()}
    return named.get(uri, f"docs/{uri}")


def _resolved(source: str, target: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target))


def _relinked(text: str, source: str, page: str) -> str:
    """The text of `source`, its links as they must be on `page`."""

    def link(match: re.Match[str]) -> str:
        path = _resolved(source, match[1])
        if not (ROOT / path).exists():
            return match[0]  # a broken link: mkdocs tells
        return posixpath.relpath(_place(path), posixpath.dirname(page) or ".")

    return LINK.sub(link, text)

"""A new plugin's package: what `converge plugins new` writes, from the templates that come with the core."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import attrs

from converge.contracts import discovery, store, transport
from converge.errors import InvalidName, InvalidValue, PluginDuplicate
from converge.plugins import PluginHost
from converge.plugins.found import DISTRIBUTIONS, RESERVED_NAMES, RESERVED_SCHEMES

NAME_CHARACTERS = 40
"""The longest name: users type it, and it is part of a module's name."""

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_ENDING = ".in"


@attrs.frozen(kw_only=True)
class Template:
    """What a kind of package is made of: folders of templates, of which a later one replaces files of an earlier one.

    Attributes:
        kind: The part of the distribution's name between `converge-` and the plugin's name.
        about: The distribution's description; `acme` stands for the plugin's name.
        contract: The number that its declaration names.
    """

    kind: str
    about: str
    layers: tuple[str, ...]
    contract: int = 0


TEMPLATES: Mapping[str, Template] = {
    "store": Template(
        kind="store",
        about="Acme as a store for Converge: a file that the processes of one host share.",
        layers=("common", "scheme", "store", "store_embedded"),
        contract=store.CONTRACT,
    ),
    "store --server": Template(
        kind="store",
        about="Acme as a store for Converge: a server that the processes of many hosts share.",
        layers=("common", "scheme", "store", "store_server"),
        contract=store.CONTRACT,
    ),
    "transport": Template(
        kind="transport",
        about="Acme as a transport for Converge: frames over Unix sockets.",
        layers=("common", "scheme", "transport"),
        contract=transport.CONTRACT,
    ),
    "discovery": Template(
        kind="discovery",
        about="Acme as a discovery for Converge: sightings in a folder.",
        layers=("common", "plain", "discovery"),
        contract=discovery.CONTRACT,
    ),
    "hooks": Template(
        kind="hooks",
        about="Acme for Converge: a decision that agents can take, and a guard of what they send.",
        layers=("common", "hooks"),
    ),
}


def write_plugin(template: Template, name: str, parent: Path) -> list[Path]:
    """Write the package of a new plugin into a folder of its own in `parent`; return its files, the folder first.

    Raises:
        InvalidName: It cannot be the name of a plugin.
        PluginDuplicate: An installed plugin, or one of Converge's own, has the name or a scheme of the name.
        InvalidValue: The folder is there already, or cannot be made; nothing was written.
    """
    check_new_name(name)
    folder = parent / f"converge-{template.kind}-{name}"
    texts = dict(rendered(template, name))
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise InvalidValue("folder", str(folder), "one that is not there yet; move it away, or name --dir") from error
    except OSError as error:
        raise InvalidValue("folder", str(folder), f"one that can be made ({error.strerror})") from error
    for path, text in texts.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return [folder, *(folder / path for path in sorted(texts))]


def check_new_name(name: str) -> None:
    """Refuse a name that no new plugin can have.

    Raises:
        As `write_plugin`.
    """
    if not _NAME.fullmatch(name) or len(name) > NAME_CHARACTERS:
        said = f"at most {NAME_CHARACTERS} characters: a-z first, then a-z and 0-9, in words joined by single dashes"
        raise InvalidName("plugin", name, f"{said}; without converge-store- or the like, which is put before it")
    if name in RESERVED_NAMES | RESERVED_SCHEMES or name in DISTRIBUTIONS:
        owner = DISTRIBUTIONS.get(name, "converge-core")
        raise PluginDuplicate(f'the name "{name}" is {owner}\'s own; choose another one')
    for one in PluginHost().installed():
        if name == one.name or name in one.schemes:
            owner = f"{one.distribution} {one.version}".strip()
            raise PluginDuplicate(f'the name "{name}" is taken by {owner}, which is installed; choose another one')


def rendered(template: Template, name: str) -> Iterator[tuple[str, str]]:
    """Yield path and text of each file of the package."""
    sources: dict[str, Traversable] = {}
    for layer in template.layers:
        sources |= dict(_files(files("converge") / "templates" / layer))
    for path, source in sources.items():
        yield _named(path.removesuffix(_ENDING), template, name), _named(source.read_text("utf-8"), template, name)


def _files(folder: Traversable, before: str = "") -> Iterator[tuple[str, Traversable]]:
    for one in folder.iterdir():
        path = f"{before}{one.name.replace('dot-', '.', 1) if one.name.startswith('dot-') else one.name}"
        if one.is_dir():
            yield from _files(one, f"{path}/")
        elif path.endswith(_ENDING):
            yield path, one


def _named(text: str, template: Template, name: str) -> str:
    """Return a template's text for this plugin. A template is a working package for the plugin `acme`: its name stands
    there as part of modules (`_acme`), of classes (`Acme`), of constants (`ACME`), and as it is.
    """
    module, version = name.replace("-", "_"), importlib.metadata.version("converge-core")
    words = {
        "DESCRIPTION": template.about,
        "CONTRACT": str(template.contract),
        # A new required clause waits for the next major release.
        "VERSION": f"{version},<{int(version.partition('.')[0]) + 1}",
        "KIND": template.kind,
        "_acme": f"_{module}",
        "ACME": module.upper(),
        "Acme": "".join(part.capitalize() for part in name.split("-")),
        "acme": name,
    }
    for word, value in words.items():
        text = text.replace(word, value)
    return text

"""What is wrong with the package of a plugin: its entry points, and what its wheel says of itself."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec

from converge.plugins.declaration import Backend
from converge.plugins.found import CORE, NAMES_GROUP, SCHEMES_GROUP, entries

_REQUIREMENT = re.compile(r"^\s*([A-Za-z0-9._-]+)\s*(?:\[[^]]*\])?\s*([^;]*)")


def package_mistakes(name: str, distribution: str, backends: Mapping[str, Sequence[Backend]] | None) -> list[str]:
    """Return what is wrong with the package of the plugin of that name, a line each, with its mend; nothing for one
    from an import path, which has no package, and for those that come with the core. `backends` is None where nobody
    knows what it declares.
    """
    if not distribution or distribution == CORE:
        return []
    metadata = importlib.metadata.distribution(distribution)
    return [
        f"{distribution} {metadata.version}: {mistake}"
        for mistakes in (
            _of_entries(metadata, name, backends) if backends is not None else (),
            _of_metadata(metadata),
            _of_needs(metadata),
            _of_files(metadata, name),
        )
        for mistake in mistakes
    ]


def _of_entries(
    metadata: importlib.metadata.Distribution, name: str, backends: Mapping[str, Sequence[Backend]]
) -> Iterator[str]:
    targets = {entry.name: entry.value for entry in metadata.entry_points.select(group=NAMES_GROUP)}
    schemes = {entry.name: entry.value for entry in metadata.entry_points.select(group=SCHEMES_GROUP)}
    declared = {scheme for some in backends.values() for backend in some for scheme in backend.schemes}
    target = targets.get(name, "")
    group = f'[project.entry-points."{SCHEMES_GROUP}"]'
    for scheme in sorted(declared - {one for one in declared if "+" in one} - set(schemes)):
        yield (
            f'the scheme "{scheme}" is no entry point, so its URLs do not find the plugin; add {scheme} = "{target}" '
            f"to {group}"
        )
    for scheme, value in sorted(schemes.items()):
        if scheme not in declared and value == target:
            yield f'the entry point "{scheme}" of {group} is no scheme of a backend; take it out, or declare it'
        elif value != target and value not in targets.values():
            yield f'the entry point "{scheme}" of {group} names {value}, and no plugin does; name {target}'
    for scheme in sorted(declared & set(schemes)):
        for other in entries(SCHEMES_GROUP)[scheme]:
            if other.distribution != metadata.name:
                whose = f"{other.distribution} {other.version}"
                yield f'the scheme "{scheme}" is that of {whose} too, so its URLs find neither; uninstall one'
    for kind, some in backends.items():
        for backend in some:
            if kind == "discovery" and backend.name not in targets:
                yield (
                    f'the discovery "{backend.name}" is found by its name alone, and no entry point has it; add '
                    f'{backend.name} = "{target}" to [project.entry-points.{NAMES_GROUP}]'
                )


def _of_metadata(metadata: importlib.metadata.Distribution) -> Iterator[str]:
    fields = metadata.metadata.json
    needed = {
        "summary": 'what it is, in one line; add description = "..."',
        "requires_python": 'which Python it needs; add requires-python = ">=3.11"',
        "description": 'what it does, on a page; add readme = "README.md"',
    }
    for field, mend in needed.items():
        if not fields.get(field) or fields[field] == "UNKNOWN":
            yield f"its metadata does not say {mend} to pyproject.toml"
    if not fields.get("license_expression") and not fields.get("license"):
        yield 'its metadata names no licence, so nobody may use it; add license = "..." to pyproject.toml'
    for text in metadata.requires or ():
        found = _REQUIREMENT.match(text)
        if found and "extra ==" not in text and not re.search(r"[<>=~]", found[2]):
            yield f"it needs {found[1]} in any version; say from which on it was tested, such as {found[1]}>=1.0"
    needs = [found[1] for text in metadata.requires or () if (found := _REQUIREMENT.match(text))]
    if CORE not in {one.lower().replace("_", "-") for one in needs}:
        version = importlib.metadata.version(CORE)
        yield f'it does not say that it needs {CORE}; add "{CORE}>={version}" to its dependencies'


def _of_needs(metadata: importlib.metadata.Distribution) -> Iterator[str]:
    """Yield a version that is none, and what it needs and this environment does not have, where `packaging` is there
    to tell.
    """
    if find_spec("packaging") is None:
        return
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.version import InvalidVersion, Version

    try:
        Version(metadata.version)
    except (InvalidVersion, TypeError):
        yield f'its version is "{metadata.version}", which is none; write one such as 1.0 to pyproject.toml'
    for text in metadata.requires or ():
        try:
            need = Requirement(text)
        except InvalidRequirement:
            yield f'it needs "{text}", which is no requirement; write one such as NAME>=1.0'
            continue
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(need.name)
        except importlib.metadata.PackageNotFoundError:
            yield f"it needs {need.name}, which is not installed; pip install '{need.name}{need.specifier}'"
            continue
        if not need.specifier.contains(version, prereleases=True):
            yield (
                f"it needs {need.name}{need.specifier}, and {version} is installed; "
                f"pip install '{need.name}{need.specifier}', or let it take this one"
            )


def _of_files(metadata: importlib.metadata.Distribution, name: str) -> Iterator[str]:
    entries = metadata.entry_points.select(group=NAMES_GROUP)
    target = next((entry.value for entry in entries if entry.name == name), "")
    package = target.partition(":")[0].partition(".")[0]
    files = [str(file) for file in metadata.files or ()]
    is_editable = not any(file.startswith(f"{package}/") for file in files)  # a wheel of links has no other files
    if package and not is_editable and f"{package}/py.typed" not in files:
        yield f"{package}/py.typed is missing, so no type checker believes its types; add the empty file"

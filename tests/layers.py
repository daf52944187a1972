#!/usr/bin/env python3
"""Checks that includes point one way.

The order of subdir('src/...') in the top meson.build is the layer diagram: a folder may include itself
and what stands above it there, and nothing else of src/. Public headers (include/millrace) include
only each other and the standard library. Prints every offence as FILE:LINE and exits 1 if there is one.
"""
import pathlib
import re
import sys

INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"')
SUBDIR = re.compile(r"^\s*subdir\('src/(\w+)'\)", re.MULTILINE)


def check(root):
    layers = SUBDIR.findall((root / 'meson.build').read_text())
    rank = {name: i for i, name in enumerate(layers)}
    offences = []
    for folder in sorted(p for p in (root / 'src').iterdir() if p.is_dir()):
        if folder.name not in rank:
            offences.append(f'{folder.relative_to(root)}: not a subdir() of the top meson.build')
            continue
        for path in sorted(folder.rglob('*')):
            if path.suffix not in ('.h', '.cc'):
                continue
            for number, line in enumerate(path.read_text().splitlines(), 1):
                found = INCLUDE.match(line)
                if not found:
                    continue
                included = found.group(1).split('/')[0]
                where = f'{path.relative_to(root)}:{number}'
                if included == 'millrace':
                    continue
                if included not in rank:
                    offences.append(f'{where}: "{found.group(1)}" names no folder of src/')
                elif rank[included] > rank[folder.name]:
                    offences.append(f'{where}: {folder.name} may not include {included}')
    for path in sorted((root / 'include').rglob('*.h')) if (root / 'include').exists() else []:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            found = INCLUDE.match(line)
            if found and not found.group(1).startswith('millrace/'):
                offences.append(f'{path.relative_to(root)}:{number}: a public header includes '
                                f'"{found.group(1)}"')
    return layers, offences


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else __file__).resolve()
    root = root if root.is_dir() else root.parent.parent
    layers, offences = check(root)
    if not layers:
        offences.append("meson.build: no subdir('src/...') found")
    print('\n'.join(offences) if offences else 'layers: ' + ' <- '.join(layers))
    return 1 if offences else 0


if __name__ == '__main__':
    sys.exit(main())

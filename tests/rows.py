#!/usr/bin/env python3
"""Checks the table of docs/testing.md that maps the rows of the checklist to tests: every row has one, every
test that it names exists, every transcript file that it names has a scenario that names the row, and every row
that a scenario names has that file in the table.

A row may come with a feature only while that feature is absent from the relay.
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
ROWS = 38
# Rows that need no transcript: the language speaks no TLS.
UNSPOKEN = {12, 13, 14, 15, 23, 24, 25, 34, 35}


def has(path, text):
    place = ROOT / path
    return place.exists() and text in place.read_text()


# Whether the relay has the feature.
FEATURES = {'outbound TLS': lambda: not has('src/delivery/session.h', 'no STARTTLS'),
            'DANE': lambda: has('src/config/schema.cc', 'dane'),
            'MTA-STS': lambda: has('src/config/schema.cc', 'mta-sts'),
            'REQUIRETLS': lambda: has('src/smtp/command.cc', 'REQUIRETLS'),
            'AUTH': lambda: has('src/config/schema.cc', '"credentials"'),
            'outbound AUTH': lambda: has('src/config/schema.cc', '"next-hop-credentials"'),
            'DKIM': lambda: (ROOT / 'src/dkim').exists()}


def unit_tests():
    found = set()
    for path in (ROOT / 'tests').rglob('*.cc'):
        for suite, name in re.findall(r'^TEST(?:_F|_P)?\((\w+),\s*(\w+)\)', path.read_text(), re.MULTILINE):
            found.add(f'{suite}.{name}')
    return found


def transcripts():
    """{file: rows that a scenario of it names}, by the rule of tests/transcripts/script.cc."""
    found = {}
    for path in (ROOT / 'tests/transcripts').glob('*.txt'):
        rows = found.setdefault(path.stem, set())
        for comment in re.findall(r'^# rows? ((?:\d+(?:, and | and |, )?)+)', path.read_text(), re.MULTILINE):
            rows.update(map(int, re.findall(r'\d+', comment)))
    return found


def others():
    names = {path.stem for path in (ROOT / 'tests/system').glob('*.py')}
    names |= {f'fuzz_{path.stem.removesuffix("_fuzz")}' for path in (ROOT / 'tests/fuzz').glob('*_fuzz.cc')}
    for path in (ROOT / 'tests').rglob('meson.build'):
        names |= set(re.findall(r"executable\('(\w+)'", path.read_text()))
    return names


def main():
    text = (ROOT / 'docs/testing.md').read_text()
    units, files, rest = unit_tests(), transcripts(), others()
    wrong, seen = [], set()
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip('|').split('|')]
        if not line.startswith('|') or len(cells) != 5 or not cells[0].isdigit():
            continue
        row = int(cells[0])
        seen.add(row)
        named = [set(re.findall(r'`([\w.]+)`', cell)) for cell in cells[2:]]
        if coming := re.match(r'comes with (.+)$', cells[2]):
            if coming[1] not in FEATURES:
                wrong.append(f'row {row}: no feature is called {coming[1]}')
            elif FEATURES[coming[1]]():
                wrong.append(f'row {row}: {coming[1]} is there, and no test is named')
            continue
        if not any(named):
            wrong.append(f'row {row}: no test')
        wrong += [f'row {row}: no unit test {name}' for name in sorted(named[0] - units)]
        for name in sorted(named[1]):
            if name not in files:
                wrong.append(f'row {row}: no transcripts {name}')
            elif row not in files[name]:
                wrong.append(f'row {row}: no scenario of {name} names it')
        wrong += [f'row {row}: no test {name}' for name in sorted(named[2] - rest)]
        if not named[1] and row not in UNSPOKEN:
            wrong.append(f'row {row}: no transcript')
    wrong += [f'row {row} is missing' for row in sorted(set(range(1, ROWS + 1)) - seen)]
    for name, rows in sorted(files.items()):
        wrong += [f'{name}: there is no row {row}' for row in sorted(rows) if not 1 <= row <= ROWS]
    for one in wrong:
        print(f'docs/testing.md: {one}')
    return 1 if wrong else 0


if __name__ == '__main__':
    sys.exit(main())

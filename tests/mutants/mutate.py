#!/usr/bin/env python3
"""Copies a source with its mutants in it: mutate.py mutants.toml ROOT FILE OUTPUT. With FILE --list it prints the
files that have mutants."""
import pathlib
import re
import sys
import tomllib


def switch(name):
    def text(found):
        return f'([]() -> bool {{ static ::millrace::Mutant it("{name}"); return it({found.group(1) or ""}); }}())'
    return text


def main():
    table = tomllib.loads(pathlib.Path(sys.argv[1]).read_text())
    if sys.argv[3] == '--list':
        print('\n'.join(sorted({mutant['file'] for mutant in table.values()})))
        return
    root, file, output = pathlib.Path(sys.argv[2]), sys.argv[3], pathlib.Path(sys.argv[4])
    source = (root / file).read_text()
    for name, mutant in table.items():
        if mutant['file'] != file:
            continue
        if (count := source.count(mutant['old'])) != 1:
            sys.exit(f'{sys.argv[1]}: the old text of [{name}] stands {count} times in {file}, not once; '
                     f'adapt the mutant to what the code is now')
        new = re.sub(r'MUTANT(?:\((\d+)\))?', switch(name), mutant['new'])
        source = source.replace(mutant['old'], new)
    output.write_text(f'#include "mutant.h"\n{source}')


main()

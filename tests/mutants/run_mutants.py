#!/usr/bin/env python3
"""Shows that each mutant of mutants.toml is caught: run_mutants.py BUILD [NAME...]. Fails when one is not."""
import os
import pathlib
import re
import subprocess
import sys
import time
import tomllib

HERE = pathlib.Path(__file__).resolve().parent
SECONDS = 300


def catch(build, name, mutant):
    """What told on it, or None."""
    if mutant['caught_by'] == 'sim':
        command = [build / 'relay_sim_mutants']
        told = r'^seed (\d+): (.*)$'
    else:
        case = mutant['caught_by'].partition(' ')[2] or '*'
        command = [build / 'spool_crash_mutants', '--gtest_fail_fast', '--gtest_brief=1', f'--gtest_filter={case}']
        told = r'^(.*, seed \d+, .*)()$'
    # The failure of a mutant is no failure of whoever runs this: no report of it.
    environment = {key: value for key, value in os.environ.items() if key != 'GTEST_OUTPUT'}
    try:
        done = subprocess.run(command, env={**environment, 'MILLRACE_MUTANT': name}, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace',
                              timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode == 0:
        return None
    found = re.search(told, done.stdout, re.MULTILINE)
    if found:
        return f'seed {found.group(1)}: {found.group(2)}' if found.group(2) else found.group(1)
    return (done.stdout.strip().splitlines() or [f'exit code {done.returncode}'])[-1]


def main():
    build = pathlib.Path(sys.argv[1])
    table = tomllib.loads((HERE / 'mutants.toml').read_text())
    missed = []
    for name in sys.argv[2:] or table:
        started = time.monotonic()
        by = catch(build, name, table[name])
        print(f'{name} ({table[name]["what"]}), {time.monotonic() - started:.1f} s: {by[:160] if by else "NOT CAUGHT"}',
              flush=True)
        if by is None:
            missed.append(name)
    if missed:
        print(f'not caught: {", ".join(missed)}')
        return 1
    print(f'{len(sys.argv[2:] or table)} mutants, each caught')
    return 0


sys.exit(main())

#!/usr/bin/env python3
"""Receivers that misbehave at each stage, over real sockets, with time-outs of a second: a part of what
tests/hostile plays in simulation.

  hostile_receivers.py [--jobs N] [--only TEXT] [--verbose]    passed on to build/tests/hostile/hostile_receivers
"""
import os
import subprocess
import sys

from harness import BUILD, RELAY, check, find, isolate, need, run
from transcripts import NETWORKS


def test():
    for network in NETWORKS:
        subprocess.run([find('ip'), 'address', 'add', network, 'dev', 'lo'], check=True)
    jobs = [] if '--jobs' in sys.argv else ['--jobs', str(8 * (os.cpu_count() or 1))]
    code = subprocess.run([BUILD / 'tests/hostile/hostile_receivers', '--relay', RELAY, *jobs, *sys.argv[1:]]).returncode
    check(code == 0, f'exit code {code}')


if __name__ == '__main__':
    need('millrace', 'tests/hostile/hostile_receivers')
    isolate()
    run(test)

#!/usr/bin/env python3
"""The transcripts of tests/transcripts against the real program.

  transcripts.py [--jobs N] [--only TEXT] [--verbose]    passed on to build/tests/transcripts/transcripts
"""
import os
import subprocess
import sys

from harness import BUILD, RELAY, ROOT, check, find, isolate, need, run

# The stages' addresses: relays, receivers, clients (tests/transcripts/stage.h). A prefix on loopback is local
# as a whole.
NETWORKS = ('192.0.2.1/24', '198.51.0.1/16', '203.0.113.1/24')


def test():
    for network in NETWORKS:
        subprocess.run([find('ip'), 'address', 'add', network, 'dev', 'lo'], check=True)
    # Each relay mostly waits: for its disk, for a time that a scenario lets pass.
    jobs = [] if '--jobs' in sys.argv else ['--jobs', str(8 * (os.cpu_count() or 1))]
    code = subprocess.run([BUILD / 'tests/transcripts/transcripts', '--relay', RELAY, *jobs, *sys.argv[1:],
                           ROOT / 'tests/transcripts']).returncode
    check(code == 0, f'exit code {code}')


if __name__ == '__main__':
    need('millrace', 'tests/transcripts/transcripts')
    isolate()
    run(test)

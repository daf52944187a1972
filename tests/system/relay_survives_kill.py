#!/usr/bin/env python3
"""SIGKILL at any moment loses nothing that was answered with a 250, and repeats only what a lost reply
or an outcome younger than its record's sync explains; SIGTERM repeats nothing."""
import time

from harness import (LONG, SCRATCH, SLOWER, Relay, check, equal, eventually, finish_load, isolate, need, run, sink,
                     start_load)

MESSAGES = 20_000 // SLOWER


def crash(number, end, delay, times=3, receiver_options=()):
    ledger = SCRATCH / f'ledger-{number}'
    receiver = sink('--ledger', ledger, *receiver_options)
    relay = Relay('--smarthost', '127.0.0.1:2600', '--retry', '1s', '--retry-uncertain', '1s', '--hold', '1s',
                  name=f'relay-{number}').start()
    loader = start_load('--messages', MESSAGES, '--connections', 20, '--ledger', ledger, '--retry-refused',
                        '--give-up', '60s', '--size', 'uniform:100-30000')
    for _ in range(times):
        time.sleep(delay)
        end(relay)
        relay.start()
    report = finish_load(loader)
    equal(report['exit_code'], 0, f'{number}: load generator {report}')
    equal(report['accepted'], MESSAGES, f'{number}: accepted')
    eventually(lambda: receiver.status()['recipients'] >= MESSAGES, 60, f'{number}: everything arrives')
    # Retries of what may have been delivered come later.
    time.sleep(2.5)
    relay.stop()
    verdict = receiver.finish()['ledger']
    for fault in ('missing', 'altered', 'unknown'):
        equal(verdict[fault], 0, f'{number}: {fault}: {verdict}')
    return verdict


def test():
    # Three kills, or twenty times five, at moments from right after the start to the end of the load.
    times = 5 if LONG else 3
    for number in range(20 if LONG else 1):
        delay = 0.3 if not LONG else 0.05 + 0.04 * number
        verdict = crash(f'kill-{number}', Relay.kill, delay, times)
        print(f'kill-{number}: {times} kills {delay:.2f} s apart: {verdict}', flush=True)
        # 100 ms of outcomes may be lost with each kill; at most a few thousand messages a second here, so far
        # less than a tenth of all.
        check(verdict['duplicates'] < MESSAGES / 10, f'duplicates: {verdict}')
    for number in range(5 if LONG else 1):
        verdict = crash(f'term-{number}', Relay.stop, 0.3 + 0.1 * number)
        equal(verdict['duplicates'] + verdict['explained_duplicates'], 0, f'after SIGTERM: {verdict}')


if __name__ == '__main__':
    need('millrace', 'millrace-load', 'millrace-sink')
    isolate()
    run(test)

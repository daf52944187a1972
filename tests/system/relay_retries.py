#!/usr/bin/env python3
"""Deferred recipients are tried again until they are delivered, refused ones are reported to the sender
once, and every accepted recipient ends exactly once."""
import collections

from harness import SCRATCH, SLOWER, Relay, check, equal, eventually, isolate, load, need, run, sink

MESSAGES = 3000 // SLOWER


def test():
    ledger = SCRATCH / 'ledger'
    receiver = sink('--ledger', ledger, '--odds', 'load.invalid=4xx:0.3,5xx:0.05', '--drop', 'after-dot:0.002',
                    '--drop', 'reset:0.002')
    relay = Relay('--smarthost', '127.0.0.1:2600', '--retry', '1s', '--retry-uncertain', '1s', '--hold', '1s',
                  '--reports-per-hour', '1000000').start()
    load('--messages', MESSAGES, '--connections', 20, '--ledger', ledger, '--recipients', 2,
         '--from', 'sender@reports.invalid', '--size', 3000)

    def final():
        return [e for e in relay.events() if e['type'] in ('delivered', 'bounced', 'expired')
                and e.get('reverse_path')]
    eventually(lambda: len(final()) >= 2 * MESSAGES, 60, 'every recipient ends')
    ends = collections.Counter((e['spool_id'], e['recipient']) for e in final())
    equal(max(ends.values()), 1, 'final events of one recipient')
    bounced = relay.events('bounced')
    check(len(bounced) > 0, 'some bounce')
    check(len(relay.events('deferred')) > 0, 'some are deferred')
    reported = len({e['spool_id'] for e in bounced if e.get('reverse_path')})
    eventually(lambda: len([e for e in relay.events('delivered') if not e.get('reverse_path')]) >= reported * 0.9,
               30, 'reports are delivered')
    relay.stop()
    result = receiver.finish()
    verdict = result['ledger']
    for fault in ('missing', 'altered', 'unknown'):
        equal(verdict[fault], 0, f'{fault}: {verdict}')
    equal(verdict['duplicates'], 0, f'duplicates: {verdict}')
    equal(verdict['delivered'] + verdict['bounced'], 2 * MESSAGES, f'delivered and bounced: {verdict}')
    check(result['reports'] > 0, 'reports arrived')


if __name__ == '__main__':
    need('millrace', 'millrace-load', 'millrace-sink')
    isolate()
    run(test)

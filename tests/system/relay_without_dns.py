#!/usr/bin/env python3
"""The name server is gone for a while (ten minutes under --long) and comes back: nothing bounces, and everything
that was queued meanwhile is delivered within two minutes, with the default holds."""
import time

from harness import LONG, SCRATCH, Relay, check, dns, end, equal, eventually, isolate, load, log_of, need, run, sink

OUTAGE = 600 if LONG else 25
MESSAGES = 2000
ZONE = 'mx1 A 127.0.1.1\n*.many MX 10 mx1\n'


def test():
    ledger = SCRATCH / 'ledger'
    receiver = sink('--ledger', ledger, listen=('127.0.1.1:25',))
    server = dns({'test': ZONE}, port=53)
    end(server.process)
    relay = Relay('--dns-server', server, '--allow-private-destinations', '--connect-rate', '1000/s').start()
    began = time.monotonic()
    load('--messages', MESSAGES, '--connections', 10, '--size', 1000, '--ledger', ledger, '--domains',
         'uniform:200:many.test')
    eventually(lambda: 'look-ups in a row have failed' in log_of('relay'), 60, 'the outage is noticed')
    time.sleep(max(0, OUTAGE - (time.monotonic() - began)))
    equal(relay.events('delivered'), [], 'delivered without a name server')

    server.start()
    check(receiver.wait_for(MESSAGES, 120), 'all is delivered within two minutes')
    eventually(lambda: len(relay.events('delivered')) == MESSAGES, 10, 'and recorded')
    equal([e for e in relay.events() if e['type'] in ('bounced', 'expired', 'deferred')], [], 'bounced or deferred')
    relay.stop()
    verdict = receiver.finish()['ledger']
    equal([verdict[fault] for fault in ('missing', 'altered', 'duplicates')], [0, 0, 0], str(verdict))


if __name__ == '__main__':
    need('millrace', 'millrace-load', 'millrace-sink', 'nsd')
    isolate()
    run(test)

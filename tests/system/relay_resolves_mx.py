#!/usr/bin/env python3
"""Against a real name server: preference, a dead first MX, the implicit MX, null MX, MX hosts at private
addresses, a domain that is not there, and thousands of domains behind a few hosts."""
import time

from harness import SCRATCH, Relay, check, dns, equal, eventually, isolate, load, need, run, sink

ZONE = '''
a      MX 10 mx1
a      MX 20 mx2
dead   MX 10 mx-dead
dead   MX 20 mx2
plain  A 127.0.3.1
null   MX 0 .
inside MX 10 mx-inside
mx1    A 127.0.1.1
mx2    A 127.0.2.1
mx-dead   A 127.0.9.9
mx-inside A 10.0.0.1
*.many MX 10 mx1
'''


def test():
    server = dns({'test': ZONE})
    ledger = SCRATCH / 'ledger'
    receiver = sink('--ledger', ledger, listen=('127.0.1.1:2525', '127.0.2.1:2525', '127.0.3.1:2525'))
    relay = Relay('--dns-server', server, '--remote-port', '2525', '--allow-private-destinations',
                  '--connect-rate', '1000/s', '--retry', '1s', '--hold', '1s', '--reports', 'none').start()
    messages = 1000
    load('--messages', messages, '--connections', 10, '--size', 2000, '--ledger', ledger, '--domains',
         'a.test:4,dead.test:2,plain.test:2')
    check(receiver.wait_for(messages, 30), 'mail for a, dead and plain arrives')

    hosts = {}
    for event in eventually(lambda: len(relay.events('delivered')) >= messages and relay.events('delivered')):
        hosts.setdefault(event['recipient'].split('@')[1], set()).add(event['peer'])
    equal(hosts['a.test'], {'127.0.1.1:2525'}, 'the preferred MX of a.test')
    equal(hosts['dead.test'], {'127.0.2.1:2525'}, 'the living MX of dead.test')
    equal(hosts['plain.test'], {'127.0.3.1:2525'}, 'the implicit MX of plain.test')

    many = SCRATCH / 'ledger-many'
    load('--messages', 3000, '--connections', 10, '--size', 1000, '--ledger', many, '--domains',
         'uniform:2000:many.test')
    check(receiver.wait_for(messages + 3000, 30), '2000 domains behind one host')
    equal(len(relay.events('bounced')), 0, 'bounces so far')

    load('--messages', 5, '--connections', 1, '--domains', 'null.test')
    bounced = eventually(lambda: len(relay.events('bounced')) == 5 and relay.events('bounced'), 20, 'null MX')
    equal({e['enhanced_status'] for e in bounced}, {'5.1.10'}, 'status of a null MX')
    relay.stop()

    # Without the flag, addresses such as 127.0.0.0/8 are refused, whoever names them.
    strict = Relay('--dns-server', server, '--remote-port', '2525', '--reports', 'none', name='strict').start()
    load('--messages', 3, '--connections', 1, '--domains', 'inside.test')
    bounced = eventually(lambda: len(strict.events('bounced')) == 3 and strict.events('bounced'), 20,
                         'a private MX')
    equal({e['enhanced_status'] for e in bounced}, {'5.4.4'}, 'status of a forbidden MX')
    # One answer that a domain does not exist bounces nothing yet.
    load('--messages', 3, '--connections', 1, '--domains', 'gone.test')
    time.sleep(3)
    equal(len(strict.events('bounced')), 3, 'bounces after one NXDOMAIN')
    strict.stop()


if __name__ == '__main__':
    need('millrace', 'millrace-load', 'millrace-sink', 'nsd')
    isolate()
    run(test)

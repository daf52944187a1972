#!/usr/bin/env python3
"""REQUIRETLS and TLS-Required: no (RFC 8689), with receivers that offer it and not, domains whose hosts an MTA-STS policy
names and not, reports, and a SIGKILL between acceptance and delivery."""
import smtplib
import ssl

from harness import SCRATCH, Relay, check, certificate, certificate_flags, dns, equal, eventually, isolate, need, run, sink
from relay_checks_mta_sts import Case, authority

OFFERS = Case('offers', '')
LACKS = Case('lacks', '')
UNTRUSTED = Case('untrusted', '', mx_trusted=False)
SENDERS = Case('senders', '')       # where reports go, and REQUIRETLS is offered
POORER = Case('poorer', '')         # where reports go, and it is not
UNNAMED = Case('unnamed', '')       # has no policy
LATER = Case('later', '')           # whose receiver comes later
CASES = [OFFERS, LACKS, UNTRUSTED, SENDERS, POORER, UNNAMED, LATER]


def submit(case, *options, sender=SENDERS, header='', tls=True):
    """The code and text that refused it; nothing if it was taken."""
    with smtplib.SMTP('127.0.0.1', 2500, timeout=60) as client:
        if tls:
            client.starttls(context=ssl._create_unverified_context())
        try:
            client.sendmail(f'a@{sender.domain}', [f'b@{case.domain}'], f'{header}Subject: x\r\n\r\nsecret text\r\n', mail_options=options)
        except smtplib.SMTPSenderRefused as refusal:
            return refusal.smtp_code, refusal.smtp_error.decode()
    return None


def outcome_of(relay, case, kind, count=1):
    def found():
        return [e for e in relay.events(kind) if e['recipient'] == f'b@{case.domain}']
    return eventually(lambda: len(found()) >= count and found()[-1], 60, f'{case.name}: {kind}')


def test():
    authority()
    for number, case in enumerate(CASES):
        case.serve(number)
    zone = ''.join(case.zone() for case in CASES)
    zone = zone.replace(f'_mta-sts.{UNNAMED.name} TXT', f'_elsewhere.{UNNAMED.name} TXT')
    server = dns({'test': zone})

    def receiver(case, *options):
        return sink('--tls', 'starttls', *certificate_flags(case.files), *options, listen=(f'{case.mx_address}:25',))

    sinks = {case.name: receiver(case, *(('--requiretls',) if case in (OFFERS, UNTRUSTED, SENDERS, UNNAMED) else ()))
             for case in CASES if case is not LATER}
    relay = Relay('--dns-server', server, '--allow-private-destinations', '--hold', '1s', '--connect-rate', '1000/s',
                  '--tls-ca-file', SCRATCH / 'ca.pem', *certificate_flags(certificate('relay', 'relay.test'))).start()

    # In: behind TLS only.
    equal(submit(OFFERS, 'REQUIRETLS', tls=False), (530, '5.7.10 REQUIRETLS needs TLS: issue STARTTLS first'), 'in the clear')

    # On: to whoever passes it on.
    equal(submit(OFFERS, 'REQUIRETLS'), None, 'behind TLS')
    event = outcome_of(relay, OFFERS, 'delivered')
    equal((event['tls_policy'], event['tls_verified']), ('requiretls', 'ok'), 'how it was delivered')
    equal(submit(OFFERS), None, 'a neighbour that asks for nothing')
    equal(outcome_of(relay, OFFERS, 'delivered', 2)['tls_policy'], 'mta-sts', 'how that was delivered')

    # Else not at all, and the sender hears of it.
    for case, status in ((LACKS, '5.7.30'), (UNTRUSTED, '5.7.10'), (UNNAMED, '5.7.10')):
        equal(submit(case, 'REQUIRETLS', 'RET=FULL'), None, case.name)
        event = outcome_of(relay, case, 'bounced')
        equal((event['enhanced_status'], event['report_sent']), (status, True), f'{case.name}: {event}')
    eventually(lambda: len([e for e in relay.events('delivered') if e['recipient'] == f'a@{SENDERS.domain}']) == 3, 60, 'three reports')
    equal(submit(LACKS, 'REQUIRETLS', sender=POORER), None, 'from where reports cannot be passed on')
    eventually(lambda: [e for e in relay.events('delivered') if e['recipient'] == f'a@{POORER.domain}'], 60, 'the report all the same')
    # Neighbours of what failed are served.
    for case, policy in ((LACKS, 'mta-sts'), (UNNAMED, 'opportunistic')):
        equal(submit(case), None, f'{case.name}: without')
        equal(outcome_of(relay, case, 'delivered')['tls_policy'], policy, f'{case.name}: without')

    # TLS-Required: no goes past the policy that keeps its neighbour waiting.
    equal(submit(UNTRUSTED), None, 'under the policy')
    eventually(lambda: [e for e in relay.events('queue') if 'untrusted' in e.get('reply', '')], 60, 'waits')
    equal(submit(UNTRUSTED, header='TLS-Required: No\r\n'), None, 'past the policy')
    event = outcome_of(relay, UNTRUSTED, 'delivered')
    equal((event['tls_policy'], event['tls_verified']), ('not-required', 'untrusted'), 'past the policy')
    equal(submit(UNTRUSTED, 'REQUIRETLS', header='TLS-Required: No\r\n'), None, 'both')
    outcome_of(relay, UNTRUSTED, 'bounced', 2)

    # What was taken with REQUIRETLS has it after a crash.
    equal(submit(LATER, 'REQUIRETLS'), None, 'to be killed')
    equal(submit(LATER), None, 'to be killed, too')
    relay.kill()
    sinks[LATER.name] = receiver(LATER, '--requiretls')
    relay.start()
    outcome_of(relay, LATER, 'delivered', 2)
    delivered = {e['tls_policy'] for e in relay.events('delivered') if e['recipient'] == f'b@{LATER.domain}'}
    equal(delivered, {'requiretls', 'mta-sts'}, 'after a crash')
    relay.stop()

    results = {name: one.finish() for name, one in sinks.items()}
    passed_on = {name: result['requiretls'] for name, result in results.items() if result['requiretls']}
    equal(passed_on, {'offers': 1, 'senders': 4, 'later': 1}, 'what was passed on as REQUIRETLS, reports among it')
    equal({name: result['messages'] for name, result in results.items()},
          {'offers': 2, 'lacks': 1, 'untrusted': 1, 'senders': 4, 'poorer': 1, 'unnamed': 1, 'later': 2}, 'what arrived')
    for name, result in results.items():
        equal(result['mistakes'], {}, f'{name}: mistakes')
    check(results['senders']['reports'] == 4 and results['poorer']['reports'] == 1, f'reports: {results}')


if __name__ == '__main__':
    need('millrace', 'millrace-sink', 'nsd', 'openssl', 'ip')
    isolate()
    run(test)

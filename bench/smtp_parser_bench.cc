// What the protocol costs a message, bodies apart: a whole pipelined transaction on the receiving
// side, and the parser of a server's replies on the sending side.
#include <benchmark/benchmark.h>

#include <string>

#include "smtp/client_protocol.h"
#include "smtp/command.h"
#include "smtp/reply_parser.h"
#include "smtp/server_protocol.h"

namespace {

using namespace millrace;

void parse_command(benchmark::State& state) {
  std::string_view lines[] = {
      "MAIL FROM:<bounces+12345-abcdef=example.org@mail.example.com> SIZE=20480 BODY=8BITMIME",
      "RCPT TO:<someone.of.note@example.org>",
      "BDAT 20480 LAST",
  };
  smtp::Extensions extensions;
  for (auto _ : state) {
    benchmark::DoNotOptimize(smtp::parse_command(lines[state.range(0)], extensions, false));
  }
}
BENCHMARK(parse_command)->Arg(0)->Arg(1)->Arg(2);

void server_transaction(benchmark::State& state) {
  struct Policy final : smtp::ServerPolicy {
  } policy;
  smtp::ServerOptions options;
  options.hostname = "relay.example.com";
  smtp::ServerProtocol protocol(options, policy);
  protocol.greet();
  protocol.advance("EHLO client.example.com\r\n");
  std::string head =
      "MAIL FROM:<bounces+12345@mail.example.com> SIZE=300\r\nRCPT TO:<someone@example.org>\r\n";
  std::string body = "Subject: x\r\n\r\n" + std::string(70, 'b') + "\r\n";
  std::string bdat = head + "BDAT " + std::to_string(body.size()) + " LAST\r\n" + body;
  std::string data = head + "DATA\r\n";
  std::string end = body + ".\r\n";
  std::string out;
  auto give = [&](std::string_view piece) {
    while (!piece.empty()) {
      auto step = protocol.advance(piece);
      piece.remove_prefix(step.consumed);
      if (step.event == smtp::ServerProtocol::Event::message_end) {
        benchmark::DoNotOptimize(mail::Envelope(std::move(protocol.envelope())));
        protocol.message_done(protocol.message_number(), smtp::replies::kOk);
      }
    }
  };
  for (auto _ : state) {
    if (state.range(0)) {
      give(bdat);
    } else {
      give(data);
      give(end);
    }
    out.clear();
    protocol.take_output(out);
    benchmark::DoNotOptimize(out);
  }
}
BENCHMARK(server_transaction)->ArgName("bdat")->Arg(0)->Arg(1);

void parse_replies(benchmark::State& state) {
  std::string_view replies =
      "250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n354 End data with <CR><LF>.<CR><LF>\r\n"
      "250 2.0.0 Ok: queued as 4Xk2yL0Jz8z9sRk\r\n";
  smtp::ReplyParser parser;
  for (auto _ : state) {
    std::string_view piece = replies;
    while (!piece.empty()) benchmark::DoNotOptimize(parser.next(piece));
  }
}
BENCHMARK(parse_replies);

void build_commands(benchmark::State& state) {
  mail::Envelope envelope;
  envelope.reverse_path = "bounces+12345@mail.example.com";
  envelope.recipients.push_back({"someone@example.org", "example.org", "", 0});
  mail::Content content;
  smtp::Capabilities peer;
  peer.size = peer.pipelining = peer.eight_bit_mime = peer.chunking = true;
  std::string out;
  for (auto _ : state) {
    out.clear();
    smtp::append_mail(out, envelope, content, peer);
    smtp::append_rcpt(out, envelope, envelope.recipients[0], peer);
    smtp::append_bdat(out, 20480, true);
    benchmark::DoNotOptimize(out);
  }
}
BENCHMARK(build_commands);

}  // namespace

BENCHMARK_MAIN();

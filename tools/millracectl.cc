// millracectl: the operator's hand on a running relay, over its admin socket (docs/admin.md).
// Prints tables, or with --json what the relay answered.
//
// Exit codes: 0 done; 1 the relay refused or cannot be reached; 2 bad usage.
#include <fmt/format.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string>

#include "admin/view.h"
#include "base/result.h"

namespace millrace {
namespace {

using nlohmann::json;

// One request, one answer. An error is a text for the operator.
Result<json> ask(const std::string& path, const json& request) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path)
    return fail(fmt::format("{}: the path is too long for a socket", path));
  std::memcpy(address.sun_path, path.data(), path.size());
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return fail(fmt::format("socket: {}", strerror(errno)));
  struct Closer {
    int fd;
    ~Closer() { ::close(fd); }
  } closer{fd};
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    std::string_view remedy = errno == EACCES ? "; run millracectl as the relay's user or root"
                              : errno == ENOENT
                                  ? "; is the relay running? --socket names another path"
                                  : "; is the relay running?";
    return fail(fmt::format("{}: {}{}", path, strerror(errno), remedy));
  }
  std::string line = request.dump(-1, ' ', true, json::error_handler_t::replace) + '\n';
  for (size_t sent = 0; sent < line.size();) {
    ssize_t n = send(fd, line.data() + sent, line.size() - sent, MSG_NOSIGNAL);
    if (n < 0) return fail(fmt::format("{}: {}", path, strerror(errno)));
    sent += static_cast<size_t>(n);
  }
  std::string answer;
  char buffer[65536];
  while (answer.find('\n') == std::string::npos) {
    ssize_t n = read(fd, buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail(fmt::format("{}: {}", path, strerror(errno)));
    if (n == 0)
      return fail(fmt::format("{}: the relay closed the connection without an answer", path));
    answer.append(buffer, static_cast<size_t>(n));
  }
  json reply = json::parse(answer, nullptr, false);
  if (!reply.is_object() || !reply.contains("ok"))
    return fail(fmt::format("{}: not the answer of a relay", path));
  if (reply["ok"] == true && reply.contains("result")) return reply["result"];
  if (reply.contains("error") && reply["error"].is_string())
    return fail(reply["error"].get<std::string>());
  return fail("the relay refused without a reason");
}

size_t terminal_width() {
  winsize size{};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col >= 80) return size.ws_col;
  return 160;  // a file or a pipe has no edge
}

struct Filter {
  std::string domain, job, sender, id;
  bool all = false, dry_run = false;
};

int run(int argc, char** argv) {
  CLI::App app{"millracectl: looks at a running relay and commands it"};
  app.require_subcommand(1);
  app.set_version_flag("--version", "millracectl " MILLRACE_VERSION);
  std::string socket_path = "/var/spool/millrace/admin.sock";
  bool as_json = false;
  app.add_option("--socket", socket_path, "Admin socket of the relay (--admin-socket there)")
      ->capture_default_str();
  app.add_flag("--json", as_json, "Prints the relay's answer as JSON");
  app.fallthrough();

  json request;
  app.add_subcommand("status", "How the relay is doing")->callback([&] {
    request = {{"command", "status"}};
  });

  std::string queue_domain;
  uint64_t limit = 1000;
  CLI::App* queue = app.add_subcommand("queue", "What waits, for whom, and why");
  queue->add_option("--domain", queue_domain, "Only this destination");
  queue->add_option("--limit", limit, "Destinations shown")->capture_default_str();
  queue->callback([&] {
    request = {{"command", "queue"}, {"limit", limit}};
    if (!queue_domain.empty()) request["domain"] = queue_domain;
  });

  std::string id;
  CLI::App* show =
      app.add_subcommand("show", "One message: its envelope and what becomes of each recipient");
  show->add_option("ID", id, "Spool id, as in the 250 reply")->required();
  show->callback([&] { request = {{"command", "show"}, {"id", id}}; });

  std::string subject;
  CLI::App* explain = app.add_subcommand(
      "explain", "Why mail to a domain, or a message, goes as it does: limits, where each was set, what binds");
  explain->add_option("DOMAIN|ID", subject, "Recipient domain, or a message's spool id")->required();
  explain->callback([&] {
    bool is_id = subject.size() == 26 && subject.find('.') == std::string::npos;
    request = {{"command", "explain"}, {is_id ? "id" : "domain", subject}};
  });

  Filter filter;
  auto command = [&](const char* name, const char* help) {
    CLI::App* sub = app.add_subcommand(name, help);
    sub->add_option("--domain", filter.domain, "Mail to this recipient domain");
    sub->add_option("--job", filter.job, "Mail of this job");
    sub->add_option("--sender", filter.sender, "Mail from this reverse-path");
    sub->add_option("--id", filter.id, "The message with this spool id");
    sub->add_flag("--all", filter.all, "All mail");
    sub->add_flag("--dry-run", filter.dry_run, "Only counts what would be met");
    sub->callback([&, name] {
      request = {{"command", name}};
      for (auto [key, value] : {std::pair{"domain", &filter.domain},
                                {"job", &filter.job},
                                {"sender", &filter.sender},
                                {"id", &filter.id}}) {
        if (!value->empty()) request[key] = *value;
      }
      if (filter.all) request["all"] = true;
      if (filter.dry_run) request["dry_run"] = true;
    });
  };
  command("pause",
          "Starts no attempt for what matches, also what comes later, until it is resumed");
  command("resume", "Ends pauses: the one given with the same filter");
  command("retry", "Makes what matches due now");
  command("delete", "Removes what matches, without a report to its sender");
  command("bounce", "Removes what matches, with a report to its sender");

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    int code = app.exit(error);
    return code == 0 ? 0 : 2;
  }
  auto result = ask(socket_path, request);
  if (!result) {
    fmt::print(stderr, "millracectl: {}\n", result.error().text);
    return 1;
  }
  if (as_json) {
    fmt::print("{}\n", result->dump(2, ' ', true, json::error_handler_t::replace));
    return 0;
  }
  admin::ViewOptions view;
  view.now_ms = std::chrono::duration_cast<std::chrono::milliseconds>(
                    std::chrono::system_clock::now().time_since_epoch())
                    .count();
  view.width = terminal_width();
  std::string name = request["command"];
  std::string text = name == "status"  ? admin::show_status(*result, view)
                     : name == "queue" ? admin::show_queue(*result, view)
                     : name == "show"  ? admin::show_message(*result, view)
                     : name == "explain" ? admin::show_explain(*result, view)
                                       : admin::show_command(*result, name);
  fmt::print("{}", text);
  return 0;
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) { return millrace::run(argc, argv); }

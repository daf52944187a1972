// millracectl: the operator's hand on a running relay, over its admin socket (docs/admin.md).
// Prints tables, or with --json what the relay answered.
//
// Exit codes: 0 done; 1 the relay refused or cannot be reached; 2 bad usage.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <termios.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "admin/view.h"
#include "auth/crypto.h"
#include "auth/secret.h"
#include "config/credentials.h"
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

// ---- passwd

// One line of the standard input, without an echo where that is a terminal; never an argument, which others can see.
Result<std::string> read_password() {
  const bool terminal = isatty(STDIN_FILENO) == 1;
  auto read_line = [&](const char* prompt) {
    termios before{};
    if (terminal) {
      fmt::print(stderr, "{}: ", prompt);
      tcgetattr(STDIN_FILENO, &before);
      termios silent = before;
      silent.c_lflag &= ~static_cast<tcflag_t>(ECHO);
      tcsetattr(STDIN_FILENO, TCSAFLUSH, &silent);
    }
    std::string line;
    char c = 0;
    while (read(STDIN_FILENO, &c, 1) == 1 && c != '\n') line += c;
    if (terminal) {
      tcsetattr(STDIN_FILENO, TCSAFLUSH, &before);
      fmt::print(stderr, "\n");
    }
    if (line.ends_with('\r')) line.pop_back();
    return line;
  };
  std::string password = read_line("New password");
  if (terminal && read_line("Again") != password) return fail("the two are not the same; nothing is changed");
  if (password.empty()) return fail("no password was given; nothing is changed");
  for (char c : password) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) return fail("the password has a control character in it; nothing is changed");
  }
  return password;
}

// The file is there as it was or as it will be, never in between; owner and mode stay.
Status replace_file(const std::string& path, const std::string& text) {
  auto failed = [&](const char* what) { return fail(fmt::format("{}: {}: {}", path, what, strerror(errno))); };
  struct stat before{};
  const bool exists = stat(path.c_str(), &before) == 0;
  const std::string fresh = path + ".new";
  int fd = open(fresh.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0 && errno == EEXIST) return fail(fmt::format("{} exists: somebody else is changing it, or was interrupted; remove it", fresh));
  if (fd < 0) return failed("writing beside it");
  bool written = write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
  if (written && exists) {
    written = fchmod(fd, before.st_mode & 07777) == 0 &&
              (fchown(fd, before.st_uid, before.st_gid) == 0 || (before.st_uid == geteuid() && before.st_gid == getegid()));
  }
  if (!written || fsync(fd) != 0 || rename(fresh.c_str(), path.c_str()) != 0) {
    Status status = failed("writing it anew");
    close(fd);
    unlink(fresh.c_str());
    return status;
  }
  close(fd);
  return success();
}

int set_password(const std::string& account, const std::string& path) {
  auto complain = [](const std::string& why) {
    fmt::print(stderr, "millracectl: {}\n", why);
    return 1;
  };
  std::string text;
  if (!path.empty()) {
    std::ifstream in(path, std::ios::binary);
    if (!in && errno != ENOENT) return complain(fmt::format("{}: {}", path, strerror(errno)));
    if (in) {
      std::ostringstream content;
      content << in.rdbuf();
      text = content.str();
    }
  }
  auto password = read_password();
  if (!password) return complain(password.error().text);
  auto hash = auth::make_crypt_hash(*password);
  if (!hash) return complain(hash.error().text);
  const std::string verifier = auth::print_scram_verifier(
      auth::make_scram_verifier(*password, auth::random_octets(auth::kSaltSize), auth::kIterations));
  auth::wipe(*password);
  auto changed = config::set_password(text, account, *hash, verifier);
  if (!changed) return complain(path.empty() ? changed.error().text : fmt::format("{}: {}", path, changed.error().text));
  if (path.empty()) {
    fmt::print("{}", *changed);
    return 0;
  }
  if (Status status = replace_file(path, *changed); !status.ok()) return complain(status.error().text);
  fmt::print(stderr, "{}: the password of {} is set; SIGHUP makes the relay read it\n", path, account);
  return 0;
}

struct Filter {
  std::string domain, tenant, job, sender, account, id;
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
    sub->add_option("--tenant", filter.tenant, "Mail of this tenant");
    sub->add_option("--job", filter.job, "Mail of this job");
    sub->add_option("--sender", filter.sender, "Mail from this reverse-path");
    sub->add_option("--account", filter.account, "Mail that this account sent in");
    sub->add_option("--id", filter.id, "The message with this spool id");
    sub->add_flag("--all", filter.all, "All mail");
    sub->add_flag("--dry-run", filter.dry_run, "Only counts what would be met");
    sub->callback([&, name] {
      request = {{"command", name}};
      for (auto [key, value] : {std::pair{"domain", &filter.domain},
                                {"tenant", &filter.tenant},
                                {"job", &filter.job},
                                {"sender", &filter.sender},
                                {"account", &filter.account},
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

  std::string account, credentials;
  CLI::App* passwd = app.add_subcommand(
      "passwd", "Makes the hash and the SCRAM verifier of an account's password, which is asked for or read from the "
                "standard input; needs no relay");
  passwd->add_option("NAME", account, "The account")->required();
  passwd->add_option("--credentials", credentials,
                     "The file to write them into (made if it is not there); without it they are printed");
  CLI::App* accounts = app.add_subcommand("account", "Freezes accounts: new mail gets 450, queued mail is held");
  accounts->require_subcommand(1);
  accounts->add_subcommand("list", "The accounts that are frozen, and why")->callback([&] { request = {{"command", "accounts"}}; });
  for (const char* name : {"freeze", "unfreeze"}) {
    CLI::App* sub = accounts->add_subcommand(name, std::string(name) == "freeze" ? "Freezes one" : "Ends it");
    sub->add_option("NAME", account, "The account")->required();
    sub->callback([&, name] { request = {{"command", name}, {"account", account}}; });
  }

  std::string domain;
  CLI::App* forget = app.add_subcommand(
      "forget-tls", "Forgets that the hosts of a domain with queued mail have had TLS: if they have it no more, mail goes in the clear");
  forget->add_option("DOMAIN", domain, "The recipient domain")->required();
  forget->callback([&] { request = {{"command", "forget-tls"}, {"domain", domain}}; });

  CLI::App* reports = app.add_subcommand("tls-reports", "Reports of what became of TLS, for operators of recipient domains (RFC 8460)");
  reports->require_subcommand(1);
  reports->add_subcommand("list", "What is being counted, and what waits to be sent")->callback([&] {
    request = {{"command", "tls-reports"}};
  });
  reports->add_subcommand("send", "Sends all of it now; counting begins anew")->callback([&] {
    request = {{"command", "send-tls-reports"}};
  });

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    int code = app.exit(error);
    return code == 0 ? 0 : 2;
  }
  if (passwd->parsed()) return set_password(account, credentials);
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
                     : name == "accounts" || name == "freeze" || name == "unfreeze" ? admin::show_accounts(*result)
                     : name == "tls-reports" || name == "send-tls-reports" ? admin::show_tls_reports(*result, view)
                     : name == "forget-tls" ? admin::show_forgotten(*result)
                     : name == "explain" ? admin::show_explain(*result, view)
                                       : admin::show_command(*result, name);
  fmt::print("{}", text);
  return 0;
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) { return millrace::run(argc, argv); }

#include "mail/mailbox_list.h"

#include <gtest/gtest.h>

namespace millrace::mail {
namespace {

using List = std::vector<std::string>;

TEST(MailboxList, TheUsualForms) {
  EXPECT_EQ(parse_mailbox_list("a@example.org"), List{"a@example.org"});
  EXPECT_EQ(parse_mailbox_list(" A B <a@example.org> "), List{"a@example.org"});
  EXPECT_EQ(parse_mailbox_list("\"B, A <x@y>\" <a@example.org>"), List{"a@example.org"});
  EXPECT_EQ(parse_mailbox_list("a@example.org (a (nested) comment, <x@y>)"), List{"a@example.org"});
  EXPECT_EQ(parse_mailbox_list("=?utf-8?q?J=C3=BCrgen?= <j@example.org>, b@example.net"), (List{"j@example.org", "b@example.net"}));
  EXPECT_EQ(parse_mailbox_list("\"say \\\"hi\\\"\" <a@example.org>"), List{"a@example.org"});
}

TEST(MailboxList, WhatCanBeReadInTwoWaysIsRefused) {
  for (const char* value : {"", ",", "nobody", "a@b@c", "<a@x> <b@y>", "<a@x> b@y", "a@x <b@y>", "<@route:a@x>", "a@x b@y",
                            "group: a@x;", "\"a b\"@x", "\"open <a@x>", "(open a@x", "<a@x", "a@x>", "a\\@x", "<a,b@x>", "<>",
                            "a@x,<b", "@x", "a@", "a@x;b@y"}) {
    EXPECT_FALSE(parse_mailbox_list(value)) << value;
  }
}

}  // namespace
}  // namespace millrace::mail

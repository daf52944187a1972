// The server's look at a ClientHello before it chooses a certificate.
#include "tls/client_hello.h"

#include <gtest/gtest.h>

#include <string>

namespace millrace::tls {
namespace {

std::string number(size_t value, size_t octets) {
  std::string text;
  for (size_t i = octets; i-- > 0;) text += static_cast<char>(value >> (8 * i));
  return text;
}
std::string vector(const std::string& content, size_t octets) { return number(content.size(), octets) + content; }
std::string extension(unsigned type, const std::string& content) { return number(type, 2) + vector(content, 2); }
std::string name_extension(const std::string& name) {
  return extension(0, vector(std::string(1, '\0') + vector(name, 2), 2));
}
std::string hello(const std::string& extensions) {
  std::string body = "\x03\x03" + std::string(32, 'r') + vector("", 1) + vector("\x13\x01", 2) +
                     vector(std::string(1, '\0'), 1) + vector(extensions, 2);
  return std::string("\x16\x03\x01", 3) + vector("\x01" + vector(body, 3), 2);
}

TEST(ClientHelloTest, NameIsFound) {
  const std::string record = hello(extension(99, "xyz") + name_extension("mx.example.org"));
  EXPECT_EQ(parse_client_hello(record).server_name, "mx.example.org");
}

TEST(ClientHelloTest, NoExtensionsMeansNoNameAndAnySignature) {
  const std::string record = hello("");
  const ClientHello found = parse_client_hello(record);
  EXPECT_TRUE(found.server_name.empty());
  EXPECT_TRUE(found.takes_ecdsa);
  EXPECT_TRUE(found.takes_rsa);
}

TEST(ClientHelloTest, KindsOfSignatureAreToldApart) {
  const std::string ecdsa = hello(extension(13, vector(std::string("\x04\x03\x05\x03", 4), 2)));
  EXPECT_TRUE(parse_client_hello(ecdsa).takes_ecdsa);
  EXPECT_FALSE(parse_client_hello(ecdsa).takes_rsa);
  const std::string rsa = hello(extension(13, vector(std::string("\x08\x04", 2), 2)));
  EXPECT_FALSE(parse_client_hello(rsa).takes_ecdsa);
  EXPECT_TRUE(parse_client_hello(rsa).takes_rsa);
}

TEST(ClientHelloTest, EveryCutAndEveryFlippedOctetIsHarmless) {
  const std::string record = hello(name_extension("mx.example.org") + extension(13, vector("\x04\x03", 2)));
  for (size_t size = 0; size <= record.size(); ++size) {
    const std::string cut = record.substr(0, size);
    (void)parse_client_hello(cut);
    const RecordLength length = first_record(cut);
    EXPECT_EQ(length.outcome == RecordLength::Outcome::complete, size == record.size());
  }
  for (size_t at = 0; at < record.size(); ++at) {
    std::string changed = record;
    changed[at] = static_cast<char>(changed[at] ^ 0xff);
    (void)parse_client_hello(changed);
  }
}

TEST(ClientHelloTest, PlaintextIsNoRecord) {
  using Outcome = RecordLength::Outcome;
  EXPECT_EQ(first_record("EHLO me\r\n").outcome, Outcome::not_tls);
  EXPECT_EQ(first_record("E").outcome, Outcome::not_tls);
  EXPECT_EQ(first_record("\x16").outcome, Outcome::incomplete);
  EXPECT_EQ(first_record(std::string_view("\x16\x03\x01\xff\xff", 5)).outcome, Outcome::not_tls);
  EXPECT_EQ(first_record(std::string_view("\x16\x03\x01\x00\x00", 5)).outcome, Outcome::not_tls);
}

}  // namespace
}  // namespace millrace::tls

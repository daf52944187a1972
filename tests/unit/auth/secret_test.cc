#include "auth/secret.h"

#include <gtest/gtest.h>

#include "auth/crypto.h"

namespace millrace::auth {
namespace {

// From Ulrich Drepper's specification of SHA-crypt; "Hello world!".
constexpr std::string_view kSha512 =
    "$6$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1";

TEST(Secret, CryptHashesOfOthersAreChecked) {
  Secret secret{std::string(kSha512), std::nullopt};
  EXPECT_TRUE(password_matches(secret, "Hello world!"));
  EXPECT_FALSE(password_matches(secret, "Hello world"));
  EXPECT_FALSE(password_matches(secret, std::string_view("Hello world!\0x", 14)));
  EXPECT_FALSE(password_matches(secret, ""));
}

TEST(Secret, NewHashesAreYescryptAndDiffer) {
  auto one = make_crypt_hash("secret"), two = make_crypt_hash("secret");
  ASSERT_TRUE(one.ok() && two.ok());
  EXPECT_TRUE(one->starts_with("$y$"));
  EXPECT_NE(*one, *two);
  EXPECT_TRUE(check_crypt_hash(*one).ok());
  EXPECT_TRUE(password_matches({*one, std::nullopt}, "secret"));
  EXPECT_FALSE(make_crypt_hash(std::string(513, 'x')).ok());
}

TEST(Secret, WeakUnknownAndCutHashesAreRefused) {
  EXPECT_TRUE(check_crypt_hash(kSha512).ok());
  for (std::string_view bad : {"", "plain", "$1$abc$0123456789012345678901", "aaJfzRpTrFwAo", "$y$", "$y$j9T$", "*", "!",
                               "$6$saltstring$", "$6$saltstring$svn8UoSVapNtMuq1", "$9$x$y"}) {
    EXPECT_FALSE(check_crypt_hash(bad).ok()) << bad;
  }
}

TEST(Secret, VerifiersRoundTripAndAloneCheckPasswords) {
  ScramVerifier verifier = make_scram_verifier("secret", "0123456789abcdef", 4096);
  std::string text = print_scram_verifier(verifier);
  auto parsed = parse_scram_verifier(text);
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(print_scram_verifier(*parsed), text);
  EXPECT_TRUE(password_matches({"", *parsed}, "secret"));
  EXPECT_FALSE(password_matches({"", *parsed}, "Secret"));
  EXPECT_FALSE(password_matches({}, ""));
}

TEST(Secret, BadVerifiersAreRefused) {
  std::string good = print_scram_verifier(make_scram_verifier("secret", "0123456789abcdef", 4096));
  ASSERT_TRUE(parse_scram_verifier(good).ok());
  for (size_t size = 0; size < good.size(); ++size) EXPECT_FALSE(parse_scram_verifier(good.substr(0, size)).ok()) << size;
  EXPECT_FALSE(parse_scram_verifier(good + "A").ok());
  std::string few = good;
  few.replace(few.find("4096"), 4, "1000");
  EXPECT_FALSE(parse_scram_verifier(few).ok());
  std::string many = good;
  many.replace(many.find("4096"), 4, "99999999999");
  EXPECT_FALSE(parse_scram_verifier(many).ok());
}

TEST(Secret, DecoysLookLikeTheRealOnesAndNoPasswordHasThem) {
  std::string decoy = make_decoy_hash(kSha512);
  EXPECT_EQ(decoy.size(), kSha512.size());
  EXPECT_TRUE(decoy.starts_with("$6$saltstring$"));
  EXPECT_FALSE(password_matches({decoy, std::nullopt}, "Hello world!"));
  EXPECT_TRUE(check_crypt_hash(decoy).ok());
  EXPECT_TRUE(check_crypt_hash(make_decoy_hash("")).ok());
}

TEST(Crypto, ComparesAllOctets) {
  EXPECT_TRUE(equal_in_constant_time("", ""));
  EXPECT_TRUE(equal_in_constant_time("abc", "abc"));
  EXPECT_FALSE(equal_in_constant_time("abc", "abd"));
  EXPECT_FALSE(equal_in_constant_time("abc", "ab"));
}

TEST(Crypto, WipingLeavesNothing) {
  std::string secret = "a secret that is longer than what a string keeps inside of itself";
  const char* at = secret.data();
  wipe(secret);
  EXPECT_TRUE(secret.empty());
  EXPECT_EQ(std::string_view(at, 8), std::string_view("\0\0\0\0\0\0\0\0", 8));
}

}  // namespace
}  // namespace millrace::auth

// Certificates for tests, made with openssl(1) into a directory that goes with the object. An authority
// signs them; `make` says what is odd about one.
#pragma once

#include <stdlib.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "base/assert.h"
#include "tls/context.h"

namespace millrace::tls::test {

class Certificates {
 public:
  Certificates() {
    char name[] = "/tmp/millrace-tls-XXXXXX";
    ASSERT(mkdtemp(name) != nullptr);
    directory_ = name;
    run("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj /CN=Authority "
        "-keyout ca.key -out ca.pem");
  }
  ~Certificates() { std::filesystem::remove_all(directory_); }
  Certificates(const Certificates&) = delete;
  Certificates& operator=(const Certificates&) = delete;

  std::string authority() const { return path("ca.pem"); }

  struct Wish {
    std::string names = "DNS:mx.example.org";
    bool rsa = false;
    bool expired = false;
    bool self_signed = false;
  };
  CertificateFiles make(const std::string& name, const Wish& wish) {
    const std::string key = wish.rsa ? "-newkey rsa:2048" : "-newkey ec -pkeyopt ec_paramgen_curve:P-256";
    const std::string extension = " -addext subjectAltName=" + wish.names;
    if (wish.self_signed) {
      run("req -x509 " + key + " -nodes -days 90 -subj /CN=" + name + extension + " -keyout " + name + ".key -out " +
          name + ".pem");
    } else if (wish.expired) {
      // openssl 3.0 sets past dates in `ca` only.
      run("req -new " + key + " -nodes -subj /CN=" + name + extension + " -keyout " + name + ".key -out " + name +
          ".csr");
      const std::string base = path("ca-work");
      std::filesystem::create_directory(base);
      shell("cd " + directory_ + " && : > ca-work/index && echo 01 > ca-work/serial && "
            "printf '[ca]\\ndefault_ca=d\\n[d]\\ndatabase=ca-work/index\\nserial=ca-work/serial\\n"
            "new_certs_dir=ca-work\\ncertificate=ca.pem\\nprivate_key=ca.key\\ndefault_md=sha256\\n"
            "policy=p\\ncopy_extensions=copy\\n[p]\\ncommonName=supplied\\n' > ca-work/conf && "
            "openssl ca -batch -notext -config ca-work/conf -startdate 20200101000000Z "
            "-enddate 20210101000000Z -in " + name + ".csr -out " + name + ".pem > /dev/null 2>&1");
    } else {
      run("req -x509 " + key + " -nodes -subj /CN=" + name + extension + " -days 90" +
          " -addext basicConstraints=critical,CA:FALSE -CA ca.pem -CAkey ca.key -keyout " + name + ".key -out " + name +
          ".pem");
    }
    return {path(name + ".pem"), path(name + ".key")};
  }
  CertificateFiles make(const std::string& name) { return make(name, Wish{}); }
  // Signed with the key of `issuer` ("ca", or another name made before), an authority itself or not.
  CertificateFiles make_below(const std::string& name, const std::string& issuer, bool authority) {
    run("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 90 -subj /CN=" + name +
        (authority ? " -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign"
                   : " -addext basicConstraints=critical,CA:FALSE -addext subjectAltName=DNS:mx.example.org") +
        " -CA " + issuer + ".pem -CAkey " + issuer + ".key -keyout " + name + ".key -out " + name + ".pem");
    return {path(name + ".pem"), path(name + ".key")};
  }
  std::string path(const std::string& name) const { return directory_ + "/" + name; }
  void write(const std::string& name, const std::string& bytes) { std::ofstream(path(name), std::ios::binary) << bytes; }
  // What a command says.
  static std::string read(const std::string& command) {
    std::string bytes;
    FILE* from = popen(command.c_str(), "r");
    ASSERT(from != nullptr);
    for (int c; (c = std::fgetc(from)) != EOF;) bytes += static_cast<char>(c);
    ASSERT(pclose(from) == 0);
    return bytes;
  }

 private:
  void run(const std::string& command) { shell("cd " + directory_ + " && openssl " + command + " > /dev/null 2>&1"); }
  static void shell(const std::string& command) { ASSERT(std::system(command.c_str()) == 0); }
  std::string directory_;
};

}  // namespace millrace::tls::test

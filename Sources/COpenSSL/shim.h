// OpenSSL 3's headers, and its macros and typed stacks as functions that Swift can call. BatonTLS is the only importer.
#ifndef COPENSSL_SHIM_H
#define COPENSSL_SHIM_H

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <string.h>

/// TLS 1.3 and nothing else, no tickets, no cached sessions, small buffers, nothing asked on a terminal. 1: done.
static inline int baton_tls_prepare(SSL_CTX *context) {
    SSL_CTX_set_options(context, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
    SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_security_level(context, 2);
    return SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) == 1
        && SSL_CTX_set_max_proto_version(context, TLS1_3_VERSION) == 1 && SSL_CTX_set_num_tickets(context, 0) == 1;
}

/// The peer has to show a certificate of the loaded CAs, with at most `depth` intermediate ones, and all of at most `octets`.
static inline void baton_tls_verify_peer(SSL_CTX *context, int depth, long octets) {
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    SSL_CTX_set_verify_depth(context, depth);
    SSL_CTX_set_max_cert_list(context, octets);
}

/// The name that the peer's certificate has to carry as a DNS SAN: never the CN, never by a wildcard. 1: done.
static inline int baton_tls_require_name(SSL *ssl, const char *name, size_t length) {
    X509_VERIFY_PARAM *rules = SSL_get0_param(ssl);
    X509_VERIFY_PARAM_set_hostflags(
        rules, X509_CHECK_FLAG_NEVER_CHECK_SUBJECT | X509_CHECK_FLAG_NO_WILDCARDS
            | X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    return X509_VERIFY_PARAM_set1_host(rules, name, length);
}

/// Empty memory is "later", not the end.
static inline BIO *baton_tls_memory(void) {
    BIO *memory = BIO_new(BIO_s_mem());
    if (memory != NULL) BIO_set_mem_eof_return(memory, -1);
    return memory;
}

static inline size_t baton_tls_pending(BIO *memory) { return BIO_ctrl_pending(memory); }

static inline unsigned long baton_tls_error_library(unsigned long code) { return (unsigned long)ERR_GET_LIB(code); }
static inline unsigned long baton_tls_error_reason(unsigned long code) { return (unsigned long)ERR_GET_REASON(code); }

/// The DNS SANs of a certificate as `length octet, octets`, at most `most` of them; longer ones are left out. Returns the octets
/// written, which never are more than `capacity`.
static inline size_t baton_tls_dns_names(X509 *certificate, unsigned char *into, size_t capacity, int most) {
    GENERAL_NAMES *names = X509_get_ext_d2i(certificate, NID_subject_alt_name, NULL, NULL);
    size_t used = 0;
    if (names == NULL) return 0;
    int count = sk_GENERAL_NAME_num(names);
    for (int index = 0; index < count && most > 0; index++) {
        int type = 0;
        void *value = GENERAL_NAME_get0_value(sk_GENERAL_NAME_value(names, index), &type);
        if (type != GEN_DNS || value == NULL) continue;
        int length = ASN1_STRING_length(value);
        if (length < 1 || length > 255 || used + 1 + (size_t)length > capacity) continue;
        into[used] = (unsigned char)length;
        memcpy(into + used + 1, ASN1_STRING_get0_data(value), (size_t)length);
        used += 1 + (size_t)length;
        most--;
    }
    GENERAL_NAMES_free(names);
    return used;
}

#endif

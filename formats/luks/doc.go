// Package luks reads LUKS1 and LUKS2 headers and opens them with a passphrase. It decrypts no payload: it gives the
// volume key, and whoever knows where the payload lies names that key in extents of codec aes-xts-plain64.
//
// Specifications: LUKS On-Disk Format Specification 1.2.3 and LUKS2 On-Disk Format Specification 1.1.1.
//
// Read are key slots of both versions (PBKDF2 with SHA-1, SHA-2 or RIPEMD-160, Argon2i, Argon2id), both LUKS2 headers
// with their checksums, and keys that were split by AFsplit. Not read, and refused by name: ciphers other than
// aes-xts-plain64 (aes-xts-plain is the same below 2 TiB), authenticated encryption, containers in the middle of an
// online reencryption, hardware (OPAL) segments, detached headers, FIDO and TPM tokens.
//
// A header decides how long opening it takes. Limits: 100 million iterations of PBKDF2 and 2 GiB of memory for Argon2 in a
// slot, 64 GiB of memory filled altogether by one slot's passes. A slot beyond them is left out and named.
package luks

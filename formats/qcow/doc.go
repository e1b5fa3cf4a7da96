// Package qcow reads version 1 of QEMU's copy-on-write images, which QEMU 0.8.3 replaced with version 2 in 2006.
//
// There is no specification but QEMU's block/qcow.c. Supported are clusters, compressed clusters (deflate), and backing
// files; their format is not stored, so it is probed. AES payloads need a passphrase.
package qcow

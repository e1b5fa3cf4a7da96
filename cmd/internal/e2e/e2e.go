// Package e2e runs the built commands together on the stored images, and holds what they say against accounts that share
// no code with vmkit: the hashes that an oracle noted when the image was made, and fixtures/closure.py, which knows
// nothing but the map and the host files. With VMKIT_GUEST set, a guest that writes is frozen, cloned and mapped in every
// way there is.
package e2e

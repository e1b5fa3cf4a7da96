// Package verify compares what was copied, or what a map says, with an independent account, and says what differs:
// result records and sha256sum files with a tree, a map with the host files that it tells of, two maps with one another,
// and a map with what other people's libraries read from the same images.
//
// It shares no reader with package extract: the few lines that turn extents into bytes are written anew here, so that a
// fault in one doesn't hide in the other. A difference is a finding; what could not be compared is a problem.
package verify

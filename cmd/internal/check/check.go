// Package check holds the rules that the tree itself keeps; its tests are what `make check` runs.
//
// They are tests, not a tool, so that nothing can land that breaks them.
package check

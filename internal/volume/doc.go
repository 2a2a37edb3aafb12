// Package volume holds the nouns that every part of flocker shares: what a
// volume is, where it is placed, how far a copy of it has come, and what a node
// reports about itself. They are values with Parse, String and Validate; nothing
// here does I/O, reads a clock or keeps state, and nothing here imports another
// package of ours.
package volume

// Package browse reads the files of a snapshot for people: lists of them, the content of one,
// whole directories as a tar stream, which it also unpacks again, and what changed between two
// snapshots. It holds no more in
// memory than a part of one directory's names, and opens nothing but regular files and
// directories: a pipe would never answer, and a device is not the volume's.
//
// Whose files they are is not trusted. Containers make them, and root reads them here: no path
// and no symbolic link leads out of the tree that is read (Files), and nothing that a stream
// says is made outside of the directory that it is unpacked into (Extract). flockd reads
// (internal/daemon/browse.go), flockctl unpacks.
package browse

// Package zfs is a typed layer over the zfs(8) and zpool(8) commands: datasets,
// snapshots, bookmarks, holds, send and receive, resume tokens, and errors that
// a program can tell apart. All text that ZFS prints is parsed here and nowhere
// else, and this is the only place that runs those commands.
//
// It never decides anything about volumes or replication, keeps no state besides
// what the host can do (Capabilities), and never uses receive -F or rollback -r.
// Dataset work goes through github.com/mistifyio/go-zfs where that library has
// what is needed; the rest, which needs contexts, flags or many datasets in one
// command, goes through Runner.
//
// zfsfake is the same thing in memory; zfstest is the suite both must pass.
package zfs
